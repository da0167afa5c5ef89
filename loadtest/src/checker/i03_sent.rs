//! I3: the log contains no message or change that was never requested or that was refused.

use super::facts::Facts;
use super::quick::HashMap;
use super::report::Sink;
use super::{Harm, Invariant, Location};
use crate::history::{Digest, Kind, Name, State};

pub(super) fn check(facts: &Facts<'_>, sink: &mut Sink<'_>) {
    // Whether the server may have done at least one attempt of the send.
    let mut sent: HashMap<(Name, Name, Digest), bool> = HashMap::default();
    for op in &facts.record.ops {
        if let Kind::Send { chat, text, .. } = op.kind {
            *sent.entry((chat, op.user, text)).or_default() |= op.may_be_done();
        }
    }

    for log in facts.chats.values() {
        let chat = log.log.chat;
        for message in &log.messages {
            let seen = message.seen;
            let origin = facts.ledger.origins.get(&(chat, seen.id)).copied().unwrap_or_default();
            let text = if seen.state == State::Sent { seen.text } else { origin.text };

            if text != Digest::NONE {
                let what = match sent.get(&(chat, seen.sender, text)) {
                    Some(true) => None,
                    Some(false) => Some("every attempt to send it was refused"),
                    None => Some("its sender never sent it"),
                };
                if let Some(what) = what {
                    sink.add(Invariant::I3, Harm::Wrong, Location::rev(chat, seen.rev), || {
                        format!("message {} is in the log, but {what}", seen.id)
                    });
                }
            }

            let wanted = |op: &&crate::history::Op| match op.kind {
                Kind::Edit { text, .. } => seen.state == State::Edited && text == seen.text,
                _ => seen.state == State::Removed,
            };
            if seen.state != State::Sent && !facts.changes(chat, seen.id).iter().any(wanted) {
                sink.add(Invariant::I3, Harm::Wrong, Location::rev(chat, seen.rev), || {
                    format!(
                        "message {} is {:?} in the log, but no request explains that",
                        seen.id, seen.state
                    )
                });
            }
        }
    }
}
