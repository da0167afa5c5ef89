//! I5: all reads and frames agree: for each (chat, id) on the sender and the sent text, for each
//! (chat, rev) on the change. Every message that was seen is in the final log.

use super::facts::Facts;
use super::report::Sink;
use super::{Harm, Invariant, Location};

pub(super) fn check(facts: &Facts<'_>, sink: &mut Sink<'_>) {
    for conflict in &facts.ledger.conflicts {
        let location = Location {
            chat: Some(conflict.chat),
            rev: Some(conflict.rev),
            device: conflict.device,
        };
        sink.add(Invariant::I5, Harm::Wrong, location, || conflict.what.to_owned());
    }

    for ((chat, id), origin) in &facts.ledger.origins {
        let Some(log) = facts.chats.get(chat) else { continue };
        let location = Location::rev(*chat, origin.seen_rev);

        match log.message(*id) {
            None => sink.add(Invariant::I5, Harm::Lost, location, || {
                format!("message {id} was seen, but is not in the final log")
            }),
            Some(message) if message.seen.rev < origin.seen_rev => {
                sink.add(Invariant::I5, Harm::Lost, location, || {
                    format!("a change of message {id} was seen, but is not in the final log")
                });
            }
            Some(_) => {}
        }
    }

    for view in &facts.evidence.log.views {
        let Some(log) = facts.chats.get(&view.chat.chat) else { continue };
        let Some(messages) = &view.messages else { continue };

        let same = messages.len() == log.messages.len()
            && messages.iter().zip(&log.messages).all(|(seen, message)| *seen == message.seen);
        if !same {
            sink.add(Invariant::I5, Harm::Lost, Location::chat(view.chat.chat), || {
                format!(
                    "replica {} shows user {} a history of {} messages that differs from the log \
                     of {} messages",
                    view.replica,
                    facts.record.word(view.user),
                    messages.len(),
                    log.messages.len()
                )
            });
        }
    }
}
