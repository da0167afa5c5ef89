//! A durable consumer: work that must happen at least once after every durable change.
//!
//! A consumer syncs like a device. It keeps a revision for each chat and reads the changes after
//! it, so a send writes nothing for it. `cargo bench --bench growth consumer` compares this with
//! the other design, an outbox row that each send writes.
//!
//! The position is stored after the effect: if the replica dies between the two, the next holder of
//! the lease applies the same changes again. So an effect needs an idempotency key, for which the
//! chat and its `rev` are enough.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::lease::{Lease, Outcome};
use crate::cluster::BoxFuture;
use crate::metrics;
use crate::model::limits::{CONSUMER_BATCH, CONSUMER_EVERY, SYNC_CHANGES_MAX};
use crate::model::{ChatId, Clock, Result, Rev};
use crate::store::{CHANGE_SLOTS_MARGIN, Changes, ConsumerBacklog, Store};

/// Applies durable changes.
pub trait Consumer: Send + Sync + 'static {
    /// The name of its lease and of its positions. It must not change between versions.
    fn name(&self) -> &'static str;

    /// Applies changes of one chat, in the order of their revisions. The same changes may come
    /// again. An item that changed several times comes once, in its latest state. `None`: the chat
    /// was removed.
    ///
    /// # Errors
    /// Any; the changes come again after [`CONSUMER_EVERY`]. The other chats do not wait.
    fn apply<'a>(
        &'a self,
        chat_id: ChatId,
        changes: Option<&'a Changes>,
    ) -> BoxFuture<'a, Result<()>>;
}

/// Runs `consumer` on one replica at a time, until `stop`.
pub async fn run(consumer: Arc<dyn Consumer>, store: Store, clock: Clock, stop: CancellationToken) {
    let lease = Lease::new(store.clone(), clock, consumer.name());
    while !stop.is_cancelled() {
        let applying = apply_all(consumer.as_ref(), &store, &stop);
        match lease.run(std::time::Duration::ZERO, applying).await {
            Ok(Outcome::Done(()) | Outcome::Elsewhere | Outcome::Lost) => {}
            Err(error) => {
                tracing::warn!(
                    consumer = consumer.name(),
                    %error,
                    "a consumer failed to read changes; retried in a second"
                );
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(CONSUMER_EVERY) => {}
        }
    }
}

/// Applies all changes, and then new ones as they come, until `stop`. Begins with every chat, since
/// the position of the previous holder is known for each chat only.
async fn apply_all(consumer: &dyn Consumer, store: &Store, stop: &CancellationToken) -> Result<()> {
    let mut slot = 0;
    while !stop.is_cancelled() {
        // Read before the first row: a change that is committed during the round is found by the
        // next one.
        let next = store.change_slot().await?;
        let complete = apply_since(consumer, store, slot).await?;
        if complete {
            slot = next - CHANGE_SLOTS_MARGIN;
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(CONSUMER_EVERY) => {}
        }
    }
    Ok(())
}

/// Applies the changes of all chats that changed in `slot` or later. Returns whether all were
/// applied.
async fn apply_since(consumer: &dyn Consumer, store: &Store, slot: i64) -> Result<bool> {
    let (mut complete, mut after) = (true, (slot, ChatId(Uuid::nil())));
    loop {
        let page = store.consumer_backlog(consumer.name(), after, CONSUMER_BATCH).await?;
        let Some(last) = page.last() else { return Ok(complete) };
        after = (last.changed_slot, last.chat_id);

        for backlog in page.iter().filter(|backlog| backlog.applied < backlog.rev) {
            if let Err(error) = apply_chat(consumer, store, *backlog).await {
                metrics::consumer_failed(consumer.name());
                tracing::warn!(
                    consumer = consumer.name(),
                    %error,
                    "a consumer failed to apply the changes of a chat; retried in a second"
                );
                complete = false;
            }
        }
    }
}

/// Applies the changes of one chat page by page.
async fn apply_chat(
    consumer: &dyn Consumer,
    store: &Store,
    backlog: ConsumerBacklog,
) -> Result<()> {
    let ConsumerBacklog { chat_id, rev, mut applied, .. } = backlog;
    while applied < rev {
        let changes = store.changes(chat_id, None, applied, SYNC_CHANGES_MAX).await?;
        consumer.apply(chat_id, changes.as_ref()).await?;

        let reached: Rev = changes.map_or(rev, |changes| changes.rev);
        store.advance_consumer(consumer.name(), chat_id, reached).await?;
        applied = reached;
    }
    Ok(())
}
