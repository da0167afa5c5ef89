//! `storm`: all connections are dropped at once, then the replicas are restarted one by one, while
//! users write.

use std::time::{Duration, Instant};

use starling_loadtest::device::Device;
use starling_loadtest::history::{Kind, Outcome, Record};
use starling_loadtest::workload::{self, Work};

use super::Measured;
use super::recorded::{groups_of, in_groups, is_back, warm_up};
use super::users::{Users, work};
use crate::tool::arith::real;
use crate::tool::meter::Mark;
use crate::tool::stage::{Figure, Stage};
use crate::tool::watch::Watch;

/// Mean pause between two messages of a user.
const PACE: Duration = Duration::from_millis(100);
/// Time limit for all devices to reconnect, after the drop and after the restarts.
const BACK: Duration = Duration::from_mins(1);

/// A rolling restart of all replicas, by the record's clock.
#[derive(Clone, Copy, Debug)]
struct Restart {
    from_us: u64,
    until_us: u64,
    took: Duration,
}

pub(super) async fn run(stage: &Stage) -> Result<Measured, String> {
    let users = in_groups(stage).await?;
    let work = work(stage, PACE);
    for number in 0..users.devices.len() {
        write(&work, &users, number);
    }

    let watch = Watch::begin(&stage.processes, Vec::new());
    let from_us = warm_up(stage, &users).await;
    let half = Duration::from_secs(stage.load.seconds) / 2;
    tokio::time::sleep(half).await;

    let dropped_us = users.history.now_us();
    let (back, missing) = drop_all(&users.devices).await;
    tokio::time::sleep(half).await;

    let restart = restart(stage, &users).await?;
    work.finish().await;

    let count = users.devices.len();
    let (record, mut measured) = users.judge(stage, watch, from_us).await?;
    measured.errors += missing;
    measured.figures.extend(returns(&back, count));

    let mut happened = vec![(dropped_us, "sockets dropped")];
    match restart {
        Some(restart) => {
            measured.notes.extend(stage.site.as_ref().and_then(|site| site.stops()));
            measured.figures.extend(restarted(&record, restart, stage.replicas().len()));
            happened.extend([(restart.from_us, "restart"), (restart.until_us, "done")]);
        }
        None => measured.notes.push(
            "the replicas were not restarted, because this program did not start them".into(),
        ),
    }

    let mark = |(at_us, word): &(u64, &str)| Mark {
        second: real(at_us - from_us) / 1e6,
        word: (*word).to_owned(),
    };
    for meter in &mut measured.meters {
        meter.marks = happened.iter().map(mark).collect();
    }
    Ok(measured)
}

/// Starts a writer. Writers differ: most give up a send without an answer, some retry it with the
/// same key, some send over WebSocket, some repeat each send.
fn write(work: &Work, users: &Users, number: usize) {
    let (actor, device) = (users.community.actors[number].clone(), users.devices[number].clone());
    let (own, chats) = (work.clone(), groups_of(users, number));
    match number % 8 {
        2 => work.spawn(workload::replay(own.at_pace(PACE * 4), actor, chats)),
        3 | 6 => work.spawn(workload::retry(own, actor, chats)),
        5 | 7 => work.spawn(workload::write_on_socket(own, device, chats, 1)),
        _ => work.spawn(workload::write(own, actor, chats)),
    }
}

/// Cuts all connections. Returns the times until each device was live again, ascending, and the
/// number of devices that never were.
async fn drop_all(devices: &[Device]) -> (Vec<Duration>, u64) {
    let before: Vec<u32> = devices.iter().map(|device| device.status().connections).collect();
    let began = Instant::now();
    for device in devices {
        device.cut().await;
    }

    let mut back = Vec::with_capacity(devices.len());
    let mut away: Vec<(&Device, u32)> = devices.iter().zip(before).collect();
    while !away.is_empty() && began.elapsed() < BACK {
        let came = away.extract_if(.., |(device, before)| is_back(device, *before)).count();
        back.extend(std::iter::repeat_n(began.elapsed(), came));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (back, away.len() as u64)
}

/// Times until 50 %, 99 % and 100 % of the connections were live again.
fn returns(back: &[Duration], count: usize) -> Vec<Figure> {
    let figure = |(word, share): (&str, usize)| {
        let last = back.get((back.len() * share / 100).min(back.len().saturating_sub(1)));
        let name = format!("after a storm over {count} sockets, {word} are live again");
        Figure::cost(name, last.copied().unwrap_or_default().as_secs_f64() * 1e3, "ms")
    };
    [("half", 50), ("99 %", 99), ("all", 100)].into_iter().map(figure).collect()
}

/// Restarts the replicas one by one and waits until every device is live. Does nothing if this
/// program did not start them.
async fn restart(stage: &Stage, users: &Users) -> Result<Option<Restart>, String> {
    let Some(site) = &stage.site else { return Ok(None) };
    eprintln!("restarting {} replicas one by one", site.replicas().len());
    let from_us = users.history.now_us();
    let took = site.restart_each().await?;
    if !workload::wait_until_live(&users.devices, BACK).await {
        return Err("not every device came back after the restart".to_owned());
    }
    Ok(Some(Restart { from_us, until_us: users.history.now_us(), took }))
}

/// Latency and failures of the sends during a restart.
fn restarted(record: &Record, restart: Restart, replicas: usize) -> Vec<Figure> {
    let Restart { from_us, until_us, took } = restart;

    let mut seconds: Vec<Vec<u64>> = Vec::new();
    let mut unanswered = 0;
    for op in record.ops.iter().filter(|op| (from_us..until_us).contains(&op.invoked_us)) {
        let (Kind::Send { .. }, Some(completed_us)) = (op.kind, op.completed_us) else { continue };
        match op.outcome {
            Some(Outcome::Ok(_)) => {
                let second = usize::try_from((op.invoked_us - from_us) / 1_000_000).unwrap_or(0);
                seconds.resize_with(seconds.len().max(second + 1), Vec::new);
                seconds[second].push(completed_us.saturating_sub(op.invoked_us));
            }
            Some(Outcome::Unknown) => unanswered += 1,
            _ => {}
        }
    }

    let p99 = |mut took_us: Vec<u64>| {
        took_us.sort_unstable();
        took_us.get(took_us.len().saturating_sub(1) * 99 / 100).copied().unwrap_or(0)
    };
    let worst_us = seconds.into_iter().map(p99).max().unwrap_or(0);

    vec![
        Figure::cost(format!("restart of {replicas}, one by one"), took.as_secs_f64(), "s"),
        Figure::cost(
            "sends during the restart, p99 of the worst second",
            real(worst_us) / 1e3,
            "ms",
        ),
        Figure::cost("sends during the restart that nobody answered", real(unanswered), ""),
    ]
}

#[cfg(test)]
mod tests {
    use starling_loadtest::history::{Bounds, Digest, History, Value};

    use super::*;

    #[test]
    fn a_restart_reports_its_worst_second_and_the_sends_without_an_answer() {
        let history = History::new(Bounds::default());
        let (user, chat) = (history.name("u"), history.name("c"));
        for outcome in [Outcome::Ok(Value::Done), Outcome::Unknown, Outcome::Ok(Value::Done)] {
            let kind = Kind::Send { chat, text: Digest::of("x"), client_id: Digest::NONE };
            let op = history.invoke(user, user, None, kind);
            history.complete(op, outcome);
        }

        let mut record = history.take();
        for (op, (invoked_us, took_us)) in
            record.ops.iter_mut().zip([(1_000_100, 5_000), (1_500_000, 1), (2_900_000, 70_000)])
        {
            (op.invoked_us, op.completed_us) = (invoked_us, Some(invoked_us + took_us));
        }

        let restart =
            Restart { from_us: 1_000_000, until_us: 4_000_000, took: Duration::from_millis(2500) };
        let values: Vec<f64> =
            restarted(&record, restart, 2).iter().map(|figure| figure.value).collect();
        assert_eq!(values, [2.5, 70.0, 1.0]);
    }

    #[test]
    fn reconnects_are_reported_at_50_99_and_100_percent() {
        let back: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        let values: Vec<f64> =
            returns(&back, 100).iter().map(|figure| figure.value.round()).collect();
        assert_eq!(values, [51.0, 100.0, 100.0]);
        assert!(returns(&[], 3).iter().all(|figure| figure.value.abs() < 1e-9));
    }
}
