//! The users of a run, and their chats.

use std::sync::Arc;
use std::time::Duration;

use crate::actor::{Account, Actor};
use crate::client::{Answer, Http};
use crate::history::History;

/// Tries to make a chat, a second apart, before giving up.
const TRIES: usize = 10;

/// Users with sessions.
#[derive(Clone, Debug)]
pub struct Community {
    /// The users.
    pub actors: Vec<Actor>,
}

/// The accounts that `starling user create --count K --with-session` printed, one JSON object a
/// line.
///
/// # Errors
/// If a line is none.
pub fn accounts_of_json_lines(lines: &str) -> Result<Vec<Account>, String> {
    let lines = lines.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| serde_json::from_str(line).map_err(|error| format!("not an account: {error}")))
        .collect()
}

impl Community {
    /// Gathers users by their accounts; each must have a token. Each request may take `timeout`.
    ///
    /// # Errors
    /// If a session can't be read.
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

    /// Makes a group of these users (numbers), owned by the first. Returns its id.
    ///
    /// # Errors
    /// If it can't be made.
    pub async fn group(&self, users: &[usize]) -> Result<String, String> {
        self.chat("group", users).await
    }

    /// Makes a channel in which the first of these users writes. Returns its id.
    ///
    /// # Errors
    /// If it can't be made.
    pub async fn channel(&self, users: &[usize]) -> Result<String, String> {
        self.chat("channel", users).await
    }

    /// Makes a private chat of two users. Returns its id.
    ///
    /// # Errors
    /// If it can't be made.
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
                    return Err(format!("no {kind} was made: {status} {code}"));
                }
                Answer::Unknown => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        }
        Err(format!("no {kind} was made: no answer"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_read_from_what_the_command_prints() {
        let lines = "{\"user_id\":\"1\",\"login\":\"u1\",\"password\":\"p\",\"token\":\"t\"}\n\n{\"user_id\":\"2\",\"new\":0}\n";
        let accounts = accounts_of_json_lines(lines).unwrap();
        assert_eq!(
            (accounts.len(), accounts[0].token.as_str(), accounts[1].user_id.as_str()),
            (2, "t", "2")
        );
        assert!(accounts_of_json_lines("starling").is_err());
    }
}
