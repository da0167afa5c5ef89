//! Removal of an account. The account ends at once; then it leaves its chats one by one, on any
//! replica.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::passwords::Passwords;
use super::publisher::Publisher;
use super::sessions::Sessions;
use crate::metrics;
use crate::model::limits::{JOB_BATCH, REMOVAL_WAIT_MAX, VERIFY_TRIES_MAX};
use crate::model::session::Caller;
use crate::model::{Clock, Code, Error, Result, Topic, UserId};
use crate::store::{EndedSession, Store};
use crate::tasks::Tasks;

/// The service that removes accounts.
pub struct Removals {
    pub(super) store: Store,
    pub(super) passwords: Passwords,
    pub(super) sessions: Arc<Sessions>,
    pub(super) publisher: Publisher,
    pub(super) clock: Clock,
    pub(super) tasks: Tasks,
    /// Permits to remove an ended account from a chat.
    pub(super) departures: Semaphore,
}

impl Removals {
    /// Removes the caller's account: its sessions end, it leaves its chats, and its messages stay
    /// without a name. When this returns, the sessions have ended. If leaving the chats takes
    /// longer than [`REMOVAL_WAIT_MAX`], a task finishes it later; after a crash, the cleanup of
    /// any replica does.
    ///
    /// # Errors
    /// `rate_limited`, `wrong_password`.
    pub async fn remove(self: &Arc<Self>, caller: Caller, password: String) -> Result<()> {
        let ended = self.end_account(caller, &password).await?;
        self.sessions.announce_ended(ended).await;

        let removals = self.clone();
        let leaving = self.tasks.spawn(async move {
            if let Err(error) = removals.leave_chats(caller.user_id).await {
                tracing::warn!(
                    %error,
                    "failed to remove an ended account from all its chats; the next cleanup retries"
                );
            }
        });

        // A user with many chats reaches this timeout; the task goes on.
        let _ = tokio::time::timeout(REMOVAL_WAIT_MAX, leaving).await;
        Ok(())
    }

    /// Ends the account if the password is still right under the account's lock. Returns the
    /// sessions that ended.
    async fn end_account(&self, caller: Caller, password: &str) -> Result<Vec<EndedSession>> {
        for _ in 0..VERIFY_TRIES_MAX {
            let confirmed = self.passwords.confirm(caller, password.to_owned()).await?;
            match self.store.end_account(caller.user_id, &confirmed, self.clock.now()).await {
                // The password changed, or was rehashed, after it was confirmed: confirm it again.
                Err(error) if error.code == Code::WrongPassword => {}
                outcome => return outcome,
            }
        }
        Err(Error::overloaded())
    }

    /// Removes an ended account from its chats, one unit of work for each chat, until none is left
    /// or the process stops. A failure in one chat does not affect the others.
    ///
    /// # Errors
    /// The first failure, such as `unavailable`, after all chats were tried.
    async fn leave_chats(&self, user_id: UserId) -> Result<()> {
        let stop = self.tasks.stop_token();
        let mut failure: Option<Error> = None;

        for (chat_id, _) in self.store.chat_heads(user_id).await? {
            let _permit = self.departures.acquire().await.map_err(Error::internal)?;
            if stop.is_cancelled() {
                return Ok(());
            }

            let departed = self.store.depart(chat_id, user_id, self.clock.now()).await;
            match self.publisher.resync_if_unknown(departed, || vec![Topic::Chat(chat_id)]) {
                Ok(events) => {
                    metrics::departure();
                    for event in events {
                        self.publisher.publish_change(event);
                    }
                }
                // Another replica removed the account from the chat, or the chat was removed.
                Err(error) if error.code == Code::ChatNotFound => {}
                Err(error) => failure = failure.or(Some(error)),
            }
        }

        match failure {
            Some(error) => Err(error),
            None => self.store.finish_removal(user_id).await,
        }
    }

    /// Resumes the removals of accounts that a crash, a restart or a database failure interrupted.
    ///
    /// # Errors
    /// The first failure, after all removals of the batch were tried.
    pub async fn resume(&self) -> Result<()> {
        let mut outcome = Ok(());
        for user_id in self.store.pending_removals(JOB_BATCH).await? {
            let left = self.leave_chats(user_id).await;
            outcome = outcome.and(left);
        }
        outcome
    }
}
