//! What reads show, in one shape.

use crate::history::{Kind, Name, Op, Record, Seen, Value};

/// What one read showed of one chat.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read<'a> {
    pub user: Name,
    pub chat: Name,
    pub invoked_us: u64,
    pub completed_us: u64,
    /// Everything up to this rev was shown.
    pub rev: Option<u32>,
    /// This was shown as the last message.
    pub last_id: Option<u32>,
    /// A page of history.
    pub page: Option<Page<'a>>,
}

/// A page of history.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page<'a> {
    /// 0: none.
    pub before: u32,
    /// 0: none; `u32::MAX`: from the beginning.
    pub after: u32,
    pub messages: &'a [Seen],
}

/// All reads that were answered.
pub(super) fn all(record: &Record) -> Vec<Read<'_>> {
    let mut reads = Vec::new();
    for op in &record.ops {
        read(op, &mut reads);
    }
    reads
}

fn read<'a>(op: &'a Op, reads: &mut Vec<Read<'a>>) {
    let (Some(value), Some(completed_us)) = (op.value(), op.completed_us) else { return };
    let blank = Read {
        user: op.user,
        chat: op.kind.chat().unwrap_or_default(),
        invoked_us: op.invoked_us,
        completed_us,
        rev: None,
        last_id: None,
        page: None,
    };
    match (op.kind, value) {
        (Kind::History { before, after, .. }, Value::Messages(messages)) => {
            let newest = before == 0 && after == 0;
            let last_id = newest.then(|| messages.last().map_or(0, |seen| seen.id));
            reads.push(Read { last_id, page: Some(Page { before, after, messages }), ..blank });
        }
        (Kind::Changes { .. }, Value::Changes { rev, complete: true, .. }) => {
            reads.push(Read { rev: Some(*rev), ..blank });
        }
        (Kind::Chat { .. }, Value::Chat(chat)) => {
            reads.push(Read { rev: Some(chat.rev), last_id: Some(chat.last_message_id), ..blank });
        }
        (Kind::Chats, Value::Chats(chats)) => {
            reads.extend(chats.iter().map(|chat| Read {
                chat: chat.chat,
                rev: Some(chat.rev),
                last_id: Some(chat.last_message_id),
                ..blank
            }));
        }
        _ => {}
    }
}
