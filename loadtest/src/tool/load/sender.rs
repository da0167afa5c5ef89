//! A sender on one connection.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::{sleep_until, timeout_at};

use super::pace::Pace;
use crate::tool::light::{Heard, Light};
use crate::tool::meter::Meter;

/// Time limit for the last answers after the end.
const DRAIN: Duration = Duration::from_secs(15);
/// Text of the messages.
const WORDS: &str = "A message of ordinary length, as people write them all day long.";
/// Most messages by which a closed loop may be ahead of its listeners. They fit into the outboxes.
const AHEAD_MAX: u64 = 8;

/// Counts the deliveries of one chat, so that its sender can wait for the listeners.
#[derive(Debug)]
pub struct Deliveries {
    listeners: u64,
    count: AtomicU64,
    changed: Notify,
}

impl Deliveries {
    /// Creates a counter for this many listeners.
    pub fn new(listeners: usize) -> Arc<Self> {
        let listeners = u64::try_from(listeners).unwrap_or(u64::MAX);
        Arc::new(Self { listeners, count: AtomicU64::new(0), changed: Notify::new() })
    }

    /// Counts one message at one listener.
    pub fn add(&self) {
        if (self.count.fetch_add(1, Ordering::AcqRel) + 1).is_multiple_of(self.listeners.max(1)) {
            self.changed.notify_one();
        }
    }

    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    fn may_send(&self, sent: u32) -> bool {
        self.listeners == 0 || u64::from(sent) < self.count() / self.listeners + AHEAD_MAX
    }
}

/// A sender in one chat.
#[derive(Debug)]
pub struct Sender {
    pub light: Light,
    /// Number of the account.
    pub user: usize,
    pub chat: String,
    /// Id of the chat's last message before the run.
    pub first_id: u32,
    /// Prefix of this sender's idempotency keys; unique to this sender and run.
    pub key: String,
    /// Acknowledgements received.
    pub acknowledged: Vec<Acknowledged>,
    pub sent: u32,
    /// Refusals, missing answers and ended connections.
    pub errors: u64,
    /// Deliveries to wait for; none in an open loop.
    pub deliveries: Option<Arc<Deliveries>>,
}

/// An acknowledged message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    pub id: u32,
    /// Rev of the chat after the message.
    pub rev: u32,
    /// Number of the message among those of its sender.
    pub number: u32,
}

/// The settings of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Schedule of the messages.
    pub pace: Pace,
    /// No message is sent after this time.
    pub until: Instant,
    /// Start of the run's clock.
    pub epoch: Instant,
    /// Records the latency of each acknowledgement.
    pub meter: Arc<Meter>,
    /// Text after the time stamp.
    pub filler: Arc<str>,
}

/// Creates a filler text of this length.
pub fn filler(bytes: u16) -> Arc<str> {
    WORDS.chars().cycle().take(usize::from(bytes)).collect::<String>().into()
}

/// Unanswered frames: frame id to message number and due time.
type Waiting = HashMap<u64, (u32, Instant)>;

impl Sender {
    /// Idempotency key of message `number`.
    pub fn key_of(&self, number: u32) -> String {
        format!("{}-{number}", self.key)
    }

    /// Sends until the end of the plan, then waits for the answers.
    pub async fn run(mut self, plan: Plan) -> Self {
        let mut waiting = Waiting::new();
        let deliveries = self.deliveries.clone();
        loop {
            let now = Instant::now();
            let due = plan.pace.due(self.sent).unwrap_or(now);
            let is_over = now >= plan.until || due >= plan.until || plan.pace.is_done(self.sent);
            if is_over && (waiting.is_empty() || now > plan.until + DRAIN) {
                break;
            }

            let room = waiting.len() < plan.pace.in_flight_max()
                && deliveries.as_ref().is_none_or(|deliveries| deliveries.may_send(self.sent));
            if !is_over && room && due <= now {
                if !self.send_one(&plan, due, &mut waiting).await
                    && !self.reconnect(&mut waiting).await
                {
                    break;
                }
                continue;
            }

            // Wakes for a frame, for a delivery, and when the next message is due.
            let wake = if !is_over && room { due } else { now + Duration::from_millis(100) };
            tokio::select! {
                frame = self.light.next() => {
                    if !self.receive(&plan, frame, &mut waiting).await {
                        break;
                    }
                }
                () = sleep_until(wake.into()) => {}
                () = changed(deliveries.as_deref()) => {}
            }

            if tokio::time::Instant::now() >= self.light.ping_due() {
                self.light.ping().await;
            }
        }

        self.errors += waiting.len() as u64;
        self
    }

    async fn send_one(&mut self, plan: &Plan, due: Instant, waiting: &mut Waiting) -> bool {
        let number = self.sent;
        self.sent += 1;
        let frame = u64::from(number) + 1;

        let stamp_us = due.saturating_duration_since(plan.epoch).as_micros();
        let (text, key) =
            (format!("t={stamp_us} {} {}", self.key_of(number), plan.filler), self.key_of(number));

        waiting.insert(frame, (number, due));
        self.light.send_message(frame, &self.chat, &text, &key).await
    }

    /// Processes a frame. Returns whether the connection is still usable.
    async fn receive(&mut self, plan: &Plan, frame: Heard, waiting: &mut Waiting) -> bool {
        match frame {
            Heard::Ack { frame, message_id: id, rev } => {
                if let Some((number, due)) = waiting.remove(&frame) {
                    plan.meter.record(due.elapsed());
                    self.acknowledged.push(Acknowledged { id, rev, number });
                }
            }
            Heard::Refused { frame, code } => {
                self.errors += 1;
                frame.map(|frame| waiting.remove(&frame));
                if code == "rate_limited" {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            Heard::Closed(_) => return self.reconnect(waiting).await,
            Heard::New { .. } | Heard::Other => {}
        }
        true
    }

    /// Reconnects. The outcome of unanswered sends is unknown, so they count as errors.
    async fn reconnect(&mut self, waiting: &mut Waiting) -> bool {
        self.errors += waiting.len() as u64 + 1;
        waiting.clear();
        self.light.reconnect().await.is_ok()
    }

    /// Reads until this connection has received `rev`. Returns whether it did within `limit`.
    pub async fn until_rev(&mut self, rev: u32, limit: Duration) -> bool {
        until_rev(&mut self.light, &self.chat, rev, limit).await
    }
}

async fn changed(deliveries: Option<&Deliveries>) {
    match deliveries {
        Some(deliveries) => deliveries.changed.notified().await,
        None => std::future::pending().await,
    }
}

/// Reads until a connection has received `rev` of a chat. Returns whether it did within `limit`.
pub async fn until_rev(light: &mut Light, chat: &str, rev: u32, limit: Duration) -> bool {
    let deadline = tokio::time::Instant::now() + limit;
    while light.rev(chat) < rev {
        match timeout_at(deadline, light.next()).await {
            Ok(Heard::Closed(_)) => {
                if light.reconnect().await.is_err() {
                    return false;
                }
            }
            Ok(_) => {}
            Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filler_has_the_requested_length() {
        assert_eq!((filler(64).as_ref(), filler(3000).len()), (WORDS, 3000));
    }

    #[test]
    fn a_closed_loop_waits_for_the_average_listener() {
        let deliveries = Deliveries::new(2);
        assert!(deliveries.may_send(7) && !deliveries.may_send(8));
        deliveries.add();
        assert!(!deliveries.may_send(8), "only one of two listeners received it");
        deliveries.add();
        assert!(deliveries.may_send(8) && !deliveries.may_send(9));
        assert!(Deliveries::new(0).may_send(1_000_000));
    }
}
