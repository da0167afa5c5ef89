//! I20: after the epoch of the log changed, no device holds data that the log does not have.
//!
//! A device that names revisions of another epoch receives `reset` (or `chat_gone`) for each of
//! these chats before `synced`. Every event that it receives after that is in the final log. No
//! device returns to an earlier epoch.

use std::collections::{HashMap, HashSet};

use super::report::Sink;
use super::{Evidence, Harm, Invariant, Location, epochs};
use crate::history::{DeviceEvent, DeviceRecord, Digest, Name};

pub(super) fn check(evidence: &Evidence<'_>, sink: &mut Sink<'_>) {
    let Some((last, _)) = epochs::last(evidence.record) else { return };

    for (number, device) in evidence.record.devices.iter().enumerate() {
        let mut holding = Holding::default();
        let mut wrong = |chat, rev, what: &str| {
            let location =
                if let Some(chat) = chat { Location::rev(chat, rev) } else { Location::default() };
            sink.add(Invariant::I20, Harm::Wrong, location.on(number), || what.to_owned());
        };

        holding.fold(device, &mut wrong);

        // A device that did not reconnect did not learn of the new epoch.
        if holding.synced == Some(last) {
            holding.compare(evidence, &mut wrong);
        }
    }
}

/// The messages that a device holds, and their epoch.
#[derive(Default)]
struct Holding {
    /// The epoch at the last `synced`.
    synced: Option<Name>,
    /// The epoch in the `ready` of the current connection.
    presented: Option<Name>,
    /// Earlier epochs.
    left: HashSet<Name>,
    /// Chats that need a `reset` before `synced`.
    due: HashSet<Name>,
    /// The revision of the frame and the text, by chat and message id.
    messages: HashMap<(Name, u32), (u32, Digest)>,
}

impl Holding {
    fn fold(&mut self, device: &DeviceRecord, wrong: &mut impl FnMut(Option<Name>, u32, &str)) {
        for entry in &device.entries {
            match &entry.told {
                DeviceEvent::Ready { epoch } => {
                    if let Some(before) =
                        self.presented.replace(*epoch).filter(|before| before != epoch)
                    {
                        self.left.insert(before);
                    }
                    if self.left.contains(epoch) {
                        wrong(None, 0, "the device returned to an earlier epoch");
                    }
                    self.due.clear();
                }
                DeviceEvent::Sync(named)
                    if self.synced.is_some() && self.synced != self.presented =>
                {
                    self.due = named.iter().map(|(chat, _)| *chat).collect();
                }
                DeviceEvent::Reset { chat, .. } | DeviceEvent::Gone { chat } => {
                    self.due.remove(chat);
                    self.messages.retain(|(of, _), _| of != chat);
                }
                DeviceEvent::Synced(_) => {
                    for chat in self.due.drain() {
                        wrong(
                            Some(chat),
                            0,
                            "the device named revisions of another epoch, but received no `reset`",
                        );
                    }
                    self.synced = self.presented;
                }
                DeviceEvent::New { chat, rev, seen } | DeviceEvent::Edited { chat, rev, seen } => {
                    self.messages.insert((*chat, seen.id), (*rev, seen.text));
                }
                DeviceEvent::Removed { chat, rev, message_id } => {
                    self.messages.insert((*chat, *message_id), (*rev, Digest::NONE));
                }
                _ => {}
            }
        }
    }

    fn compare(&self, evidence: &Evidence<'_>, wrong: &mut impl FnMut(Option<Name>, u32, &str)) {
        let logs: HashSet<Name> = evidence.log.chats.iter().map(|log| log.chat).collect();
        let messages = evidence
            .log
            .chats
            .iter()
            .flat_map(|log| log.messages.iter().map(|it| ((log.chat, it.seen.id), it)));

        let logged: HashMap<(Name, u32), _> = messages.collect();
        for ((chat, id), (rev, text)) in &self.messages {
            match logged.get(&(*chat, *id)) {
                None if !logs.contains(chat) => {}
                None => wrong(
                    Some(*chat),
                    *rev,
                    &format!("the device holds message {id}, which is not in the log"),
                ),
                Some(message) if message.seen.rev < *rev => {
                    wrong(
                        Some(*chat),
                        *rev,
                        &format!("the device holds a later state of message {id} than the log"),
                    );
                }
                Some(message) if message.seen.rev == *rev && message.seen.text != *text => {
                    wrong(
                        Some(*chat),
                        *rev,
                        &format!("the device holds another text of message {id} than the log"),
                    );
                }
                Some(_) => {}
            }
        }
    }
}
