//! Durable data. All SQL of the server is in this module, one text for Postgres and SQLite.
//!
//! One public method is one unit of work: a transaction never leaves this module. Look-ups return
//! `Option`. A refusal that depends on the stored rows (the caller is not a member, the login is
//! taken) is an [`Error`] with its code. If the database is away, the error is `unavailable`, which
//! callers can retry.
//!
//! `engine/` contains what all tables share: connections, units of work, errors, migrations, locks.
//! Each other file contains the statements of one table, or of one task across tables.

mod append;
mod append_checked;
mod append_postgres;
mod append_sqlite;
mod changed;
mod changes;
mod chat_limits;
mod chats;
mod cluster;
mod directory;
mod ended_session;
mod engine;
mod head;
mod invites;
mod jobs;
mod locks;
mod members;
mod messages;
#[cfg(feature = "faults")]
mod mutants;
mod new_chats;
mod presence;
mod refresh_tokens;
mod removals;
mod sessions;
mod users;
mod workers;

pub use append::Appended;
pub use append_checked::Attempted;
pub use changed::{CHANGE_SLOTS_MARGIN, ChangedChat};
pub use changes::{ChangeItem, Changes, Since};
pub use chats::{Access, ChatToSync};
pub use ended_session::EndedSession;
pub use engine::{ReplicaLock, Store, StoreOptions, for_sqlite};
pub use invites::{Invite, OpenInvite};
pub use jobs::DeletedRows;
pub use members::AddMember;
pub use messages::HistoryRange;
pub use new_chats::{Creation, NewChat, Opened};
pub use presence::SharedChat;
pub use refresh_tokens::{Refreshed, SessionTokens};
pub use sessions::{LoggedIn, NewSession, Replaced};
pub use users::{AccountChange, NewUser};
pub use workers::ConsumerBacklog;

use engine::{
    Db, MapOkDrop, Tx, Work, ended, failure, id_list, is_lock_timeout, is_unique_violation, lent,
    on, on_ids, on_lease, timed, within, within_ids,
};
