//! When the hub must not believe what it delivered: the log fell back, or the outcome of a change is unknown.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rand::RngExt;

use super::heal::CHECK_BATCH;
use super::one_at_a_time::OneAtATime;
use super::{CloseReason, Hub};
use crate::metrics;
use crate::model::limits::{
    EPOCH_CHECK_EVERY, EPOCH_RETURN_MAX, LOG_DOUBT_PAUSE, RESYNC_EVERY, RESYNC_LOOKS, RESYNC_TOPICS_MAX,
};
use crate::model::{ChatId, Epoch, Result, Rev, Topic};
use crate::wire::ServerFrame;

/// What is in doubt.
#[derive(Default)]
pub(super) struct Doubts {
    /// Topics that a unit of work with an unknown outcome may have changed, each with the comparisons still to make.
    topics: Mutex<HashMap<Topic, u32>>,
    resyncing: OneAtATime,
    /// Whether a chat that seems to be ahead of the store is being compared once more.
    log: AtomicBool,
}

impl Hub {
    /// Which epoch's feeds these are, counted by this process.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn fresh_epoch(&self) -> Epoch {
        Epoch::new(self.clock.now(), &mut rand::rng())
    }

    /// Looks every second whether the log is still the one that was delivered, until the hub is stopped.
    pub(super) async fn keep_epoch(self: Arc<Self>) {
        let (mut known, mut blind) = (self.store.epoch(), false);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(EPOCH_CHECK_EVERY) => {}
            }
            match self.store.watch_log(self.fresh_epoch()).await {
                Ok(epoch) => {
                    // None was in force before the first look.
                    if epoch != known && known != Epoch::default() {
                        tracing::error!(%epoch, before = %known, "the log has a new epoch: all clients are sent away");
                        self.start_anew();
                    }
                    (known, blind) = (epoch, false);
                }
                Err(error) => {
                    if !std::mem::replace(&mut blind, true) {
                        tracing::warn!(%error, "could not look which epoch the log has; trying again");
                    }
                }
            }
        }
    }

    /// Forgets what was delivered, and sends every client away, to come back and be reset.
    ///
    /// Twice, around the feeds: a connection of before must follow nothing any more when the feeds go, since it would open
    /// them again at its own revision; one that came meanwhile lost its feeds.
    fn start_anew(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.looked.forget();
        self.send_all_away();
        for shard in &self.shards {
            let mut feeds = shard.lock();
            for (chat_id, _) in std::mem::take(&mut *feeds) {
                self.bus.unfollow(Topic::Chat(chat_id));
            }
        }
        self.send_all_away();
    }

    fn send_all_away(&self) {
        let all = self.registry.all();
        let return_max_ms = u64::try_from(EPOCH_RETURN_MAX.as_millis()).unwrap_or(0).min(all.len() as u64);
        for connection in all {
            let after_ms = rand::rng().random_range(0..=return_max_ms);
            connection.push_always(&ServerFrame::Reconnect { after_ms }.encode());
            connection.close(CloseReason::LogFellBack);
        }
    }

    /// Compares chats once more whose revision in the store is lower than the one delivered. If one still is, the log
    /// fell back in a way that its origin does not show.
    pub(super) fn doubt_log(self: &Arc<Self>, mut chats: Vec<ChatId>) {
        chats.truncate(CHECK_BATCH);
        if chats.is_empty() || self.doubts.log.swap(true, Ordering::AcqRel) {
            return;
        }
        let hub = self.clone();
        self.tasks.spawn_vital("healing", async move {
            tokio::time::sleep(LOG_DOUBT_PAUSE).await;
            if let Err(error) = hub.confirm_doubt(&chats).await {
                // The next comparison of the chat comes here again.
                tracing::warn!(%error, "could not find out whether the log fell back");
            }
            hub.doubts.log.store(false, Ordering::Release);
        });
    }

    async fn confirm_doubt(&self, chats: &[ChatId]) -> Result<()> {
        let (generation, epoch) = (self.generation(), self.store.epoch());
        // Noted before the store is asked: what is delivered meanwhile may be newer than its answer.
        let delivered: HashMap<ChatId, Rev> =
            chats.iter().filter_map(|id| self.feeds(*id).get(id).map(|feed| (*id, feed.rev()))).collect();
        let revs = self.store.revs(chats).await?;
        let behind = revs.iter().any(|(id, rev)| delivered.get(id).is_some_and(|delivered| rev < delivered));
        if behind && self.generation() == generation {
            self.store.renew_epoch(epoch, self.fresh_epoch(), "a chat behind its subscribers").await?;
        }
        Ok(())
    }

    /// Compares topics with the store now and again, since a change of them may have been committed or may be yet.
    pub(super) fn resync(self: &Arc<Self>, topics: Vec<Topic>) {
        self.doubt(topics.clone());
        self.look_at(topics);
    }

    /// Compares topics with the store a few times more, each after a pause, and until the store answered.
    pub(super) fn doubt(self: &Arc<Self>, mut topics: Vec<Topic>) {
        topics.retain(|topic| !matches!(topic, Topic::Presence(_)));
        {
            let mut doubtful = self.doubts.topics.lock();
            doubtful.extend(topics.into_iter().map(|topic| (topic, RESYNC_LOOKS)));
            if doubtful.len() > RESYNC_TOPICS_MAX {
                metrics::hub_resyncs_overflowed();
                *doubtful = HashMap::from([(Topic::Everyone, RESYNC_LOOKS)]);
            }
        }
        if !self.doubts.resyncing.ask() {
            return;
        }
        let hub = self.clone();
        self.tasks.spawn_vital("healing", async move {
            loop {
                while !hub.doubts.topics.lock().is_empty() && !hub.stop.is_cancelled() {
                    hub.resync_once().await;
                }
                if !hub.doubts.resyncing.again() {
                    return;
                }
            }
        });
    }

    /// A pause, and one comparison of everything in doubt. What can't be compared stays in doubt.
    async fn resync_once(self: &Arc<Self>) {
        tokio::select! {
            () = self.stop.cancelled() => return,
            () = tokio::time::sleep(RESYNC_EVERY) => {}
        }
        let topics: Vec<Topic> = self.doubts.topics.lock().keys().copied().collect();
        let compared = self.compare(&topics).await;
        match compared {
            Ok(()) => {
                metrics::hub_resynced(topics.len());
                let mut doubtful = self.doubts.topics.lock();
                for topic in topics {
                    if let Some(looks) = doubtful.get_mut(&topic) {
                        *looks -= 1;
                        if *looks == 0 {
                            doubtful.remove(&topic);
                        }
                    }
                }
            }
            Err(error) => {
                tracing::debug!(%error, "could not compare what may have changed with the store; trying again");
            }
        }
    }
}
