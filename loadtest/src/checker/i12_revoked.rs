//! I12: after the bound, no request of a revoked session succeeds, and its sockets get no frame.

use super::facts::Facts;
use super::quick::HashMap;
use super::report::Sink;
use super::{Harm, Invariant, Location, us};
use crate::history::{Kind, Name};

pub(super) fn check(facts: &Facts<'_>, sink: &mut Sink<'_>) {
    let bound = us(facts.evidence.limits.revoke);
    let mut ended: HashMap<Name, u64> = HashMap::default();

    for op in &facts.record.ops {
        if let (Kind::Revoke { session }, Some(_), Some(at)) =
            (op.kind, op.value(), op.completed_us)
            && session != Name::NONE
        {
            let first = ended.entry(session).or_insert(at);
            *first = (*first).min(at);
        }
    }

    if ended.is_empty() {
        return;
    }

    for op in facts.record.ops.iter().filter(|op| op.value().is_some() && op.kind != Kind::Login) {
        if ended.get(&op.session).is_some_and(|at| op.invoked_us > at + bound) {
            let location = Location {
                chat: op.kind.chat(),
                rev: op.message().map(|seen| seen.rev),
                device: None,
            };

            sink.add(Invariant::I12, Harm::Leaked, location, || {
                format!(
                    "{} of user {} succeeded with a revoked session",
                    name(&op.kind),
                    facts.record.word(op.user)
                )
            });
        }
    }

    for (number, device) in facts.record.devices.iter().enumerate() {
        let Some(at) = ended.get(&device.session) else { continue };
        let late =
            device.entries.iter().filter(|entry| entry.at_us > at + bound && entry.told.is_frame());

        for entry in late {
            let location = entry
                .told
                .event()
                .map_or_else(Location::default, |(chat, rev)| Location::rev(chat, rev));
            sink.add(Invariant::I12, Harm::Leaked, location.on(number), || {
                format!(
                    "{} came {} ms after the session was revoked",
                    name(&entry.told),
                    (entry.at_us - at) / 1000
                )
            });
        }
    }
}

/// The name of a variant without its fields, which are indices that only the record can resolve.
fn name(value: &impl std::fmt::Debug) -> String {
    let debug = format!("{value:?}");
    debug.split([' ', '(']).next().unwrap_or_default().to_owned()
}
