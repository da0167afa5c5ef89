//! Loads a chat over HTTP after a `reset`, with retries on any replica.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::actor::Actor;
use crate::client::Answer;
use crate::history::{DeviceEvent, DeviceLog};

/// Delay before a retry.
const RETRY: Duration = Duration::from_millis(250);

/// A chat to load, and its range of revisions.
pub(super) struct Reload {
    pub chat_id: String,
    /// The revision that the device had before the `reset`.
    pub after_rev: u32,
    /// The revision in the `reset`.
    pub until_rev: u32,
    pub connection: u32,
}

/// Loads all changes, then records that they are loaded. Ends early if the server refuses, because
/// the user is no longer a member.
pub(super) async fn reload(actor: Actor, log: DeviceLog, reload: Reload, stop: CancellationToken) {
    let Reload { chat_id, mut after_rev, until_rev, connection } = reload;
    let chat = actor.history().name(&chat_id);

    for replica in connection as usize.. {
        match actor.changes(replica, &chat_id, after_rev).await {
            Answer::Ok(page) => {
                let stuck = page.rev <= after_rev && !page.complete;
                after_rev = after_rev.max(page.rev);
                if page.complete && after_rev >= until_rev {
                    log.note(connection, DeviceEvent::Loaded { chat, rev: after_rev });
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
