//! The epoch of the log. If the log fell back to an earlier state, events that this hub delivered
//! may no longer exist, so every client must reconnect and get `reset`.

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
    /// The number of epoch changes that this process has seen. State that was read from the store
    /// before a change must not be used after it.
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

            match self.store.check_log(self.fresh_epoch()).await {
                Ok(epoch) => {
                    // The default means that no epoch was read before.
                    if epoch != known && known != Epoch::default() {
                        tracing::error!(
                            %epoch,
                            before = %known,
                            "the log has a new epoch; closing all connections"
                        );
                        self.start_anew();
                    }
                    (known, failing) = (epoch, false);
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(
                            %error,
                            "failed to read the epoch of the log; retrying every second"
                        );
                    }
                }
            }
        }
    }

    /// Drops all subscriptions and closes every connection. The clients reconnect and get `reset`.
    ///
    /// Connections are closed twice, before and after the subscriptions are dropped. The first
    /// time, since a connection that is not closing could open a dropped subscription again, at a
    /// revision of the old epoch. The second time, since the subscriptions of a connection that
    /// arrived in between were dropped.
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

    /// Sends `reconnect` to every connection and closes it. The more connections there are, the
    /// longer the time over which the clients spread their return.
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

    /// Compares chats again whose revision in the store was lower than the delivered one. If one
    /// still is, the log fell back in a way that the check of the log's origin does not detect.
    pub(super) fn recheck_log(self: &Arc<Self>, mut chats: Vec<ChatId>) {
        chats.truncate(CHECK_BATCH);
        if chats.is_empty() || self.rechecking_log.swap(true, Ordering::AcqRel) {
            return;
        }

        let hub = self.clone();
        self.tasks.spawn_vital("healing", async move {
            tokio::time::sleep(LOG_RECHECK_PAUSE).await;
            if let Err(error) = hub.renew_epoch_if_behind(&chats).await {
                // The next comparison of the chat calls `recheck_log` again.
                tracing::warn!(
                    %error,
                    "failed to check whether the log fell back; retried with the next resync"
                );
            }
            hub.rechecking_log.store(false, Ordering::Release);
        });
    }

    async fn renew_epoch_if_behind(&self, chats: &[ChatId]) -> Result<()> {
        let (generation, epoch) = (self.generation(), self.store.epoch());
        // Read before the store: an event that is delivered meanwhile may be newer than the answer.
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
