//! `/chats/{chat_id}/messages`: history, sending, editing and removing.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::extract::{Body, Ids, Params};
use super::problem::Problem;
use super::state::Api;
use crate::model::message::Sent;
use crate::model::session::Caller;
use crate::model::{ChatId, Message, MessageId, Result};
use crate::service::{HistoryPage, Outgoing};

/// Which part of a history to return.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct HistoryParams {
    /// Only messages before the message with this id.
    before: Option<i64>,
    /// Only messages after the message with this id.
    after: Option<i64>,
    /// Largest number of messages, capped at the server's maximum.
    #[param(minimum = 1)]
    max: Option<i64>,
}

/// A page of messages, ascending by id.
#[derive(Serialize, ToSchema)]
pub struct MessageList {
    messages: Vec<Message>,
}

/// A message to send.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewMessage {
    /// 1 to 4096 characters after trimming.
    #[schema(min_length = 1)]
    text: String,
    /// Idempotency key, 1 to 64 characters.
    #[schema(min_length = 1, max_length = 64)]
    client_id: Option<String>,
    /// The message that this is a reply to.
    #[schema(value_type = Option<i64>, minimum = 1)]
    reply_to: Option<MessageId>,
}

/// Changes to a message.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MessagePatch {
    /// 1 to 4096 characters after trimming.
    #[schema(min_length = 1)]
    text: String,
}

/// A chat's history: the newest page, or the page before or after a message.
///
/// A page ends early at 512 KiB of text, but has at least one message if there is one. So only an
/// empty page is the end.
#[utoipa::path(
    get,
    path = "/chats/{chat_id}/messages",
    tag = "messages",
    params(("chat_id" = ChatId, Path), HistoryParams),
    responses(
        (status = 200, body = MessageList),
        (status = 404, body = Problem),
    ),
)]
pub async fn history(
    State(api): State<Arc<Api>>,
    caller: Caller,
    chat_id: Ids<ChatId>,
    params: Params<HistoryParams>,
) -> Result<Json<MessageList>> {
    let HistoryParams { before, after, max } = params.0;
    let page = HistoryPage { before: before.map(MessageId), after: after.map(MessageId), max };
    let messages = api.services.messages.history(caller, chat_id.0, page).await?;
    Ok(Json(MessageList { messages }))
}

/// Sends a message.
///
/// The response follows once the message is durable. With the same `client_id`, a retry sends no
/// second message.
#[utoipa::path(
    post,
    path = "/chats/{chat_id}/messages",
    tag = "messages",
    params(("chat_id" = ChatId, Path)),
    request_body = NewMessage,
    responses(
        (status = 201, body = Message),
        (status = 200, body = Message, description = "The message was sent before"),
        (status = 403, body = Problem),
        (status = 404, body = Problem),
        (status = 409, body = Problem),
    ),
)]
pub async fn send(
    State(api): State<Arc<Api>>,
    caller: Caller,
    chat_id: Ids<ChatId>,
    body: Body<NewMessage>,
) -> Result<(StatusCode, Json<Message>)> {
    let NewMessage { text, client_id, reply_to } = body.0;
    let pending = api
        .services
        .messages
        .begin_send(caller, chat_id.0, Outgoing { text, client_id, reply_to })
        .await?;

    Ok(match pending.outcome().await? {
        Sent::New(message) => (StatusCode::CREATED, Json(message)),
        Sent::Repeated(message) => (StatusCode::OK, Json(message)),
    })
}

/// A message.
#[utoipa::path(
    get,
    path = "/chats/{chat_id}/messages/{message_id}",
    tag = "messages",
    params(("chat_id" = ChatId, Path), ("message_id" = MessageId, Path)),
    responses(
        (status = 200, body = Message),
        (status = 404, body = Problem),
    ),
)]
pub async fn show(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Ids((chat_id, id)): Ids<(ChatId, MessageId)>,
) -> Result<Json<Message>> {
    api.services.messages.view(caller, chat_id, id).await.map(Json)
}

/// Changes the text of one of the caller's messages.
#[utoipa::path(
    patch,
    path = "/chats/{chat_id}/messages/{message_id}",
    tag = "messages",
    params(("chat_id" = ChatId, Path), ("message_id" = MessageId, Path)),
    request_body = MessagePatch,
    responses(
        (status = 200, body = Message),
        (status = 403, body = Problem),
        (status = 404, body = Problem),
        (status = 409, body = Problem),
    ),
)]
pub async fn edit(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Ids((chat_id, id)): Ids<(ChatId, MessageId)>,
    body: Body<MessagePatch>,
) -> Result<Json<Message>> {
    api.services.messages.edit(caller, chat_id, id, &body.0.text).await.map(Json)
}

/// Removes a message. It keeps its position in the chat.
///
/// Members can remove their own messages, owners and admins those of any member.
#[utoipa::path(
    delete,
    path = "/chats/{chat_id}/messages/{message_id}",
    tag = "messages",
    params(("chat_id" = ChatId, Path), ("message_id" = MessageId, Path)),
    responses(
        (status = 204),
        (status = 403, body = Problem),
        (status = 404, body = Problem),
    ),
)]
pub async fn remove(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Ids((chat_id, id)): Ids<(ChatId, MessageId)>,
) -> Result<StatusCode> {
    api.services.messages.remove(caller, chat_id, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
