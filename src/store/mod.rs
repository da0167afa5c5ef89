//! The durable truth. All SQL of the server lives in this module, one text for Postgres and SQLite.
//!
//! One public method is one unit of work: a transaction never leaves this module. Look-ups return
//! `Option`; refusals that only the data can decide (not a member, login taken) are [`Error`]s with
//! their code. A database that is away is `unavailable`, which callers may retry.
//!
//! `engine/` holds what all tables share: connections, units of work, errors, migrations, locks.
//! Every other file holds the statements of one table, or of one job across tables.

mod append;
mod append_postgres;
mod append_sqlite;
mod changed;
mod changes;
mod chat_limits;
mod chats;
mod cluster;
mod directory;
mod engine;
mod head;
mod invites;
mod jobs;
mod locks;
mod members;
mod messages;
mod new_chats;
#[cfg(feature = "faults")]
mod numbered_first;
mod presence;
mod removals;
mod sessions;
mod users;

pub use append::{Appended, Attempted};
pub use changed::{CHANGE_SLOTS_MARGIN, ChangedChat};
pub use changes::{ChangeItem, Changes, Since};
pub use chats::{Access, ChatToSync};
pub use engine::{ReplicaLock, Store, StoreOptions, for_sqlite};
pub use invites::{Invite, OpenInvite};
pub use jobs::Swept;
pub use members::AddMember;
pub use messages::HistoryRange;
pub use new_chats::{Creation, NewChat, Opened};
pub use presence::Acquaintance;
pub use sessions::{EndedSession, LoggedIn, NewSession, Refreshed, Replaced, SessionTokens};
pub use users::{AccountChange, NewUser};

use engine::{
    Db, MapOkDrop, Tx, Work, ended, failure, id_list, is_lock_timeout, is_unique_violation, lent,
    on, on_ids, on_lease, timed, within, within_ids,
};
