//! The record of a run: requests with their answers, received frames, and memory samples.
//!
//! A record may hold a million operations and ten times as many frames, so names are interned and
//! texts are hashed. It is bounded: a history that is full counts the entries that it drops, and
//! the checker reports an incomplete record as a violation.

mod dump;
mod names;
mod record;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

pub use dump::{DumpError, dump, read_back};
pub use names::{Digest, Name, Names};
pub use record::{
    ChatSeen, DeviceEvent, DeviceRecord, Entry, Kind, MemorySample, Op, OpId, Outcome, Record,
    Seen, State, Stream, Value,
};

use crate::wire;

/// How many entries a history keeps.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Maximum number of operations. One takes about 120 bytes, plus 24 bytes for each message of a
    /// page of history.
    pub ops_max: usize,
    /// Maximum number of frames of all devices together. One takes about 56 bytes.
    pub frames_max: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { ops_max: 4_000_000, frames_max: 20_000_000 }
    }
}

/// The recorder, shared by all workers and devices. Each method holds its lock only briefly.
#[derive(Debug)]
pub struct History {
    started: Instant,
    bounds: Bounds,
    names: Names,
    ops: Mutex<Vec<Op>>,
    devices: Mutex<Vec<Arc<Mutex<DeviceRecord>>>>,
    memory: Mutex<Vec<MemorySample>>,
    frames: AtomicUsize,
    dropped: AtomicUsize,
}

impl History {
    /// Creates an empty history. Its times count from now.
    pub fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            bounds,
            names: Names::default(),
            ops: Mutex::default(),
            devices: Mutex::default(),
            memory: Mutex::default(),
            frames: AtomicUsize::new(0),
            dropped: AtomicUsize::new(0),
        })
    }

    /// Microseconds since the history was created.
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Interns an id of a user, a chat or a session, or an error code.
    pub fn name(&self, word: &str) -> Name {
        self.names.name(word)
    }

    /// Returns the string of an interned name.
    pub fn word(&self, name: Name) -> String {
        self.names.word(name)
    }

    /// Records that an operation begins now. A full history drops it and its outcome.
    pub fn invoke(&self, user: Name, session: Name, stream: Option<Stream>, kind: Kind) -> OpId {
        let mut ops = self.ops.lock();
        if ops.len() >= self.bounds.ops_max {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return OpId::DROPPED;
        }

        let id = OpId(u32::try_from(ops.len()).unwrap_or(u32::MAX));
        // The clock is read under the lock, so that operations are in the order of their
        // invocation.
        ops.push(Op {
            user,
            session,
            stream,
            kind,
            invoked_us: self.now_us(),
            completed_us: None,
            outcome: None,
        });
        id
    }

    /// Records the outcome of an operation that ends now. Only the first outcome is kept.
    pub fn complete(&self, id: OpId, outcome: Outcome) {
        let now_us = self.now_us();
        if let Some(op) = self.ops.lock().get_mut(id.0 as usize)
            && op.outcome.is_none()
        {
            op.completed_us = Some(now_us);
            op.outcome = Some(outcome);
        }
    }

    /// Creates a log for a new device.
    pub fn device(self: &Arc<Self>, user: Name, session: Name) -> DeviceLog {
        let record = Arc::new(Mutex::new(DeviceRecord { user, session, entries: Vec::new() }));
        let mut devices = self.devices.lock();
        let number = u32::try_from(devices.len()).unwrap_or(u32::MAX);
        devices.push(record.clone());
        DeviceLog { history: self.clone(), record, number }
    }

    /// Records the resident memory of a process now, in bytes.
    pub fn sample_memory(&self, process: Name, rss_bytes: u64) {
        let sample = MemorySample { process, at_us: self.now_us(), rss_bytes };
        self.memory.lock().push(sample);
    }

    /// Number of operations and number of frames so far.
    pub fn len(&self) -> (usize, usize) {
        (self.ops.lock().len(), self.frames.load(Ordering::Relaxed))
    }

    /// Whether the history holds no operation and no frame.
    pub fn is_empty(&self) -> bool {
        self.len() == (0, 0)
    }

    /// Takes the record out, for the checker. Later entries go to an empty record with the same
    /// names and the same clock, so stop all devices and workers first.
    pub fn take(&self) -> Record {
        let devices = std::mem::take(&mut *self.devices.lock());
        let taken = |device: Arc<Mutex<DeviceRecord>>| {
            let mut device = device.lock();
            DeviceRecord {
                user: device.user,
                session: device.session,
                entries: std::mem::take(&mut device.entries),
            }
        };

        Record {
            names: self.names.all(),
            ended_us: self.now_us(),
            dropped: self.dropped.load(Ordering::Relaxed) as u64,
            ops: std::mem::take(&mut *self.ops.lock()),
            devices: devices.into_iter().map(taken).collect(),
            memory: std::mem::take(&mut *self.memory.lock()),
        }
    }

    /// Converts a message to its recorded form.
    pub fn seen(&self, message: &wire::Message) -> Seen {
        let state = match (&message.removed_at, &message.edited_at) {
            (Some(_), _) => State::Removed,
            (None, Some(_)) => State::Edited,
            (None, None) => State::Sent,
        };

        Seen {
            id: message.id,
            rev: message.rev,
            sender: self.name(&message.sender_id),
            text: message.text.as_deref().map_or(Digest::NONE, Digest::of),
            state,
        }
    }

    /// Converts a chat to its recorded form.
    pub fn chat_seen(&self, chat: &wire::Chat) -> ChatSeen {
        ChatSeen {
            chat: self.name(&chat.id),
            rev: chat.rev,
            last_message_id: chat.last_message_id,
            unread_count: chat.unread_count,
            last_read_message_id: chat.last_read_message_id,
            member_count: chat.member_count,
            last_sender: chat
                .last_message
                .as_ref()
                .map_or(Name::NONE, |message| self.name(&message.sender_id)),
        }
    }
}

/// The log of one device. It has a lock of its own, so that devices do not wait for each other.
#[derive(Clone, Debug)]
pub struct DeviceLog {
    history: Arc<History>,
    record: Arc<Mutex<DeviceRecord>>,
    number: u32,
}

impl DeviceLog {
    /// The device's number in the record.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Records an event on a connection of this device. Connections count from 1.
    pub fn note(&self, connection: u32, told: DeviceEvent) {
        if self.history.frames.fetch_add(1, Ordering::Relaxed) >= self.history.bounds.frames_max {
            self.history.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut record = self.record.lock();
        record.entries.push(Entry { at_us: self.history.now_us(), connection, told });
    }

    /// The history that contains this log.
    pub fn history(&self) -> &Arc<History> {
        &self.history
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_as_small_as_its_bounds_say() {
        assert!(size_of::<Entry>() <= 56, "{}", size_of::<Entry>());
        assert!(size_of::<Op>() <= 120, "{}", size_of::<Op>());
        assert_eq!(size_of::<Seen>(), 24);
    }

    #[test]
    fn a_full_history_counts_the_entries_it_drops() {
        let history = History::new(Bounds { ops_max: 1, frames_max: 1 });
        let user = history.name("u");
        let log = history.device(user, user);

        for _ in 0..3 {
            let op = history.invoke(user, user, None, Kind::Other);
            history.complete(op, Outcome::Unknown);
            log.note(1, DeviceEvent::Other);
        }

        let record = history.take();
        assert_eq!((record.ops.len(), record.devices[0].entries.len(), record.dropped), (1, 1, 4));
        assert_eq!(record.ops[0].outcome, Some(Outcome::Unknown));
    }
}
