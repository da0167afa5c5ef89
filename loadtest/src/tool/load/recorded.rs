//! Workloads that are about being right: `mix`, `churn`, `storm`.

use std::time::{Duration, Instant};

use rand::RngExt;
use starling_loadtest::actor::HistoryPage;
use starling_loadtest::device::Device;
use starling_loadtest::workload::{self, Work};

use super::Measured;
use super::users::{Users, work};
use crate::tool::arith::real;
use crate::tool::stage::{Figure, Stage};
use crate::tool::watch::Watch;

/// Members of a group in these workloads.
const GROUP: usize = 8;
/// How long all devices may take to be back after a storm.
const BACK: Duration = Duration::from_mins(1);

/// Users in groups of eight, each a member of two.
async fn in_groups(stage: &Stage) -> Result<Users, String> {
    let mut users = Users::gather(stage).await?;
    let count = users.community.actors.len();
    for first in (0..count).step_by(GROUP / 2) {
        let members: Vec<usize> = (first..first + GROUP.min(count)).map(|number| number % count).collect();
        users.group(&members).await?;
    }
    users.connect(stage).await?;
    Ok(users)
}

/// The two groups of a user.
fn groups_of(users: &Users, user: usize) -> Vec<String> {
    let (half, count) = (GROUP / 2, users.chats.len());
    let last = user / half;
    vec![users.chats[last].clone(), users.chats[(last + count - 1) % count].clone()]
}

async fn warm_up(stage: &Stage, users: &Users) -> u64 {
    tokio::time::sleep(Duration::from_secs(stage.load.warm_up)).await;
    users.history.now_us()
}

/// A day of ordinary use, in these proportions of 100 things that a user does: 38 pages of history, 15 lists of chats,
/// 12 looks at one chat, 8 reads of changes, 14 messages (half of them announced by typing), 8 read markers, 3 edits
/// and removals, 2 reconnects.
pub(super) async fn mix(stage: &Stage) -> Result<Measured, String> {
    let users = in_groups(stage).await?;
    let work = work(stage, Duration::from_millis(200));
    for (number, device) in users.devices.iter().enumerate() {
        work.spawn(day(work.clone(), device.clone(), groups_of(&users, number)));
    }
    let watch = Watch::begin(&stage.processes, Vec::new());
    let from_us = warm_up(stage, &users).await;
    tokio::time::sleep(Duration::from_secs(stage.load.seconds)).await;
    work.finish().await;
    users.finish(stage, watch, from_us).await
}

async fn day(work: Work, device: Device, chats: Vec<String>) {
    let mut rng = work.rng();
    let actor = device.actor().clone();
    let mut own: Option<(String, u32)> = None;
    while work.rest(&mut rng).await {
        let chat = &chats[rng.random_range(0..chats.len())];
        let replica = rng.random_range(0..64);
        match rng.random_range(0..100) {
            0..38 => {
                let page = HistoryPage { max: 50, ..HistoryPage::default() };
                actor.read_history(replica, chat, page).await;
            }
            38..53 => drop(actor.chats(replica).await),
            53..65 => drop(actor.chat(replica, chat).await),
            65..73 => drop(actor.changes(replica, chat, 0).await),
            73..87 => {
                if rng.random_bool(0.5) {
                    device.typing(chat).await;
                }
                let text = work.unique(&actor.account().login);
                if let Some(Some(message)) = device.send(chat, &text, None).await.ok() {
                    own = Some((chat.clone(), message.id));
                }
            }
            87..95 => {
                if let Some(seen) = actor.chat(replica, chat).await.ok() {
                    device.mark_read(chat, seen.last_message_id).await;
                }
            }
            95..98 => match own.take() {
                Some((chat, id)) if rng.random_bool(0.7) => {
                    let text = work.unique(&actor.account().login);
                    actor.edit(replica, &chat, id, &text).await;
                }
                Some((chat, id)) => drop(device.remove(&chat, id).await),
                None => {}
            },
            _ => device.cut().await,
        }
    }
}

/// Logins and revocations, joining and leaving, while the others write.
pub(super) async fn churn(stage: &Stage) -> Result<Measured, String> {
    let mut users = Users::gather(stage).await?;
    let hot = users.group(&[0, 1, 2, 3]).await?;
    let churned = users.group(&[0, 1]).await?;
    users.connect(stage).await?;
    let fast = work(stage, Duration::from_millis(50));
    let actors = &users.community.actors;
    workload::hot_chat(&fast, &actors[..2], &hot);
    let comers = actors[4..].iter().take(GROUP).cloned().collect();
    fast.spawn(workload::churn_membership(fast.clone(), actors[0].clone(), comers, churned));
    for actor in &actors[2..4] {
        fast.spawn(workload::churn_sessions(fast.at_pace(Duration::from_millis(500)), actor.clone(), hot.clone()));
    }
    let watch = Watch::begin(&stage.processes, Vec::new());
    let from_us = warm_up(stage, &users).await;
    tokio::time::sleep(Duration::from_secs(stage.load.seconds)).await;
    fast.finish().await;
    users.finish(stage, watch, from_us).await
}

/// Every socket is dropped at once, half-way, while people write.
pub(super) async fn storm(stage: &Stage) -> Result<Measured, String> {
    let users = in_groups(stage).await?;
    let work = work(stage, Duration::from_millis(100));
    for (number, actor) in users.community.actors.iter().enumerate() {
        work.spawn(workload::write(work.clone(), actor.clone(), groups_of(&users, number)));
    }
    let watch = Watch::begin(&stage.processes, Vec::new());
    let from_us = warm_up(stage, &users).await;
    let half = Duration::from_secs(stage.load.seconds) / 2;
    tokio::time::sleep(half).await;
    let (mut back, missing) = drop_all(&users.devices).await;
    tokio::time::sleep(half).await;
    work.finish().await;
    let count = users.devices.len();
    let mut measured = users.finish(stage, watch, from_us).await?;
    measured.errors += missing;
    back.sort_unstable();
    let last = |share: usize| back.get((back.len() * share / 100).min(back.len().saturating_sub(1))).copied();
    for (word, share) in [("half", 50), ("99 %", 99), ("all", 100)] {
        let ms = real(u64::try_from(last(share).unwrap_or_default().as_micros()).unwrap_or(u64::MAX)) / 1e3;
        measured.figures.push(Figure::cost(
            format!("after a storm over {count} sockets, {word} are live again"),
            ms,
            "ms",
        ));
    }
    Ok(measured)
}

/// Cuts all at once. How long each took to be live again, and how many never were.
async fn drop_all(devices: &[Device]) -> (Vec<Duration>, u64) {
    let before: Vec<u32> = devices.iter().map(|device| device.status().connections).collect();
    let began = Instant::now();
    for device in devices {
        device.cut().await;
    }
    let mut back = vec![None; devices.len()];
    while back.iter().any(Option::is_none) && began.elapsed() < BACK {
        for ((device, before), back) in devices.iter().zip(&before).zip(&mut back) {
            let status = device.status();
            if back.is_none() && status.live && status.connections > *before {
                *back = Some(began.elapsed());
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let missing = back.iter().filter(|back| back.is_none()).count() as u64;
    (back.into_iter().flatten().collect(), missing)
}
