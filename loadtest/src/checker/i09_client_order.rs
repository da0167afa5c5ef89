//! I9: sends of one connection, one written after the other, keep their order even while their
//! answers are awaited. (One sent after the answer to the other is I8.) Keys that were tried more
//! than once have no place in the order.

use super::facts::Facts;
use super::quick::HashMap;
use super::report::Sink;
use super::{Harm, Invariant, Place};
use crate::history::{Digest, Kind, Name, Stream};

pub(super) fn check(facts: &Facts<'_>, sink: &mut Sink<'_>) {
    let mut tries: HashMap<(Name, Name, Digest), u32> = HashMap::default();
    for op in &facts.record.ops {
        if let Kind::Send { chat, client_id, .. } = op.kind {
            *tries.entry((chat, op.user, client_id)).or_default() += 1;
        }
    }
    let mut last: HashMap<(Stream, Name), u32> = HashMap::default();
    // Operations lie in the order in which they were written.
    for op in &facts.record.ops {
        let (Kind::Send { chat, client_id, .. }, Some(stream), Some(seen)) =
            (op.kind, op.stream, op.message())
        else {
            continue;
        };
        if client_id != Digest::NONE
            && tries.get(&(chat, op.user, client_id)).is_some_and(|tries| *tries > 1)
        {
            continue;
        }
        let before = last.insert((stream, chat), seen.id).unwrap_or(0);
        if before >= seen.id {
            sink.add(
                Invariant::I9,
                Harm::Reordered,
                Place::chat(chat).on(stream.device as usize),
                || format!("message {} was sent after message {before} on one connection", seen.id),
            );
        }
    }
}
