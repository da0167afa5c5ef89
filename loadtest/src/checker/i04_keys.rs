//! I4: a (chat, sender, key) creates at most one message, and every attempt gets the same answer.

use super::facts::Facts;
use super::quick::HashMap;
use super::report::Sink;
use super::{Harm, Invariant, Location};
use crate::history::{Digest, Kind, Name};

pub(super) fn check(facts: &Facts<'_>, sink: &mut Sink<'_>) {
    let mut answers: HashMap<(Name, Name, Digest), u32> = HashMap::default();
    // Texts are unique in a run, so all attempts with one text have the same key.
    let mut keyed_texts: HashMap<(Name, Name, Digest), Digest> = HashMap::default();

    for op in &facts.record.ops {
        let Kind::Send { chat, text, client_id } = op.kind else { continue };
        if client_id == Digest::NONE {
            continue;
        }

        keyed_texts.insert((chat, op.user, text), client_id);
        let Some(seen) = op.message() else { continue };
        let first = *answers.entry((chat, op.user, client_id)).or_insert(seen.id);

        if first != seen.id {
            sink.add(Invariant::I4, Harm::Doubled, Location::rev(chat, seen.rev), || {
                format!(
                    "one key of user {} was acknowledged as message {first} and as message {}",
                    facts.record.word(op.user),
                    seen.id
                )
            });
        }
    }

    for log in facts.chats.values() {
        let chat = log.log.chat;
        let mut found: HashMap<(Name, Digest), u32> = HashMap::default();

        for message in &log.messages {
            let (id, sender) = (message.seen.id, message.seen.sender);
            let text =
                facts.ledger.origins.get(&(chat, id)).map_or(Digest::NONE, |origin| origin.text);

            let key = match message.client_id {
                Digest::NONE => keyed_texts.get(&(chat, sender, text)).copied(),
                key => Some(key),
            };

            let Some(key) = key else { continue };
            if let Some(first) = found.insert((sender, key), id) {
                sink.add(
                    Invariant::I4,
                    Harm::Doubled,
                    Location::rev(chat, message.seen.rev),
                    || format!("messages {first} and {id} have the same key"),
                );
            }
        }
    }
}
