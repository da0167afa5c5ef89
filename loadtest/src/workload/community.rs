//! The users of a run, and their chats.

use std::sync::Arc;
use std::time::Duration;

use crate::actor::{Account, Actor};
use crate::client::{Answer, Http};
use crate::history::History;

/// Maximum number of attempts to create a chat, a second apart.
const TRIES: usize = 10;

/// Users with sessions, who take part in a run.
#[derive(Clone, Debug)]
pub struct Community {
    /// The users, in the order of their accounts.
    pub actors: Vec<Actor>,
}

/// Reads the accounts that `starling user create --count K --with-session` printed, one JSON object
/// a line.
///
/// # Errors
/// If a line is not an account.
pub fn accounts_of_json_lines(lines: &str) -> Result<Vec<Account>, String> {
    let lines = lines.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| serde_json::from_str(line).map_err(|error| format!("not an account: {error}")))
        .collect()
}

impl Community {
    /// Creates users from accounts, each with a token. `timeout` bounds each request.
    ///
    /// # Errors
    /// If the server does not answer or rejects a token.
    pub async fn gather(
        bases: &[String],
        timeout: Duration,
        history: &Arc<History>,
        accounts: Vec<Account>,
    ) -> Result<Self, String> {
        let http = Http::new(bases, timeout)?;
        let mut actors = Vec::with_capacity(accounts.len());
        for account in accounts {
            actors.push(Actor::resolve(http.clone(), history.clone(), account).await?);
        }
        Ok(Self { actors })
    }

    /// Creates a group of these users (indices), owned by the first. Returns its id.
    ///
    /// # Errors
    /// If the server refuses or does not answer.
    pub async fn group(&self, users: &[usize]) -> Result<String, String> {
        self.chat("group", users).await
    }

    /// Creates a channel in which the first of these users (indices) writes. Returns its id.
    ///
    /// # Errors
    /// If the server refuses or does not answer.
    pub async fn channel(&self, users: &[usize]) -> Result<String, String> {
        self.chat("channel", users).await
    }

    /// Creates a private chat of two users (indices). Returns its id.
    ///
    /// # Errors
    /// If the server refuses or does not answer.
    pub async fn private(&self, one: usize, other: usize) -> Result<String, String> {
        self.chat("private", &[one, other]).await
    }

    async fn chat(&self, kind: &str, users: &[usize]) -> Result<String, String> {
        let [owner, members @ ..] = users else { return Err("a chat needs an owner".to_owned()) };
        let members: Vec<&str> =
            members.iter().map(|user| self.actors[*user].account().user_id.as_str()).collect();

        for replica in 0..TRIES {
            match self.actors[*owner].create_chat(replica, kind, &members).await {
                Answer::Ok(chat) => return Ok(chat.id),
                Answer::Refused { status, code } => {
                    return Err(format!("failed to create a {kind}: {status} {code}"));
                }
                Answer::Unknown => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        }

        Err(format!("failed to create a {kind}: no answer"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_read_from_what_the_command_prints() {
        let lines = "{\"user_id\":\"1\",\"login\":\"u1\",\"password\":\"p\",\"token\":\"t\"}\n\n\
                     {\"user_id\":\"2\",\"new\":0}\n";
        let accounts = accounts_of_json_lines(lines).unwrap();
        assert_eq!(
            (accounts.len(), accounts[0].token.as_str(), accounts[1].user_id.as_str()),
            (2, "t", "2")
        );
        assert!(accounts_of_json_lines("starling").is_err());
    }
}
