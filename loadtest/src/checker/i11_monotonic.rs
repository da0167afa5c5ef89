//! I11: reads are monotonic: a read shows everything that an earlier read or a device of the same
//! user showed.

use super::facts::Facts;
use super::quick::HashMap;
use super::reads::{self, Read};
use super::report::Sink;
use super::{Harm, Invariant, Location};
use crate::history::{DeviceEvent, Name};

/// The lowest rev and last message id of a chat that a read may show.
#[derive(Clone, Copy, Default)]
struct Floor {
    rev: u32,
    last_id: u32,
}

impl Floor {
    fn raise(&mut self, rev: u32, last_id: u32) {
        self.rev = self.rev.max(rev);
        self.last_id = self.last_id.max(last_id);
    }
}

pub(super) fn check(facts: &Facts<'_>, sink: &mut Sink<'_>) {
    let mut by_user: HashMap<Name, Vec<Read<'_>>> = HashMap::default();
    for read in reads::all(facts.record) {
        if read.rev.is_some() || read.last_id.is_some() {
            by_user.entry(read.user).or_default().push(read);
        }
    }

    for (user, mut reads) in by_user {
        reads.sort_unstable_by_key(|read| read.invoked_us);

        let mut floors = floors_of_reads(&reads);
        for device in facts.record.devices.iter().filter(|device| device.user == user) {
            let mut seen: HashMap<Name, Floor> = HashMap::default();
            let mut entries = device.entries.iter().peekable();
            for (read, floor) in reads.iter().zip(&mut floors) {
                while let Some(entry) = entries.next_if(|entry| entry.at_us < read.invoked_us) {
                    raise_by(&mut seen, &entry.told);
                }
                if let Some(seen) = seen.get(&read.chat) {
                    floor.raise(seen.rev, seen.last_id);
                }
            }
        }

        for (read, floor) in reads.iter().zip(floors) {
            let back = read.rev.is_some_and(|rev| rev < floor.rev)
                || read.last_id.is_some_and(|last_id| last_id < floor.last_id);
            if back {
                sink.add(Invariant::I11, Harm::Lost, Location::chat(read.chat), || {
                    let user = facts.record.word(user);
                    format!(
                        "user {user} saw rev {} and message {} before, then read rev {:?} and \
                         message {:?}",
                        floor.rev, floor.last_id, read.rev, read.last_id
                    )
                });
            }
        }
    }
}

/// For each read, what earlier reads showed that were complete before it began.
fn floors_of_reads(reads: &[Read<'_>]) -> Vec<Floor> {
    let mut completed: Vec<&Read<'_>> = reads.iter().collect();
    completed.sort_unstable_by_key(|read| read.completed_us);

    let mut completed = completed.into_iter().peekable();
    let mut seen: HashMap<Name, Floor> = HashMap::default();
    let mut floors = Vec::with_capacity(reads.len());

    for read in reads {
        while let Some(earlier) =
            completed.next_if(|earlier| earlier.completed_us < read.invoked_us)
        {
            let floor = seen.entry(earlier.chat).or_default();
            floor.raise(earlier.rev.unwrap_or(0), earlier.last_id.unwrap_or(0));
        }
        floors.push(seen.get(&read.chat).copied().unwrap_or_default());
    }

    floors
}

fn raise_by(seen: &mut HashMap<Name, Floor>, told: &DeviceEvent) {
    match told {
        DeviceEvent::New { chat, rev, seen: message } => {
            seen.entry(*chat).or_default().raise(*rev, message.id);
        }
        DeviceEvent::Synced(chats) => {
            for (chat, rev) in chats {
                seen.entry(*chat).or_default().raise(*rev, 0);
            }
        }
        DeviceEvent::Added { chat, rev, last_message_id } => {
            seen.entry(*chat).or_default().raise(*rev, *last_message_id);
        }
        told => {
            if let Some((chat, rev)) = told.event() {
                seen.entry(chat).or_default().raise(rev, 0);
            }
        }
    }
}
