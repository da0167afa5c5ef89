//! I16: no process ever holds more memory than its bound.

use super::facts::Facts;
use super::report::Sink;
use super::{Harm, Invariant, Place};

pub(super) fn check(facts: &Facts<'_>, sink: &mut Sink<'_>) {
    let Some(max) = facts.evidence.limits.rss_bytes_max else { return };
    for sample in facts.record.memory.iter().filter(|sample| sample.rss_bytes > max) {
        sink.add(Invariant::I16, Harm::Wrong, Place::default(), || {
            let process = facts.record.word(sample.process);
            format!(
                "{process} held {} bytes after {} ms, {max} at most",
                sample.rss_bytes,
                sample.at_us / 1000
            )
        });
    }
}
