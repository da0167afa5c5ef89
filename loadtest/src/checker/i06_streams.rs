//! I6: a device receives the events of a chat in order, once, and without gaps.
//!
//! **The rule for gaps.** In the live stream of a connection, the revs of a chat grow by 1. A jump
//! from c to r is allowed only if each skipped rev v changed an item that changed again later,
//! because a hub that heals may send such an item once, in its latest state. So v is not the last
//! rev of any item in the final log. The item's later state arrives on this connection, unless the
//! connection ends before that rev.
//!
//! In the replay after `sync`, revs grow. Between the rev that the device named and the rev of
//! `synced`, the replay contains each message that was sent or last changed there.
//!
//! A `member_count` replaces the missing revs before it: each of them must have changed a member.
//!
//! On each connection the device names the revs that it has, so the checked ranges of successive
//! connections join.

use super::facts::Facts;
use super::ledger::Item;
use super::quick::HashMap;
use super::report::Sink;
use super::stand::{Delivery, Phase, Position, Skipped};
use super::{Harm, Invariant, Location};
use crate::history::{DeviceEvent, DeviceRecord, Entry, Kind, Name, Value};

pub(super) fn check(facts: &Facts<'_>, sink: &mut Sink<'_>) {
    for (number, device) in facts.record.devices.iter().enumerate() {
        Walk {
            facts,
            sink,
            number,
            positions: HashMap::default(),
            connection: 0,
            sync_sent: false,
        }
        .run(device);
    }

    check_pages(facts, sink);
}

struct Walk<'f, 's, 'r> {
    facts: &'f Facts<'f>,
    sink: &'s mut Sink<'r>,
    number: usize,
    positions: HashMap<Name, Position>,
    connection: u32,
    /// Whether the device sent `sync` on this connection.
    sync_sent: bool,
}

impl Walk<'_, '_, '_> {
    fn run(mut self, device: &DeviceRecord) {
        for entry in &device.entries {
            self.apply(entry);
        }
        self.end_connection();
    }

    fn wrong(&mut self, harm: Harm, chat: Name, rev: u32, what: &str) {
        self.sink
            .add(Invariant::I6, harm, Location::rev(chat, rev).on(self.number), || what.to_owned());
    }

    fn apply(&mut self, entry: &Entry) {
        if entry.connection != self.connection && entry.told.is_frame() {
            self.end_connection();
            self.connection = entry.connection;
        }

        match &entry.told {
            DeviceEvent::Sync(named) => {
                self.sync_sent = true;
                for (chat, rev) in named {
                    self.positions.entry(*chat).or_default().begin(Phase::Replaying, *rev);
                }
            }
            DeviceEvent::Synced(chats) => self.synced(chats),
            DeviceEvent::Reset { chat, rev } => {
                self.report_lost(*chat);
                self.positions.entry(*chat).or_default().begin(Phase::Live, *rev);
            }
            DeviceEvent::Added { chat, rev, .. } => {
                let position = self.positions.entry(*chat).or_default();
                // If the device follows the chat already, all events in between still arrive.
                if position.phase != Phase::Live {
                    position.begin(Phase::Live, *rev);
                }
            }
            DeviceEvent::Gone { chat } => {
                let position = self.positions.entry(*chat).or_default();
                position.phase = Phase::Gone;
                position.skipped.clear();
            }
            DeviceEvent::Closed { .. } | DeviceEvent::Stopped => self.end_connection(),
            told => {
                if let Some((chat, rev)) = told.event() {
                    self.event(chat, rev, told);
                }
            }
        }
    }

    fn event(&mut self, chat: Name, rev: u32, told: &DeviceEvent) {
        if !self.sync_sent {
            self.wrong(Harm::Wrong, chat, rev, "an event arrived before the device sent `sync`");
        }

        let position = self.positions.entry(chat).or_default();
        let (known, phase) = (position.rev, position.phase);

        match phase {
            Phase::Away => {
                self.wrong(
                    Harm::Wrong,
                    chat,
                    rev,
                    "an event of a chat that was never announced to the device",
                );
            }
            Phase::Replaying => {
                let shared = rev == known && matches!(told, DeviceEvent::Joined { .. });
                if rev <= known && !shared {
                    self.wrong(Harm::Reordered, chat, rev, "the revs of the replay do not ascend");
                }
            }
            // A private chat that was removed from the list returns with its next message.
            Phase::Gone => position.begin(Phase::Live, rev),
            Phase::Live if rev <= known => {
                let harm = if rev == known { Harm::Doubled } else { Harm::Reordered };
                self.wrong(harm, chat, rev, "the stream repeated a rev, or went back");
            }
            Phase::Live => {
                for missing in known + 1..rev {
                    let counted = matches!(told, DeviceEvent::Counted { .. })
                        && self.changed_a_member(chat, missing);
                    if !counted {
                        self.gap(chat, missing);
                    }
                }
            }
        }

        if matches!(told, DeviceEvent::Counted { .. }) {
            if !self.changed_a_member(chat, rev) {
                self.wrong(
                    Harm::Lost,
                    chat,
                    rev,
                    "`member_count` replaced a change that was not one of a member",
                );
            }
            self.positions.entry(chat).or_default().others.extend(known + 1..rev);
        }

        self.deliver(chat, rev, told);
    }

    /// Whether a rev changed a member, or its item is unknown.
    fn changed_a_member(&self, chat: Name, rev: u32) -> bool {
        self.facts.item(chat, rev).is_none_or(|item| matches!(item, Item::Member(_)))
    }

    /// Checks a rev that the live stream skipped.
    fn gap(&mut self, chat: Name, rev: u32) {
        let Some(log) = self.facts.chats.get(&chat) else { return };
        if log.is_final(rev) {
            self.wrong(
                Harm::Lost,
                chat,
                rev,
                "the stream has a gap: the item that this rev changed did not change again",
            );
        } else if let Some(item) = self.facts.item(chat, rev) {
            self.positions.entry(chat).or_default().skipped.push(Skipped { rev, item });
        }
    }

    fn deliver(&mut self, chat: Name, rev: u32, told: &DeviceEvent) {
        let connection = self.connection;
        let position = self.positions.entry(chat).or_default();
        position.rev = position.rev.max(rev);

        let (id, is_new) = match told {
            DeviceEvent::New { seen, .. } => (seen.id, true),
            DeviceEvent::Edited { seen, .. } => (seen.id, false),
            DeviceEvent::Removed { message_id, .. } => (*message_id, false),
            DeviceEvent::Joined { user, .. }
            | DeviceEvent::Changed { user, .. }
            | DeviceEvent::Left { user, .. } => {
                position.members.insert(*user, rev);
                position.others.push(rev);
                return;
            }
            _ => {
                position.others.push(rev);
                return;
            }
        };

        let earlier = position.delivered.insert(id, Delivery { rev, connection });
        let base = position.base;

        if is_new
            && earlier
                .is_some_and(|earlier| earlier.connection == connection || earlier.rev <= base)
        {
            self.wrong(Harm::Doubled, chat, rev, &format!("message {id} arrived twice as new"));
        }
    }

    fn synced(&mut self, chats: &[(Name, u32)]) {
        for (chat, rev) in chats {
            self.check_replay(*chat, *rev);

            let position = self.positions.entry(*chat).or_default();
            let known = position.rev;
            position.phase = Phase::Live;
            position.rev = *rev;

            if known > *rev {
                self.wrong(
                    Harm::Reordered,
                    *chat,
                    *rev,
                    "`synced` has a lower rev than an event before it",
                );
            }
        }

        let left_out: Vec<Name> = self
            .positions
            .iter()
            .filter(|(_, position)| position.phase == Phase::Replaying)
            .map(|(chat, _)| *chat)
            .collect();

        for chat in left_out {
            self.wrong(
                Harm::Lost,
                chat,
                0,
                "the chat was named in `sync`, but is missing in `synced`",
            );
        }
    }

    /// Checks that the replay of a chat, which ends at `to`, was complete.
    fn check_replay(&mut self, chat: Name, to: u32) {
        let (Some(log), Some(position)) = (self.facts.chats.get(&chat), self.positions.get(&chat))
        else {
            return;
        };

        if position.phase != Phase::Replaying {
            return;
        }

        let from = position.base;
        let delivered = |id: u32| position.delivered.get(&id).map_or(0, |delivery| delivery.rev);
        let changed = log.changed(from, to).iter().filter(|(rev, id)| delivered(*id) < *rev);
        // A message sent in the range and changed again after `to` must arrive in some state.
        let sent = log.sent(from, to).iter().filter(|(_, id)| delivered(*id) <= from);
        let still = |id: u32| log.message(id).is_some_and(|message| message.seen.rev > to);

        let mut missing: Vec<u32> = changed.map(|(rev, _)| *rev).collect();
        missing.extend(sent.filter(|(_, id)| still(*id)).map(|(rev, _)| *rev));
        let others = log.other_revs.iter().filter(|rev| **rev > from && **rev <= to);
        missing.extend(others.filter(|rev| !position.others.contains(rev)));

        for rev in missing {
            self.wrong(Harm::Lost, chat, rev, "the replay after `sync` has a gap");
        }
    }

    fn report_lost(&mut self, chat: Name) {
        let Some(position) = self.positions.get_mut(&chat) else { return };
        for rev in position.take_lost(self.facts, chat) {
            self.wrong(
                Harm::Lost,
                chat,
                rev,
                "the stream has a gap: the item's later state did not arrive",
            );
        }
    }

    fn end_connection(&mut self) {
        let chats: Vec<Name> = self.positions.keys().copied().collect();
        for chat in chats {
            self.report_lost(chat);
            self.positions.entry(chat).or_default().phase = Phase::Away;
        }
        self.sync_sent = false;
    }
}

/// Checks that each page of changes holds every message whose last change is in its range.
fn check_pages(facts: &Facts<'_>, sink: &mut Sink<'_>) {
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
            sink.add(Invariant::I6, Harm::Reordered, Location::chat(chat), || {
                format!("the page of changes after rev {after_rev} is not in order")
            });
        } else if let Some((missing, id)) =
            log.changed(after_rev, *rev).iter().find(|(rev, _)| !listed(*rev))
        {
            sink.add(Invariant::I6, Harm::Lost, Location::rev(chat, *missing), || {
                format!("the page of changes after rev {after_rev} has no message {id}")
            });
        }
    }
}
