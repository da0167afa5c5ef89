//! I6: what a device is told of a chat, in order, once, without a hole.
//!
//! **The rule of gaps.** In the live stream of a connection the revs of a chat grow by 1. A jump
//! from c to r is legal only if each rev v between belongs to an item that changed again later (a
//! hub that heals may tell such an item once, with its latest state): so in the final log nothing
//! still is as v left it, and the item's later state is told on this connection, unless the
//! connection ended before that rev. In the replay after `sync` revs grow, and at `synced` each
//! message whose last change lies between what the device named and what `synced` says has been
//! told, and so has each that was sent there.
//!
//! A `member_count` stands for the revs before it that did not come: each of them must have changed
//! a member.
//!
//! From connection to connection the device names what it knows, so these stretches join: together
//! they are everything.

use super::facts::Facts;
use super::ledger::Item;
use super::quick::HashMap;
use super::report::Sink;
use super::stand::{Delivery, Owed, Phase, Stand};
use super::{Harm, Invariant, Place};
use crate::history::{DeviceRecord, Entry, Kind, Name, Told, Value};

pub(super) fn check(facts: &Facts<'_>, sink: &mut Sink<'_>) {
    for (number, device) in facts.record.devices.iter().enumerate() {
        Walk { facts, sink, number, stands: HashMap::default(), connection: 0, asked: false }
            .run(device);
    }
    pages_are_whole(facts, sink);
}

struct Walk<'f, 's, 'r> {
    facts: &'f Facts<'f>,
    sink: &'s mut Sink<'r>,
    number: usize,
    stands: HashMap<Name, Stand>,
    connection: u32,
    /// Whether `sync` was asked for on this connection.
    asked: bool,
}

impl Walk<'_, '_, '_> {
    fn run(mut self, device: &DeviceRecord) {
        for entry in &device.entries {
            self.take(entry);
        }
        self.end_connection();
    }

    fn wrong(&mut self, harm: Harm, chat: Name, rev: u32, what: &str) {
        self.sink
            .add(Invariant::I6, harm, Place::rev(chat, rev).on(self.number), || what.to_owned());
    }

    fn take(&mut self, entry: &Entry) {
        if entry.connection != self.connection && entry.told.is_frame() {
            self.end_connection();
            self.connection = entry.connection;
        }
        match &entry.told {
            Told::Sync(named) => {
                self.asked = true;
                for (chat, rev) in named {
                    self.stands.entry(*chat).or_default().begin(Phase::Replaying, *rev);
                }
            }
            Told::Synced(chats) => self.synced(chats),
            Told::Reset { chat, rev } => {
                self.defaults(*chat);
                self.stands.entry(*chat).or_default().begin(Phase::Live, *rev);
            }
            Told::Added { chat, rev, .. } => {
                let stand = self.stands.entry(*chat).or_default();
                // Of a chat that is followed already, every event is still to come.
                if stand.phase != Phase::Live {
                    stand.begin(Phase::Live, *rev);
                }
            }
            Told::Gone { chat } => {
                let stand = self.stands.entry(*chat).or_default();
                stand.phase = Phase::Gone;
                stand.owed.clear();
            }
            Told::Closed { .. } | Told::Stopped => self.end_connection(),
            told => {
                if let Some((chat, rev)) = told.event() {
                    self.event(chat, rev, told);
                }
            }
        }
    }

    fn event(&mut self, chat: Name, rev: u32, told: &Told) {
        if !self.asked {
            self.wrong(Harm::Wrong, chat, rev, "an event came before `sync` was asked for");
        }
        let stand = self.stands.entry(chat).or_default();
        let (known, phase) = (stand.rev, stand.phase);
        match phase {
            Phase::Away => {
                self.wrong(
                    Harm::Wrong,
                    chat,
                    rev,
                    "an event of a chat that the device was never told it has",
                );
            }
            Phase::Replaying => {
                let shared = rev == known && matches!(told, Told::Joined { .. });
                if rev <= known && !shared {
                    self.wrong(Harm::Reordered, chat, rev, "the replay went back");
                }
            }
            // A private chat that was removed from the list comes back with its next message.
            Phase::Gone => stand.begin(Phase::Live, rev),
            Phase::Live if rev <= known => {
                let harm = if rev == known { Harm::Doubled } else { Harm::Reordered };
                self.wrong(harm, chat, rev, "the stream told a rev again, or went back");
            }
            Phase::Live => {
                for missing in known + 1..rev {
                    let counted = matches!(told, Told::Counted { .. })
                        && self.changed_a_member(chat, missing);
                    if !counted {
                        self.gap(chat, missing);
                    }
                }
            }
        }
        if matches!(told, Told::Counted { .. }) {
            if !self.changed_a_member(chat, rev) {
                self.wrong(
                    Harm::Lost,
                    chat,
                    rev,
                    "a count of the members stands for something else",
                );
            }
            self.stands.entry(chat).or_default().others.extend(known + 1..rev);
        }
        self.deliver(chat, rev, told);
    }

    /// Whether a rev changed a member, as far as is known.
    fn changed_a_member(&self, chat: Name, rev: u32) -> bool {
        self.facts.item(chat, rev).is_none_or(|item| matches!(item, Item::Member(_)))
    }

    /// Judges a rev that the live stream passed over.
    fn gap(&mut self, chat: Name, rev: u32) {
        let Some(log) = self.facts.chats.get(&chat) else { return };
        if log.is_final(rev) {
            self.wrong(
                Harm::Lost,
                chat,
                rev,
                "the stream has a hole: what this rev changed never changed again",
            );
        } else if let Some(item) = self.facts.item(chat, rev) {
            self.stands.entry(chat).or_default().owed.push(Owed { rev, item });
        }
    }

    fn deliver(&mut self, chat: Name, rev: u32, told: &Told) {
        let connection = self.connection;
        let stand = self.stands.entry(chat).or_default();
        stand.rev = stand.rev.max(rev);
        let (id, is_new) = match told {
            Told::New { seen, .. } => (seen.id, true),
            Told::Edited { seen, .. } => (seen.id, false),
            Told::Removed { message_id, .. } => (*message_id, false),
            Told::Joined { user, .. } | Told::Changed { user, .. } | Told::Left { user, .. } => {
                stand.members.insert(*user, rev);
                stand.others.push(rev);
                return;
            }
            _ => {
                stand.others.push(rev);
                return;
            }
        };
        let earlier = stand.told.insert(id, Delivery { rev, connection });
        let base = stand.base;
        if is_new
            && earlier
                .is_some_and(|earlier| earlier.connection == connection || earlier.rev <= base)
        {
            self.wrong(Harm::Doubled, chat, rev, &format!("message {id} came twice as new"));
        }
    }

    fn synced(&mut self, chats: &[(Name, u32)]) {
        for (chat, rev) in chats {
            self.replayed(*chat, *rev);
            let stand = self.stands.entry(*chat).or_default();
            let known = stand.rev;
            stand.phase = Phase::Live;
            stand.rev = *rev;
            if known > *rev {
                self.wrong(
                    Harm::Reordered,
                    *chat,
                    *rev,
                    "`synced` is behind what was told before it",
                );
            }
        }
        let left_out: Vec<Name> = self
            .stands
            .iter()
            .filter(|(_, stand)| stand.phase == Phase::Replaying)
            .map(|(chat, _)| *chat)
            .collect();
        for chat in left_out {
            self.wrong(
                Harm::Lost,
                chat,
                0,
                "it was named in `sync`, and `synced` says nothing of it",
            );
        }
    }

    /// Looks whether the replay of a chat, which ends at `to`, was whole.
    fn replayed(&mut self, chat: Name, to: u32) {
        let (Some(log), Some(stand)) = (self.facts.chats.get(&chat), self.stands.get(&chat)) else {
            return;
        };
        if stand.phase != Phase::Replaying {
            return;
        }
        let from = stand.base;
        let told = |id: u32| stand.told.get(&id).map_or(0, |delivery| delivery.rev);
        let changed = log.changed(from, to).iter().filter(|(rev, id)| told(*id) < *rev);
        // Sent there, and changed again after `to`: some state of it.
        let sent = log.sent(from, to).iter().filter(|(_, id)| told(*id) <= from);
        let still = |id: u32| log.message(id).is_some_and(|message| message.seen.rev > to);
        let mut missing: Vec<u32> = changed.map(|(rev, _)| *rev).collect();
        missing.extend(sent.filter(|(_, id)| still(*id)).map(|(rev, _)| *rev));
        let others = log.other_revs.iter().filter(|rev| **rev > from && **rev <= to);
        missing.extend(others.filter(|rev| !stand.others.contains(rev)));
        for rev in missing {
            self.wrong(Harm::Lost, chat, rev, "the replay after `sync` has a hole");
        }
    }

    fn defaults(&mut self, chat: Name) {
        let Some(stand) = self.stands.get_mut(&chat) else { return };
        for rev in stand.defaulted(self.facts, chat) {
            self.wrong(Harm::Lost, chat, rev, "the stream has a hole: the later state never came");
        }
    }

    fn end_connection(&mut self) {
        let chats: Vec<Name> = self.stands.keys().copied().collect();
        for chat in chats {
            self.defaults(chat);
            self.stands.entry(chat).or_default().phase = Phase::Away;
        }
        self.asked = false;
    }
}

/// A page of changes holds each message whose last change lies in it.
fn pages_are_whole(facts: &Facts<'_>, sink: &mut Sink<'_>) {
    for op in &facts.record.ops {
        let (Kind::Changes { chat, after_rev }, Some(Value::Changes { messages, rev, .. })) =
            (op.kind, op.value())
        else {
            continue;
        };
        let Some(log) = facts.chats.get(&chat) else { continue };
        // Revs in a page ascend.
        let listed = |rev: u32| messages.binary_search_by_key(&rev, |seen| seen.rev).is_ok();
        if !messages.is_sorted_by_key(|seen| seen.rev) {
            sink.add(Invariant::I6, Harm::Reordered, Place::chat(chat), || {
                format!("the page of changes after rev {after_rev} is not in order")
            });
        } else if let Some((missing, id)) =
            log.changed(after_rev, *rev).iter().find(|(rev, _)| !listed(*rev))
        {
            sink.add(Invariant::I6, Harm::Lost, Place::rev(chat, *missing), || {
                format!("the page of changes after rev {after_rev} has no message {id}")
            });
        }
    }
}
