//! After a `reset`: the chat is loaded over HTTP, from any replica, however often that takes.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::actor::Actor;
use crate::client::Answer;
use crate::history::{DeviceLog, Told};

/// Between two tries.
const RETRY: Duration = Duration::from_millis(250);

/// What to load.
pub(super) struct Reload {
    pub chat_id: String,
    /// What was known before.
    pub after_rev: u32,
    /// Up to where the `reset` asked for.
    pub until_rev: u32,
    pub connection: u32,
}

/// Loads everything, then notes that it is there. Ends early if the chat is not the user's any
/// more.
pub(super) async fn reload(actor: Actor, log: DeviceLog, reload: Reload, stop: CancellationToken) {
    let Reload { chat_id, mut after_rev, until_rev, connection } = reload;
    let chat = actor.history().name(&chat_id);
    for replica in connection as usize.. {
        match actor.changes(replica, &chat_id, after_rev).await {
            Answer::Ok(page) => {
                let stuck = page.rev <= after_rev && !page.complete;
                after_rev = after_rev.max(page.rev);
                if page.complete && after_rev >= until_rev {
                    log.note(connection, Told::Loaded { chat, rev: after_rev });
                    return;
                }
                if !stuck && !page.complete {
                    continue;
                }
            }
            Answer::Refused { .. } => return,
            Answer::Unknown => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}
