//! Bringing a client up to date, without a hole and without telling anything twice.
//!
//! Subscribe first, read the snapshot second: from the moment the connection follows its chats, what happens is held
//! back; the snapshot tells what of it is news. So no event falls between reading and following, whatever the timing.

use std::collections::{BTreeMap, HashMap, HashSet};

use axum::extract::ws::WebSocket;
use bytes::Bytes;

use super::answer::refusal;
use super::close::CloseCode;
use super::connection::Live;
use super::frame::{FrameId, SyncFrame};
use crate::hub::frame::EncodedEvent;
use crate::hub::{Crowd, ServerFrame, Snapshot};
use crate::metrics;
use crate::model::faults::{self, Point};
use crate::model::limits::{REQUEST_MAX, SYNC_CHATS_MAX, SYNC_PAGE_BYTES_MAX, SYNC_PAGE_MAX};
use crate::model::{Change, ChatEvent, ChatId, Code, Error, MessageId, Result, Rev, UserId};
use crate::service::{Changes, ChatToSync, FollowedChats, NextChanges};

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
        // Before the one `sync` of this connection begins, so that it can still come later.
        if let Err(error) = self.gateway.services.budgets.count_arrival(self.caller.user_id) {
            return self.write(socket, vec![refusal(id, &error)]).await;
        }
        if !self.connection.hold() {
            return self.write(socket, vec![refusal(id, &Code::AlreadySynced.into())]).await;
        }
        let present = self.gateway.services.sync.epoch();
        let same_log = frame.epoch.is_none_or(|epoch| epoch.parse() == Ok(present));
        match self.catch_up(socket, &known, same_log).await {
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
    /// `same_log`: the client's revisions are of the present epoch, as far as it says; else they mean nothing.
    async fn catch_up(
        &mut self,
        socket: &mut WebSocket,
        known: &HashMap<ChatId, Rev>,
        same_log: bool,
    ) -> Result<HashMap<ChatId, Rev>, Stop> {
        let FollowedChats { followed, chats } = in_time(self.follow_all()).await?;
        faults::at(Point::SnapshotRead).await;
        // One that the caller removed from their list is followed, and comes back with its next message.
        let listed: HashSet<ChatId> = chats.iter().filter(|found| found.listed).map(|found| found.chat.id).collect();
        let mut snapshot = HashMap::with_capacity(chats.len());
        let mut crowds = HashMap::with_capacity(chats.len());
        let mut added = Vec::new();
        for found in chats {
            let (chat_id, mut rev) = (found.chat.id, found.chat.rev);
            crowds.insert(chat_id, (found.chat.role, Crowd::of(&found.chat)));
            if found.listed {
                match known.get(&chat_id) {
                    Some(_) if !same_log => rev = self.reset(socket, chat_id, rev).await?,
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
            let seen = snapshot.get(&chat_id).zip(crowds.get(&chat_id));
            let seen = seen.map(|(rev, (role, crowd))| Snapshot { rev: *rev, role: *role, crowd: *crowd });
            self.gateway.hub.settle(&self.connection, chat_id, seen);
        }
        Ok(snapshot)
    }

    /// Follows all of the caller's chats, and then reads them.
    async fn follow_all(&mut self) -> Result<FollowedChats> {
        let (hub, connection) = (&self.gateway.hub, &self.connection);
        self.gateway.services.sync.snapshot(self.caller.user_id, |heads| hub.follow(connection, heads)).await
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
        if !retold {
            return self.reset(socket, chat_id, rev).await;
        }
        // A page at a time: what was not yet told is not kept for a client that may not be reading.
        let limits = &self.gateway.limits;
        let counted = Crowd::of(&found.chat).is_counted_for(found.chat.role, limits.channel_events_members_max);
        let mut page = Page { known, told: known, counted, items_max: SYNC_PAGE_MAX, new: HashSet::new() };
        while page.told < rev {
            let Some(changes) = self.changes_after(found, &page).await? else {
                return self.reset(socket, chat_id, rev).await;
            };
            let frames = page.take(chat_id, changes, found.cleared_message_id, self.caller.user_id);
            self.write(socket, frames).await?;
        }
        Ok(page.told)
    }

    async fn reset(&mut self, socket: &mut WebSocket, chat_id: ChatId, rev: Rev) -> Result<Rev, Stop> {
        self.write(socket, vec![ServerFrame::Reset { chat_id, rev }.encode()]).await?;
        Ok(rev)
    }

    /// The changes of the next page; `None` if the client must reload the chat.
    async fn changes_after(&mut self, found: &ChatToSync, page: &Page) -> Result<Option<Changes>> {
        let Page { known, told: delivered, counted, items_max, .. } = *page;
        let next = NextChanges { known, delivered, counted, items_max };
        in_time(self.gateway.services.sync.changes(self.caller.user_id, found, next)).await
    }
}

/// How far the changes of a chat are told.
struct Page {
    /// What the client knew at first.
    known: Rev,
    told: Rev,
    /// Whether the client gets the number of the members instead of each change of another member.
    counted: bool,
    /// Changes to read at once.
    items_max: i64,
    /// Messages that were told as new.
    new: HashSet<MessageId>,
}

impl Page {
    /// The frames of so many changes as one may wait for a client to take; the others are let go.
    fn take(&mut self, chat_id: ChatId, changes: Changes, cleared: MessageId, viewer: UserId) -> Vec<Bytes> {
        let (mut frames, mut bytes, mut items) = (Vec::new(), 0, 0);
        for (rev, change) in changes.items {
            // What shares a rev stays together.
            if bytes > SYNC_PAGE_BYTES_MAX && rev > self.told {
                self.items_max = items;
                return frames;
            }
            (self.told, items) = (rev, items + 1);
            if change.message_id().is_some_and(|id| id <= cleared) {
                continue;
            }
            let change = match change {
                Change::MessageSent(message) if !self.new.insert(message.id) => Change::of_message(message, true),
                change => change,
            };
            if let Some(encoded) = EncodedEvent::new(ChatEvent { chat_id, rev, change }) {
                let frame = encoded.for_viewer(viewer).clone();
                bytes += frame.len();
                frames.push(frame);
            }
        }
        // Only members changed after the last frame.
        if self.counted && changes.complete && self.told < changes.rev {
            let (rev, member_count) = (changes.rev, changes.member_count);
            frames.push(ServerFrame::MemberCount { chat_id, rev, member_count }.encode());
        }

        self.told = changes.rev;
        frames
    }
}

/// A step of a sync or of letting a client in, waiting for its turn included: a client hears something before it gives up.
pub(super) async fn in_time<T>(step: impl Future<Output = Result<T>>) -> Result<T> {
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
