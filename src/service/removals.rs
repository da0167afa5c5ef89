//! Removal of an account: at once for the user, then chat by chat, by any replica.

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
    /// Permits to take a removed account out of a chat.
    pub(super) departures: Semaphore,
}

impl Removals {
    /// Removes the caller's account: its sessions end, it leaves its chats, its messages stay
    /// without a name. When this returns, the sessions have ended. So have the memberships, unless
    /// leaving the chats takes longer than [`REMOVAL_WAIT_MAX`]: then a task continues, and after a
    /// crash the cleanup of any replica.
    ///
    /// # Errors
    /// `rate_limited`, `wrong_password`.
    pub async fn remove(self: &Arc<Self>, caller: Caller, password: String) -> Result<()> {
        let ended = self.end_account(caller, &password).await?;
        self.sessions.announce_ended(ended).await;

        let removals = self.clone();
        let leaving = self.tasks.spawn(async move {
            if let Err(error) = removals.leave_chats(caller.user_id).await {
                tracing::warn!(%error, "failed to leave all chats of a removed account; the cleanup will resume it");
            }
        });
        // A timeout is the ordinary end for a user of many chats.
        let _ = tokio::time::timeout(REMOVAL_WAIT_MAX, leaving).await;
        Ok(())
    }

    /// Ends the account if the password is still right under the account's lock. Returns the
    /// sessions that ended.
    async fn end_account(&self, caller: Caller, password: &str) -> Result<Vec<EndedSession>> {
        for _ in 0..VERIFY_TRIES_MAX {
            let confirmed = self.passwords.confirm(caller, password.to_owned()).await?;
            match self.store.end_account(caller.user_id, &confirmed, self.clock.now()).await {
                // The password changed, or was hashed again, after it was confirmed.
                Err(error) if error.code == Code::WrongPassword => {}
                outcome => return outcome,
            }
        }
        Err(Error::overloaded())
    }

    /// Takes an ended account out of its chats, one unit of work for each chat, until it has left
    /// all or the process stops. A chat that fails does not hold up the others.
    ///
    /// # Errors
    /// The first failure, such as `unavailable`. The account has left the other chats.
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
                    metrics::chat_left_by_removal();
                    for event in events {
                        self.publisher.publish_change(event);
                    }
                }
                // Another replica was faster, or the chat was removed.
                Err(error) if error.code == Code::ChatNotFound => {}
                Err(error) => failure = failure.or(Some(error)),
            }
        }

        match failure {
            Some(error) => Err(error),
            None => self.store.finish_removal(user_id).await,
        }
    }

    /// Continues the removals of accounts that a crash, a restart or the database interrupted.
    ///
    /// # Errors
    /// The first failure. The other removals were tried all the same.
    pub async fn resume(&self) -> Result<()> {
        let mut outcome = Ok(());
        for user_id in self.store.pending_removals(JOB_BATCH).await? {
            let left = self.leave_chats(user_id).await;
            outcome = outcome.and(left);
        }
        outcome
    }
}
