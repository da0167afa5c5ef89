//! Whether a caller may see a chat, for services that check this outside of their unit of work.

use crate::model::session::Caller;
use crate::model::{ChatId, Code, Error, Result};
use crate::store::{Access, Store};

/// The caller's membership of a chat.
///
/// # Errors
/// `chat_not_found` if the caller is not a member.
pub(super) async fn access(store: &Store, caller: Caller, chat_id: ChatId) -> Result<Access> {
    store.access(chat_id, caller.user_id).await?.ok_or(Error::new(Code::ChatNotFound))
}
