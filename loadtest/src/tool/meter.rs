//! Latencies: a histogram of the measured part of a run, and values per second for the charts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;

use super::arith::{ratio, real};

/// Largest recorded latency. A longer one is recorded as this.
const LATENCY_US_MAX: u64 = 60_000_000;
/// Most seconds of a chart: one hour.
const SECONDS_MAX: usize = 3600;

/// One second of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Second {
    /// Number of operations.
    pub count: u64,
    pub p50_us: u64,
    pub p99_us: u64,
}

/// An event during a run, for the charts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mark {
    /// Time in seconds since the start of [`Summary::seconds`].
    pub second: f64,
    pub word: String,
}

/// A bar of a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bar {
    /// Upper bound of the latencies, in microseconds.
    pub up_to_us: u64,
    /// Number of operations.
    pub count: u64,
}

/// The measurements of a meter, without the warm-up.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Name of the operation.
    pub name: String,
    /// Number of operations.
    pub count: u64,
    /// Number of operations including the warm-up.
    pub count_with_warm_up: u64,
    /// Operations per second.
    pub rate: f64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub p999_us: u64,
    pub max_us: u64,
    /// Values per second, including the warm-up.
    pub seconds: Vec<Second>,
    /// Number of warm-up seconds.
    pub warm_up_s: u64,
    /// Events during the run.
    pub marks: Vec<Mark>,
    /// The histogram; the bound doubles from bar to bar.
    pub bars: Vec<Bar>,
}

/// Measures one kind of operation. All tasks that execute it share the meter.
#[derive(Debug)]
pub struct Meter {
    name: &'static str,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    warm_up: Duration,
    measured_from: Instant,
    measured_until: Option<Instant>,
    all: Histogram<u64>,
    second: Histogram<u64>,
    seconds: Vec<Second>,
    count_with_warm_up: u64,
}

impl Meter {
    /// Creates a meter that measures from `warm_up` after now.
    ///
    /// # Errors
    /// If the bounds of the histogram are invalid; they are constants, so this does not happen.
    pub fn new(name: &'static str, warm_up: Duration) -> Result<Arc<Self>, String> {
        let histogram = |digits| {
            Histogram::new_with_bounds(1, LATENCY_US_MAX, digits).map_err(|it| it.to_string())
        };
        let inner = Inner {
            warm_up,
            measured_from: Instant::now() + warm_up,
            measured_until: None,
            all: histogram(3)?,
            second: histogram(2)?,
            seconds: Vec::new(),
            count_with_warm_up: 0,
        };
        Ok(Arc::new(Self { name, inner: Mutex::new(inner) }))
    }

    /// Name of the operation.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Records an operation that ends now.
    pub fn record(&self, took: Duration) {
        self.record_at(Instant::now(), took);
    }

    fn record_at(&self, now: Instant, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let mut inner = self.inner.lock();
        inner.count_with_warm_up += 1;
        inner.second.saturating_record(took_us);

        // An operation that ends after the measured time is left out. It would add to the count,
        // but its time is not part of the divisor, so the rate would be too high.
        if now >= inner.measured_from && inner.measured_until.is_none_or(|until| now <= until) {
            inner.all.saturating_record(took_us);
        }
    }

    /// Ends the current second and returns it.
    pub fn tick(&self) -> Second {
        let mut inner = self.inner.lock();
        let second = Second {
            count: inner.second.len(),
            p50_us: inner.second.value_at_quantile(0.5),
            p99_us: inner.second.value_at_quantile(0.99),
        };
        inner.second.clear();
        if inner.seconds.len() < SECONDS_MAX {
            inner.seconds.push(second);
        }
        second
    }

    /// Ends the measurement. Later operations do not count.
    pub fn stop(&self) {
        self.inner.lock().measured_until.get_or_insert_with(Instant::now);
    }

    /// Returns the measurements so far.
    pub fn summary(&self) -> Summary {
        let inner = self.inner.lock();
        let until = inner.measured_until.unwrap_or_else(Instant::now);
        let span = until.saturating_duration_since(inner.measured_from);
        let at = |quantile| inner.all.value_at_quantile(quantile);

        Summary {
            name: self.name.to_owned(),
            count: inner.all.len(),
            count_with_warm_up: inner.count_with_warm_up,
            rate: ratio(real(inner.all.len()), span.as_secs_f64()),
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: if inner.all.is_empty() { 0 } else { inner.all.max() },
            seconds: inner.seconds.clone(),
            warm_up_s: inner.warm_up.as_secs(),
            marks: Vec::new(),
            bars: bars(&inner.all),
        }
    }
}

/// The histogram in bars, without empty bars at either end.
fn bars(histogram: &Histogram<u64>) -> Vec<Bar> {
    let mut bars = Vec::new();
    let mut from = 1;
    while from <= LATENCY_US_MAX {
        let count = histogram.count_between(from, from * 2 - 1);
        if count > 0 || !bars.is_empty() {
            bars.push(Bar { up_to_us: from * 2, count });
        }
        from *= 2;
    }
    while bars.last().is_some_and(|bar: &Bar| bar.count == 0) {
        bars.pop();
    }
    bars
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_and_late_operations_do_not_count() {
        let began = Instant::now();
        let meter = Meter::new("send", Duration::ZERO).unwrap();
        meter.inner.lock().measured_from = began + Duration::from_secs(5);
        let at = |second| began + Duration::from_secs(second);
        meter.record_at(at(1), Duration::from_secs(9));
        for second in 5..15 {
            meter.record_at(at(second), Duration::from_millis(second));
        }
        meter.inner.lock().measured_until = Some(at(15));
        meter.record_at(at(16), Duration::from_secs(9));

        let summary = meter.summary();
        assert_eq!((summary.count, summary.count_with_warm_up), (10, 12));
        assert!((summary.rate - 1.0).abs() < 0.01, "{}", summary.rate);
        assert!(summary.max_us < 15_000 && summary.p50_us >= 9_000, "{summary:?}");
        assert_eq!(summary.bars.iter().map(|bar| bar.count).sum::<u64>(), 10);
    }

    #[test]
    fn each_second_has_its_own_percentiles() {
        let meter = Meter::new("send", Duration::ZERO).unwrap();
        meter.record(Duration::from_micros(100));
        meter.record(Duration::from_micros(100));
        assert_eq!(meter.tick(), Second { count: 2, p50_us: 100, p99_us: 100 });
        assert_eq!(meter.tick(), Second::default());
        assert_eq!(meter.summary().seconds.len(), 2);
    }

    #[test]
    fn a_latency_past_the_bound_counts_as_the_bound() {
        let meter = Meter::new("send", Duration::ZERO).unwrap();
        meter.record(Duration::from_hours(1));
        assert!(meter.summary().max_us >= LATENCY_US_MAX);
    }
}
