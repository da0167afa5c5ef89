//! A model of a correct server, for the checker's tests. It writes a record and a final log.

use std::collections::HashMap;

use super::{
    Evidence, FinalChat, FinalLog, FinalMember, FinalMessage, FinalView, Limits, Report, check,
};
use crate::history::{
    ChatSeen, DeviceEvent, DeviceRecord, Digest, Entry, Kind, Name, Op, Outcome, Record, Seen,
    State, Value,
};

/// Time between two events, in microseconds.
const STEP_US: u64 = 10;
/// A device that missed more changes of a chat than this gets `reset`.
const RESET_AFTER: usize = 40;

#[derive(Default)]
struct Link {
    connection: u32,
    live: bool,
    /// The link loses all events until it is healed.
    blocked: bool,
    known: HashMap<Name, u32>,
    /// The epoch of the revisions in `known`.
    epoch: Name,
}

pub(super) struct Scenario {
    pub record: Record,
    pub log: FinalLog,
    pub limits: Limits,
    pub now_us: u64,
    epoch: Name,
    links: Vec<Link>,
    texts: u64,
}

impl Scenario {
    pub(super) fn new() -> Self {
        let record = Record { names: vec!["".into()], ..Record::default() };
        let limits = Limits::default();
        Self {
            record,
            log: FinalLog::default(),
            limits,
            now_us: 0,
            epoch: Name::default(),
            links: Vec::new(),
            texts: 0,
        }
    }

    pub(super) fn name(&mut self, word: &str) -> Name {
        self.record.names.push(word.into());
        Name(u32::try_from(self.record.names.len()).unwrap() - 1)
    }

    pub(super) fn text(&mut self) -> Digest {
        self.texts += 1;
        Digest::of(&format!("text {}", self.texts))
    }

    fn tick(&mut self) -> u64 {
        self.now_us += STEP_US;
        self.now_us
    }

    pub(super) fn op(&mut self, user: Name, kind: Kind, outcome: Outcome) -> usize {
        let (invoked_us, completed_us) = (self.tick(), Some(self.tick()));
        let op = Op {
            user,
            session: user,
            stream: None,
            kind,
            invoked_us,
            completed_us,
            outcome: Some(outcome),
        };

        self.record.ops.push(op);
        self.record.ops.len() - 1
    }

    pub(super) fn chat(&mut self, members: &[Name]) -> Name {
        let chat = self.name("chat");
        let member = |user: &Name| FinalMember {
            user: *user,
            joined_rev: 1,
            rev: 1,
            ..FinalMember::default()
        };
        let members: Vec<FinalMember> = members.iter().map(member).collect();
        let member_count = u32::try_from(members.len()).unwrap();
        self.log.chats.push(FinalChat {
            chat,
            rev: 1,
            renamed_rev: 1,
            member_count,
            members,
            ..FinalChat::default()
        });

        for device in 0..self.links.len() {
            self.admit(device, chat);
        }

        chat
    }

    pub(super) fn of(&mut self, chat: Name) -> &mut FinalChat {
        self.log.chats.iter_mut().find(|log| log.chat == chat).unwrap()
    }

    pub(super) fn is_member(&self, chat: Name, user: Name) -> bool {
        let log = self.log.chats.iter().find(|log| log.chat == chat).unwrap();
        log.members.iter().any(|member| member.user == user && member.left_rev.is_none())
    }

    pub(super) fn device(&mut self, user: Name) -> usize {
        self.record.devices.push(DeviceRecord { user, session: user, entries: Vec::new() });
        self.links.push(Link::default());
        self.connect(self.links.len() - 1);
        self.links.len() - 1
    }

    pub(super) fn is_live(&self, device: usize) -> bool {
        self.links[device].live
    }

    pub(super) fn deliver(&mut self, device: usize, told: DeviceEvent) {
        let (at_us, connection) = (self.tick(), self.links[device].connection);
        self.record.devices[device].entries.push(Entry { at_us, connection, told });
    }

    fn admit(&mut self, device: usize, chat: Name) {
        let user = self.record.devices[device].user;
        if self.links[device].live && self.is_member(chat, user) {
            let log = self.of(chat);
            let (rev, last_message_id) = (log.rev, u32::try_from(log.messages.len()).unwrap());
            self.links[device].known.insert(chat, rev);
            self.deliver(device, DeviceEvent::Added { chat, rev, last_message_id });
        }
    }

    pub(super) fn cut(&mut self, device: usize) {
        self.deliver(device, DeviceEvent::Closed { code: 0 });
        (self.links[device].live, self.links[device].blocked) = (false, false);
    }

    pub(super) fn connect(&mut self, device: usize) {
        self.links[device].connection += 1;
        self.links[device].live = true;
        self.deliver(device, DeviceEvent::Ready { epoch: self.epoch });

        let known: Vec<(Name, u32)> =
            self.links[device].known.iter().map(|(chat, rev)| (*chat, *rev)).collect();
        self.deliver(device, DeviceEvent::Sync(known.clone().into()));

        let user = self.record.devices[device].user;
        let chats: Vec<Name> = self.log.chats.iter().map(|log| log.chat).collect();
        let mut synced = Vec::new();

        for chat in chats {
            let named = known.iter().find(|(named, _)| *named == chat).map(|(_, rev)| *rev);
            match (self.is_member(chat, user), named) {
                (true, None) => self.admit(device, chat),
                (true, Some(rev)) => self.replay(device, chat, rev),
                (false, Some(_)) => {
                    self.links[device].known.remove(&chat);
                    self.deliver(device, DeviceEvent::Gone { chat });
                }
                (false, None) => {}
            }

            if self.is_member(chat, user) {
                synced.push((chat, self.of(chat).rev));
            }
        }

        self.deliver(device, DeviceEvent::Synced(synced.into()));
        self.links[device].epoch = self.epoch;
    }

    fn replay(&mut self, device: usize, chat: Name, known: u32) {
        let user = self.record.devices[device].user;
        let is_other_epoch = self.links[device].epoch != self.epoch;
        let known = if is_other_epoch { 0 } else { known };
        let log = self.of(chat);
        let (rev, items) = (log.rev, items_after(log, known));
        let rejoined =
            log.members.iter().any(|member| member.user == user && member.joined_rev > known);

        self.links[device].known.insert(chat, rev);
        if is_other_epoch || rejoined || items.len() > RESET_AFTER {
            self.deliver(device, DeviceEvent::Reset { chat, rev });
            self.changes(user, chat, known);
            self.deliver(device, DeviceEvent::Loaded { chat, rev });
        } else {
            for told in items {
                self.deliver(device, told);
            }
        }
    }

    /// Removes the last messages of a chat from the log, starts a new epoch, and closes all
    /// connections. There must be no other change of the chat after these messages.
    pub(super) fn fail_over(&mut self, chat: Name, lost: u32) {
        let log = self.of(chat);
        log.messages.truncate(log.messages.len() - lost as usize);
        log.rev -= lost;
        log.last_message_id -= lost;

        for member in &mut log.members {
            member.last_read_message_id = member.last_read_message_id.min(log.last_message_id);
        }

        self.epoch = self.name("another epoch");
        for device in 0..self.links.len() {
            self.cut(device);
        }
    }

    /// Loses all later events of a connected device, until [`Self::heal`].
    pub(super) fn block(&mut self, device: usize) {
        self.links[device].blocked = self.links[device].live;
    }

    /// Delivers to a blocked device the items that changed meanwhile, each once.
    pub(super) fn heal(&mut self, device: usize) {
        if !std::mem::take(&mut self.links[device].blocked) {
            return;
        }

        let known: Vec<(Name, u32)> =
            self.links[device].known.iter().map(|(chat, rev)| (*chat, *rev)).collect();
        for (chat, rev) in known {
            let items = items_after(self.of(chat), rev);
            let now = self.of(chat).rev;
            self.links[device].known.insert(chat, now);
            for told in items {
                self.deliver(device, told);
            }
        }
    }

    fn heal_all(&mut self) {
        (0..self.links.len()).for_each(|device| self.heal(device));
    }

    fn publish(&mut self, chat: Name, rev: u32, told: &DeviceEvent) {
        for device in 0..self.links.len() {
            let user = self.record.devices[device].user;
            let link = &mut self.links[device];
            if link.live && !link.blocked && link.known.contains_key(&chat) {
                link.known.insert(chat, rev);
                if self.is_member(chat, user) {
                    self.deliver(device, told.clone());
                }
            }
        }
    }

    /// Sends a message with a key. If `answered` is false, the answer is lost.
    pub(super) fn send_keyed(
        &mut self,
        user: Name,
        chat: Name,
        client_id: Digest,
        answered: bool,
    ) -> u32 {
        let text = self.text();
        let index = self.op(user, Kind::Send { chat, text, client_id }, Outcome::Unknown);
        let log = self.of(chat);
        log.rev += 1;
        log.last_message_id += 1;

        let seen =
            Seen { id: log.last_message_id, rev: log.rev, sender: user, text, state: State::Sent };
        log.messages.push(FinalMessage { seen, sent_rev: seen.rev, client_id });

        if let Some(member) = log.members.iter_mut().find(|member| member.user == user) {
            member.last_read_message_id = seen.id;
        }

        if answered {
            self.record.ops[index].outcome = Some(Outcome::Ok(Value::Message(seen)));
        }

        self.publish(chat, seen.rev, &DeviceEvent::New { chat, rev: seen.rev, seen });
        seen.id
    }

    pub(super) fn send(&mut self, user: Name, chat: Name) -> u32 {
        self.send_keyed(user, chat, Digest::NONE, true)
    }

    /// Sends a message again with the same key.
    pub(super) fn repeat(&mut self, chat: Name, id: u32) {
        let message = self.of(chat).messages[id as usize - 1];
        let text = self.record.ops.iter().find_map(|op| match op.kind {
            Kind::Send { text, client_id, .. } if client_id == message.client_id => Some(text),
            _ => None,
        });
        let kind = Kind::Send { chat, text: text.unwrap(), client_id: message.client_id };
        self.op(message.seen.sender, kind, Outcome::Ok(Value::Message(message.seen)));
    }

    pub(super) fn edit(&mut self, chat: Name, id: u32) {
        let text = self.text();
        let log = self.of(chat);
        log.rev += 1;
        let rev = log.rev;
        let message = &mut log.messages[id as usize - 1];
        message.seen = Seen { rev, text, state: State::Edited, ..message.seen };
        let seen = message.seen;
        let kind = Kind::Edit { chat, message_id: id, text };
        self.op(seen.sender, kind, Outcome::Ok(Value::Message(seen)));
        self.publish(chat, rev, &DeviceEvent::Edited { chat, rev, seen });
    }

    pub(super) fn remove(&mut self, chat: Name, id: u32) {
        let log = self.of(chat);
        log.rev += 1;
        let rev = log.rev;
        let message = &mut log.messages[id as usize - 1];
        message.seen = Seen { rev, text: Digest::NONE, state: State::Removed, ..message.seen };
        let sender = message.seen.sender;
        self.op(sender, Kind::Remove { chat, message_id: id }, Outcome::Ok(Value::Done));
        self.publish(chat, rev, &DeviceEvent::Removed { chat, rev, message_id: id });
    }

    pub(super) fn join(&mut self, by: Name, chat: Name, user: Name) {
        self.heal_all();
        self.op(by, Kind::Join { chat, user }, Outcome::Ok(Value::Done));

        let log = self.of(chat);
        (log.rev, log.member_count) = (log.rev + 1, log.member_count + 1);
        let rev = log.rev;
        let last_read_message_id = log.last_message_id;
        log.members.retain(|member| member.user != user);
        log.members.push(FinalMember {
            user,
            joined_rev: rev,
            rev,
            left_rev: None,
            last_read_message_id,
        });
        self.publish(chat, rev, &DeviceEvent::Joined { chat, rev, user });

        for device in 0..self.links.len() {
            if self.record.devices[device].user == user {
                self.admit(device, chat);
            }
        }
    }

    pub(super) fn leave(&mut self, by: Name, chat: Name, user: Name) {
        self.heal_all();
        self.op(by, Kind::Leave { chat, user }, Outcome::Ok(Value::Done));

        let log = self.of(chat);
        (log.rev, log.member_count) = (log.rev + 1, log.member_count - 1);
        let rev = log.rev;
        let member = log.members.iter_mut().find(|member| member.user == user).unwrap();
        (member.left_rev, member.rev) = (Some(rev), rev);

        for device in 0..self.links.len() {
            if self.record.devices[device].user == user && self.links[device].live {
                self.links[device].known.remove(&chat);
                self.deliver(device, DeviceEvent::Gone { chat });
            }
        }

        self.publish(chat, rev, &DeviceEvent::Left { chat, rev, user });
    }

    /// Reads the newest page of history.
    pub(super) fn history(&mut self, user: Name, chat: Name, max: usize) -> usize {
        let messages: Vec<Seen> =
            self.of(chat).messages.iter().map(|message| message.seen).collect();
        let page = messages[messages.len().saturating_sub(max)..].into();
        let kind = Kind::History { chat, before: 0, after: 0, max: u32::try_from(max).unwrap() };
        self.op(user, kind, Outcome::Ok(Value::Messages(page)))
    }

    pub(super) fn changes(&mut self, user: Name, chat: Name, after_rev: u32) -> usize {
        let log = self.of(chat);
        let mut messages: Vec<Seen> = log.messages.iter().map(|message| message.seen).collect();
        messages.retain(|seen| seen.rev > after_rev);
        messages.sort_unstable_by_key(|seen| seen.rev);
        let value = Value::Changes { messages: messages.into(), rev: log.rev, complete: true };
        self.op(user, Kind::Changes { chat, after_rev }, Outcome::Ok(value))
    }

    /// The chat as the server shows it to a user now.
    pub(super) fn view(&mut self, chat: Name, user: Name) -> ChatSeen {
        let log = self.of(chat);
        let read = log
            .members
            .iter()
            .find(|member| member.user == user)
            .map_or(0, |it| it.last_read_message_id);

        ChatSeen {
            chat,
            rev: log.rev,
            last_message_id: log.last_message_id,
            unread_count: Some(log.last_message_id - read),
            last_read_message_id: Some(read),
            member_count: log.member_count,
            last_sender: log.messages.last().map_or(Name::NONE, |message| message.seen.sender),
        }
    }

    /// Heals and reconnects all devices, and reads the views of two replicas.
    pub(super) fn finish(&mut self) {
        self.heal_all();
        self.limits.healed_us = Some(self.now_us);

        for device in 0..self.links.len() {
            if !self.links[device].live {
                self.connect(device);
            }
        }

        for index in 0..self.log.chats.len() {
            let log = self.log.chats[index].clone();
            for member in log.members.iter().filter(|member| member.left_rev.is_none()) {
                let chat = self.view(log.chat, member.user);
                let messages = Some(log.messages.iter().map(|message| message.seen).collect());
                for replica in 0..2 {
                    let messages = messages.clone();
                    self.log.views.push(FinalView { replica, user: member.user, chat, messages });
                }
            }
        }

        self.now_us += 60_000_000;
        self.record.ended_us = self.now_us;
    }

    pub(super) fn check(&self) -> Report {
        check(&Evidence {
            record: &self.record,
            log: &self.log,
            secrets: &[],
            exposed: &[],
            limits: self.limits,
        })
    }
}

/// The items that changed after a rev, each once, oldest change first.
fn items_after(log: &FinalChat, known: u32) -> Vec<DeviceEvent> {
    let chat = log.chat;
    let mut items: Vec<(u32, DeviceEvent)> = Vec::new();

    for FinalMessage { seen, sent_rev, .. } in
        log.messages.iter().filter(|message| message.seen.rev > known)
    {
        let (rev, seen) = (seen.rev, *seen);
        let told = match seen.state {
            _ if *sent_rev > known => DeviceEvent::New { chat, rev, seen },
            State::Removed => DeviceEvent::Removed { chat, rev, message_id: seen.id },
            _ => DeviceEvent::Edited { chat, rev, seen },
        };
        items.push((rev, told));
    }
    for member in log.members.iter().filter(|member| member.rev > known) {
        let (rev, user) = (member.rev, member.user);
        let left = member.left_rev.is_some();
        items.push((
            rev,
            if left {
                DeviceEvent::Left { chat, rev, user }
            } else {
                DeviceEvent::Joined { chat, rev, user }
            },
        ));
    }

    items.sort_by_key(|(rev, _)| *rev);
    items.into_iter().map(|(_, told)| told).collect()
}
