//! I2: every acknowledged change is in the log: each send at its id with its text, each edit, and
//! each removal.

use super::facts::Facts;
use super::report::Sink;
use super::{FinalMessage, Harm, Invariant, Location};
use crate::history::{Digest, Kind, Name, Op, Seen, State};

pub(super) fn check(facts: &Facts<'_>, sink: &mut Sink<'_>) {
    for op in &facts.record.ops {
        let Some(chat) = op.kind.chat() else { continue };
        // A chat that is not in the final log was removed, or this check does not cover it.
        let Some(log) = facts.chats.get(&chat) else { continue };

        let fault = match (op.kind, op.message()) {
            (Kind::Send { text, client_id, .. }, Some(seen)) => {
                send_fault(facts, op, (chat, text, client_id), seen, log.message(seen.id))
            }
            (Kind::Edit { text, message_id, .. }, Some(seen)) => {
                edit_fault(text, seen, log.message(message_id))
            }
            (Kind::Remove { message_id, .. }, _) if op.value().is_some() => {
                let gone = log
                    .message(message_id)
                    .is_some_and(|message| message.seen.state == State::Removed);
                (!gone).then_some("its removal was acknowledged, but it is still in the log")
            }
            _ => None,
        };

        if let Some(what) = fault {
            let (id, rev) = op.message().map_or((0, 0), |seen| (seen.id, seen.rev));
            sink.add(Invariant::I2, Harm::Lost, Location::rev(chat, rev), || {
                format!("message {id} of user {}: {what}", facts.record.word(op.user))
            });
        }
    }
}

fn send_fault(
    facts: &Facts<'_>,
    op: &Op,
    (chat, text, client_id): (Name, Digest, Digest),
    seen: &Seen,
    found: Option<&FinalMessage>,
) -> Option<&'static str> {
    let Some(found) = found else { return Some("acknowledged, but not in the log") };
    let changed_to = |state: State| {
        facts.changes(chat, seen.id).iter().any(|change| match change.kind {
            Kind::Edit { text, .. } => state == State::Edited && text == found.seen.text,
            Kind::Remove { .. } => state == State::Removed,
            _ => false,
        })
    };

    if found.seen.sender != op.user {
        Some("acknowledged, but the log has another sender's message at its id")
    } else if seen.state == State::Sent && seen.text != text {
        Some("acknowledged with another text")
    } else if found.client_id != Digest::NONE && found.client_id != client_id {
        Some("acknowledged, but the log has it with another key")
    } else if found.seen.rev < seen.rev {
        Some("acknowledged at a later rev than the log has for it")
    } else if found.seen.state == State::Sent && found.seen.text != text {
        Some("acknowledged, but the log has it with another text")
    } else if found.seen.state != State::Sent && !changed_to(found.seen.state) {
        Some("acknowledged, but the log has it in a state that no request explains")
    } else {
        None
    }
}

fn edit_fault(text: Digest, seen: &Seen, found: Option<&FinalMessage>) -> Option<&'static str> {
    let Some(found) = found else {
        return Some("its edit was acknowledged, but it is not in the log");
    };
    if found.seen.rev < seen.rev || found.seen.state == State::Sent {
        Some("its edit was acknowledged, but the log has its earlier state")
    } else if seen.state == State::Edited && seen.text != text {
        Some("its edit was acknowledged with another text")
    } else if found.seen.rev == seen.rev && found.seen.text != seen.text {
        Some("its edit was acknowledged, but the log has it with another text")
    } else {
        None
    }
}
