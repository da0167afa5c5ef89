//! Who said what of which revision and which message: the first word counts, a different one is a
//! conflict.

use super::Evidence;
use super::quick::HashMap;
use crate::history::{Digest, Name, Outcome, Seen, State, Told, Value};

/// What a revision changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// This message.
    Message(u32),
    /// This member.
    Member(Name),
    /// The chat itself.
    Chat,
}

/// What is said of a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub item: Item,
    /// The message's text after it; none where it has none.
    pub text: Digest,
}

/// What is known of a message beside its latest state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Origin {
    pub sender: Name,
    /// The text as it was sent; none if nobody saw it.
    pub text: Digest,
    /// The revision that sent it; 0 if nobody saw it.
    pub sent_rev: u32,
    /// The highest revision at which anybody saw it.
    pub seen_rev: u32,
}

/// Two who do not agree.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conflict {
    pub chat: Name,
    pub rev: u32,
    pub device: Option<usize>,
    pub what: &'static str,
}

/// Everything that anybody said.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub claims: HashMap<(Name, u32), Claim>,
    pub origins: HashMap<(Name, u32), Origin>,
    pub conflicts: Vec<Conflict>,
    /// The revisions at which members changed, by (chat, user), ascending, with whether they
    /// joined.
    pub moves: HashMap<(Name, Name), Vec<(u32, Move)>>,
}

/// What became of a member.
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

    fn read_told(&mut self, device: usize, told: &Told) {
        match told {
            Told::New { chat, rev, seen } | Told::Edited { chat, rev, seen } => {
                self.see(*chat, seen, Some(device));
                if *rev != seen.rev {
                    self.conflict(
                        *chat,
                        *rev,
                        Some(device),
                        "the frame's rev is not its message's",
                    );
                }
            }
            Told::Removed { chat, rev, message_id } => {
                self.claim(
                    *chat,
                    *rev,
                    Claim { item: Item::Message(*message_id), text: Digest::NONE },
                    Some(device),
                );
            }
            Told::Joined { chat, rev, user } => {
                self.moved(*chat, *rev, *user, Move::Joined, Some(device))
            }
            Told::Changed { chat, rev, user } => {
                self.moved(*chat, *rev, *user, Move::Changed, Some(device))
            }
            Told::Left { chat, rev, user } => {
                self.moved(*chat, *rev, *user, Move::Left, Some(device))
            }
            Told::Renamed { chat, rev } => {
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
        // Every device tells of the same few moves: kept short while reading.
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
            self.conflict(chat, rev, device, "a rev stands for two changes");
        } else if first.text != claim.text {
            self.conflict(chat, rev, device, "a rev stands for two texts");
        }
    }

    fn conflict(&mut self, chat: Name, rev: u32, device: Option<usize>, what: &'static str) {
        self.conflicts.push(Conflict { chat, rev, device, what });
    }
}
