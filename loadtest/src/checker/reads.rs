//! The answered reads of a record, in one form.

use crate::history::{Kind, Name, Op, Record, Seen, Value};

/// The answer of one read for one chat.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read<'a> {
    pub user: Name,
    pub chat: Name,
    pub invoked_us: u64,
    pub completed_us: u64,
    /// The read showed every change up to this rev.
    pub rev: Option<u32>,
    /// The read showed this message as the last one.
    pub last_id: Option<u32>,
    pub page: Option<Page<'a>>,
}

/// A page of history.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page<'a> {
    /// 0 if there is no bound.
    pub before: u32,
    /// 0 if there is no bound; `u32::MAX` for a page from the first message.
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
    let empty = Read {
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
            reads.push(Read { last_id, page: Some(Page { before, after, messages }), ..empty });
        }
        (Kind::Changes { .. }, Value::Changes { rev, complete: true, .. }) => {
            reads.push(Read { rev: Some(*rev), ..empty });
        }
        (Kind::Chat { .. }, Value::Chat(chat)) => {
            reads.push(Read { rev: Some(chat.rev), last_id: Some(chat.last_message_id), ..empty });
        }
        (Kind::Chats, Value::Chats(chats)) => {
            reads.extend(chats.iter().map(|chat| Read {
                chat: chat.chat,
                rev: Some(chat.rev),
                last_id: Some(chat.last_message_id),
                ..empty
            }));
        }
        _ => {}
    }
}
