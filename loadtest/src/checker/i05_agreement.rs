//! I5: all who look see the same: of each (chat, id) the sender and the text as sent, of each
//! (chat, rev) the change. And what anybody saw is in the log at the end.

use super::facts::Facts;
use super::report::Sink;
use super::{Harm, Invariant, Place};

pub(super) fn check(facts: &Facts<'_>, sink: &mut Sink<'_>) {
    for conflict in &facts.ledger.conflicts {
        let place =
            Place { chat: Some(conflict.chat), rev: Some(conflict.rev), device: conflict.device };
        sink.add(Invariant::I5, Harm::Wrong, place, || conflict.what.to_owned());
    }
    for ((chat, id), origin) in &facts.ledger.origins {
        let Some(log) = facts.chats.get(chat) else { continue };
        let place = Place::rev(*chat, origin.seen_rev);
        match log.message(*id) {
            None => sink.add(Invariant::I5, Harm::Lost, place, || {
                format!("message {id} was seen, and is not in the log at the end")
            }),
            Some(message) if message.seen.rev < origin.seen_rev => {
                sink.add(Invariant::I5, Harm::Lost, place, || {
                    format!("a change of message {id} was seen, and is not in the log at the end")
                })
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
            sink.add(Invariant::I5, Harm::Lost, Place::chat(view.chat.chat), || {
                format!(
                    "replica {} tells user {} a history of {} messages that is not the log of {}",
                    view.replica,
                    facts.record.word(view.user),
                    messages.len(),
                    log.messages.len()
                )
            });
        }
    }
}
