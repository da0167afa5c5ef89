//! I9: sends on one connection keep their order, even before they are answered. (I8 covers a send
//! that begins after the answer to another.) Keys with more than one attempt are excluded, because
//! the order says nothing about them.

use super::facts::Facts;
use super::quick::HashMap;
use super::report::Sink;
use super::{Harm, Invariant, Location};
use crate::history::{Digest, Kind, Name, Stream};

pub(super) fn check(facts: &Facts<'_>, sink: &mut Sink<'_>) {
    let mut attempts: HashMap<(Name, Name, Digest), u32> = HashMap::default();
    for op in &facts.record.ops {
        if let Kind::Send { chat, client_id, .. } = op.kind {
            *attempts.entry((chat, op.user, client_id)).or_default() += 1;
        }
    }

    let mut last: HashMap<(Stream, Name), u32> = HashMap::default();
    // Operations are in the order in which they were sent.
    for op in &facts.record.ops {
        let (Kind::Send { chat, client_id, .. }, Some(stream), Some(seen)) =
            (op.kind, op.stream, op.message())
        else {
            continue;
        };

        if client_id != Digest::NONE
            && attempts.get(&(chat, op.user, client_id)).is_some_and(|attempts| *attempts > 1)
        {
            continue;
        }

        let before = last.insert((stream, chat), seen.id).unwrap_or(0);
        if before >= seen.id {
            sink.add(
                Invariant::I9,
                Harm::Reordered,
                Location::chat(chat).on(stream.device as usize),
                || format!("message {} was sent after message {before} on one connection", seen.id),
            );
        }
    }
}
