//! I16: no process holds more memory than its bound.

use super::facts::Facts;
use super::report::Sink;
use super::{Harm, Invariant, Location};

pub(super) fn check(facts: &Facts<'_>, sink: &mut Sink<'_>) {
    let Some(max) = facts.evidence.limits.rss_bytes_max else { return };
    for sample in facts.record.memory.iter().filter(|sample| sample.rss_bytes > max) {
        sink.add(Invariant::I16, Harm::Wrong, Location::default(), || {
            let process = facts.record.word(sample.process);
            format!(
                "{process} held {} bytes after {} ms; the maximum is {max}",
                sample.rss_bytes,
                sample.at_us / 1000
            )
        });
    }
}
