//! Writes a record as JSON lines and reads it back.

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};

use super::names::Name;
use super::record::{DeviceRecord, Entry, MemorySample, Op, Record};

/// Version of the format, in the first line.
const VERSION: u32 = 1;

/// An error while reading a record back.
#[derive(Debug)]
pub enum DumpError {
    /// The file could not be read.
    Io(io::Error),
    /// This line, counted from 1, is not valid.
    Line(usize),
}

impl std::fmt::Display for DumpError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(error) => write!(f, "failed to read the record: {error}"),
            Self::Line(line) => write!(f, "line {line} of the record is not valid"),
        }
    }
}

impl std::error::Error for DumpError {}

impl From<io::Error> for DumpError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Record {
        version: u32,
        ended_us: u64,
        dropped: u64,
    },
    Name(Box<str>),
    Op(Op),
    Memory(MemorySample),
    /// The entries that follow belong to this device.
    Device {
        user: Name,
        session: Name,
    },
    Entry(Entry),
}

/// Writes a record as JSON lines.
///
/// # Errors
/// The errors of the writer.
pub fn dump(record: &Record, writer: impl Write) -> io::Result<()> {
    let mut writer = io::BufWriter::new(writer);
    let mut line = |line: &Line| -> io::Result<()> {
        serde_json::to_writer(&mut writer, line)?;
        writer.write_all(b"\n")
    };

    line(&Line::Record { version: VERSION, ended_us: record.ended_us, dropped: record.dropped })?;
    for word in &record.names {
        line(&Line::Name(word.clone()))?;
    }

    for op in &record.ops {
        line(&Line::Op(op.clone()))?;
    }

    for sample in &record.memory {
        line(&Line::Memory(*sample))?;
    }

    for device in &record.devices {
        line(&Line::Device { user: device.user, session: device.session })?;
        for entry in &device.entries {
            line(&Line::Entry(entry.clone()))?;
        }
    }

    writer.flush()
}

/// Reads a record that [`dump`] wrote.
///
/// # Errors
/// See [`DumpError`].
pub fn read_back(reader: impl BufRead) -> Result<Record, DumpError> {
    let mut record = Record::default();
    for (index, line) in reader.lines().enumerate() {
        let wrong = || DumpError::Line(index + 1);
        match serde_json::from_str(&line?).map_err(|_| wrong())? {
            Line::Record { version, ended_us, dropped } if version == VERSION => {
                (record.ended_us, record.dropped) = (ended_us, dropped);
            }
            Line::Record { .. } => return Err(wrong()),
            Line::Name(word) => record.names.push(word),
            Line::Op(op) => record.ops.push(op),
            Line::Memory(sample) => record.memory.push(sample),
            Line::Device { user, session } => {
                record.devices.push(DeviceRecord { user, session, entries: Vec::new() });
            }
            Line::Entry(entry) => record.devices.last_mut().ok_or_else(wrong)?.entries.push(entry),
        }
    }

    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::super::{Bounds, DeviceEvent, Digest, History, Kind, Outcome, Seen, State, Value};
    use super::*;

    #[test]
    fn a_record_is_the_same_after_it_was_dumped_and_read_back() {
        let history = History::new(Bounds::default());
        let (user, chat) = (history.name("u"), history.name("c"));
        let send = Kind::Send { chat, text: Digest::of("hello"), client_id: Digest::NONE };
        let seen =
            Seen { id: 1, rev: 2, sender: user, text: Digest::of("hello"), state: State::Sent };
        let log = history.device(user, history.name("s"));

        for outcome in
            [Outcome::Ok(Value::Message(seen)), Outcome::Refused { status: 404, code: chat }]
        {
            let op = history.invoke(user, Name::NONE, None, send);
            history.complete(op, outcome);
        }

        let op = history.invoke(user, Name::NONE, None, Kind::Changes { chat, after_rev: 0 });
        history.complete(
            op,
            Outcome::Ok(Value::Changes { messages: Box::new([seen]), rev: 2, complete: true }),
        );
        log.note(1, DeviceEvent::Sync(Box::new([(chat, 1)])));
        log.note(1, DeviceEvent::New { chat, rev: 2, seen });
        log.note(1, DeviceEvent::Closed { code: 1012 });
        history.sample_memory(user, 7);

        let record = history.take();
        let mut file = Vec::new();
        dump(&record, &mut file).unwrap();
        assert_eq!(read_back(file.as_slice()).unwrap(), record);
        assert!(matches!(read_back(&b"{}\n"[..]), Err(DumpError::Line(1))));
    }
}
