//! Workloads on many sockets, and on sockets that are slow or cut.

use std::time::Duration;

use rand::RngExt;

use super::Work;
use crate::actor::Actor;
use crate::checker::{FinalChat, FinalLog};
use crate::device::{Device, DeviceOptions};

/// Starts a device for each user, spread over the replicas. They run until the work is stopped.
pub fn connect_all(work: &Work, actors: &[Actor], options: DeviceOptions) -> Vec<Device> {
    let start = |(number, actor): (usize, &Actor)| {
        let options = DeviceOptions { replica: options.replica + number, ..options };
        Device::start(actor.clone(), options, work.tasks(), work.shared.stop.clone())
    };
    actors.iter().enumerate().map(start).collect()
}

/// Waits until all these devices are live. Returns whether it was within `limit`.
pub async fn wait_until_live(devices: &[Device], limit: Duration) -> bool {
    let until = tokio::time::Instant::now() + limit;
    for device in devices {
        if !device.until_live(until.duration_since(tokio::time::Instant::now())).await {
            return false;
        }
    }
    true
}

/// Waits until every device has every event of its user's chats, at most until `limit` after
/// `healed_us` (of the record's clock). Returns the time since `healed_us`, which the checker takes
/// as the bound.
pub async fn until_caught_up(
    devices: &[Device],
    log: &FinalLog,
    healed_us: u64,
    limit: Duration,
) -> Duration {
    let Some(history) = devices.first().map(|device| device.actor().history()) else {
        return limit;
    };
    let has_caught_up = |device: &Device| {
        let status = device.status();
        let is_current = |chat: &FinalChat| {
            let is_member = chat
                .members
                .iter()
                .any(|it| it.user == device.actor().user() && it.left_rev.is_none());
            !is_member || device.known(chat.chat).is_some_and(|known| known >= chat.rev)
        };
        status.ended.is_some()
            || status.live && !device.is_reloading() && log.chats.iter().all(is_current)
    };

    loop {
        let caught_up = devices.iter().all(has_caught_up);
        let elapsed = Duration::from_micros(history.now_us().saturating_sub(healed_us));
        if caught_up || elapsed >= limit {
            return elapsed.min(limit);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Cuts the connection of a random device, again and again.
pub async fn cut_now_and_then(work: Work, devices: Vec<Device>) {
    let mut rng = work.rng();
    while work.rest(&mut rng).await {
        devices[rng.random_range(0..devices.len())].cut().await;
    }
}

/// Makes a device stop reading for up to `span`, again and again. At the end it reads.
pub async fn stall_now_and_then(work: Work, device: Device, span: Duration) {
    let mut rng = work.rng();
    while work.rest(&mut rng).await {
        device.stall().await;
        let keep_going = work.wait(span.mul_f64(rng.random_range(0.2..1.0))).await;
        device.unstall().await;
        if !keep_going {
            return;
        }
    }
}

/// Sends `typing` from a random device, again and again.
pub async fn type_now_and_then(work: Work, devices: Vec<Device>, chat: String) {
    let mut rng = work.rng();
    while work.rest(&mut rng).await {
        devices[rng.random_range(0..devices.len())].typing(&chat).await;
    }
}
