//! `/chats/{chat_id}/messages`

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

/// Which part of a history.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct HistoryParams {
    /// Before this message.
    before: Option<i64>,
    /// After this message.
    after: Option<i64>,
    /// Messages at most.
    #[param(minimum = 1)]
    max: Option<i64>,
}

/// A page of messages, ascending by id.
#[derive(Serialize, ToSchema)]
pub struct MessageList {
    messages: Vec<Message>,
}

/// A message to be sent.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewMessage {
    /// 1 to 4096 characters after trimming.
    #[schema(min_length = 1)]
    text: String,
    /// Idempotency key, 1 to 64 characters.
    #[schema(min_length = 1, max_length = 64)]
    client_id: Option<String>,
    /// The message that this one answers.
    #[schema(value_type = Option<i64>, minimum = 1)]
    reply_to: Option<MessageId>,
}

/// What to change of a message.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MessagePatch {
    /// 1 to 4096 characters after trimming.
    #[schema(min_length = 1)]
    text: String,
}

/// A chat's history: the newest page, or the one before or after a message. A page ends early at 512 KiB of text, but holds
/// at least one message where there is one, so only an empty page is the end.
#[utoipa::path(get, path = "/chats/{chat_id}/messages", tag = "messages", params(("chat_id" = ChatId, Path), HistoryParams),
    responses((status = 200, body = MessageList), (status = 404, body = Problem)))]
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

/// Sends a message. Answered once it is durable; with a `client_id` it may be sent again without being doubled.
#[utoipa::path(post, path = "/chats/{chat_id}/messages", tag = "messages", params(("chat_id" = ChatId, Path)), request_body = NewMessage,
    responses((status = 201, body = Message), (status = 200, body = Message, description = "It was sent before"),
        (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub async fn send(
    State(api): State<Arc<Api>>,
    caller: Caller,
    chat_id: Ids<ChatId>,
    body: Body<NewMessage>,
) -> Result<(StatusCode, Json<Message>)> {
    let NewMessage { text, client_id, reply_to } = body.0;
    let pending = api.services.messages.begin_send(caller, chat_id.0, Outgoing { text, client_id, reply_to }).await?;
    Ok(match pending.outcome().await? {
        Sent::New(message) => (StatusCode::CREATED, Json(message)),
        Sent::Repeated(message) => (StatusCode::OK, Json(message)),
    })
}

/// One message.
#[utoipa::path(get, path = "/chats/{chat_id}/messages/{message_id}", tag = "messages",
    params(("chat_id" = ChatId, Path), ("message_id" = MessageId, Path)), responses((status = 200, body = Message), (status = 404, body = Problem)))]
pub async fn show(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Ids((chat_id, id)): Ids<(ChatId, MessageId)>,
) -> Result<Json<Message>> {
    api.services.messages.view(caller, chat_id, id).await.map(Json)
}

/// Changes the text of one's own message.
#[utoipa::path(patch, path = "/chats/{chat_id}/messages/{message_id}", tag = "messages",
    params(("chat_id" = ChatId, Path), ("message_id" = MessageId, Path)), request_body = MessagePatch, responses(
    (status = 200, body = Message), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub async fn edit(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Ids((chat_id, id)): Ids<(ChatId, MessageId)>,
    body: Body<MessagePatch>,
) -> Result<Json<Message>> {
    api.services.messages.edit(caller, chat_id, id, &body.0.text).await.map(Json)
}

/// Removes one's own message, or anyone's as owner or admin. Its place in the chat stays.
#[utoipa::path(delete, path = "/chats/{chat_id}/messages/{message_id}", tag = "messages",
    params(("chat_id" = ChatId, Path), ("message_id" = MessageId, Path)), responses(
    (status = 204), (status = 403, body = Problem), (status = 404, body = Problem)))]
pub async fn remove(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Ids((chat_id, id)): Ids<(ChatId, MessageId)>,
) -> Result<StatusCode> {
    api.services.messages.remove(caller, chat_id, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
