//! I8: a send that was acknowledged before the first attempt of another send has the smaller id.

use super::facts::Facts;
use super::quick::HashMap;
use super::report::Sink;
use super::{Harm, Invariant, Location};
use crate::history::{Digest, Kind, Name};

/// All attempts of one send.
struct Send {
    chat: Name,
    id: u32,
    invoked_us: u64,
    acknowledged_us: u64,
}

/// The time of a key's first attempt, and the id and time of its first acknowledgement.
type Attempts = (u64, Option<(u32, u64)>);

pub(super) fn check(facts: &Facts<'_>, sink: &mut Sink<'_>) {
    let mut by_key: HashMap<(Name, Name, Digest), Attempts> = HashMap::default();
    let mut sends: Vec<Send> = Vec::new();

    for op in &facts.record.ops {
        let Kind::Send { chat, client_id, .. } = op.kind else { continue };
        let answer = op.message().zip(op.completed_us).map(|(seen, at)| (seen.id, at));

        if client_id != Digest::NONE {
            let (_, first) =
                by_key.entry((chat, op.user, client_id)).or_insert((op.invoked_us, None));
            if let Some((id, at)) = answer
                && first.is_none_or(|(_, earlier)| at < earlier)
            {
                *first = Some((id, at));
            }
        } else if let Some((id, at)) = answer {
            sends.push(Send { chat, id, invoked_us: op.invoked_us, acknowledged_us: at });
        }
    }

    sends.extend(by_key.into_iter().filter_map(|((chat, ..), (invoked_us, answer))| {
        answer.map(|(id, acknowledged_us)| Send { chat, id, invoked_us, acknowledged_us })
    }));
    sends.sort_unstable_by_key(|send| (send.chat, send.invoked_us));

    for of_chat in sends.chunk_by(|a, b| a.chat == b.chat) {
        let mut acknowledged: Vec<(u64, u32)> =
            of_chat.iter().map(|send| (send.acknowledged_us, send.id)).collect();
        acknowledged.sort_unstable();

        let (mut done, mut highest) = (acknowledged.into_iter().peekable(), 0);
        for send in of_chat {
            while let Some((_, id)) = done.next_if(|(at, _)| *at < send.invoked_us) {
                highest = highest.max(id);
            }

            if send.id < highest {
                sink.add(Invariant::I8, Harm::Reordered, Location::chat(send.chat), || {
                    format!(
                        "message {highest} was acknowledged before message {} was sent",
                        send.id
                    )
                });
            }
        }
    }
}
