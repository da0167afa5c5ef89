//! Bringing a client up to date, without a hole and without telling anything twice.
//!
//! Subscribe first, read the snapshot second: from the moment the connection follows its chats, what happens is held
//! back; the snapshot tells what of it is news. So no event falls between reading and following, whatever the timing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use axum::extract::ws::WebSocket;
use bytes::Bytes;

use super::answer::refusal;
use super::close::CloseCode;
use super::connection::Live;
use super::frame::{FrameId, SyncFrame};
use crate::hub::ServerFrame;
use crate::hub::frame::EncodedEvent;
use crate::metrics;
use crate::model::faults::{self, Mutant, Point};
use crate::model::limits::{REQUEST_MAX, SYNC_CHANGES_MAX, SYNC_CHATS_MAX};
use crate::model::{ChatEvent, ChatId, Code, Error, Result, Rev};
use crate::store::{Changes, ChatToSync};

impl Live {
    /// Answers `sync`: what was missed, then `synced`, then live.
    pub(super) async fn sync(
        &mut self,
        socket: &mut WebSocket,
        id: Option<FrameId>,
        frame: SyncFrame,
    ) -> Result<(), CloseCode> {
        metrics::frame("sync");
        let known = frame.chats.unwrap_or_default();
        if let Some(error) = unacceptable(&known) {
            return self.write(socket, vec![refusal(id, &error)]).await;
        }
        if !self.connection.hold() {
            return self.write(socket, vec![refusal(id, &Code::AlreadySynced.into())]).await;
        }
        match self.catch_up(socket, &known).await {
            Ok(snapshot) => {
                let chats: BTreeMap<ChatId, Rev> = snapshot.iter().map(|(chat_id, rev)| (*chat_id, *rev)).collect();
                self.write(socket, vec![ServerFrame::Synced { id, chats }.encode()]).await?;
                self.connection.go_live(&snapshot);
                Ok(())
            }
            // Half a sync can't be mended on this connection: it would be silently partial.
            Err(Stop::Failed(error)) => {
                let _ = self.write(socket, vec![refusal(id, &error)]).await;
                Err(CloseCode::of_error(&error))
            }
            Err(Stop::Closed(code)) => Err(code),
        }
    }

    /// Tells everything that is in the snapshot and not known to the client. Returns the snapshot's revisions.
    async fn catch_up(
        &mut self,
        socket: &mut WebSocket,
        known: &HashMap<ChatId, Rev>,
    ) -> Result<HashMap<ChatId, Rev>, Stop> {
        let (followed, chats) = in_time(self.follow_all()).await?;
        faults::at(Point::SnapshotRead).await;
        // One that the caller removed from their list is followed, and comes back with its next message.
        let listed: HashSet<ChatId> = chats.iter().filter(|found| found.listed).map(|found| found.chat.id).collect();
        let mut snapshot = HashMap::with_capacity(chats.len());
        let mut added = Vec::new();
        for found in chats {
            let (chat_id, mut rev) = (found.chat.id, found.chat.rev);
            if found.listed {
                match known.get(&chat_id) {
                    Some(known) => rev = self.tell_changes(socket, &found, *known).await?,
                    None => added.push(ServerFrame::ChatAdded { chat: found.chat }.encode()),
                }
            }
            snapshot.insert(chat_id, rev);
        }
        let gone = known.keys().filter(|chat_id| !listed.contains(chat_id));
        added.extend(gone.map(|chat_id| ServerFrame::ChatGone { chat_id: *chat_id }.encode()));
        self.write(socket, added).await?;
        for chat_id in followed {
            self.gateway.hub.settle(&self.connection, chat_id, snapshot.get(&chat_id).copied());
        }
        Ok(snapshot)
    }

    /// Follows all of the caller's chats, and then reads them.
    async fn follow_all(&mut self) -> Result<(HashSet<ChatId>, Vec<ChatToSync>)> {
        let _turn = self.gateway.syncs.acquire().await.map_err(Error::internal)?;
        let store = self.gateway.service.store();
        let mut followed = HashSet::new();
        let mut heads = store.chat_heads(self.caller.user_id).await?;
        loop {
            if faults::on(Mutant::SubscribeAfterFetch) {
                let chats = store.chats_to_sync(self.caller.user_id).await?;
                tokio::time::sleep(Duration::from_millis(30)).await;
                heads = store.chat_heads(self.caller.user_id).await?;
                self.gateway.hub.follow(&self.connection, &heads);
                return Ok((heads.iter().map(|(chat_id, _)| *chat_id).collect(), chats));
            }
            self.gateway.hub.follow(&self.connection, &heads);
            faults::at(Point::Followed).await;
            followed.extend(heads.iter().map(|(chat_id, _)| *chat_id));
            let chats = store.chats_to_sync(self.caller.user_id).await?;
            // Joined in between: followed first and read again, like the others.
            let new = chats.iter().map(|found| &found.chat).filter(|chat| !followed.contains(&chat.id));
            heads = new.map(|chat| (chat.id, chat.rev)).collect();
            if heads.is_empty() {
                return Ok((followed, chats));
            }
        }
    }

    /// Tells what the client missed of one chat, or that it must reload it. Returns up to which revision it is told.
    async fn tell_changes(&mut self, socket: &mut WebSocket, found: &ChatToSync, known: Rev) -> Result<Rev, Stop> {
        let (chat_id, rev, joined_rev) = (found.chat.id, found.chat.rev, found.joined_rev);
        if known == rev {
            return Ok(rev);
        }
        // Away and back meanwhile: what happened in between is not the caller's to be told. And a client that is ahead
        // of the log has seen a history that is no more.
        let retold = known < rev && (known >= joined_rev || known.0 == 0 && joined_rev.0 == 1);
        let changes = if retold { self.changes_after(found, known).await? } else { None };
        let Some(changes) = changes else {
            self.write(socket, vec![ServerFrame::Reset { chat_id, rev }.encode()]).await?;
            return Ok(rev);
        };
        let frames: Vec<Bytes> = changes
            .items
            .into_iter()
            .filter(|(_, change)| change.message_id().is_none_or(|id| id > found.cleared_message_id))
            .filter_map(|(rev, change)| EncodedEvent::new(ChatEvent { chat_id, rev, change }))
            .map(|encoded| encoded.for_viewer(self.caller.user_id).clone())
            .collect();
        self.write(socket, frames).await?;
        Ok(changes.rev)
    }

    /// All changes after a revision; `None` if they are too many or partly forgotten, or if the caller left the chat since
    /// it was found: then what happened meanwhile is not theirs to be told.
    async fn changes_after(&mut self, found: &ChatToSync, known: Rev) -> Result<Option<Changes>> {
        let reading = async {
            let _turn = self.gateway.syncs.acquire().await.map_err(Error::internal)?;
            let store = self.gateway.service.store();
            store.changes(found.chat.id, Some(self.caller.user_id), known, SYNC_CHANGES_MAX).await
        };
        let changes = in_time(reading).await?;
        let whole = |changes: &Changes| changes.complete && !changes.forgotten;
        Ok(changes.filter(|changes| whole(changes) && changes.joined_rev == Some(found.joined_rev)))
    }
}

/// A step of a sync, waiting for its turn included: a client hears something before it gives up.
async fn in_time<T>(step: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(REQUEST_MAX, step).await.unwrap_or_else(|elapsed| Err(Error::unavailable(elapsed)))
}

/// Why a sync ended early.
enum Stop {
    /// It can't be completed.
    Failed(Error),
    /// The connection is over.
    Closed(CloseCode),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<CloseCode> for Stop {
    fn from(code: CloseCode) -> Self {
        Self::Closed(code)
    }
}

fn unacceptable(known: &HashMap<ChatId, Rev>) -> Option<Error> {
    if known.len() > SYNC_CHATS_MAX {
        return Some(Error::field("chats", format!("names more than {SYNC_CHATS_MAX} chats")));
    }
    let negative = known.iter().find(|(_, rev)| rev.0 < 0);
    negative.map(|(chat_id, _)| Error::field(format!("chats.{chat_id}"), "must not be negative"))
}
