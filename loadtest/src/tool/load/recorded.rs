//! Shared code of the workloads that record every operation, and the shortest of them: `churn`.

use std::time::Duration;

use starling_loadtest::device::Device;
use starling_loadtest::workload;

use super::Measured;
use super::users::{Users, work};
use crate::tool::stage::Stage;
use crate::tool::watch::Watch;

/// Members of a group.
pub(super) const GROUP: usize = 8;

/// Creates users with a device each, in groups of [`GROUP`]. Each user is a member of two groups.
pub(super) async fn in_groups(stage: &Stage) -> Result<Users, String> {
    let mut users = grouped(stage).await?;
    users.connect(stage).await?;
    Ok(users)
}

/// The same, without devices.
pub(super) async fn grouped(stage: &Stage) -> Result<Users, String> {
    let mut users = Users::gather(stage).await?;
    let count = users.community.actors.len();
    for first in (0..count).step_by(GROUP / 2) {
        let members: Vec<usize> =
            (first..first + GROUP.min(count)).map(|number| number % count).collect();
        users.group(&members).await?;
    }
    Ok(users)
}

/// The two groups of a user.
pub(super) fn groups_of(users: &Users, user: usize) -> Vec<String> {
    let (half, count) = (GROUP / 2, users.chats.len());
    let last = user / half;
    vec![users.chats[last].clone(), users.chats[(last + count - 1) % count].clone()]
}

/// Waits for the end of the warm-up. Returns the start of the measurement, by the record's clock.
pub(super) async fn warm_up(stage: &Stage, users: &Users) -> u64 {
    tokio::time::sleep(Duration::from_secs(stage.load.warm_up)).await;
    users.history.now_us()
}

/// Whether a device is live on a later connection than number `before`.
pub(super) fn is_back(device: &Device, before: u32) -> bool {
    let status = device.status();
    status.live && status.connections > before
}

/// Runs `churn`: users log in, revoke sessions, join and leave while others write.
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
        fast.spawn(workload::churn_sessions(
            fast.at_pace(Duration::from_millis(500)),
            actor.clone(),
            hot.clone(),
        ));
    }

    let watch = Watch::begin(&stage.processes, Vec::new());
    let from_us = warm_up(stage, &users).await;
    tokio::time::sleep(Duration::from_secs(stage.load.seconds)).await;
    fast.finish().await;
    users.finish(stage, watch, from_us).await
}
