//! A connection as the hub sees it: its bounded outbox, and the frames that it holds back during a
//! `sync`.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::model::faults::mutant;
use crate::model::limits::OUTBOX_BYTES_MAX;
use crate::model::{ChatId, Rev, SessionId, Timestamp, UserId};
use crate::presence::Watcher;
use crate::wire::{CloseCode, ServerFrame};

/// Memory that a queued frame takes besides its bytes.
const FRAME_COST_BYTES: usize = 64;

/// Why the server closes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The session ended: its token is invalid.
    SessionEnded,
    /// The client is a slow consumer: its outbox is full. Its `sync` brings the missed events.
    TooSlow,
    /// The user has too many connections.
    TooManyConnections,
    /// The replica drains.
    Restarting,
    /// The log has a new epoch: the client may hold messages that no longer exist.
    LogFellBack,
}

impl From<CloseReason> for CloseCode {
    fn from(reason: CloseReason) -> Self {
        match reason {
            CloseReason::SessionEnded => Self::NotAuthenticated,
            CloseReason::TooSlow => Self::TooSlow,
            CloseReason::TooManyConnections => Self::TooManyConnections,
            CloseReason::Restarting | CloseReason::LogFellBack => Self::Restarting,
        }
    }
}

/// An authenticated connection.
#[derive(Debug)]
pub struct Connection {
    /// Identifies the connection within this process.
    pub id: u64,
    /// The authenticated user.
    pub user_id: UserId,
    /// The session. Its end closes the connection.
    pub session_id: SessionId,
    /// The number of logins into the session when the connection authenticated. A later login
    /// closes the connection.
    logins: i64,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    outbox: VecDeque<Bytes>,
    outbox_bytes: usize,
    chats: Vec<ChatId>,
    /// The connection was unregistered and must not follow a chat again.
    gone: bool,
    closing: Option<CloseReason>,
}

/// Whether the connection gets events.
#[derive(Debug, Default)]
enum Phase {
    /// Before its `sync`: it gets no events.
    #[default]
    Silent,
    /// During its `sync`: events wait until the snapshot is sent.
    Holding(Vec<Held>),
    /// After its `sync`: it gets events at once.
    Live,
}

#[derive(Debug)]
struct Held {
    chat_id: Option<ChatId>,
    position: Option<FramePosition>,
    frame: Bytes,
}

/// The position of a frame in the order of a chat's events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FramePosition {
    /// A durable event of this revision.
    Event(Rev),
    /// The chat enters the user's list; its events continue from this revision.
    ChatAdded(Rev),
    /// The chat leaves the user's list at this revision.
    ChatGone(Rev),
}

/// The state of a connection after frames were taken from its outbox.
#[derive(Debug)]
pub enum TakeOutcome {
    /// The connection stays open.
    Open,
    /// These frames were the last: close for this reason.
    Close(CloseReason),
}

impl State {
    /// Adds a frame to the counted bytes. Returns whether it fits.
    fn has_room_for(&mut self, frame: &Bytes) -> bool {
        self.outbox_bytes += frame.len() + FRAME_COST_BYTES;
        mutant!(UnboundedOutbox => return true);
        self.outbox_bytes <= OUTBOX_BYTES_MAX
    }

    /// Closes the connection of a slow consumer. The queued frames are dropped: the client has to
    /// sync anyway.
    fn give_up(&mut self) {
        self.outbox_bytes = 0;
        self.outbox = VecDeque::new();
        self.phase = Phase::Silent;
        self.closing = Some(CloseReason::TooSlow);
    }
}

impl Watcher for Connection {
    fn id(&self) -> u64 {
        self.id
    }

    fn user_id(&self) -> UserId {
        self.user_id
    }

    fn encode(&self, user_id: UserId, online: bool, last_seen_at: Option<Timestamp>) -> Bytes {
        ServerFrame::Presence { user_id, online, last_seen_at }.encode()
    }

    fn send(&self, frame: &Bytes) {
        self.push_always(frame);
    }
}

impl Connection {
    /// A connection that gets no events yet.
    pub fn new(id: u64, user_id: UserId, session_id: SessionId, logins: i64) -> Arc<Self> {
        Arc::new(Self {
            id,
            user_id,
            session_id,
            logins,
            state: Mutex::default(),
            wake: Notify::new(),
        })
    }

    /// Whether the connection may stay open, given the number of logins into its session; `None` if
    /// the session ended.
    pub fn is_of_current_login(&self, logins: Option<i64>) -> bool {
        logins.is_some_and(|logins| logins <= self.logins)
    }

    /// Queues a frame of a chat. If it does not fit, the connection is closed: no frame is sent
    /// after one that was dropped.
    pub fn push(&self, chat_id: Option<ChatId>, position: Option<FramePosition>, frame: &Bytes) {
        let mut state = self.state.lock();
        if state.closing.is_some() || matches!(state.phase, Phase::Silent) {
            return;
        }

        if !state.has_room_for(frame) {
            mutant!(DropOnOverflow => return state.outbox_bytes -= frame.len() + FRAME_COST_BYTES);
            state.give_up();
        } else if let Phase::Holding(held) = &mut state.phase {
            held.push(Held { chat_id, position, frame: frame.clone() });
            return;
        } else {
            state.outbox.push_back(frame.clone());
        }

        drop(state);
        self.wake.notify_one();
    }

    /// Queues a frame that is not part of the stream of events, under the same bound. It is sent
    /// before and during a `sync` as well.
    pub fn push_always(&self, frame: &Bytes) {
        let mut state = self.state.lock();
        if state.closing.is_some() {
            return;
        }

        if state.has_room_for(frame) {
            state.outbox.push_back(frame.clone());
        } else {
            state.give_up();
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Closes the connection once its outbox is written; at once if the session ended, since its
    /// client must not get any further frame.
    pub fn close(&self, reason: CloseReason) {
        let mut state = self.state.lock();
        if reason == CloseReason::SessionEnded {
            state.outbox = VecDeque::new();
        }
        state.closing.get_or_insert(reason);
        drop(state);
        self.wake.notify_one();
    }

    /// Waits until there are frames to take or the connection is to be closed.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// The reason for which no further frame must be written, not even the queued ones.
    pub fn cut_off(&self) -> Option<CloseReason> {
        let closing = self.state.lock().closing;
        closing.filter(|reason| matches!(reason, CloseReason::SessionEnded | CloseReason::TooSlow))
    }

    /// Waits until the connection is to be closed.
    pub async fn closing(&self) {
        while self.state.lock().closing.is_none() {
            self.wake.notified().await;
        }
    }

    /// Moves queued frames, up to about `bytes_max`, to the end of `into`.
    pub fn take(&self, into: &mut Vec<Bytes>, bytes_max: usize) -> TakeOutcome {
        let mut state = self.state.lock();
        let mut bytes = 0;

        while bytes < bytes_max {
            let Some(frame) = state.outbox.pop_front() else {
                break;
            };
            bytes += frame.len();
            state.outbox_bytes = state.outbox_bytes.saturating_sub(frame.len() + FRAME_COST_BYTES);
            into.push(frame);
        }

        if state.outbox.is_empty() {
            // Frees the memory of a burst.
            state.outbox = VecDeque::new();
            if let Some(reason) = state.closing {
                return TakeOutcome::Close(reason);
            }
        } else {
            self.wake.notify_one();
        }
        TakeOutcome::Open
    }

    /// Begins to hold back events. Returns false if the connection did so before, or is being
    /// closed.
    pub fn hold(&self) -> bool {
        let mut state = self.state.lock();
        let first = matches!(state.phase, Phase::Silent) && state.closing.is_none();
        if first {
            state.phase = Phase::Holding(Vec::new());
        }
        first
    }

    /// Queues the held frames that are newer than the snapshot. From now on frames are queued at
    /// once.
    pub fn go_live(&self, snapshot: &HashMap<ChatId, Rev>) {
        let mut state = self.state.lock();
        let Phase::Holding(held) = std::mem::take(&mut state.phase) else {
            return;
        };

        // The chats in the client's list, each with the revision that the client has.
        let mut listed: HashMap<ChatId, Rev> = snapshot.clone();
        for Held { chat_id, position, frame } in held {
            mutant!(NoHold => continue);
            let is_new = chat_id.is_none_or(|chat_id| match position {
                Some(FramePosition::ChatAdded(rev)) => {
                    let is_new = listed.get(&chat_id).is_none_or(|seen| *seen < rev);
                    let seen = listed.entry(chat_id).or_insert(rev);
                    *seen = (*seen).max(rev);
                    is_new
                }
                Some(FramePosition::ChatGone(rev)) => {
                    let is_new = listed.get(&chat_id).is_some_and(|seen| *seen < rev);
                    if is_new {
                        listed.remove(&chat_id);
                    }
                    is_new
                }
                Some(FramePosition::Event(rev)) => {
                    listed.get(&chat_id).is_some_and(|seen| *seen < rev)
                }
                None => listed.contains_key(&chat_id),
            });

            if is_new {
                state.outbox.push_back(frame);
            } else {
                state.outbox_bytes =
                    state.outbox_bytes.saturating_sub(frame.len() + FRAME_COST_BYTES);
            }
        }

        state.phase = Phase::Live;
        drop(state);
        self.wake.notify_one();
    }

    /// Whether the connection gets events or holds them back.
    pub fn is_streaming(&self) -> bool {
        !matches!(self.state.lock().phase, Phase::Silent)
    }

    /// Records that the connection follows a chat. Returns false if the connection was
    /// unregistered, or is being closed: its revisions may be of an earlier epoch.
    pub(super) fn add_chat(&self, chat_id: ChatId) -> bool {
        let mut state = self.state.lock();
        let stays = !state.gone && state.closing.is_none();
        if stays {
            state.chats.push(chat_id);
        }
        stays
    }

    /// Records that the connection no longer follows a chat.
    pub(super) fn remove_chat(&self, chat_id: ChatId) {
        self.state.lock().chats.retain(|followed| *followed != chat_id);
    }

    /// The chats that the connection follows; `None` before its `sync`.
    pub(super) fn chats_if_streaming(&self) -> Option<HashSet<ChatId>> {
        let state = self.state.lock();
        (!matches!(state.phase, Phase::Silent)).then(|| state.chats.iter().copied().collect())
    }

    /// Keeps the connection from following any chat. Returns the chats that it followed.
    pub(super) fn leave(&self) -> Vec<ChatId> {
        let mut state = self.state.lock();
        state.gone = true;
        std::mem::take(&mut state.chats)
    }
}
