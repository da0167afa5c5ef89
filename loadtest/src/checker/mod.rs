//! Checks the record of a run and its final log against invariants. The checker is a pure function:
//! the same input gives the same report.
//!
//! Each invariant is a function in a module with its number. [`facts::Facts`] holds the indices
//! that several invariants share. Each check takes linear time or sorts once. Where the record does
//! not prove a violation, because an unseen change might explain it, the checker reports none. So
//! every finding is real if the record is correct.
//!
//! A run must follow two rules: every send, edit, removal, join and leave goes through the
//! recorder, setup included, and every text is used once. I1, I6 and I13 find more if the final log
//! holds the revs of sends and of members; the database has them, the HTTP API does not return
//! them.

mod epochs;
mod facts;
mod final_log;
mod i01_numbers;
mod i02_acknowledged;
mod i03_sent;
mod i04_keys;
mod i05_agreement;
mod i06_streams;
mod i07_healing;
mod i08_real_time;
mod i09_client_order;
mod i10_own_writes;
mod i11_monotonic;
mod i12_revoked;
mod i13_privacy;
mod i14_presence;
mod i15_counts;
mod i16_memory;
mod i17_answers;
mod i18_secrets;
mod i20_epochs;
mod ledger;
mod quick;
mod reads;
mod report;
mod stand;

use std::time::Duration;

pub use final_log::{FinalChat, FinalLog, FinalMember, FinalMessage, FinalView};
pub use report::{Counts, Finding, Harm, Invariant, Location, Report};

use crate::history::{DeviceEvent, Kind, Outcome, Record};
use facts::Facts;
use report::Sink;

/// A text that must not contain a secret: a log, metrics, an error, the keys of a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposed {
    /// The source of the text, for the report.
    pub place: String,
    /// The text to search for secrets.
    pub text: String,
}

/// The bounds that a run must keep.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// End of the last fault, in microseconds of the record's clock; without it, I7 is not checked.
    pub healed_us: Option<u64>,
    /// I7: time after the last change and the last fault until every device has every event.
    pub heal: Duration,
    /// I12: time until a revocation takes effect.
    pub revoke: Duration,
    /// I14: time until presence is correct.
    pub presence: Duration,
    /// I16: maximum resident bytes of a process; without it, I16 is not checked.
    pub rss_bytes_max: Option<u64>,
    /// I17: time until a request is answered or given up.
    pub request: Duration,
    /// Maximum number of violations of one invariant that the report describes.
    pub examples_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            healed_us: None,
            heal: Duration::from_secs(10),
            revoke: Duration::from_secs(5),
            presence: Duration::from_secs(20),
            rss_bytes_max: None,
            request: Duration::from_secs(30),
            examples_max: 5,
        }
    }
}

/// The input of the checker.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// The operations and events of the run.
    pub record: &'a Record,
    /// The state at the end of the run.
    pub log: &'a FinalLog,
    /// Strings that must not be exposed: tokens, passwords, texts of messages.
    pub secrets: &'a [String],
    /// The texts in which no secret may appear.
    pub exposed: &'a [Exposed],
    /// The bounds of this run.
    pub limits: Limits,
}

type Check = fn(&Facts<'_>, &mut Sink<'_>);

const CHECKS: &[Check] = &[
    i01_numbers::check,
    i02_acknowledged::check,
    i03_sent::check,
    i04_keys::check,
    i05_agreement::check,
    i06_streams::check,
    i07_healing::check,
    i08_real_time::check,
    i09_client_order::check,
    i10_own_writes::check,
    i11_monotonic::check,
    i12_revoked::check,
    i13_privacy::check,
    i14_presence::check,
    i15_counts::check,
    i16_memory::check,
    i17_answers::check,
    i18_secrets::check,
];

/// Checks a run against every invariant.
pub fn check(evidence: &Evidence<'_>) -> Report {
    let mut sink = Sink::new(evidence.record, evidence.limits.examples_max, counts(evidence));
    if evidence.record.dropped > 0 {
        sink.add(Invariant::I0, Harm::Wrong, Location::default(), || {
            format!(
                "the history was full and dropped {} entries: raise its bounds",
                evidence.record.dropped
            )
        });
    }

    i20_epochs::check(evidence, &mut sink);

    // The other invariants hold within one epoch of the log.
    let of_last_epoch = epochs::of_last(evidence.record);
    let record = of_last_epoch.as_ref().unwrap_or(evidence.record);
    let evidence = Evidence { record, ..*evidence };
    let facts = Facts::gather(&evidence);

    for check in CHECKS {
        check(&facts, &mut sink);
    }

    sink.finish()
}

fn counts(evidence: &Evidence<'_>) -> Counts {
    let Evidence { record, log, .. } = evidence;
    let mut counts = Counts {
        operations: record.ops.len() as u64,
        messages: log.chats.iter().map(|chat| chat.messages.len() as u64).sum(),
        chats: log.chats.len() as u64,
        devices: record.devices.len() as u64,
        ..Counts::default()
    };

    for op in record.ops.iter().filter(|op| matches!(op.kind, Kind::Send { .. })) {
        counts.sends += 1;
        match op.outcome {
            Some(Outcome::Ok(_)) => counts.acknowledged += 1,
            Some(Outcome::Refused { .. }) => counts.refused += 1,
            Some(Outcome::Unknown) | None => counts.unknown += 1,
        }
    }

    for device in &record.devices {
        let readies = device
            .entries
            .iter()
            .filter(|entry| matches!(entry.told, DeviceEvent::Ready { .. }))
            .count();
        counts.reconnects += readies.saturating_sub(1) as u64;
        counts.frames += device.entries.iter().filter(|entry| entry.told.is_frame()).count() as u64;
        counts.resets += device
            .entries
            .iter()
            .filter(|entry| matches!(entry.told, DeviceEvent::Reset { .. }))
            .count() as u64;
    }

    counts
}

fn us(bound: Duration) -> u64 {
    u64::try_from(bound.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod scenario;
#[cfg(test)]
mod tests;
