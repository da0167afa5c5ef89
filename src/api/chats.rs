//! `/chats`: the caller's chats, their changes and read markers.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::{IntoParams, ToSchema};

use super::extract::{Body, Ids, Params};
use super::problem::Problem;
use super::state::Api;
use crate::model::session::Caller;
use crate::model::{
    Chat, ChatId, ChatKind, Error, Member, Message, MessageId, Result, Rev, UserId,
};
use crate::service::ChatRequest;

/// A page of a list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageParams {
    /// Largest number of entries, capped at the server's maximum.
    #[param(minimum = 1)]
    pub limit: Option<i64>,
    /// The `next_cursor` of the previous page.
    pub after: Option<String>,
}

/// A chat to create.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewChat {
    kind: ChatKind,
    /// 1 to 100 characters after trimming. Required for groups and channels, absent for other
    /// chats.
    name: Option<String>,
    /// The other members: exactly one for `private`, none for `self`.
    #[schema(max_items = 100)]
    member_ids: Option<Vec<UserId>>,
}

/// Changes to a chat.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChatPatch {
    /// 1 to 100 characters after trimming.
    #[schema(min_length = 1)]
    name: String,
}

/// A page of chats.
#[derive(Serialize, ToSchema)]
pub struct ChatList {
    chats: Vec<Chat>,
    /// The `after` of the next page; `null` on the last page.
    next_cursor: Option<String>,
}

/// Which changes to return.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ChangesParams {
    /// The last revision that the client has; 0 for all changes.
    #[param(minimum = 0)]
    after_rev: Option<i64>,
    /// Largest number of changes, capped at the server's maximum.
    #[param(minimum = 1)]
    max: Option<i64>,
}

/// Changes of a chat. Unless `complete`, request the next page with `after_rev` = `rev`.
#[derive(Serialize, ToSchema)]
pub struct ChangeList {
    /// Messages that were sent or changed, oldest change first.
    messages: Vec<Message>,
    /// Members that joined or changed.
    members: Vec<Member>,
    /// Members that left.
    removed_member_ids: Vec<UserId>,
    /// The chat, if its own fields changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    chat: Option<Chat>,
    /// The revision that this page reaches.
    rev: Rev,
    /// Whether this page reaches the chat's current revision.
    complete: bool,
    /// Whether `removed_member_ids` may be incomplete, because the server no longer keeps such old
    /// changes. If so, list the members again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    members_forgotten: bool,
}

/// A read marker.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReadMarker {
    /// The last message that the caller has read.
    message_id: MessageId,
}

/// The caller's chats, most recent activity first. The response has an `ETag`.
#[utoipa::path(
    get,
    path = "/chats",
    tag = "chats",
    params(PageParams, ("if-none-match" = Option<String>, Header)),
    responses(
        (status = 200, body = ChatList, headers(("etag" = String))),
        (status = 304, description = "Nothing changed"),
    ),
)]
pub async fn inbox(
    State(api): State<Arc<Api>>,
    caller: Caller,
    headers: HeaderMap,
    params: Params<PageParams>,
) -> Result<Response> {
    let PageParams { limit, after } = params.0;
    let (chats, next_cursor) = api.services.chats.inbox(caller, limit, after.as_deref()).await?;
    let body = serde_json::to_vec(&ChatList { chats, next_cursor }).map_err(Error::internal)?;

    let etag = format!("\"{}\"", URL_SAFE_NO_PAD.encode(&Sha256::digest(&body)[..16]));
    let unchanged = matches_etag(&headers, &etag);
    let etag = HeaderValue::from_str(&etag).map_err(Error::internal)?;
    let caching = [
        (header::ETAG, etag),
        (header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache")),
    ];

    Ok(if unchanged {
        (StatusCode::NOT_MODIFIED, caching).into_response()
    } else {
        (caching, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    })
}

/// Whether `If-None-Match` names this tag.
fn matches_etag(headers: &HeaderMap, etag: &str) -> bool {
    let named =
        headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    named
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// Creates a chat, or returns the existing `self` or `private` chat.
#[utoipa::path(
    post,
    path = "/chats",
    tag = "chats",
    request_body = NewChat,
    responses(
        (status = 201, body = Chat),
        (status = 200, body = Chat, description = "The chat existed"),
        (status = 403, body = Problem),
        (status = 409, body = Problem),
    ),
)]
pub async fn create(
    State(api): State<Arc<Api>>,
    caller: Caller,
    body: Body<NewChat>,
) -> Result<(StatusCode, Json<Chat>)> {
    let NewChat { kind, name, member_ids } = body.0;
    let request = ChatRequest { kind, name, member_ids: member_ids.unwrap_or_default() };
    let (chat, created) = api.services.chats.create(caller, request).await?;
    Ok((if created { StatusCode::CREATED } else { StatusCode::OK }, Json(chat)))
}

/// A chat of the caller.
#[utoipa::path(
    get,
    path = "/chats/{chat_id}",
    tag = "chats",
    params(("chat_id" = ChatId, Path)),
    responses(
        (status = 200, body = Chat),
        (status = 404, body = Problem),
    ),
)]
pub async fn show(
    State(api): State<Arc<Api>>,
    caller: Caller,
    chat_id: Ids<ChatId>,
) -> Result<Json<Chat>> {
    api.services.chats.view(caller, chat_id.0).await.map(Json)
}

/// Renames a group or channel.
#[utoipa::path(
    patch,
    path = "/chats/{chat_id}",
    tag = "chats",
    params(("chat_id" = ChatId, Path)),
    request_body = ChatPatch,
    responses(
        (status = 200, body = Chat),
        (status = 403, body = Problem),
        (status = 404, body = Problem),
        (status = 409, body = Problem),
    ),
)]
pub async fn rename(
    State(api): State<Arc<Api>>,
    caller: Caller,
    chat_id: Ids<ChatId>,
    body: Body<ChatPatch>,
) -> Result<Json<Chat>> {
    api.services.chats.rename(caller, chat_id.0, &body.0.name).await.map(Json)
}

/// Removes a chat.
///
/// A group or channel is removed for all members, by its owner only. In a self or private chat, the
/// history is removed for the caller only.
#[utoipa::path(
    delete,
    path = "/chats/{chat_id}",
    tag = "chats",
    params(("chat_id" = ChatId, Path)),
    responses(
        (status = 204),
        (status = 403, body = Problem),
        (status = 404, body = Problem),
    ),
)]
pub async fn remove(
    State(api): State<Arc<Api>>,
    caller: Caller,
    chat_id: Ids<ChatId>,
) -> Result<StatusCode> {
    api.services.chats.remove(caller, chat_id.0).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// All items whose latest change is after a revision, oldest change first.
///
/// A client that was offline catches up with these changes. A page ends early at 512 KiB of text,
/// but has at least one item if any changed. `complete` marks the last page.
#[utoipa::path(
    get,
    path = "/chats/{chat_id}/changes",
    tag = "chats",
    params(("chat_id" = ChatId, Path), ChangesParams),
    responses(
        (status = 200, body = ChangeList),
        (status = 404, body = Problem),
    ),
)]
pub async fn changes(
    State(api): State<Arc<Api>>,
    caller: Caller,
    chat_id: Ids<ChatId>,
    params: Params<ChangesParams>,
) -> Result<Json<ChangeList>> {
    let after_rev = params.0.after_rev.unwrap_or(0);
    if after_rev < 0 {
        return Err(Error::field("after_rev", "must not be negative"));
    }

    let page = api.services.chats.changes(caller, chat_id.0, Rev(after_rev), params.0.max).await?;
    Ok(Json(ChangeList {
        messages: page.messages,
        members: page.members,
        removed_member_ids: page.removed_member_ids,
        chat: page.chat,
        rev: page.rev,
        complete: page.complete,
        members_forgotten: page.members_forgotten,
    }))
}

/// Moves the caller's read marker forward. A lower `message_id` has no effect.
#[utoipa::path(
    put,
    path = "/chats/{chat_id}/read",
    tag = "chats",
    params(("chat_id" = ChatId, Path)),
    request_body = ReadMarker,
    responses(
        (status = 204),
        (status = 404, body = Problem),
    ),
)]
pub async fn mark_read(
    State(api): State<Arc<Api>>,
    caller: Caller,
    chat_id: Ids<ChatId>,
    body: Body<ReadMarker>,
) -> Result<StatusCode> {
    api.services.messages.mark_read(caller, chat_id.0, body.0.message_id).await?;
    Ok(StatusCode::NO_CONTENT)
}
