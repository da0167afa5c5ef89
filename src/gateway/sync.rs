//! Bringing a client up to date, without a gap and without a repetition.
//!
//! Subscribe first, read the snapshot second. From the moment the connection follows its chats, it
//! holds back events; those that are newer than the snapshot are sent after it. So no event is lost
//! between reading and following.

use std::collections::{BTreeMap, HashMap, HashSet};

use axum::extract::ws::WebSocket;
use bytes::Bytes;

use super::answer::refusal;
use super::live::LiveConnection;
use super::state::in_time;
use crate::hub::{MembershipSize, Snapshot};
use crate::metrics;
use crate::model::faults::{self, Point};
use crate::model::limits::{SYNC_CHATS_MAX, SYNC_PAGE_BYTES_MAX, SYNC_PAGE_MAX};
use crate::model::{Change, ChatEvent, ChatId, Code, Error, MessageId, Result, Rev, UserId};
use crate::service::{Changes, ChatToSync, FollowedChats, NextChanges};
use crate::wire::client_frame::SyncFrame;
use crate::wire::{CloseCode, EncodedEvent, FrameId, ServerFrame};

impl LiveConnection {
    /// Answers `sync`: the missed events, then `synced`, then live events.
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
        // Before the one `sync` of this connection begins, so that the client can retry.
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
                let chats: BTreeMap<ChatId, Rev> =
                    snapshot.iter().map(|(chat_id, rev)| (*chat_id, *rev)).collect();
                self.write(socket, vec![ServerFrame::Synced { id, chats }.encode()]).await?;
                self.connection.go_live(&snapshot);
                Ok(())
            }
            // The connection must close: a partial sync would leave gaps that nothing shows.
            Err(Stop::Failed(error)) => {
                let _ = self.write(socket, vec![refusal(id, &error)]).await;
                Err(CloseCode::of_error(&error))
            }
            Err(Stop::Closed(code)) => Err(code),
        }
    }

    /// Sends everything in the snapshot that the client does not have. Returns the snapshot's
    /// revisions. `same_log`: the client's revisions are of the present epoch, or the client named
    /// no epoch; else they are void.
    async fn catch_up(
        &mut self,
        socket: &mut WebSocket,
        known: &HashMap<ChatId, Rev>,
        same_log: bool,
    ) -> Result<HashMap<ChatId, Rev>, Stop> {
        let FollowedChats { followed, chats } = in_time(self.follow_all()).await?;
        faults::at(Point::SnapshotRead).await;

        // A chat that the caller removed from the list is followed, and comes back with its next
        // message.
        let listed: HashSet<ChatId> =
            chats.iter().filter(|found| found.listed).map(|found| found.chat.id).collect();
        let mut snapshot = HashMap::with_capacity(chats.len());
        let mut sizes = HashMap::with_capacity(chats.len());
        let mut added = Vec::new();
        for found in chats {
            let (chat_id, mut rev) = (found.chat.id, found.chat.rev);
            sizes.insert(chat_id, (found.chat.role, MembershipSize::of(&found.chat)));
            if found.listed {
                match known.get(&chat_id) {
                    Some(_) if !same_log => rev = self.reset(socket, chat_id, rev).await?,
                    Some(known) => rev = self.send_changes(socket, &found, *known).await?,
                    None => added.push(ServerFrame::ChatAdded { chat: found.chat }.encode()),
                }
            }
            snapshot.insert(chat_id, rev);
        }

        let gone = known.keys().filter(|chat_id| !listed.contains(chat_id));
        added.extend(gone.map(|chat_id| ServerFrame::ChatGone { chat_id: *chat_id }.encode()));
        self.write(socket, added).await?;

        for chat_id in followed {
            let seen = snapshot.get(&chat_id).zip(sizes.get(&chat_id));
            let seen =
                seen.map(|(rev, (role, size))| Snapshot { rev: *rev, role: *role, size: *size });
            self.gateway.hub.settle(&self.connection, chat_id, seen);
        }
        Ok(snapshot)
    }

    /// Follows all of the caller's chats, and then reads them.
    async fn follow_all(&mut self) -> Result<FollowedChats> {
        let (hub, connection) = (&self.gateway.hub, &self.connection);
        self.gateway
            .services
            .sync
            .snapshot(self.caller.user_id, |heads| hub.follow(connection, heads))
            .await
    }

    /// Sends the events that the client missed of one chat, or `reset`. Returns the revision that
    /// it then has.
    async fn send_changes(
        &mut self,
        socket: &mut WebSocket,
        found: &ChatToSync,
        known: Rev,
    ) -> Result<Rev, Stop> {
        let (chat_id, rev, joined_rev) = (found.chat.id, found.chat.rev, found.joined_rev);
        if known == rev {
            return Ok(rev);
        }
        // A user that left and joined again must not get the events in between. And a client that
        // is ahead of the log has seen a history that no longer exists.
        let can_replay = known < rev && (known >= joined_rev || known.0 == 0 && joined_rev.0 == 1);
        if !can_replay {
            return self.reset(socket, chat_id, rev).await;
        }

        // A page at a time: the rest is not kept in memory for a client that may not be reading.
        let limits = &self.gateway.limits;
        let counted = MembershipSize::of(&found.chat)
            .gets_counts(found.chat.role, limits.channel_events_members_max);
        let mut page =
            Page { known, sent: known, counted, items_max: SYNC_PAGE_MAX, new: HashSet::new() };
        while page.sent < rev {
            let Some(changes) = self.changes_after(found, &page).await? else {
                return self.reset(socket, chat_id, rev).await;
            };
            let frames = page.take(chat_id, changes, found.cleared_message_id, self.caller.user_id);
            self.write(socket, frames).await?;
        }
        Ok(page.sent)
    }

    async fn reset(
        &mut self,
        socket: &mut WebSocket,
        chat_id: ChatId,
        rev: Rev,
    ) -> Result<Rev, Stop> {
        self.write(socket, vec![ServerFrame::Reset { chat_id, rev }.encode()]).await?;
        Ok(rev)
    }

    /// The changes of the next page; `None` if the client must reload the chat.
    async fn changes_after(&mut self, found: &ChatToSync, page: &Page) -> Result<Option<Changes>> {
        let Page { known, sent: delivered, counted, items_max, .. } = *page;
        let next = NextChanges { known, delivered, counted, items_max };
        in_time(self.gateway.services.sync.changes(self.caller.user_id, found, next)).await
    }
}

/// The progress of sending the changes of a chat.
struct Page {
    /// The revision that the client had at first.
    known: Rev,
    /// The revision up to which changes were sent.
    sent: Rev,
    /// Whether the client gets the number of the members instead of each change of another member.
    counted: bool,
    /// Changes to read at once.
    items_max: i64,
    /// Messages that were sent as new.
    new: HashSet<MessageId>,
}

impl Page {
    /// The frames of as many changes as may wait for one client; the others are read again with the
    /// next page.
    fn take(
        &mut self,
        chat_id: ChatId,
        changes: Changes,
        cleared: MessageId,
        viewer: UserId,
    ) -> Vec<Bytes> {
        let (mut frames, mut bytes, mut items) = (Vec::new(), 0, 0);
        for (rev, change) in changes.items {
            // Changes of one revision stay together.
            if bytes > SYNC_PAGE_BYTES_MAX && rev > self.sent {
                self.items_max = items;
                return frames;
            }
            (self.sent, items) = (rev, items + 1);
            if change.message_id().is_some_and(|id| id <= cleared) {
                continue;
            }
            let change = match change {
                Change::MessageSent(message) if !self.new.insert(message.id) => {
                    Change::of_message(message, true)
                }
                change => change,
            };
            if let Some(encoded) = EncodedEvent::new(ChatEvent { chat_id, rev, change }) {
                let frame = encoded.for_viewer(viewer).clone();
                bytes += frame.len();
                frames.push(frame);
            }
        }

        // Only members changed after the last frame.
        if self.counted && changes.complete && self.sent < changes.rev {
            let (rev, member_count) = (changes.rev, changes.member_count);
            frames.push(ServerFrame::MemberCount { chat_id, rev, member_count }.encode());
        }

        self.sent = changes.rev;
        frames
    }
}

/// The reason for which a sync ended early.
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
