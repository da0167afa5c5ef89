//! The epoch of the log: if the log fell back to an earlier state, everything that this hub
//! delivered may be void, and every client must start anew.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rand::RngExt;

use super::heal::CHECK_BATCH;
use super::{CloseReason, Hub};
use crate::model::limits::{EPOCH_CHECK_EVERY, EPOCH_RETURN_MAX, LOG_RECHECK_PAUSE};
use crate::model::{ChatId, Epoch, Result, Rev, Topic};
use crate::wire::ServerFrame;

impl Hub {
    /// The number of epoch changes that this process has seen. State read from the store before a
    /// change must not be used after it.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn fresh_epoch(&self) -> Epoch {
        Epoch::new(self.clock.now(), &mut rand::rng())
    }

    /// Checks every second that the log has the epoch that was delivered, until the hub is stopped.
    pub(super) async fn keep_epoch(self: Arc<Self>) {
        let (mut known, mut failing) = (self.store.epoch(), false);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(EPOCH_CHECK_EVERY) => {}
            }

            match self.store.watch_log(self.fresh_epoch()).await {
                Ok(epoch) => {
                    // The default stands for no epoch: the first check sets one.
                    if epoch != known && known != Epoch::default() {
                        tracing::error!(%epoch, before = %known, "the log has a new epoch; closing all connections");
                        self.start_anew();
                    }
                    (known, failing) = (epoch, false);
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "failed to read the epoch of the log; retrying every second");
                    }
                }
            }
        }
    }

    /// Forgets all subscriptions, and closes every connection; the clients come back and are reset.
    ///
    /// Connections are closed twice, before and after the subscriptions are dropped. An old
    /// connection must follow nothing when the subscriptions go, since it would open them again at
    /// its own revision; a connection that came in between lost its subscriptions.
    fn start_anew(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.resync_progress.reset();
        self.close_all();

        for shard in &self.shards {
            let mut subscriptions = shard.lock();
            for (chat_id, _) in std::mem::take(&mut *subscriptions) {
                self.bus.unfollow(Topic::Chat(chat_id));
            }
        }

        self.close_all();
    }

    fn close_all(&self) {
        let all = self.registry.all();
        let return_max_ms =
            u64::try_from(EPOCH_RETURN_MAX.as_millis()).unwrap_or(0).min(all.len() as u64);

        for connection in all {
            let after_ms = rand::rng().random_range(0..=return_max_ms);
            connection.push_always(&ServerFrame::Reconnect { after_ms }.encode());
            connection.close(CloseReason::LogFellBack);
        }
    }

    /// Compares chats a second time whose revision in the store is lower than the one delivered. If
    /// one still is, the log fell back in a way that the check of its origin cannot see.
    pub(super) fn recheck_log(self: &Arc<Self>, mut chats: Vec<ChatId>) {
        chats.truncate(CHECK_BATCH);
        if chats.is_empty() || self.rechecking_log.swap(true, Ordering::AcqRel) {
            return;
        }

        let hub = self.clone();
        self.tasks.spawn_vital("healing", async move {
            tokio::time::sleep(LOG_RECHECK_PAUSE).await;
            if let Err(error) = hub.renew_epoch_if_behind(&chats).await {
                // The next comparison of the chat comes here again.
                tracing::warn!(%error, "failed to find out whether the log fell back; retried with the next resync");
            }
            hub.rechecking_log.store(false, Ordering::Release);
        });
    }

    async fn renew_epoch_if_behind(&self, chats: &[ChatId]) -> Result<()> {
        let (generation, epoch) = (self.generation(), self.store.epoch());
        // Read before the store is asked: an event delivered meanwhile may be newer than the
        // answer.
        let delivered: HashMap<ChatId, Rev> = chats
            .iter()
            .filter_map(|id| self.subscriptions(*id).get(id).map(|it| (*id, it.rev())))
            .collect();

        let revs = self.store.revs(chats).await?;
        let behind =
            revs.iter().any(|(id, rev)| delivered.get(id).is_some_and(|delivered| rev < delivered));
        if behind && self.generation() == generation {
            self.store
                .renew_epoch(epoch, self.fresh_epoch(), "a chat behind its subscribers")
                .await?;
        }
        Ok(())
    }
}
