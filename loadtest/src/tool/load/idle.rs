//! `idle`: the cost of idle connections.

use std::time::{Duration, Instant};

use super::listeners::Listeners;
use super::{CONNECTIONS_PER_USER, Measured};
use crate::tool::arith::{ratio, real, real_len};
use crate::tool::stage::{Figure, FloorKind, Stage};
use crate::tool::watch::Watch;

/// Pause for memory to settle, before and after the connections are opened.
const SETTLE: Duration = Duration::from_secs(1);

pub(super) async fn run(stage: &Stage) -> Result<Measured, String> {
    let count = usize::from(stage.load.connections);
    let users = count.div_ceil(CONNECTIONS_PER_USER);
    stage.need_accounts(users)?;

    // The first connection makes the server allocate memory once. This must not count.
    for light in stage.connect_all(std::iter::once(0)).await? {
        light.close().await;
    }
    tokio::time::sleep(SETTLE).await;

    let memory = || {
        stage
            .processes
            .used()
            .iter()
            .filter(|(role, _)| *role == "server")
            .map(|it| it.1.memory_bytes)
            .sum()
    };
    let before: u64 = memory();
    let began = Instant::now();
    let lights = stage.connect_all((0..count).map(|number| number % users)).await?;
    let took = began.elapsed().as_secs_f64();

    let listeners = Listeners::start(
        stage,
        lights.into_iter().map(|it| (it, String::new())).collect(),
        None,
        None,
    );
    tokio::time::sleep(SETTLE).await;
    let after: u64 = memory();

    let watch = Watch::begin(&stage.processes, Vec::new());
    tokio::time::sleep(Duration::from_secs(stage.load.seconds)).await;
    let spent = watch.finish();
    let (held, errors) = listeners.finish(stage, |_| 0).await;

    let mut figures = vec![
        Figure::rate("connections made", ratio(real_len(count), took), "/s")
            .over(FloorKind::Connects),
    ];
    if !stage.processes.is_empty() {
        let each = ratio(real(after.saturating_sub(before)), real_len(count));
        figures.push(
            Figure::cost("memory of an idle connection", each / 1024.0, "KiB")
                .over(FloorKind::Connection),
        );
        let cpu = spent.cpu_us_each("server", held) / spent.seconds;
        figures.push(Figure::cost("CPU of the server an idle connection", cpu, "µs/s"));
    }
    let proven =
        format!("{} of {held} connections were held to the end", held.saturating_sub(errors));
    Ok(Measured { figures, spent, errors, proven, ..Measured::default() })
}
