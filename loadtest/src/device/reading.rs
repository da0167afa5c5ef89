//! What a frame means for the record, and for what the device knows.

use crate::history::{History, Told};
use crate::wire::{Frame, FrameKind};

use super::Known;

/// The record's entry of a frame; [`Told::Garbage`] where a field is missing that its kind
/// promises.
pub(super) fn told(history: &History, frame: &Frame) -> Told {
    durable(history, frame).or_else(|| passing(history, frame)).unwrap_or(Told::Garbage)
}

fn durable(history: &History, frame: &Frame) -> Option<Told> {
    let chat = history.name(frame.chat_id.as_deref()?);
    let rev = frame.rev?;
    let seen = || frame.message.as_ref().map(|message| history.seen(message));
    let member = || frame.member.as_ref().map(|member| history.name(&member.user.id));
    Some(match frame.kind {
        FrameKind::NewMessage => Told::New { chat, rev, seen: seen()? },
        FrameKind::MessageEdited => Told::Edited { chat, rev, seen: seen()? },
        FrameKind::MessageRemoved => Told::Removed { chat, rev, message_id: frame.message_id? },
        FrameKind::MemberJoined => Told::Joined { chat, rev, user: member()? },
        FrameKind::MemberChanged => Told::Changed { chat, rev, user: member()? },
        FrameKind::MemberLeft => {
            Told::Left { chat, rev, user: history.name(frame.user_id.as_deref()?) }
        }
        FrameKind::MemberCount => Told::Counted { chat, rev },
        FrameKind::ChatChanged => Told::Renamed { chat, rev },
        FrameKind::Reset => Told::Reset { chat, rev },
        _ => return None,
    })
}

fn passing(history: &History, frame: &Frame) -> Option<Told> {
    let chat = || frame.chat_id.as_deref().map(|chat| history.name(chat));
    let user = || frame.user_id.as_deref().map(|user| history.name(user));
    Some(match frame.kind {
        FrameKind::Ready => {
            Told::Ready { epoch: history.name(frame.epoch.as_deref().unwrap_or_default()) }
        }
        FrameKind::Synced => {
            let chats = frame.chats.as_ref()?;
            Told::Synced(chats.iter().map(|(chat, rev)| (history.name(chat), *rev)).collect())
        }
        FrameKind::ChatAdded => {
            let chat = frame.chat.as_ref()?;
            Told::Added {
                chat: history.name(&chat.id),
                rev: chat.rev,
                last_message_id: chat.last_message_id,
            }
        }
        FrameKind::ChatGone => Told::Gone { chat: chat()? },
        FrameKind::Read => {
            Told::Read { chat: chat()?, user: user()?, message_id: frame.message_id? }
        }
        FrameKind::Typing => Told::Typing { chat: chat()?, user: user()? },
        FrameKind::Presence => Told::Presence { user: user()?, online: frame.online? },
        FrameKind::Pong
        | FrameKind::Ack
        | FrameKind::Error
        | FrameKind::Reaction
        | FrameKind::Reconnect
        | FrameKind::Unknown => Told::Other,
        _ => return None,
    })
}

/// Moves the revisions that a device knows. What it knew of a chat before a `reset` is the answer
/// to one.
pub(super) fn learn(known: &Known, told: &Told) -> Option<u32> {
    let mut known = known.lock();
    match told {
        Told::Synced(chats) => {
            for (chat, rev) in chats {
                known.insert(*chat, *rev);
            }
        }
        Told::Reset { chat, rev } => return known.insert(*chat, *rev).or(Some(0)),
        Told::Added { chat, rev, .. } => {
            // Of a chat that it follows already, the events in between are still to come.
            known.entry(*chat).or_insert(*rev);
        }
        Told::Gone { chat } => {
            known.remove(chat);
        }
        other => {
            // A chat that it does not know is none of which it could say how far it knows it.
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

    fn read(history: &History, json: &str) -> Told {
        told(history, &serde_json::from_str(json).unwrap())
    }

    #[test]
    fn frames_become_entries_and_move_what_is_known() {
        let history = History::new(Bounds::default());
        let (known, chat) = (Known::default(), history.name("c"));
        let learn = |json: &str| learn(&known, &read(&history, json));
        learn(r#"{"type":"synced","chats":{"c":4}}"#);
        learn(
            r#"{"type":"new_message","chat_id":"c","rev":5,"message":{"id":3,"rev":5,"text":"x","sender_id":"u"}}"#,
        );
        assert_eq!(known.lock().get(&chat), Some(&5));
        assert_eq!(learn(r#"{"type":"reset","chat_id":"c","rev":900}"#), Some(5));
        assert_eq!(known.lock().get(&chat), Some(&900));
        learn(r#"{"type":"chat_gone","chat_id":"c"}"#);
        learn(r#"{"type":"member_left","chat_id":"c","rev":901,"user_id":"u"}"#);
        assert_eq!(known.lock().get(&chat), None);
    }

    #[test]
    fn a_frame_without_what_its_kind_promises_is_garbage() {
        let history = History::new(Bounds::default());
        assert_eq!(
            read(&history, r#"{"type":"new_message","chat_id":"c","rev":5}"#),
            Told::Garbage
        );
        assert_eq!(read(&history, r#"{"type":"pong"}"#), Told::Other);
    }
}
