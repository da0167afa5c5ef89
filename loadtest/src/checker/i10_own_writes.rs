//! I10: a read that begins after the user's own write was acknowledged shows that write, on any
//! replica. A page of history has no gaps.

use super::facts::Facts;
use super::quick::HashMap;
use super::reads::{self, Page, Read};
use super::report::Sink;
use super::{Harm, Invariant, Location};
use crate::history::{Kind, Name, State};

/// An acknowledged write of the reader.
struct Write {
    at_us: u64,
    id: u32,
    rev: u32,
    kind: WriteKind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum WriteKind {
    Sent,
    Edited,
    Removed,
}

#[derive(Default)]
struct Own<'a> {
    writes: Vec<Write>,
    reads: Vec<Read<'a>>,
}

pub(super) fn check(facts: &Facts<'_>, sink: &mut Sink<'_>) {
    let mut own: HashMap<(Name, Name), Own<'_>> = HashMap::default();
    for read in reads::all(facts.record) {
        own.entry((read.user, read.chat)).or_default().reads.push(read);
    }

    for op in &facts.record.ops {
        let (Some(chat), Some(at_us), Some(_)) = (op.kind.chat(), op.completed_us, op.value())
        else {
            continue;
        };

        let Some(own) = own.get_mut(&(op.user, chat)) else { continue };
        let (id, rev) = op.message().map_or((0, 0), |seen| (seen.id, seen.rev));

        match op.kind {
            Kind::Send { .. } => own.writes.push(Write { at_us, id, rev, kind: WriteKind::Sent }),
            Kind::Edit { message_id: id, .. } => {
                own.writes.push(Write { at_us, id, rev, kind: WriteKind::Edited });
            }
            Kind::Remove { message_id: id, .. } => {
                own.writes.push(Write { at_us, id, rev, kind: WriteKind::Removed });
            }
            _ => {}
        }
    }

    for ((user, chat), mut own) in own {
        own.reads.sort_unstable_by_key(|read| read.invoked_us);
        own.writes.sort_unstable_by_key(|write| write.at_us);
        sweep(&own, |what| {
            let user = facts.record.word(user);
            sink.add(Invariant::I10, Harm::Lost, Location::chat(chat), || {
                format!("user {user} read {what}")
            });
        });
    }
}

fn sweep(own: &Own<'_>, mut wrong: impl FnMut(String)) {
    let mut writes = own.writes.iter().peekable();
    let (mut last_id, mut rev) = (0, 0);
    let mut changed: HashMap<u32, (u32, bool)> = HashMap::default();

    for read in &own.reads {
        while let Some(write) = writes.next_if(|write| write.at_us < read.invoked_us) {
            rev = rev.max(write.rev);
            if write.kind == WriteKind::Sent {
                last_id = last_id.max(write.id);
            } else {
                let entry = changed.entry(write.id).or_default();
                *entry = (entry.0.max(write.rev), entry.1 || write.kind == WriteKind::Removed);
            }
        }

        if let Some(seen) = read.rev.filter(|seen| *seen < rev) {
            wrong(format!("the chat at rev {seen}, after rev {rev} was acknowledged to them"));
        }

        if let Some(seen) = read.last_id.filter(|seen| *seen < last_id) {
            wrong(format!(
                "up to message {seen}, after message {last_id} was acknowledged to them"
            ));
        }

        if let Some(page) = read.page {
            if let Some(what) = page_fault(page, last_id) {
                wrong(what);
            }

            for seen in page.messages {
                let stale = |(rev, removed): &(u32, bool)| {
                    seen.rev < *rev || (*removed && seen.state != State::Removed)
                };
                if changed.get(&seen.id).is_some_and(stale) {
                    wrong(format!("message {} as it was before their own change", seen.id));
                }
            }
        }
    }
}

/// Returns the fault of a page, if any, given that message `last_id` exists.
fn page_fault(page: Page<'_>, last_id: u32) -> Option<String> {
    let Page { before, after, messages } = page;
    let ids = || messages.iter().map(|seen| seen.id);
    let (first, last) = (ids().next(), ids().next_back().unwrap_or(0));

    if ids().zip(ids().skip(1)).any(|(a, b)| b != a + 1) {
        return Some(format!("a page of history from {} to {last} with a gap", first.unwrap_or(0)));
    }

    let after = if after == u32::MAX { Some(0) } else { Some(after).filter(|after| *after > 0) };
    if before > 1 && last < last_id.min(before - 1) {
        return Some(format!("a page before message {before} that ends at {last}"));
    }

    let expected = after
        .filter(|after| *after < last_id && (before == 0 || after + 1 < before))
        .map(|after| after + 1);
    // With both bounds the page may begin later.
    if before == 0 && expected.is_some() && first != expected {
        return Some(format!(
            "a page after message {} that begins at {}",
            after.unwrap_or(0),
            first.unwrap_or(0)
        ));
    }

    None
}
