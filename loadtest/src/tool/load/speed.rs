//! `sends` and `fanout`: the speed of durable sends and of deliveries.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::Method;
use serde_json::json;
use starling_loadtest::wire::Chat;
use tokio::task::JoinSet;

use super::Measured;
use super::listeners::Listeners;
use super::pace::Pace;
use super::proof::prove;
use super::sender::{Deliveries, Plan, Sender, filler};
use crate::tool::arith::{ratio, real};
use crate::tool::light::Light;
use crate::tool::meter::{Meter, Summary};
use crate::tool::stage::{Figure, FloorKind, Stage};
use crate::tool::watch::{Spent, Watch};

/// Concurrent requests while a workload is set up, and while its result is checked.
pub(super) const REQUESTS_MAX: usize = 16;
/// Most members in the request that creates a channel; the server's limit.
const MEMBERS_AT_ONCE: usize = 100;
/// Time limit for the last message to reach its sender's own connection.
const SETTLE: Duration = Duration::from_secs(15);
/// Time limit of a burst.
const BURST: Duration = Duration::from_hours(1);

/// Creates a chat, or finds the existing private chat of a pair.
pub(super) async fn chat(
    stage: &Stage,
    owner: usize,
    kind: &str,
    members: &[usize],
) -> Result<Chat, String> {
    let ids: Vec<&str> =
        members.iter().map(|user| stage.accounts[*user].user_id.as_str()).collect();
    let mut body = json!({ "kind": kind, "member_ids": ids });
    if kind != "private" {
        body["name"] = json!("Load test");
    }
    stage.request(owner, owner, Method::POST, "/chats", Some(&body)).await
}

pub(super) fn sender(stage: &Stage, (light, user): (Light, usize), chat: Chat) -> Sender {
    Sender {
        light,
        user,
        chat: chat.id,
        first_id: chat.last_message_id,
        key: format!("{}-{user}", stage.tag),
        acknowledged: Vec::new(),
        sent: 0,
        errors: 0,
        deliveries: None,
    }
}

/// Runs `sends`: each sender writes in its own private chat.
pub(super) async fn sends(stage: &Stage) -> Result<Measured, String> {
    let senders = usize::from(stage.load.senders);
    stage.need_accounts(2 * senders)?;
    let making = (0..senders).map(|number| {
        let members = [2 * number + 1];
        async move { chat(stage, 2 * number, "private", &members).await }
    });
    let chats: Vec<Chat> =
        stream::iter(making.collect::<Vec<_>>()).buffered(REQUESTS_MAX).try_collect().await?;

    let mut listening = Vec::new();
    if stage.load.peers_online {
        let lights = stage.connect_all((0..senders).map(|number| 2 * number + 1)).await?;
        listening = lights.into_iter().zip(chats.iter().map(|chat| chat.id.clone())).collect();
    }

    let lights = stage.connect_all((0..senders).map(|number| 2 * number)).await?;
    let users = lights.into_iter().enumerate().map(|(number, light)| (light, 2 * number));
    let senders = users.zip(chats).map(|(user, chat)| sender(stage, user, chat)).collect();
    let ran = drive(stage, senders, listening, None, None).await?;

    let (sends, count) = (&ran.sends, ran.sends.count_with_warm_up);
    // The floors are measured in a closed loop, so an open loop has no comparable latency floors.
    let closed = stage.load.rate.is_none();
    let kind = if closed { "closed loop" } else { "open loop" };
    let mut figures = vec![
        Figure::rate(format!("durable sends, {kind}"), sends.rate, "/s")
            .over(FloorKind::GroupedSends),
        Figure::cost("send to acknowledgement, p50", real(sends.p50_us) / 1e3, "ms")
            .over_if(closed, FloorKind::GroupedP50),
        Figure::cost("send to acknowledgement, p99", real(sends.p99_us) / 1e3, "ms")
            .over_if(closed, FloorKind::GroupedP99),
        Figure::cost("send to acknowledgement, p99.9", real(sends.p999_us) / 1e3, "ms"),
    ];

    if let Some(deliveries) = &ran.deliveries {
        let latency = |quantile: &str, us| {
            Figure::cost(format!("send to delivery, {quantile}"), real(us) / 1e3, "ms")
        };
        figures.push(latency("p50", deliveries.p50_us).over_if(closed, FloorKind::GroupedP50));
        figures.push(latency("p99", deliveries.p99_us).over_if(closed, FloorKind::GroupedP99));
    }

    costs(&mut figures, &ran.spent, "send", count, FloorKind::GroupedCpu);
    Ok(ran.measured(figures))
}

/// Runs `fanout`: one user writes into a channel with many members online.
pub(super) async fn fan_out(stage: &Stage) -> Result<Measured, String> {
    let members: Vec<usize> = (1..=usize::from(stage.load.members)).collect();
    stage.need_accounts(members.len() + 1)?;
    let (first, later) = members.split_at(members.len().min(MEMBERS_AT_ONCE));
    let made = chat(stage, 0, "channel", first).await?;
    for user in later {
        let body = json!({ "user_id": stage.accounts[*user].user_id });
        let path = format!("/chats/{}/members", made.id);
        let _: serde_json::Value = stage.request(0, 0, Method::POST, &path, Some(&body)).await?;
    }

    let chat_id = made.id.clone();
    let slow = usize::from(stage.load.slow).min(members.len() - 1);
    let (slow_members, others) = members.split_at(slow);
    let mut listening = stage.connect_all(others.iter().copied()).await?;
    listening.extend(stage.connect_slow(slow_members.iter().copied()).await?);
    let listening: Vec<_> = listening.into_iter().map(|light| (light, chat_id.clone())).collect();

    let light = stage.connect_all(std::iter::once(0)).await?.pop().ok_or("no connection")?;
    let deliveries = Deliveries::new(others.len());
    let mut owner = sender(stage, (light, 0), made);
    let closed = stage.load.rate.is_none();
    owner.deliveries = closed.then(|| deliveries.clone());
    let ran = drive(stage, vec![owner], listening, Some(deliveries), None).await?;

    let mut figures = Vec::new();
    if let Some(delivered) = &ran.deliveries {
        figures = vec![
            Figure::rate(format!("deliveries to {} members", others.len()), delivered.rate, "/s")
                .over(FloorKind::FanOut),
            Figure::rate("messages into the channel", ran.sends.rate, "/s"),
            Figure::cost("send to delivery, p50", real(delivered.p50_us) / 1e3, "ms")
                .over_if(closed, FloorKind::FanOutP50),
            Figure::cost("send to delivery, p99", real(delivered.p99_us) / 1e3, "ms")
                .over_if(closed, FloorKind::FanOutP99),
        ];
        costs(
            &mut figures,
            &ran.spent,
            "delivery",
            delivered.count_with_warm_up,
            FloorKind::FanOutCpu,
        );
    }

    let mut measured = ran.measured(figures);
    if slow > 0 {
        measured.notes.push(format!(
            "{slow} further members read nothing until the end, then received every rev in order"
        ));
    }
    Ok(measured)
}

/// Adds the CPU time of each role per operation. Only the server's has a floor.
fn costs(figures: &mut Vec<Figure>, spent: &Spent, what: &str, count: u64, floor: FloorKind) {
    for role in &spent.roles {
        let each = spent.cpu_us_each(role.role, count);
        figures.push(
            Figure::cost(format!("CPU of {} a {what}", role.role), each, "µs")
                .over_if(role.role == "server", floor),
        );
    }
}

/// The measurements of [`drive`].
pub(super) struct Ran {
    pub(super) sends: Summary,
    deliveries: Option<Summary>,
    spent: Spent,
    errors: u64,
    acknowledged: u64,
    /// Messages that the check read back.
    read: u64,
    listeners: u64,
}

impl Ran {
    pub(super) fn measured(self, mut figures: Vec<Figure>) -> Measured {
        let Self { sends, deliveries, spent, errors, acknowledged, read, listeners } = self;
        let tried = acknowledged + errors;
        figures.push(Figure::cost("errors", 100.0 * ratio(real(errors), real(tried)), "%"));
        let mut proven =
            format!("{acknowledged} acknowledged sends are among {read} messages read back");
        if listeners > 0 {
            proven = format!(
                "{proven}; {listeners} listeners received every rev in order, up to the last"
            );
        }
        let meters = std::iter::once(sends).chain(deliveries).collect();
        Measured { figures, meters, spent, errors, proven, notes: Vec::new() }
    }
}

/// Sends until the end of the run, or until each sender has sent `burst` messages. Then checks the
/// acknowledged messages and the deliveries.
pub(super) async fn drive(
    stage: &Stage,
    senders: Vec<Sender>,
    listening: Vec<(Light, String)>,
    deliveries: Option<Arc<Deliveries>>,
    burst: Option<u32>,
) -> Result<Ran, String> {
    let warm_up =
        if burst.is_some() { Duration::ZERO } else { Duration::from_secs(stage.load.warm_up) };
    let sends = Meter::new("sends", warm_up)?;
    let delivered =
        if listening.is_empty() { None } else { Some(Meter::new("deliveries", warm_up)?) };
    let listeners = Listeners::start(stage, listening, delivered.as_ref(), deliveries.as_ref());
    let watch = Watch::begin(
        &stage.processes,
        std::iter::once(sends.clone()).chain(delivered.clone()).collect(),
    );

    let start = Instant::now();
    let span = if burst.is_some() { BURST } else { Duration::from_secs(stage.load.seconds) };
    let until = start + warm_up + span;
    let sending = start_senders(stage, senders, burst, &sends, start, until);
    let ending = async {
        if burst.is_none() {
            tokio::time::sleep_until(until.into()).await;
            sends.stop();
            if let Some(delivered) = &delivered {
                delivered.stop();
            }
        }
    };
    let ((), mut senders) = tokio::join!(ending, sending.join_all());
    sends.stop();
    let spent = watch.finish();

    until_received(stage, &mut senders).await?;
    let rev_of =
        |chat: &str| senders.iter().find(|it| it.chat == chat).map_or(0, |it| it.light.rev(chat));
    let (listeners, lost) = listeners.finish(stage, rev_of).await;
    let proving =
        senders.iter().enumerate().map(|(number, sender)| prove(stage, number + 1, sender));
    let read: Vec<u64> =
        stream::iter(proving.collect::<Vec<_>>()).buffered(REQUESTS_MAX).try_collect().await?;

    Ok(Ran {
        sends: sends.summary(),
        deliveries: delivered.map(|meter| meter.summary()),
        spent,
        errors: lost + senders.iter().map(|sender| sender.errors).sum::<u64>(),
        acknowledged: senders.iter().map(|sender| sender.acknowledged.len() as u64).sum(),
        read: read.iter().sum(),
        listeners,
    })
}

/// Starts each sender in a task.
fn start_senders(
    stage: &Stage,
    senders: Vec<Sender>,
    burst: Option<u32>,
    meter: &Arc<Meter>,
    start: Instant,
    until: Instant,
) -> JoinSet<Sender> {
    let (count, filler) = (senders.len(), filler(stage.load.text_bytes));
    let mut sending = JoinSet::new();
    for (number, sender) in senders.into_iter().enumerate() {
        let pace = match (burst, stage.load.rate) {
            // An earlier run may have sent some of the messages.
            (Some(messages), _) => Pace::Burst(messages.saturating_sub(sender.first_id)),
            (None, Some(rate)) => Pace::open(start, rate, number, count),
            (None, None) => Pace::Closed,
        };
        sending.spawn(sender.run(Plan {
            pace,
            until,
            epoch: stage.epoch,
            meter: meter.clone(),
            filler: filler.clone(),
        }));
    }
    sending
}

/// Waits until each sender has received its chat up to the last rev.
async fn until_received(stage: &Stage, senders: &mut [Sender]) -> Result<(), String> {
    for sender in senders {
        let rev = last_rev(stage, sender).await?;
        if !sender.until_rev(rev, SETTLE).await {
            let next = sender.light.rev(&sender.chat) + 1;
            stage.verdict.chat(
                &sender.chat,
                next,
                &format!("its sender did not receive it; the chat is at {rev}"),
            );
        }
    }
    Ok(())
}

async fn last_rev(stage: &Stage, sender: &Sender) -> Result<u32, String> {
    let path = format!("/chats/{}", sender.chat);
    let chat: Chat = stage.request(sender.user, sender.user, Method::GET, &path, None).await?;
    Ok(chat.rev)
}
