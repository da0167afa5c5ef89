//! Converts frames to entries of the record, and tracks the revisions that a device has.

use crate::history::{DeviceEvent, History};
use crate::wire::{Frame, FrameKind};

use super::Known;

/// The recorded form of a frame; [`DeviceEvent::Garbage`] if a required field of its kind is
/// missing.
pub(super) fn recorded(history: &History, frame: &Frame) -> DeviceEvent {
    durable(history, frame).or_else(|| transient(history, frame)).unwrap_or(DeviceEvent::Garbage)
}

fn durable(history: &History, frame: &Frame) -> Option<DeviceEvent> {
    let chat = history.name(frame.chat_id.as_deref()?);
    let rev = frame.rev?;
    let seen = || frame.message.as_ref().map(|message| history.seen(message));
    let member = || frame.member.as_ref().map(|member| history.name(&member.user.id));

    Some(match frame.kind {
        FrameKind::NewMessage => DeviceEvent::New { chat, rev, seen: seen()? },
        FrameKind::MessageEdited => DeviceEvent::Edited { chat, rev, seen: seen()? },
        FrameKind::MessageRemoved => {
            DeviceEvent::Removed { chat, rev, message_id: frame.message_id? }
        }
        FrameKind::MemberJoined => DeviceEvent::Joined { chat, rev, user: member()? },
        FrameKind::MemberChanged => DeviceEvent::Changed { chat, rev, user: member()? },
        FrameKind::MemberLeft => {
            DeviceEvent::Left { chat, rev, user: history.name(frame.user_id.as_deref()?) }
        }
        FrameKind::MemberCount => DeviceEvent::Counted { chat, rev },
        FrameKind::ChatChanged => DeviceEvent::Renamed { chat, rev },
        FrameKind::Reset => DeviceEvent::Reset { chat, rev },
        _ => return None,
    })
}

fn transient(history: &History, frame: &Frame) -> Option<DeviceEvent> {
    let chat = || frame.chat_id.as_deref().map(|chat| history.name(chat));
    let user = || frame.user_id.as_deref().map(|user| history.name(user));
    Some(match frame.kind {
        FrameKind::Ready => {
            DeviceEvent::Ready { epoch: history.name(frame.epoch.as_deref().unwrap_or_default()) }
        }
        FrameKind::Synced => {
            let chats = frame.chats.as_ref()?;
            DeviceEvent::Synced(
                chats.iter().map(|(chat, rev)| (history.name(chat), *rev)).collect(),
            )
        }
        FrameKind::ChatAdded => {
            let chat = frame.chat.as_ref()?;
            DeviceEvent::Added {
                chat: history.name(&chat.id),
                rev: chat.rev,
                last_message_id: chat.last_message_id,
            }
        }
        FrameKind::ChatGone => DeviceEvent::Gone { chat: chat()? },
        FrameKind::Read => {
            DeviceEvent::Read { chat: chat()?, user: user()?, message_id: frame.message_id? }
        }
        FrameKind::Typing => DeviceEvent::Typing { chat: chat()?, user: user()? },
        FrameKind::Presence => DeviceEvent::Presence { user: user()?, online: frame.online? },
        FrameKind::Pong
        | FrameKind::Ack
        | FrameKind::Error
        | FrameKind::Reaction
        | FrameKind::Reconnect
        | FrameKind::Unknown => DeviceEvent::Other,
        _ => return None,
    })
}

/// Updates the revisions that a device has. For a `reset`, returns the revision before it.
pub(super) fn learn(known: &Known, told: &DeviceEvent) -> Option<u32> {
    let mut known = known.lock();
    match told {
        DeviceEvent::Synced(chats) => {
            for (chat, rev) in chats {
                known.insert(*chat, *rev);
            }
        }
        DeviceEvent::Reset { chat, rev } => return known.insert(*chat, *rev).or(Some(0)),
        DeviceEvent::Added { chat, rev, .. } => {
            // If the device follows the chat already, the events in between still arrive.
            known.entry(*chat).or_insert(*rev);
        }
        DeviceEvent::Gone { chat } => {
            known.remove(chat);
        }
        other => {
            // An event of an unknown chat does not show that the device has the events before it.
            if let Some((chat, rev)) = other.event()
                && let Some(entry) = known.get_mut(&chat)
            {
                *entry = (*entry).max(rev);
            }
        }
    }

    None
}

#[cfg(test)]
mod tests {
    use super::super::super::history::Bounds;
    use super::*;

    fn read(history: &History, json: &str) -> DeviceEvent {
        recorded(history, &serde_json::from_str(json).unwrap())
    }

    #[test]
    fn frames_become_entries_and_update_known_revisions() {
        let history = History::new(Bounds::default());
        let (known, chat) = (Known::default(), history.name("c"));
        let learn = |json: &str| learn(&known, &read(&history, json));
        learn(r#"{"type":"synced","chats":{"c":4}}"#);
        learn(
            r#"{"type":"new_message","chat_id":"c","rev":5,
                "message":{"id":3,"rev":5,"text":"x","sender_id":"u"}}"#,
        );
        assert_eq!(known.lock().get(&chat), Some(&5));
        assert_eq!(learn(r#"{"type":"reset","chat_id":"c","rev":900}"#), Some(5));
        assert_eq!(known.lock().get(&chat), Some(&900));
        learn(r#"{"type":"chat_gone","chat_id":"c"}"#);
        learn(r#"{"type":"member_left","chat_id":"c","rev":901,"user_id":"u"}"#);
        assert_eq!(known.lock().get(&chat), None);
    }

    #[test]
    fn a_frame_without_a_required_field_is_garbage() {
        let history = History::new(Bounds::default());
        assert_eq!(
            read(&history, r#"{"type":"new_message","chat_id":"c","rev":5}"#),
            DeviceEvent::Garbage
        );
        assert_eq!(read(&history, r#"{"type":"pong"}"#), DeviceEvent::Other);
    }
}
