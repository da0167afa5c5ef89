//! The position of a device in the event stream of a chat.

use super::facts::Facts;
use super::ledger::Item;
use super::quick::HashMap;
use crate::history::Name;

/// How the device currently receives the chat's events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// The device is not connected, or does not follow the chat.
    #[default]
    Away,
    /// The device named the chat in `sync` and receives the events that it missed.
    Replaying,
    /// The device receives events as they happen.
    Live,
    /// The chat was removed from the user's list.
    Gone,
}

/// The last delivery of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delivery {
    pub rev: u32,
    pub connection: u32,
}

/// A rev that was skipped because its item changed again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Skipped {
    pub rev: u32,
    pub item: Item,
}

/// The position of a device in the event stream of a chat.
#[derive(Debug, Default)]
pub(super) struct Position {
    pub phase: Phase,
    /// Every event up to this rev was delivered.
    pub rev: u32,
    /// The rev that the device had when this sequence of events began.
    pub base: u32,
    /// The last delivery of each message.
    pub delivered: HashMap<u32, Delivery>,
    /// Delivered revs of members and of the chat itself, on this connection.
    pub others: Vec<u32>,
    /// The last delivered rev of each member, on this connection.
    pub members: HashMap<Name, u32>,
    /// Skipped revs for which a later state of the item must arrive.
    pub skipped: Vec<Skipped>,
}

impl Position {
    /// Starts a sequence of events after `rev`, which the device has by other means.
    pub(super) fn begin(&mut self, phase: Phase, rev: u32) {
        (self.phase, self.rev, self.base) = (phase, rev, rev);
        self.others.clear();
        self.members.clear();
        self.skipped.clear();
    }

    /// Returns the skipped revs for which no later state arrived although the device got far
    /// enough. Clears all skipped revs.
    pub(super) fn take_lost(&mut self, facts: &Facts<'_>, chat: Name) -> Vec<u32> {
        let Some(log) = facts.chats.get(&chat) else { return Vec::new() };
        let skipped = std::mem::take(&mut self.skipped);

        let is_replaced = |skipped: &Skipped| match skipped.item {
            Item::Message(id) => {
                let delivered =
                    self.delivered.get(&id).is_some_and(|delivery| delivery.rev > skipped.rev);
                delivered || log.message(id).is_some_and(|message| message.seen.rev > self.rev)
            }
            Item::Member(user) => {
                let delivered = self.members.get(&user).is_some_and(|rev| *rev > skipped.rev);
                let moves = facts.ledger.moves.get(&(chat, user));
                let last = moves.and_then(|moves| moves.last()).map_or(0, |(rev, _)| *rev);
                // If no later change is known, there may be an unseen one up to the chat's last
                // rev.
                let to_come =
                    if last > skipped.rev { last > self.rev } else { log.log.rev > self.rev };
                delivered || to_come
            }
            Item::Chat => true,
        };

        skipped.iter().filter(|skipped| !is_replaced(skipped)).map(|skipped| skipped.rev).collect()
    }
}
