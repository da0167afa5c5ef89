//! Where a device stands in a chat.

use super::facts::Facts;
use super::ledger::Item;
use super::quick::HashMap;
use crate::history::Name;

/// How a chat's events reach the device at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not at all.
    #[default]
    Away,
    /// It named the chat in `sync`, and is told what it missed.
    Replaying,
    /// As they happen.
    Live,
    /// The chat left the user's list.
    Gone,
}

/// How a message was last told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delivery {
    pub rev: u32,
    pub connection: u32,
}

/// A rev that was passed over because what it changed, changed again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owed {
    pub rev: u32,
    pub item: Item,
}

/// Where a device stands in a chat.
#[derive(Debug, Default)]
pub(super) struct Stand {
    pub phase: Phase,
    /// Everything up to here was told.
    pub rev: u32,
    /// What the device knew when this stretch of events began.
    pub base: u32,
    /// Messages told so far.
    pub told: HashMap<u32, Delivery>,
    /// Revs of members and of the chat itself told on this connection.
    pub others: Vec<u32>,
    /// When each member was last told of, on this connection.
    pub members: HashMap<Name, u32>,
    /// What later states must make up for.
    pub owed: Vec<Owed>,
}

impl Stand {
    /// Events go on from `rev`, which the device knows by other means.
    pub(super) fn begin(&mut self, phase: Phase, rev: u32) {
        (self.phase, self.rev, self.base) = (phase, rev, rev);
        self.others.clear();
        self.members.clear();
        self.owed.clear();
    }

    /// The revs that were passed over and never made up for, though the device got far enough.
    /// Clears them.
    pub(super) fn defaulted(&mut self, facts: &Facts<'_>, chat: Name) -> Vec<u32> {
        let Some(log) = facts.chats.get(&chat) else { return Vec::new() };
        let owed = std::mem::take(&mut self.owed);
        let is_made_up_for = |owed: &Owed| match owed.item {
            Item::Message(id) => {
                let told = self.told.get(&id).is_some_and(|delivery| delivery.rev > owed.rev);
                told || log.message(id).is_some_and(|message| message.seen.rev > self.rev)
            }
            Item::Member(user) => {
                let told = self.members.get(&user).is_some_and(|rev| *rev > owed.rev);
                let moves = facts.ledger.moves.get(&(chat, user));
                let last = moves.and_then(|moves| moves.last()).map_or(0, |(rev, _)| *rev);
                // With no later change known, one that nobody saw may have come before the chat's
                // end.
                let to_come =
                    if last > owed.rev { last > self.rev } else { log.log.rev > self.rev };
                told || to_come
            }
            Item::Chat => true,
        };
        owed.iter().filter(|owed| !is_made_up_for(owed)).map(|owed| owed.rev).collect()
    }
}
