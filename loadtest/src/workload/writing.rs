//! Writers: over HTTP to any replica or on sockets, with or without keys, and with edits and
//! removals.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::future::join_all;
use rand::RngExt;
use rand::rngs::StdRng;

use super::Work;
use crate::actor::Actor;
use crate::client::Answer;
use crate::device::Device;
use crate::history::Digest;
use crate::wire::Message;

/// Number of concurrent sends with one key.
const REPLAYS: usize = 5;
/// Delay before a retry with the same key.
const RETRY: Duration = Duration::from_millis(200);
/// Maximum number of own messages that an editor chooses from.
const OWN_MAX: usize = 32;

fn text(work: &Work, actor: &Actor, rng: &mut StdRng) -> String {
    let text = work.unique(&actor.account().login);
    // Most texts are short, 2 % are long.
    let more =
        if rng.random_bool(0.02) { rng.random_range(500..2000) } else { rng.random_range(0..80) };
    format!("{text} {}.", "~".repeat(more))
}

/// Starts a writer for each user. All write into one chat.
pub fn hot_chat(work: &Work, actors: &[Actor], chat: &str) {
    for actor in actors {
        work.spawn(write(work.clone(), actor.clone(), vec![chat.to_owned()]));
    }
}

/// Writes into random chats without keys. A send without an answer is not retried.
pub async fn write(work: Work, actor: Actor, chats: Vec<String>) {
    let mut rng = work.rng();
    while work.rest(&mut rng).await {
        let chat = &chats[rng.random_range(0..chats.len())];
        let text = text(&work, &actor, &mut rng);
        actor.send(rng.random_range(0..64), chat, &text, None).await;
    }
}

/// Writes on a device's socket, `at_once` messages before it waits for the answers.
pub async fn write_on_socket(work: Work, device: Device, chats: Vec<String>, at_once: usize) {
    let mut rng = work.rng();
    while work.rest(&mut rng).await {
        let chat = &chats[rng.random_range(0..chats.len())];
        let texts: Vec<String> =
            (0..at_once.max(1)).map(|_| text(&work, device.actor(), &mut rng)).collect();
        join_all(texts.iter().map(|text| device.send(chat, text, None))).await;
    }
}

/// Writes with keys. A send without an answer is retried on another replica until there is a
/// definite one.
pub async fn retry(work: Work, actor: Actor, chats: Vec<String>) {
    let mut rng = work.rng();
    while work.rest(&mut rng).await {
        let chat = &chats[rng.random_range(0..chats.len())];
        send_until_definite(&work, &actor, chat, &mut rng).await;
    }
}

async fn send_until_definite(
    work: &Work,
    actor: &Actor,
    chat: &str,
    rng: &mut StdRng,
) -> Option<Message> {
    let (text, key) = (text(work, actor, rng), key(work));
    loop {
        match actor.send(rng.random_range(0..64), chat, &text, Some(&key)).await {
            Answer::Ok(message) => return Some(message),
            Answer::Refused { status: 429, .. } | Answer::Unknown => {}
            Answer::Refused { .. } => return None,
        }
        if !work.wait(RETRY).await {
            return None;
        }
    }
}

fn key(work: &Work) -> String {
    // A key may have at most 64 characters.
    format!("{:016x}", Digest::of(&work.unique("key")).0)
}

/// Sends each message several times at once on different replicas with one key, and once later.
pub async fn replay(work: Work, actor: Actor, chats: Vec<String>) {
    let mut rng = work.rng();
    while work.rest(&mut rng).await {
        let chat = &chats[rng.random_range(0..chats.len())];
        let (text, key) = (text(&work, &actor, &mut rng), key(&work));
        let first = rng.random_range(0..64);
        let tries =
            (first..first + REPLAYS).map(|replica| actor.send(replica, chat, &text, Some(&key)));
        join_all(tries).await;
        actor.send(first + REPLAYS, chat, &text, Some(&key)).await;
    }
}

/// Writes messages, and edits and removes them, half of the time on the device if there is one.
pub async fn edit_and_remove(work: Work, actor: Actor, device: Option<Device>, chat: String) {
    let mut rng = work.rng();
    let mut own: VecDeque<u32> = VecDeque::new();

    while work.rest(&mut rng).await {
        let replica = rng.random_range(0..64);
        let by_socket = rng.random_bool(0.5);

        match (rng.random_range(0..10), own.front().copied(), &device) {
            (0..4, ..) | (_, None, _) => {
                own.extend(
                    send_until_definite(&work, &actor, &chat, &mut rng)
                        .await
                        .map(|message| message.id),
                );
                own.truncate(OWN_MAX);
            }
            (4..8, Some(id), Some(device)) if by_socket => {
                let text = text(&work, &actor, &mut rng);
                device.edit(&chat, id, &text).await;
                own.rotate_left(1);
            }
            (4..8, Some(id), _) => {
                let text = text(&work, &actor, &mut rng);
                actor.edit(replica, &chat, id, &text).await;
                own.rotate_left(1);
            }
            (_, Some(id), Some(device)) if by_socket => {
                device.remove(&chat, id).await;
                own.pop_front();
            }
            (_, Some(id), _) => {
                actor.remove(replica, &chat, id).await;
                own.pop_front();
            }
        }
    }
}
