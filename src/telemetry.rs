//! Logs and the metrics exporter.

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing::{Level, Metadata};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, fmt};

use crate::config::LogFormat;
use crate::metrics;

/// Pause between two upkeeps of the exporter, which compact the histograms and so bound their
/// memory between scrapes.
pub const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// The exporter's handle. The `metrics` crate allows one recorder per process, so this is a static.
static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Starts logging to stderr. Panics are logged too.
///
/// # Errors
/// A sentence, if the filter cannot be parsed.
pub fn start_logging(filter: &str, format: LogFormat) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| format!("STARLING_LOG is not a valid log filter: {error}"))?;

    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    let subscriber =
        tracing_subscriber::registry().with(filter).with(filter_fn(keeps_secrets)).with(lines);
    subscriber.try_init().map_err(|error| error.to_string())?;

    std::panic::set_hook(Box::new(|panic| {
        let at = panic.location().map(ToString::to_string).unwrap_or_default();
        // A formatted message may contain tokens or texts of users, so only a message that is a
        // literal in the source is logged.
        let panic = panic.payload().downcast_ref::<&'static str>().copied().unwrap_or_default();
        tracing::error!(at, panic, "panicked");
    }));
    Ok(())
}

/// Refuses the debug and trace lines of the WebSocket codec, whatever the filter allows: they
/// contain whole frames, with tokens and texts of users.
fn keeps_secrets(metadata: &Metadata<'_>) -> bool {
    !metadata.target().starts_with("tungstenite") || *metadata.level() <= Level::WARN
}

/// The exporter of this process's metrics in the Prometheus text format. `None` if another recorder
/// was installed first.
pub fn exporter() -> Option<&'static PrometheusHandle> {
    /// From the time of a cache hit to more than the deadline of a request.
    const SECONDS: &[f64] = &[
        0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
        10.0,
    ];
    const BATCH: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

    let handle = HANDLE.get_or_init(|| {
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)
            .and_then(|builder| {
                builder.set_buckets_for_metric(Matcher::Suffix("_messages".to_owned()), BATCH)
            });
        let handle = builder.ok()?.install_recorder().ok()?;
        metrics::describe();
        Some(handle)
    });
    handle.as_ref()
}
