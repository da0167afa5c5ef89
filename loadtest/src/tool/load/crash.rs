//! `crash`: a replica is killed while users write, and no one writes afterwards. The other replicas
//! must deliver the messages that the killed replica had committed and not published. Users who
//! disconnect at that moment must be shown offline.

use std::sync::Arc;
use std::time::Duration;

use starling_loadtest::device::Device;
use starling_loadtest::history::{DeviceEvent, DeviceRecord, Name, Record};
use starling_loadtest::workload::{self, Work};

use super::Measured;
use super::recorded::{grouped, groups_of, warm_up};
use super::users::{SETTLE, Span, Users, work};
use crate::tool::arith::real;
use crate::tool::meter::Mark;
use crate::tool::site::Site;
use crate::tool::stage::{Figure, Stage};
use crate::tool::watch::Watch;

/// Mean pause between two messages of a user, in the shared groups and in the user's own group.
const PACE: Duration = Duration::from_millis(100);
/// One in this many users disconnects when the replica dies. They write like the others.
const PARTS: usize = 4;
/// The checker's limit for showing them offline.
const OFFLINE: Duration = Duration::from_secs(20);
/// How often a device checks whether it has reconnected and must subscribe to presence again.
const ASK: Duration = Duration::from_millis(100);

pub(super) async fn run(stage: &Stage) -> Result<Measured, String> {
    let site = stage.site.as_ref().ok_or("there is no replica to kill")?;
    let (parting, others) = (work(stage, Duration::ZERO), work(stage, PACE));
    let (users, leavers) = gather(stage, &parting, &others).await?;

    let watch = Watch::begin(&stage.processes, Vec::new());
    let from_us = warm_up(stage, &users).await;
    tokio::time::sleep(Duration::from_secs(stage.load.seconds)).await;
    let spent = watch.finish();

    let dead = site.kill_last();
    let until_us = users.history.now_us();
    tokio::join!(others.finish(), parting.finish());
    let gone_us = users.history.now_us();
    // Postgres may still execute the last statements of the dead replica.
    tokio::time::sleep(SETTLE).await;
    let log = users.final_log(&all_but(site, dead)).await?;
    let heal = users.until_caught_up(&log, until_us).await;
    eprintln!("waiting until the disconnected users must be shown offline");
    let waited = Duration::from_micros(users.history.now_us() - gone_us);
    tokio::time::sleep((OFFLINE + SETTLE).saturating_sub(waited)).await;
    site.start_again(dead).await?;

    let (record, mut measured) =
        users.conclude(stage, &log, spent, Span { from_us, until_us, heal }).await?;

    let offline_s =
        real(last_shown_offline_us(&record, &leavers, gone_us).saturating_sub(gone_us)) / 1e6;
    measured.figures.extend([
        Figure::cost("after a crash, everybody has everything", heal.as_secs_f64(), "s"),
        Figure::cost(
            format!("after a crash, {} who hung up are shown offline", leavers.len()),
            offline_s,
            "s",
        ),
    ]);

    let killed = Mark { second: real(until_us - from_us) / 1e6, word: "replica killed".to_owned() };
    for meter in &mut measured.meters {
        meter.marks = vec![killed.clone()];
    }
    Ok(measured)
}

/// Creates users that write until `others` ends and that watch presence. One in [`PARTS`] has a
/// device that disconnects when `parting` ends. Also returns these users.
async fn gather(
    stage: &Stage,
    parting: &Work,
    others: &Work,
) -> Result<(Users, Vec<Name>), String> {
    let mut users = grouped(stage).await?;
    let count = users.community.actors.len();
    let groups: Vec<Vec<String>> = (0..count).map(|number| groups_of(&users, number)).collect();
    let gone = users.connect_parted(stage, parting, |number| number % PARTS == 0).await?;
    let leavers: Vec<Name> = gone.iter().map(|device| device.actor().user()).collect();

    for (number, groups) in groups.iter().enumerate() {
        // In a busy group the gap before the next event reveals a lost event. In a group with one
        // member no event follows the crash, so the server must find the lost event itself.
        let own = users.group(&[number]).await?;
        let actor = &users.community.actors[number];
        others.spawn(workload::write(others.clone(), actor.clone(), groups.clone()));
        others.spawn(workload::write(others.clone(), actor.clone(), vec![own]));
    }

    for (number, device) in (0..count).filter(|number| number % PARTS != 0).zip(&users.devices) {
        let shares =
            |other: &usize| groups[*other].iter().any(|chat| groups[number].contains(chat));
        let watched = (0..count).step_by(PARTS).filter(shares);
        let ids =
            watched.map(|other| users.community.actors[other].account().user_id.clone()).collect();
        parting.spawn(watch_on_each_connection(parting.clone(), device.clone(), ids));
    }
    Ok((users, leavers))
}

/// Subscribes to the presence of these users on each new connection.
async fn watch_on_each_connection(work: Work, device: Device, user_ids: Vec<String>) {
    let (ids, mut asked): (Vec<&str>, u32) = (user_ids.iter().map(String::as_str).collect(), 0);
    while work.wait(ASK).await {
        let status = device.status();
        if status.live && status.connections != asked {
            device.watch_presence(&ids).await;
            asked = status.connections;
        }
    }
}

fn all_but(site: &Arc<Site>, dead: usize) -> Vec<String> {
    let numbered = site.replicas().into_iter().enumerate();
    numbered.filter(|(number, _)| *number != dead).map(|(_, base)| base).collect()
}

/// When the last watcher received that one of these users is offline; 0 if none did.
fn last_shown_offline_us(record: &Record, users: &[Name], from_us: u64) -> u64 {
    let first = |device: &DeviceRecord, user: Name| {
        let offline = |event: &DeviceEvent| match event {
            DeviceEvent::Presence { user: of, online: false } => *of == user,
            _ => false,
        };
        let mut entries =
            device.entries.iter().filter(|entry| entry.at_us >= from_us && offline(&entry.told));
        entries.next().map(|entry| entry.at_us)
    };

    record
        .devices
        .iter()
        .flat_map(|device| users.iter().filter_map(move |user| first(device, *user)))
        .max()
        .unwrap_or(0)
}
