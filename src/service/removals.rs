//! Removing an account: at once for the user, then chat by chat, by whichever replica is there to do it.

use std::sync::Arc;

use super::Service;
use crate::metrics;
use crate::model::limits::{JOB_BATCH, REMOVAL_WAIT_MAX, VERIFY_TRIES_MAX};
use crate::model::session::Caller;
use crate::model::{Code, Error, Result, Topic, UserId};
use crate::store::EndedSession;

impl Service {
    /// Removes the caller's account: sessions end, chats are left, messages stay without a name. The sessions are over
    /// when this returns. So are the memberships, unless leaving the chats takes longer than [`REMOVAL_WAIT_MAX`]: then a
    /// task goes on with it, and after a crash the job of any replica.
    ///
    /// # Errors
    /// `rate_limited`, `wrong_password`.
    pub async fn remove_account(self: &Arc<Self>, caller: Caller, password: String) -> Result<()> {
        let sessions = self.end_account(caller, &password).await?;
        self.sessions_ended(sessions).await;

        let service = self.clone();
        let leaving = self.tasks.spawn(async move {
            if let Err(error) = service.leave_chats(caller.user_id).await {
                tracing::warn!(%error, "could not leave all chats of a removed account; the job will go on with it");
            }
        });
        // Running out of time is the ordinary end where there are many chats.
        let _ = tokio::time::timeout(REMOVAL_WAIT_MAX, leaving).await;
        Ok(())
    }

    /// Ends the account, if the password is still right under the account's lock. Returns the sessions that ended.
    async fn end_account(&self, caller: Caller, password: &str) -> Result<Vec<EndedSession>> {
        for _ in 0..VERIFY_TRIES_MAX {
            let confirmed = self.confirm(caller, password.to_owned()).await?;
            match self.store.end_account(caller.user_id, &confirmed, self.clock.now()).await {
                // The password changed, or was hashed anew, since it was confirmed.
                Err(error) if error.code == Code::WrongPassword => {}
                outcome => return outcome,
            }
        }
        Err(Error::overloaded())
    }

    /// Takes an ended account out of its chats, one unit of work a chat, until all are left or the process stops. A chat
    /// that can't be left now does not hold up the others.
    ///
    /// # Errors
    /// The first failure, such as `unavailable`; the chats left before it and after it stay left.
    async fn leave_chats(&self, user_id: UserId) -> Result<()> {
        let stop = self.tasks.stop_token();
        let mut failure: Option<Error> = None;
        for (chat_id, _) in self.store.chat_heads(user_id).await? {
            let _turn = self.departures.acquire().await.map_err(Error::internal)?;
            if stop.is_cancelled() {
                return Ok(());
            }
            let departed = self.store.depart(chat_id, user_id, self.clock.now()).await;
            match self.announced(departed, || vec![Topic::Chat(chat_id)]) {
                Ok(events) => {
                    metrics::chat_left_by_removal();
                    for event in events {
                        self.publish_change(event);
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

    /// Goes on with the removals of accounts that a crash, a restart or the database interrupted.
    ///
    /// # Errors
    /// The first failure; the other removals were tried all the same.
    pub async fn resume_removals(&self) -> Result<()> {
        let mut outcome = Ok(());
        for user_id in self.store.pending_removals(JOB_BATCH).await? {
            let left = self.leave_chats(user_id).await;
            outcome = outcome.and(left);
        }
        outcome
    }
}
