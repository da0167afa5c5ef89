//! One connection's end in the hub: its bounded outbox, and what it holds back while it syncs.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::ServerFrame;
use crate::model::faults::{self, Mutant};
use crate::model::limits::OUTBOX_BYTES_MAX;
use crate::model::{ChatId, Rev, SessionId, Timestamp, UserId};
use crate::presence::Watcher;

/// What a queued frame costs besides its bytes.
const FRAME_COST_BYTES: usize = 64;

/// Why the server closes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The session ended: this token is of no use any more.
    SessionEnded,
    /// The client reads too slowly; what it missed is in the store.
    TooSlow,
    /// The user has too many connections.
    TooManyConnections,
    /// The server restarts.
    Restarting,
    /// The log has a new epoch: what the client holds may be no more.
    LogFellBack,
}

/// A connection as the hub sees it.
#[derive(Debug)]
pub struct Connection {
    /// Tells connections of this process apart.
    pub id: u64,
    /// Whose it is.
    pub user_id: UserId,
    /// Its session.
    pub session_id: SessionId,
    /// By which of the logins into the session: a later one ends it.
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
    /// Unregistered: it follows nothing any more.
    gone: bool,
    closing: Option<CloseReason>,
}

/// How far the connection is in asking for its events.
#[derive(Debug, Default)]
enum Phase {
    /// It did not ask yet, and gets none.
    #[default]
    Silent,
    /// It is being told what it missed; what happens meanwhile waits.
    Holding(Vec<Held>),
    /// It gets what happens.
    Live,
}

#[derive(Debug)]
struct Held {
    chat_id: Option<ChatId>,
    mark: Option<Mark>,
    frame: Bytes,
}

/// What a frame means for the order of a chat's events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A durable event.
    Event(Rev),
    /// The chat joins the user's list; events go on from here.
    Added(Rev),
    /// The chat leaves the user's list.
    Gone(Rev),
}

/// What an outbox had to say.
#[derive(Debug)]
pub enum Taken {
    /// Frames to write, maybe none.
    Frames,
    /// These were the last; close for this reason.
    Close(CloseReason),
}

impl State {
    /// Counts one more frame. Whether it fits.
    fn has_room_for(&mut self, frame: &Bytes) -> bool {
        self.outbox_bytes += frame.len() + FRAME_COST_BYTES;
        self.outbox_bytes <= OUTBOX_BYTES_MAX || faults::on(Mutant::UnboundedOutbox)
    }

    /// Closes, since the reader is too slow: nothing of what waits is of use to it any more.
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
    /// A connection that asked for nothing yet.
    pub fn new(id: u64, user_id: UserId, session_id: SessionId, logins: i64) -> Arc<Self> {
        Arc::new(Self { id, user_id, session_id, logins, state: Mutex::default(), wake: Notify::new() })
    }

    /// Whether it may stay, by the logins into its session so far; `None`: the session is over.
    pub fn is_of(&self, logins: Option<i64>) -> bool {
        logins.is_some_and(|logins| logins <= self.logins)
    }

    /// Queues a frame about a chat. Over the bound the connection is closed: never is a frame dropped and the next sent.
    pub fn push(&self, chat_id: Option<ChatId>, mark: Option<Mark>, frame: &Bytes) {
        let mut state = self.state.lock();
        if state.closing.is_some() || matches!(state.phase, Phase::Silent) {
            return;
        }
        if !state.has_room_for(frame) {
            if faults::on(Mutant::DropOnOverflow) {
                state.outbox_bytes -= frame.len() + FRAME_COST_BYTES;
                return;
            }
            state.give_up();
        } else if let Phase::Holding(held) = &mut state.phase {
            held.push(Held { chat_id, mark, frame: frame.clone() });
            return;
        } else {
            state.outbox.push_back(frame.clone());
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Queues a frame that is no part of the stream of events, under the same bound: neither `sync` nor its absence holds
    /// it back.
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

    /// Has the connection closed once its outbox is written, or at once where nothing more may be shown.
    pub fn close(&self, reason: CloseReason) {
        let mut state = self.state.lock();
        if reason == CloseReason::SessionEnded {
            state.outbox = VecDeque::new();
        }
        state.closing.get_or_insert(reason);
        drop(state);
        self.wake.notify_one();
    }

    /// Waits until there is something to take.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Why nothing more may be written, not even what is queued.
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
    pub fn take(&self, into: &mut Vec<Bytes>, bytes_max: usize) -> Taken {
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
            // Give the memory of a burst back.
            state.outbox = VecDeque::new();
            if let Some(reason) = state.closing {
                return Taken::Close(reason);
            }
        } else {
            self.wake.notify_one();
        }
        Taken::Frames
    }

    /// Begins to hold back what happens. Whether this is the first time.
    pub fn hold(&self) -> bool {
        let mut state = self.state.lock();
        let first = matches!(state.phase, Phase::Silent) && state.closing.is_none();
        if first {
            state.phase = Phase::Holding(Vec::new());
        }
        first
    }

    /// Lets go what was held back and is not part of the snapshot, and everything from now on.
    pub fn go_live(&self, snapshot: &HashMap<ChatId, Rev>) {
        let mut state = self.state.lock();
        let Phase::Holding(held) = std::mem::take(&mut state.phase) else {
            return;
        };
        let mut known: HashMap<ChatId, Rev> = snapshot.clone();
        for Held { chat_id, mark, frame } in held {
            if faults::on(Mutant::NoHold) {
                continue;
            }
            let news = chat_id.is_none_or(|chat_id| match mark {
                Some(Mark::Added(rev)) => {
                    let news = known.get(&chat_id).is_none_or(|seen| *seen < rev);
                    known.entry(chat_id).and_modify(|seen| *seen = (*seen).max(rev)).or_insert(rev);
                    news
                }
                Some(Mark::Gone(rev)) => {
                    let news = known.get(&chat_id).is_some_and(|seen| *seen < rev);
                    if news {
                        known.remove(&chat_id);
                    }
                    news
                }
                Some(Mark::Event(rev)) => known.get(&chat_id).is_some_and(|seen| *seen < rev),
                None => known.contains_key(&chat_id),
            });
            if news {
                state.outbox.push_back(frame);
            } else {
                state.outbox_bytes = state.outbox_bytes.saturating_sub(frame.len() + FRAME_COST_BYTES);
            }
        }
        state.phase = Phase::Live;
        drop(state);
        self.wake.notify_one();
    }

    /// Whether it asked for its events.
    pub fn is_streaming(&self) -> bool {
        !matches!(self.state.lock().phase, Phase::Silent)
    }

    /// Notes that it follows a chat; refused once it is gone or about to be: what it knows may be of an earlier epoch.
    pub(super) fn add_chat(&self, chat_id: ChatId) -> bool {
        let mut state = self.state.lock();
        let stays = !state.gone && state.closing.is_none();
        if stays {
            state.chats.push(chat_id);
        }
        stays
    }

    /// Notes that it follows a chat no more.
    pub(super) fn remove_chat(&self, chat_id: ChatId) {
        self.state.lock().chats.retain(|known| *known != chat_id);
    }

    /// The chats that it follows, if it asked for its events.
    pub(super) fn chats_if_streaming(&self) -> Option<HashSet<ChatId>> {
        let state = self.state.lock();
        (!matches!(state.phase, Phase::Silent)).then(|| state.chats.iter().copied().collect())
    }

    /// The chats that it follows; from now on it follows none.
    pub(super) fn leave(&self) -> Vec<ChatId> {
        let mut state = self.state.lock();
        state.gone = true;
        std::mem::take(&mut state.chats)
    }
}
