//! Readers: pages of history, changes and lists on any replica, and read markers.

use rand::RngExt;

use super::Work;
use crate::actor::{Actor, HistoryPage};

/// Maximum number of messages of a page.
const PAGE_MAX: u32 = 50;

/// Reads pages, lists and changes of these chats, each time from a random replica.
pub async fn page(work: Work, actor: Actor, chats: Vec<String>) {
    let mut rng = work.rng();
    let mut known = vec![(0, 0); chats.len()];

    while work.rest(&mut rng).await {
        let index = rng.random_range(0..chats.len());
        let (chat, (rev, last)) = (&chats[index], &mut known[index]);
        let replica = rng.random_range(0..64);
        let newest = HistoryPage { max: PAGE_MAX, ..HistoryPage::default() };
        let somewhere = Some(rng.random_range(0..=*last));

        match rng.random_range(0..6) {
            0 => {
                if let Some(list) = actor.read_history(replica, chat, newest).await.ok() {
                    *last = list.messages.last().map_or(*last, |message| message.id);
                }
            }
            1 => drop(
                actor.read_history(replica, chat, HistoryPage { after: somewhere, ..newest }).await,
            ),
            2 if *last > 1 => {
                let before = Some(rng.random_range(2..=*last));
                actor.read_history(replica, chat, HistoryPage { before, ..newest }).await;
            }
            3 => drop(actor.chats(replica).await),
            4 => drop(actor.chat(replica, chat).await),
            _ => {
                // Mostly from the last known rev, sometimes from the beginning.
                let after_rev = if rng.random_bool(0.05) { 0 } else { *rev };
                if let Some(page) = actor.changes(replica, chat, after_rev).await.ok() {
                    *rev = page.rev;
                }
            }
        }
    }
}

/// Moves the read markers of these chats to their last messages.
pub async fn mark_read(work: Work, actor: Actor, chats: Vec<String>) {
    let mut rng = work.rng();
    while work.rest(&mut rng).await {
        let chat = &chats[rng.random_range(0..chats.len())];
        let replica = rng.random_range(0..64);
        if let Some(seen) = actor.chat(replica, chat).await.ok() {
            actor.mark_read(replica + 1, chat, seen.last_message_id).await;
        }
    }
}
