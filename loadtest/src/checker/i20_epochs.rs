//! I20: after the epoch of the log changed, nobody holds what the log does not have.
//!
//! A device that names revisions of another epoch gets `reset` (or `chat_gone`) for each of these
//! chats before `synced`. Every event that it gets from then on is in the log at the end. No device
//! gets back to an earlier epoch.

use std::collections::{HashMap, HashSet};

use super::report::Sink;
use super::{Evidence, Harm, Invariant, Place, epochs};
use crate::history::{DeviceRecord, Digest, Name, Told};

pub(super) fn check(evidence: &Evidence<'_>, sink: &mut Sink<'_>) {
    let Some((last, _)) = epochs::last(evidence.record) else { return };

    for (number, device) in evidence.record.devices.iter().enumerate() {
        let mut holding = Holding::default();
        let mut wrong = |chat, rev, what: &str| {
            let place =
                if let Some(chat) = chat { Place::rev(chat, rev) } else { Place::default() };
            sink.add(Invariant::I20, Harm::Wrong, place.on(number), || what.to_owned());
        };
        holding.fold(device, &mut wrong);

        // A device that did not come back can't know that the log changed.
        if holding.of == Some(last) {
            holding.compare(evidence, &mut wrong);
        }
    }
}

/// What a device holds.
#[derive(Default)]
struct Holding {
    /// The epoch that it belongs to, once there was a `synced`.
    of: Option<Name>,
    /// The epoch of the present connection.
    presented: Option<Name>,
    /// Epochs that were left.
    left: HashSet<Name>,
    /// Chats whose `reset` is due before `synced`.
    due: HashSet<Name>,
    /// By chat and id: the revision of the frame, and the text.
    messages: HashMap<(Name, u32), (u32, Digest)>,
}

impl Holding {
    fn fold(&mut self, device: &DeviceRecord, wrong: &mut impl FnMut(Option<Name>, u32, &str)) {
        for entry in &device.entries {
            match &entry.told {
                Told::Ready { epoch } => {
                    if let Some(before) =
                        self.presented.replace(*epoch).filter(|before| before != epoch)
                    {
                        self.left.insert(before);
                    }
                    if self.left.contains(epoch) {
                        wrong(None, 0, "it was led back to an epoch that was over");
                    }
                    self.due.clear();
                }
                Told::Sync(named) if self.of.is_some() && self.of != self.presented => {
                    self.due = named.iter().map(|(chat, _)| *chat).collect();
                }
                Told::Reset { chat, .. } | Told::Gone { chat } => {
                    self.due.remove(chat);
                    self.messages.retain(|(of, _), _| of != chat);
                }
                Told::Synced(_) => {
                    for chat in self.due.drain() {
                        wrong(
                            Some(chat),
                            0,
                            "it came with revisions of another epoch, and was not told `reset`",
                        );
                    }
                    self.of = self.presented;
                }
                Told::New { chat, rev, seen } | Told::Edited { chat, rev, seen } => {
                    self.messages.insert((*chat, seen.id), (*rev, seen.text));
                }
                Told::Removed { chat, rev, message_id } => {
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
                    &format!("it holds message {id}, which the log does not have"),
                ),
                Some(message) if message.seen.rev < *rev => {
                    wrong(
                        Some(*chat),
                        *rev,
                        &format!("it holds a state of message {id} that the log does not have"),
                    );
                }
                Some(message) if message.seen.rev == *rev && message.seen.text != *text => {
                    wrong(
                        Some(*chat),
                        *rev,
                        &format!("it holds another text of message {id} than the log"),
                    );
                }
                Some(_) => {}
            }
        }
    }
}
