//! `cut`: every second, the Redis subscriptions of the replicas are cut while users write.

use std::time::Duration;

use starling_loadtest::workload;

use super::Measured;
use super::recorded::{grouped, groups_of, warm_up};
use super::users::work;
use crate::tool::arith::real;
use crate::tool::stage::{Figure, Stage};
use crate::tool::watch::Watch;

/// Mean pause between two messages of a user in the groups. In the user's own group, which has no
/// other member, it is four times as long.
const PACE: Duration = Duration::from_millis(200);
/// Pause between two cuts.
const EVERY: Duration = Duration::from_secs(1);

pub(super) async fn run(stage: &Stage) -> Result<Measured, String> {
    let site = stage.site.as_ref().ok_or("there is nothing to cut")?;
    let mut users = grouped(stage).await?;
    users.connect(stage).await?;

    let (writing, count) = (work(stage, PACE), users.devices.len());
    let groups: Vec<Vec<String>> = (0..count).map(|number| groups_of(&users, number)).collect();
    for (number, groups) in groups.into_iter().enumerate() {
        // In a busy group the gap before the next event soon reveals a lost event. In a group with
        // one member and few messages it takes longer.
        let own = users.group(&[number]).await?;
        let actor = &users.community.actors[number];
        writing.spawn(workload::write(writing.clone(), actor.clone(), groups));
        writing.spawn(workload::write(writing.at_pace(PACE * 4), actor.clone(), vec![own]));
    }

    let watch = Watch::begin(&stage.processes, Vec::new());
    let from_us = warm_up(stage, &users).await;

    let mut cut = 0;
    for _ in 0..stage.load.seconds {
        tokio::time::sleep(EVERY).await;
        cut += site.cut_subscriptions().await?;
    }
    writing.finish().await;

    let mut measured = users.finish(stage, watch, from_us).await?;
    measured.figures.push(Figure::rate("subscribed connections cut", real(cut), ""));
    Ok(measured)
}
