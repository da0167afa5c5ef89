//! `/chats/{chat_id}/members`: listing, adding, changing roles, removing and leaving.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::chats::PageParams;
use super::extract::{Body, Ids, Params};
use super::problem::Problem;
use super::state::Api;
use crate::model::session::Caller;
use crate::model::{ChatId, Code, Error, Member, Result, Role, UserId};

/// A member to add.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewMember {
    user_id: UserId,
    /// `member` if absent.
    role: Option<Role>,
}

/// Changes to a member.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemberPatch {
    role: Role,
}

/// A page of members.
#[derive(Serialize, ToSchema)]
pub struct MemberList {
    members: Vec<Member>,
    /// The `after` of the next page; `null` on the last page.
    next_cursor: Option<String>,
}

/// The members of a chat, by id.
#[utoipa::path(
    get,
    path = "/chats/{chat_id}/members",
    tag = "members",
    params(("chat_id" = ChatId, Path), PageParams),
    responses(
        (status = 200, body = MemberList),
        (status = 404, body = Problem),
    ),
)]
pub async fn list(
    State(api): State<Arc<Api>>,
    caller: Caller,
    chat_id: Ids<ChatId>,
    params: Params<PageParams>,
) -> Result<Json<MemberList>> {
    let PageParams { limit, after } = params.0;
    let (members, next_cursor) =
        api.services.members.list(caller, chat_id.0, limit, after.as_deref()).await?;
    Ok(Json(MemberList { members, next_cursor }))
}

/// Adds a member to a group or channel.
#[utoipa::path(
    post,
    path = "/chats/{chat_id}/members",
    tag = "members",
    params(("chat_id" = ChatId, Path)),
    request_body = NewMember,
    responses(
        (status = 201, body = Member),
        (status = 403, body = Problem),
        (status = 404, body = Problem),
        (status = 409, body = Problem),
    ),
)]
pub async fn add(
    State(api): State<Arc<Api>>,
    caller: Caller,
    chat_id: Ids<ChatId>,
    body: Body<NewMember>,
) -> Result<(StatusCode, Json<Member>)> {
    let NewMember { user_id, role } = body.0;
    let member =
        api.services.members.add(caller, chat_id.0, user_id, role.unwrap_or(Role::Member)).await?;
    Ok((StatusCode::CREATED, Json(member)))
}

/// Changes the role of a member.
#[utoipa::path(
    patch,
    path = "/chats/{chat_id}/members/{user_id}",
    tag = "members",
    params(("chat_id" = ChatId, Path), ("user_id" = UserId, Path)),
    request_body = MemberPatch,
    responses(
        (status = 200, body = Member),
        (status = 403, body = Problem),
        (status = 404, body = Problem),
        (status = 409, body = Problem),
    ),
)]
pub async fn change(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Ids((chat_id, user_id)): Ids<(ChatId, UserId)>,
    body: Body<MemberPatch>,
) -> Result<Json<Member>> {
    api.services.members.change_role(caller, chat_id, user_id, body.0.role).await.map(Json)
}

/// Removes a member. With `me` as the user, the caller leaves.
#[utoipa::path(
    delete,
    path = "/chats/{chat_id}/members/{user_id}",
    tag = "members",
    params(
        ("chat_id" = ChatId, Path),
        ("user_id" = String, Path, description = "A user's id, or `me`"),
    ),
    responses(
        (status = 204),
        (status = 403, body = Problem),
        (status = 404, body = Problem),
        (status = 409, body = Problem),
    ),
)]
pub async fn remove(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Ids((chat_id, user)): Ids<(ChatId, String)>,
) -> Result<StatusCode> {
    let user_id = match user.as_str() {
        "me" => caller.user_id,
        id => id.parse().map_err(|_| Error::new(Code::MemberNotFound))?,
    };
    api.services.members.remove(caller, chat_id, user_id).await?;
    Ok(StatusCode::NO_CONTENT)
}
