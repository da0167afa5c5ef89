//! Checks after a run that every acknowledged message is in the history once, under the
//! acknowledged id.

use std::collections::{HashMap, HashSet};

use reqwest::Method;
use starling_loadtest::wire::{Message, MessageList};

use super::sender::{Acknowledged, Sender};
use crate::tool::stage::Stage;
use crate::tool::verdict::Verdict;

/// Messages of a page.
const PAGE_MAX: u32 = 200;

/// Reads the messages of a sender and compares them with its acknowledgements. Returns how many
/// messages were read.
///
/// # Errors
/// If the history cannot be read.
pub async fn prove(stage: &Stage, replica: usize, sender: &Sender) -> Result<u64, String> {
    let mut messages: Vec<Message> = Vec::new();
    loop {
        let after = messages.last().map_or(sender.first_id, |message| message.id);
        let path = format!("/chats/{}/messages?after={after}&max={PAGE_MAX}", sender.chat);
        let page: MessageList =
            stage.request(replica, sender.user, Method::GET, &path, None).await?;
        if page.messages.is_empty() {
            break;
        }
        messages.extend(page.messages);
    }

    judge(sender, &messages, &stage.verdict);
    Ok(messages.len() as u64)
}

fn judge(sender: &Sender, messages: &[Message], verdict: &Verdict) {
    let acknowledged = sender.acknowledged.iter().map(|it| (*it, sender.key_of(it.number)));
    compare(
        Written { chat: &sender.chat, first_id: sender.first_id },
        acknowledged.collect(),
        messages,
        verdict,
    );
}

/// A chat, and its last message before the run.
#[derive(Clone, Copy)]
struct Written<'a> {
    chat: &'a str,
    first_id: u32,
}

fn compare(
    written: Written<'_>,
    acknowledged: Vec<(Acknowledged, String)>,
    messages: &[Message],
    verdict: &Verdict,
) {
    let Written { chat, first_id } = written;
    for (expected, message) in (first_id + 1..).zip(messages) {
        if message.id != expected {
            verdict.chat(
                chat,
                message.rev,
                &format!("the history has message {} where {expected} belongs", message.id),
            );
            break;
        }
    }

    let mut keys = HashSet::new();
    for message in messages {
        if let Some(key) = &message.client_id
            && !keys.insert(key.as_str())
        {
            verdict.chat(
                chat,
                message.rev,
                &format!("message {} duplicates another with the key {key}", message.id),
            );
        }
    }

    let by_id: HashMap<u32, &Message> =
        messages.iter().map(|message| (message.id, message)).collect();

    for (Acknowledged { id, rev, .. }, key) in acknowledged {
        match by_id.get(&id) {
            Some(message) if message.client_id.as_deref() == Some(key.as_str()) => {}
            Some(message) => verdict.chat(
                chat,
                message.rev,
                &format!(
                    "message {id} was acknowledged for {key}, but has the key {:?}",
                    message.client_id
                ),
            ),
            None => verdict.chat(
                chat,
                rev,
                &format!("message {id}, acknowledged for {key}, is not in the history"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: u32, key: &str) -> Message {
        Message { id, rev: id + 1, client_id: Some(key.to_owned()), ..Message::default() }
    }

    fn found(acknowledged: &[(u32, &str)], messages: &[Message]) -> Vec<String> {
        let verdict = Verdict::default();
        let promise = |id| Acknowledged { id, rev: id + 1, number: 0 };
        let acknowledged =
            acknowledged.iter().map(|(id, key)| (promise(*id), (*key).to_owned())).collect();
        compare(Written { chat: "c", first_id: 4 }, acknowledged, messages, &verdict);
        verdict.take().1
    }

    #[test]
    fn a_history_may_have_unacknowledged_messages() {
        assert!(found(&[(5, "a")], &[message(5, "a"), message(6, "b")]).is_empty());
    }

    #[test]
    fn lost_duplicate_misplaced_and_skipped_messages_are_violations() {
        let lost = found(&[(5, "a"), (6, "b")], &[message(5, "a")]);
        assert_eq!(lost, ["chat c: message 6, acknowledged for b, is not in the history (rev 7)"]);
        assert!(found(&[(5, "a")], &[message(5, "a"), message(6, "a")])[0].contains("duplicates"));
        assert!(found(&[(5, "a")], &[message(5, "b"), message(6, "a")])[0].contains("has the key"));
        assert!(found(&[], &[message(5, "a"), message(7, "b")])[0].contains("where 6 belongs"));
    }
}
