//! From the record of a run and the log at its end to what is wrong with them. Pure: the same
//! input, the same report.
//!
//! Each invariant is a function in a module with its number. What several of them need is gathered
//! once in [`facts::Facts`]. Everything is linear or sorts once. Where the record can't prove a
//! violation (nobody saw a change that might explain it), none is reported: a finding is always
//! real, as far as the record is.
//!
//! Two things a run must keep to: every send, edit, removal, joining and leaving goes through the
//! recorder, setup included, and every text is used once. What the final log knows of revs (of
//! members, of sending) sharpens I1, I6 and I13; read over HTTP it knows less than read from the
//! database.

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
pub use report::{Counts, Finding, Harm, Invariant, Place, Report};

use crate::history::{Kind, Outcome, Record, Told};
use facts::Facts;
use report::Sink;

/// A text in which no secret may be: a log, metrics, an error, the keys of a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposed {
    /// Where it comes from, in words.
    pub place: String,
    /// The text.
    pub text: String,
}

/// The bounds that a run is held against.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// When the last fault was over, in microseconds of the record's clock; without it I7 is not
    /// checked.
    pub healed_us: Option<u64>,
    /// I7: within this time after the last change and the last fault, every device has everything.
    pub heal: Duration,
    /// I12: a revoked session is over within this time.
    pub revoke: Duration,
    /// I14: presence is true after this time.
    pub presence: Duration,
    /// I16: resident bytes of a process at most; absent: not checked.
    pub rss_bytes_max: Option<u64>,
    /// I17: a request is answered, or given up, within this time.
    pub request: Duration,
    /// Violations of an invariant that are told in words.
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

/// Everything that the checker looks at.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// What was done and seen.
    pub record: &'a Record,
    /// What is there at the end.
    pub log: &'a FinalLog,
    /// Words that must appear nowhere: tokens, passwords, texts of messages.
    pub secrets: &'a [String],
    /// Where they must not appear.
    pub exposed: &'a [Exposed],
    /// The bounds.
    pub limits: Limits,
}

/// An invariant's function.
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

/// Holds a run against every invariant.
pub fn check(evidence: &Evidence<'_>) -> Report {
    let mut sink = Sink::new(evidence.record, evidence.limits.examples_max, counts(evidence));
    if evidence.record.dropped > 0 {
        sink.add(Invariant::I0, Harm::Wrong, Place::default(), || {
            format!(
                "{} entries found no room in the history: raise its bounds",
                evidence.record.dropped
            )
        });
    }
    i20_epochs::check(evidence, &mut sink);
    // The other invariants hold within one history of the log.
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
        let readies =
            device.entries.iter().filter(|entry| matches!(entry.told, Told::Ready { .. })).count();
        counts.reconnects += readies.saturating_sub(1) as u64;
        counts.frames += device.entries.iter().filter(|entry| entry.told.is_frame()).count() as u64;
        counts.resets +=
            device.entries.iter().filter(|entry| matches!(entry.told, Told::Reset { .. })).count()
                as u64;
    }
    counts
}

/// A bound in the record's microseconds.
fn us(bound: Duration) -> u64 {
    u64::try_from(bound.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod scenario;
#[cfg(test)]
mod tests;
