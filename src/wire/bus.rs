//! The messages between replicas, as bytes.
//!
//! A message is a header, a line feed, and a payload. The header is one JSON object without a line
//! feed (shown here on two lines):
//!
//! ```text
//! {"version":1,"kind":"event","from":42,"epoch":"…","sealed_at_ms":1795305599123,
//!  "topics":["chat:…"]}
//! ```
//!
//! **The header never changes incompatibly.** A field may be added, and every reader ignores
//! unknown fields; no field is removed and none gets another meaning. So every version of the
//! server finds in any message the chats and users that it concerns. Only an event needs a payload.
//!
//! **The payload of an event may change with the version.** The types of [`v1`] are its format in
//! version 1. They derive nothing from `model`, and they refuse unknown fields: a replica either
//! reads all of an event, or only the header, and then compares the topics with the store. To
//! change the format, add `v2` and raise [`VERSION`].
//!
//! This module writes and reads the bytes inside the seal; `cluster` seals them and has the key.

mod v1;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::model::limits::BUS_EVENT_AGE_MAX;
use crate::model::{ChatId, Epoch, Event, Timestamp, Topic, UserId};

/// The version of the payloads that this server writes, and the only one that it reads.
pub const VERSION: u32 = 1;

/// The kind of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BusKind {
    /// An event, which is the payload.
    Event,
    /// An event was too large to publish, or could not be published in time: compare the topics
    /// with the store.
    Resync,
    /// A unit of work ended with an unknown outcome: compare the topics with the store now, and
    /// again several times, since the commit may still be in progress.
    OutcomeUnknown,
    /// A replica's message to itself, which checks the connection through Redis. Has no topics.
    Canary,
    /// A kind of a later version.
    #[serde(other)]
    Unknown,
}

/// The part of a message that every version can read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BusHeader {
    /// The version of the payload.
    pub version: u32,
    /// The kind of the message.
    pub kind: BusKind,
    /// The replica that published it.
    pub from: u64,
    /// The epoch of the log when the event was published.
    pub epoch: Option<Epoch>,
    /// When the message was sealed, by the clock of the replica that published it.
    pub sealed_at: Timestamp,
    /// The topics that the message concerns, without those of an unknown kind: this replica
    /// subscribes to none of them.
    pub topics: Vec<Topic>,
}

/// A message: a header, and the payload as bytes.
#[derive(Clone, Debug)]
pub struct BusMessage<'a> {
    /// The part that every version can read.
    pub header: BusHeader,
    payload: &'a [u8],
}

/// The header on the wire.
#[derive(Serialize, Deserialize)]
struct HeaderJson {
    version: u32,
    kind: BusKind,
    from: u64,
    #[serde(default)]
    epoch: Option<Uuid>,
    sealed_at_ms: i64,
    topics: Vec<String>,
}

impl BusHeader {
    /// Whether the message is too old to deliver at `now`, or from the future. The latter means
    /// that a clock is wrong: a copy could be replayed for longer than [`BUS_EVENT_AGE_MAX`].
    pub fn is_stale(&self, now: Timestamp) -> bool {
        now.distance(self.sealed_at) > BUS_EVENT_AGE_MAX
    }

    /// Appends a message without a payload to `body`.
    pub fn write(&self, body: &mut Vec<u8>) {
        let header = HeaderJson {
            version: self.version,
            kind: self.kind,
            from: self.from,
            epoch: self.epoch.map(|epoch| epoch.0),
            sealed_at_ms: self.sealed_at.as_ms(),
            topics: self.topics.iter().map(topic_name).collect(),
        };

        append_json(&header, body);
        body.push(b'\n');
    }

    /// Appends a message with an event as its payload to `body`.
    pub fn write_event(&self, event: &Event, body: &mut Vec<u8>) {
        self.write(body);
        if let Some(event) = v1::BusEvent::of(event) {
            append_json(&event, body);
        }
    }
}

impl<'a> BusMessage<'a> {
    /// Reads the header of a message. `None` if it has none, such as a message of a server before
    /// version 1.
    pub fn read(body: &'a [u8]) -> Option<Self> {
        let end = body.iter().position(|byte| *byte == b'\n')?;
        let header: HeaderJson = serde_json::from_slice(&body[..end]).ok()?;

        let header = BusHeader {
            version: header.version,
            kind: header.kind,
            from: header.from,
            epoch: header.epoch.map(Epoch),
            sealed_at: Timestamp::from_ms(header.sealed_at_ms),
            topics: header.topics.iter().filter_map(|name| topic_named(name)).collect(),
        };
        Some(Self { header, payload: &body[end + 1..] })
    }

    /// The event in the payload. `None` if this version cannot read it.
    pub fn event(&self) -> Option<Event> {
        match (self.header.kind, self.header.version) {
            (BusKind::Event, VERSION) => {
                let event: v1::BusEvent<'_> = serde_json::from_slice(self.payload).ok()?;
                Some(event.into_event())
            }
            _ => None,
        }
    }
}

/// Appends `value` to `body` as JSON. Plain structs with string keys cannot fail to serialise.
fn append_json(value: &impl Serialize, body: &mut Vec<u8>) {
    let start = body.len();
    if serde_json::to_writer(&mut *body, value).is_err() {
        body.truncate(start);
    }
}

fn topic_name(topic: &Topic) -> String {
    match topic {
        Topic::Chat(id) => format!("chat:{id}"),
        Topic::User(id) => format!("user:{id}"),
        Topic::Presence(id) => format!("presence:{id}"),
        Topic::Everyone => "everyone".to_owned(),
    }
}

fn topic_named(name: &str) -> Option<Topic> {
    match name.split_once(':') {
        Some(("chat", id)) => id.parse().ok().map(ChatId).map(Topic::Chat),
        Some(("user", id)) => id.parse().ok().map(UserId).map(Topic::User),
        Some(("presence", id)) => id.parse().ok().map(UserId).map(Topic::Presence),
        None if name == "everyone" => Some(Topic::Everyone),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
