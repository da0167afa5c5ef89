//! One sender on one connection.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::{sleep_until, timeout_at};

use super::pace::Pace;
use crate::tool::light::{Heard, Light};
use crate::tool::meter::Meter;

/// How long answers are waited for after the end.
const DRAIN: Duration = Duration::from_secs(15);
/// What people write.
const WORDS: &str = "A message of ordinary length, as people write them all day long.";
/// How far a closed loop may be ahead of the slowest of its listeners, in messages: within their
/// outboxes.
const AHEAD_MAX: u64 = 8;

/// Deliveries of one chat, for a sender who waits for its listeners.
#[derive(Debug)]
pub struct Deliveries {
    listeners: u64,
    count: AtomicU64,
    changed: Notify,
}

impl Deliveries {
    /// None yet, to so many.
    pub fn new(listeners: usize) -> Arc<Self> {
        let listeners = u64::try_from(listeners).unwrap_or(u64::MAX);
        Arc::new(Self { listeners, count: AtomicU64::new(0), changed: Notify::new() })
    }

    /// One listener got one message.
    pub fn add(&self) {
        if (self.count.fetch_add(1, Ordering::AcqRel) + 1).is_multiple_of(self.listeners.max(1)) {
            self.changed.notify_one();
        }
    }

    /// How many there were.
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
    /// Its connection.
    pub light: Light,
    /// The user's number among the accounts.
    pub user: usize,
    /// The chat.
    pub chat: String,
    /// The chat's last message before the run.
    pub first_id: u32,
    /// Begins every idempotency key of this sender; of no other in the world.
    pub key: String,
    /// What was acknowledged.
    pub acknowledged: Vec<Acknowledged>,
    /// What was sent.
    pub sent: u32,
    /// Refusals, missing answers and ended connections.
    pub errors: u64,
    /// Who waits for whom; none in an open loop.
    pub deliveries: Option<Arc<Deliveries>>,
}

/// A promise of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// The message's id.
    pub id: u32,
    /// The chat's rev with it.
    pub rev: u32,
    /// Which of the sender's messages it is.
    pub number: u32,
}

/// How and how long to send.
#[derive(Clone, Debug)]
pub struct Plan {
    /// When each message is due.
    pub pace: Pace,
    /// Nothing is begun after this.
    pub until: Instant,
    /// The run's clock.
    pub epoch: Instant,
    /// Where acknowledgements are counted.
    pub meter: Arc<Meter>,
    /// What follows the stamp of each text.
    pub filler: Arc<str>,
}

/// What follows the stamp, so that a text is about so many bytes longer.
pub fn filler(bytes: u16) -> Arc<str> {
    WORDS.chars().cycle().take(usize::from(bytes)).collect::<String>().into()
}

type Waiting = HashMap<u64, (u32, Instant)>;

impl Sender {
    /// The key of message `number`.
    pub fn key_of(&self, number: u32) -> String {
        format!("{}-{number}", self.key)
    }

    /// Sends until the plan ends, then waits for the answers.
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
                    && !self.come_back(&mut waiting).await
                {
                    break;
                }
                continue;
            }
            // Woken by an answer, by the time of the next one, and at the end.
            let wake = if !is_over && room { due } else { now + Duration::from_millis(100) };
            tokio::select! {
                heard = self.light.next() => {
                    if !self.take(&plan, heard, &mut waiting).await {
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

    /// Whether to go on.
    async fn take(&mut self, plan: &Plan, heard: Heard, waiting: &mut Waiting) -> bool {
        match heard {
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
            Heard::Closed(_) => return self.come_back(waiting).await,
            Heard::New { .. } | Heard::Other => {}
        }
        true
    }

    /// What was under way on a connection that ended is of unknown outcome.
    async fn come_back(&mut self, waiting: &mut Waiting) -> bool {
        self.errors += waiting.len() as u64 + 1;
        waiting.clear();
        self.light.come_back().await.is_ok()
    }

    /// Reads until it was told everything up to `rev`. Whether it was within `limit`.
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

/// Reads until a connection was told everything of a chat up to `rev`. Whether it was within
/// `limit`.
pub async fn until_rev(light: &mut Light, chat: &str, rev: u32, limit: Duration) -> bool {
    let deadline = tokio::time::Instant::now() + limit;
    while light.rev(chat) < rev {
        match timeout_at(deadline, light.next()).await {
            Ok(Heard::Closed(_)) => {
                if light.come_back().await.is_err() {
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
    fn a_text_is_as_long_as_it_is_to_be() {
        assert_eq!((filler(64).as_ref(), filler(3000).len()), (WORDS, 3000));
    }

    #[test]
    fn a_sender_is_never_far_ahead_of_its_listeners() {
        let deliveries = Deliveries::new(2);
        assert!(deliveries.may_send(7) && !deliveries.may_send(8));
        deliveries.add();
        assert!(!deliveries.may_send(8), "one of two has it");
        deliveries.add();
        assert!(deliveries.may_send(8) && !deliveries.may_send(9));
        assert!(Deliveries::new(0).may_send(1_000_000));
    }
}
