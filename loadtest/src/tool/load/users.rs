//! Users whose every operation and frame is recorded and checked.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use starling_loadtest::actor::Actor;
use starling_loadtest::checker::{Evidence, FinalChat, FinalLog, Limits, check};
use starling_loadtest::client::Http;
use starling_loadtest::device::{Device, DeviceOptions};
use starling_loadtest::history::{Bounds, History, Kind, Name, Outcome, Record};
use starling_loadtest::workload::{self, Community, Work};
use tokio_util::sync::CancellationToken;

use super::Measured;
use crate::tool::arith::{ratio, real, shown};
use crate::tool::meter::{Second, Summary};
use crate::tool::stage::{Figure, FloorKind, Stage};
use crate::tool::watch::{Spent, Watch};

/// Timeout of a request.
const REQUEST: Duration = Duration::from_secs(15);
/// Time limit for all devices to connect.
const CONNECT: Duration = Duration::from_mins(1);
/// Time limit for all devices to receive every event, after the last change.
const HEAL: Duration = Duration::from_secs(10);
/// Wait for unexpected frames, after all expected frames have arrived.
pub(super) const SETTLE: Duration = Duration::from_millis(500);

/// The measured part of a record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    /// Start, by the record's clock.
    pub from_us: u64,
    /// End; no fault was injected after it.
    pub until_us: u64,
    /// Time from the end until all devices had received every event.
    pub heal: Duration,
}

/// Users with a device each.
pub(super) struct Users {
    pub community: Community,
    pub devices: Vec<Device>,
    pub history: Arc<History>,
    /// Ids of the chats of this run. The record contains all their changes.
    pub chats: Vec<String>,
    devices_work: Work,
}

impl Users {
    /// Signs in the users of the load.
    pub(super) async fn gather(stage: &Stage) -> Result<Self, String> {
        let count = usize::from(stage.load.people);
        stage.need_accounts(count)?;
        let history = History::new(Bounds::default());
        let accounts = stage.accounts[..count].to_vec();
        let community = Community::gather(&stage.bases, REQUEST, &history, accounts).await?;
        Ok(Self {
            community,
            devices: Vec::new(),
            history,
            chats: Vec::new(),
            devices_work: work(stage, Duration::ZERO),
        })
    }

    /// Creates a group of these users. A private chat may have messages from before the record; a
    /// group has none.
    pub(super) async fn group(&mut self, users: &[usize]) -> Result<String, String> {
        let chat = self.community.group(users).await?;
        self.chats.push(chat.clone());
        Ok(chat)
    }

    /// Connects a device for each user.
    pub(super) async fn connect(&mut self, stage: &Stage) -> Result<(), String> {
        self.devices = connect(stage, &self.devices_work, &self.community.actors).await?;
        Ok(())
    }

    /// The same, but the devices of the users for which `parts` returns true run until `parting`
    /// ends. Returns these devices.
    pub(super) async fn connect_parted(
        &mut self,
        stage: &Stage,
        parting: &Work,
        parts: impl Fn(usize) -> bool,
    ) -> Result<Vec<Device>, String> {
        let numbered = self.community.actors.iter().cloned().enumerate();
        let (gone, here): (Vec<_>, Vec<_>) = numbered.partition(|(number, _)| parts(*number));
        let actors = |some: Vec<(usize, Actor)>| {
            some.into_iter().map(|(_, actor)| actor).collect::<Vec<_>>()
        };
        self.devices = connect(stage, &self.devices_work, &actors(here)).await?;
        connect(stage, parting, &actors(gone)).await
    }

    /// Waits for the last frames, then runs the checker.
    pub(super) async fn finish(
        self,
        stage: &Stage,
        watch: Watch,
        from_us: u64,
    ) -> Result<Measured, String> {
        Ok(self.judge(stage, watch, from_us).await?.1)
    }

    /// The same; also returns the record.
    pub(super) async fn judge(
        self,
        stage: &Stage,
        watch: Watch,
        from_us: u64,
    ) -> Result<(Record, Measured), String> {
        let until_us = self.history.now_us();
        let spent = watch.finish();
        let log = self.final_log(&stage.replicas()).await?;
        let heal = self.until_caught_up(&log, until_us).await;
        tokio::time::sleep(SETTLE).await;
        self.conclude(stage, &log, spent, Span { from_us, until_us, heal }).await
    }

    /// Stops the devices and runs the checker.
    pub(super) async fn conclude(
        self,
        stage: &Stage,
        log: &FinalLog,
        spent: Spent,
        span: Span,
    ) -> Result<(Record, Measured), String> {
        let Span { from_us, until_us, heal } = span;
        self.devices_work.finish().await;
        let record = self.history.take();

        let limits = Limits { healed_us: Some(until_us), heal, ..Limits::default() };
        let report = check(&Evidence { record: &record, log, secrets: &[], exposed: &[], limits });
        for (invariant, finding) in &report.findings {
            let examples =
                finding.examples.iter().map(|example| format!("{}: {example}", invariant.words()));
            stage.verdict.add(finding.count, examples);
        }

        let counts = report.counts;
        let proven = format!(
            "{} operations and {} frames of {} devices passed every invariant; \
             {} acknowledged sends in {} chats",
            counts.operations, counts.frames, counts.devices, counts.acknowledged, counts.chats
        );
        let (figures, errors) = figures(&record, from_us, until_us);
        let meters = vec![over_time(&record, from_us, until_us)];
        let notes = vec![format!(
            "all devices had received every event within {} s of the last change",
            shown(heal.as_secs_f64())
        )];
        let notes = if report.is_clean() { notes } else { Vec::new() };
        let measured = Measured { figures, meters, spent, errors, proven, notes };
        Ok((record, measured))
    }

    /// Reads the final state of the chats from each of these replicas. The balancer is bypassed,
    /// because it would hide which replica answers.
    pub(super) async fn final_log(&self, replicas: &[String]) -> Result<FinalLog, String> {
        let http = Http::new(replicas, REQUEST)?;
        let actor =
            |actor: &Actor| Actor::new(http.clone(), self.history.clone(), actor.account().clone());
        let actors: Vec<Actor> = self.community.actors.iter().map(actor).collect();
        let mut log = workload::read_final_log(&actors).await?;
        self.keep_own_chats(&mut log);
        Ok(log)
    }

    /// Waits until every device has received every event of its user's chats, at most [`HEAL`]
    /// after the last change. Returns the time from the change until then.
    pub(super) async fn until_caught_up(&self, log: &FinalLog, changed_us: u64) -> Duration {
        loop {
            let elapsed = Duration::from_micros(self.history.now_us().saturating_sub(changed_us));
            if elapsed >= HEAL {
                // The checker needs a record that covers the whole time limit.
                return HEAL;
            }
            if self.devices.iter().all(|device| has_received_all(device, log)) {
                return elapsed;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Removes other chats, whose earlier changes are not in the record.
    fn keep_own_chats(&self, log: &mut FinalLog) {
        let own: HashSet<Name> = self.chats.iter().map(|chat| self.history.name(chat)).collect();
        log.chats.retain(|chat| own.contains(&chat.chat));
        log.views.retain(|view| own.contains(&view.chat.chat));
    }
}

async fn connect(stage: &Stage, work: &Work, actors: &[Actor]) -> Result<Vec<Device>, String> {
    let options = DeviceOptions { seed: stage.load.seed, ..DeviceOptions::default() };
    let devices = workload::connect_all(work, actors, options);
    if workload::wait_until_live(&devices, CONNECT).await {
        return Ok(devices);
    }
    work.finish().await;
    Err("not every device could connect".to_owned())
}

/// Whether a device has received every event of its user's chats.
fn has_received_all(device: &Device, log: &FinalLog) -> bool {
    let user = device.actor().user();
    let is_in =
        |chat: &&FinalChat| chat.members.iter().any(|it| it.user == user && it.left_rev.is_none());
    let is_current =
        |chat: &FinalChat| device.known(chat.chat).is_some_and(|known| known >= chat.rev);

    device.status().live && !device.is_reloading() && log.chats.iter().filter(is_in).all(is_current)
}

/// Creates work at this pace, with the seed of this run.
pub(super) fn work(stage: &Stage, pace: Duration) -> Work {
    // Texts are unique within a run. The tag makes them differ from those of other runs.
    let tag = u64::from_str_radix(&stage.tag, 16).unwrap_or(0);
    Work::new(stage.load.seed ^ (tag << 32), pace, CancellationToken::new())
}

/// Name of an operation in tables.
fn word(kind: &Kind) -> Option<&'static str> {
    Some(match kind {
        Kind::Send { .. } => "send",
        Kind::Edit { .. } => "edit",
        Kind::Remove { .. } => "remove",
        Kind::Join { .. } => "join",
        Kind::Leave { .. } => "leave",
        Kind::MarkRead { .. } => "read marker",
        Kind::History { .. } => "history page",
        Kind::Changes { .. } => "changes",
        Kind::Chat { .. } => "one chat",
        Kind::Chats => "list of chats",
        Kind::Login => "login",
        Kind::Revoke { .. } => "revocation",
        _ => return None,
    })
}

/// Floors of the p50 and p99 of an operation. At a pace, operations rarely overlap, so the floors
/// are those of one operation at a time. A login has none: its password hash is slow on purpose.
fn floors(word: &str) -> Option<[FloorKind; 2]> {
    match word {
        "login" => None,
        "history page" | "changes" | "one chat" | "list of chats" => {
            Some([FloorKind::LoneReadP50, FloorKind::LoneReadP99])
        }
        _ => Some([FloorKind::LoneSendP50, FloorKind::LoneSendP99]),
    }
}

/// Returns the rate and latency of each kind of operation in a part of the record, and the number
/// of operations without an answer.
fn figures(record: &Record, from_us: u64, until_us: u64) -> (Vec<Figure>, u64) {
    let mut kinds: Vec<(&'static str, Histogram<u64>)> = Vec::new();
    let mut unknown = 0;
    for op in record.ops.iter().filter(|op| (from_us..until_us).contains(&op.invoked_us)) {
        let (Some(word), Some(completed_us)) = (word(&op.kind), op.completed_us) else { continue };
        unknown += u64::from(matches!(op.outcome, Some(Outcome::Unknown)));
        if !matches!(op.outcome, Some(Outcome::Ok(_))) {
            continue;
        }
        let took_us = completed_us.saturating_sub(op.invoked_us).max(1);

        if let Some((_, histogram)) = kinds.iter_mut().find(|(kind, _)| *kind == word) {
            histogram.saturating_record(took_us);
        } else if let Ok(mut histogram) = Histogram::new_with_max(60_000_000, 3) {
            histogram.saturating_record(took_us);
            kinds.push((word, histogram));
        }
    }

    kinds.sort_unstable_by_key(|(word, _)| *word);

    let span_s = real(until_us.saturating_sub(from_us)) / 1e6;
    let mut figures = Vec::new();
    for (word, histogram) in &kinds {
        figures.push(Figure::rate(*word, ratio(real(histogram.len()), span_s), "/s"));
        let floors = floors(word).map_or([None; 2], |floors| floors.map(Some));
        for ((quantile, share), floor) in [("p50", 0.5), ("p99", 0.99)].into_iter().zip(floors) {
            let ms = real(histogram.value_at_quantile(share)) / 1e3;
            figures.push(Figure { floor, ..Figure::cost(format!("{word}, {quantile}"), ms, "ms") });
        }
    }
    (figures, unknown)
}

/// Returns the answered operations of a part of the record, second by second.
fn over_time(record: &Record, from_us: u64, until_us: u64) -> Summary {
    let mut seconds: Vec<Vec<u64>> = Vec::new();
    for op in record.ops.iter().filter(|op| (from_us..until_us).contains(&op.invoked_us)) {
        let (Some(completed_us), Some(Outcome::Ok(_))) = (op.completed_us, &op.outcome) else {
            continue;
        };
        let second = usize::try_from((op.invoked_us - from_us) / 1_000_000).unwrap_or(0);
        seconds.resize_with(seconds.len().max(second + 1), Vec::new);
        seconds[second].push(completed_us.saturating_sub(op.invoked_us));
    }

    let count = seconds.iter().map(|second| second.len() as u64).sum();
    let second = |mut took: Vec<u64>| {
        took.sort_unstable();
        let at = |percent: usize| {
            took.get(took.len().saturating_sub(1) * percent / 100).copied().unwrap_or(0)
        };
        Second { count: took.len() as u64, p50_us: at(50), p99_us: at(99) }
    };

    let rate = ratio(real(count), real(until_us.saturating_sub(from_us)) / 1e6);
    let seconds = seconds.into_iter().map(second).collect();
    Summary {
        name: "operations".to_owned(),
        count,
        count_with_warm_up: count,
        rate,
        seconds,
        ..Summary::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_operations_in_the_span_count() {
        let history = History::new(Bounds::default());
        let user = history.name("u");
        for outcome in [Outcome::Ok(starling_loadtest::history::Value::Done), Outcome::Unknown] {
            let op = history.invoke(user, user, None, Kind::Chats);
            history.complete(op, outcome);
        }

        let record = history.take();
        let (found, unknown) = figures(&record, 0, 1_000_000);
        assert_eq!((found.len(), unknown), (3, 1));
        assert!((found[0].value - 1.0).abs() < 1e-9, "{found:?}");
        assert_eq!(figures(&record, 5_000_000, 6_000_000), (Vec::new(), 0));
        let summary = over_time(&record, 0, 1_000_000);
        assert_eq!((summary.count, summary.seconds.len(), summary.seconds[0].count), (1, 1, 1));
    }
}
