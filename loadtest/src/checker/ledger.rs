//! Claims about revisions and messages, from the final log, answers and frames. The first claim
//! about a revision counts; a later claim that differs is a conflict.

use super::Evidence;
use super::quick::HashMap;
use crate::history::{DeviceEvent, Digest, Name, Outcome, Seen, State, Value};

/// The item that a revision changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Item {
    Message(u32),
    Member(Name),
    Chat,
}

/// A claim about a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub item: Item,
    /// The text of the message after the change; [`Digest::NONE`] if there is none.
    pub text: Digest,
}

/// The known facts about a message beside its latest state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Origin {
    pub sender: Name,
    /// The text of the send; [`Digest::NONE`] if unknown.
    pub text: Digest,
    /// The revision of the send; 0 if unknown.
    pub sent_rev: u32,
    /// The highest revision of the message that was seen.
    pub seen_rev: u32,
}

/// A claim that differs from an earlier one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conflict {
    pub chat: Name,
    pub rev: u32,
    pub device: Option<usize>,
    pub what: &'static str,
}

/// All claims of a record and its final log.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub claims: HashMap<(Name, u32), Claim>,
    pub origins: HashMap<(Name, u32), Origin>,
    pub conflicts: Vec<Conflict>,
    /// The revisions at which memberships changed, by (chat, user), ascending.
    pub moves: HashMap<(Name, Name), Vec<(u32, Move)>>,
}

/// A change of a membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Move {
    Joined,
    Changed,
    Left,
}

impl Ledger {
    /// Reads the final log first, then all answers, then all frames.
    pub(super) fn read(evidence: &Evidence<'_>) -> Self {
        let mut ledger = Self::default();
        ledger.read_log(evidence);

        for op in &evidence.record.ops {
            if let (Some(chat), Some(Outcome::Ok(value))) = (op.kind.chat(), &op.outcome) {
                ledger.read_value(chat, value);
            }
        }

        for (number, device) in evidence.record.devices.iter().enumerate() {
            for entry in &device.entries {
                ledger.read_told(number, &entry.told);
            }
        }

        for moves in ledger.moves.values_mut() {
            moves.sort_unstable();
            moves.dedup();
        }

        ledger
    }

    fn read_log(&mut self, evidence: &Evidence<'_>) {
        for chat in &evidence.log.chats {
            for message in &chat.messages {
                self.see(chat.chat, &message.seen, None);
                if message.sent_rev > 0
                    && let Some(origin) = self.origins.get_mut(&(chat.chat, message.seen.id))
                {
                    origin.sent_rev = message.sent_rev;
                }
            }

            for member in &chat.members {
                let moves = [
                    (member.joined_rev, Move::Joined),
                    (member.left_rev.unwrap_or(0), Move::Left),
                    (if member.left_rev.is_none() { member.rev } else { 0 }, Move::Changed),
                ];
                for (rev, what) in moves.into_iter().filter(|(rev, _)| *rev > 0) {
                    if what != Move::Changed || rev != member.joined_rev {
                        self.moved(chat.chat, rev, member.user, what, None);
                    }
                }
            }
        }

        for view in &evidence.log.views {
            for seen in view.messages.iter().flatten() {
                self.see(view.chat.chat, seen, None);
            }
        }
    }

    fn read_value(&mut self, chat: Name, value: &Value) {
        match value {
            Value::Message(seen) => self.see(chat, seen, None),
            Value::Messages(messages) | Value::Changes { messages, .. } => {
                for seen in messages {
                    self.see(chat, seen, None);
                }
            }
            Value::Done | Value::Chat(_) | Value::Chats(_) | Value::Session(_) => {}
        }
    }

    fn read_told(&mut self, device: usize, told: &DeviceEvent) {
        match told {
            DeviceEvent::New { chat, rev, seen } | DeviceEvent::Edited { chat, rev, seen } => {
                self.see(*chat, seen, Some(device));
                if *rev != seen.rev {
                    self.conflict(
                        *chat,
                        *rev,
                        Some(device),
                        "the frame's rev differs from its message's rev",
                    );
                }
            }
            DeviceEvent::Removed { chat, rev, message_id } => {
                self.claim(
                    *chat,
                    *rev,
                    Claim { item: Item::Message(*message_id), text: Digest::NONE },
                    Some(device),
                );
            }
            DeviceEvent::Joined { chat, rev, user } => {
                self.moved(*chat, *rev, *user, Move::Joined, Some(device));
            }
            DeviceEvent::Changed { chat, rev, user } => {
                self.moved(*chat, *rev, *user, Move::Changed, Some(device));
            }
            DeviceEvent::Left { chat, rev, user } => {
                self.moved(*chat, *rev, *user, Move::Left, Some(device));
            }
            DeviceEvent::Renamed { chat, rev } => {
                self.claim(
                    *chat,
                    *rev,
                    Claim { item: Item::Chat, text: Digest::NONE },
                    Some(device),
                );
            }
            _ => {}
        }
    }

    fn see(&mut self, chat: Name, seen: &Seen, device: Option<usize>) {
        self.claim(chat, seen.rev, Claim { item: Item::Message(seen.id), text: seen.text }, device);

        let origin = self
            .origins
            .entry((chat, seen.id))
            .or_insert_with(|| Origin { sender: seen.sender, ..Origin::default() });
        origin.seen_rev = origin.seen_rev.max(seen.rev);

        let mut fault = (origin.sender != seen.sender).then_some("a message has two senders");
        if seen.state == State::Sent {
            if origin.text == Digest::NONE {
                origin.text = seen.text;
            } else if origin.text != seen.text {
                fault = Some("a message was sent with two texts");
            }
            if origin.sent_rev == 0 {
                origin.sent_rev = seen.rev;
            } else if origin.sent_rev != seen.rev {
                fault = Some("a message was sent at two revs");
            }
        }

        if let Some(what) = fault {
            self.conflict(chat, seen.rev, device, what);
        }
    }

    fn moved(&mut self, chat: Name, rev: u32, user: Name, what: Move, device: Option<usize>) {
        self.claim(chat, rev, Claim { item: Item::Member(user), text: Digest::NONE }, device);
        let moves = self.moves.entry((chat, user)).or_default();
        if moves.last() != Some(&(rev, what)) {
            moves.push((rev, what));
        }
        // Every device receives the same few moves, so duplicates are removed to bound the list.
        if moves.len() > 64 && moves.len().is_power_of_two() {
            moves.sort_unstable();
            moves.dedup();
        }
    }

    fn claim(&mut self, chat: Name, rev: u32, claim: Claim, device: Option<usize>) {
        let first = *self.claims.entry((chat, rev)).or_insert(claim);
        // The first members of a chat share its first rev.
        let first_members = rev == 1 && !matches!(claim.item, Item::Message(_));
        if first.item != claim.item && !first_members {
            self.conflict(chat, rev, device, "two changes have the same rev");
        } else if first.text != claim.text {
            self.conflict(chat, rev, device, "a rev has two texts");
        }
    }

    fn conflict(&mut self, chat: Name, rev: u32, device: Option<usize>, what: &'static str) {
        self.conflicts.push(Conflict { chat, rev, device, what });
    }
}
