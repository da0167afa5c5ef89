//! `/users`: registration, the directory and the caller's account.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::extract::{Body, Ids, Params};
use super::problem::Problem;
use super::sessions::GrantView;
use super::state::Api;
use crate::model::session::{Caller, Origin};
use crate::model::{Account, Result, User, UserId};
use crate::service::{AccountPatch, Registration};

/// A registration.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewUser {
    /// The code of an open invite.
    invite: String,
    /// 1 to 64 of `a-z 0-9 . _ -`; upper case counts as lower case.
    #[schema(min_length = 1)]
    login: String,
    /// 8 to 128 characters.
    #[schema(min_length = 8, max_length = 128)]
    password: String,
    /// 1 to 100 characters after trimming.
    #[schema(min_length = 1)]
    name: String,
}

/// Changes to the account. Absent fields keep their value.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserPatch {
    /// 1 to 100 characters after trimming.
    #[schema(min_length = 1)]
    name: Option<String>,
    /// 1 to 64 of `a-z 0-9 . _ -`; upper case counts as lower case.
    #[schema(min_length = 1)]
    login: Option<String>,
    /// 8 to 128 characters.
    #[schema(min_length = 8, max_length = 128)]
    password: Option<String>,
    /// Required to change the login or the password.
    current_password: Option<String>,
    /// If `true`, users that share no chat with the caller can neither open a chat with the caller
    /// nor add the caller to a chat.
    refuse_strangers: Option<bool>,
}

/// Confirms the removal of the account.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Confirmation {
    /// The password of the account.
    password: String,
}

/// Which accounts to list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DirectoryParams {
    /// Beginning of the login or of the name; upper case counts as lower case.
    query: Option<String>,
    /// Largest number of accounts, capped at the server's maximum.
    #[param(minimum = 1)]
    limit: Option<i64>,
    /// The `next_cursor` of the previous page.
    after: Option<String>,
}

/// A page of accounts.
#[derive(Serialize, ToSchema)]
pub struct UserList {
    users: Vec<User>,
    /// The `after` of the next page; `null` on the last page.
    next_cursor: Option<String>,
}

/// Registers an account with an invite and consumes one of the invite's uses.
#[utoipa::path(
    post,
    path = "/users",
    tag = "users",
    security(()),
    request_body = NewUser,
    responses(
        (status = 201, body = GrantView),
        (status = 404, body = Problem),
        (status = 409, body = Problem),
    ),
)]
pub async fn register(
    State(api): State<Arc<Api>>,
    origin: Origin,
    body: Body<NewUser>,
) -> Result<(StatusCode, Json<GrantView>)> {
    let NewUser { invite, login, password, name } = body.0;
    let grant = api
        .services
        .accounts
        .register(Registration { invite, login, password, name }, origin)
        .await?;
    Ok((StatusCode::CREATED, Json(grant.into())))
}

/// The directory of accounts.
///
/// First come the accounts whose login begins with `query`, by login, then the accounts of which
/// only the name begins with it, by name. A page may be shorter than `limit`. On the last page,
/// `next_cursor` is `null`.
#[utoipa::path(
    get,
    path = "/users",
    tag = "users",
    params(DirectoryParams),
    responses((status = 200, body = UserList)),
)]
pub async fn directory(
    State(api): State<Arc<Api>>,
    _caller: Caller,
    params: Params<DirectoryParams>,
) -> Result<Json<UserList>> {
    let DirectoryParams { query, limit, after } = params.0;
    let (users, next_cursor) =
        api.services.directory.search(query.as_deref(), limit, after.as_deref()).await?;
    Ok(Json(UserList { users, next_cursor }))
}

/// An account, as other users see it.
#[utoipa::path(
    get,
    path = "/users/{id}",
    tag = "users",
    params(("id" = UserId, Path)),
    responses(
        (status = 200, body = User),
        (status = 404, body = Problem),
    ),
)]
pub async fn show(
    State(api): State<Arc<Api>>,
    _caller: Caller,
    id: Ids<UserId>,
) -> Result<Json<User>> {
    api.services.accounts.user(id.0).await.map(Json)
}

/// The caller's account.
#[utoipa::path(get, path = "/users/me", tag = "users", responses((status = 200, body = Account)))]
pub async fn me(State(api): State<Arc<Api>>, caller: Caller) -> Result<Json<Account>> {
    api.services.accounts.own(caller).await.map(Json)
}

/// Changes the caller's account. A new password ends all other sessions.
#[utoipa::path(
    patch,
    path = "/users/me",
    tag = "users",
    request_body = UserPatch,
    responses(
        (status = 200, body = Account),
        (status = 403, body = Problem),
        (status = 409, body = Problem),
    ),
)]
pub async fn change(
    State(api): State<Arc<Api>>,
    caller: Caller,
    body: Body<UserPatch>,
) -> Result<Json<Account>> {
    let UserPatch { name, login, password, current_password, refuse_strangers } = body.0;
    let patch = AccountPatch { name, login, password, current_password, refuse_strangers };
    api.services.accounts.change(caller, patch).await.map(Json)
}

/// Removes the caller's account.
///
/// Its sessions end, it leaves its chats, and its messages stay without a name. If the user has
/// very many chats, some of them may still list the user for a while after the response.
#[utoipa::path(
    delete,
    path = "/users/me",
    tag = "users",
    request_body = Confirmation,
    responses(
        (status = 204),
        (status = 403, body = Problem),
    ),
)]
pub async fn remove(
    State(api): State<Arc<Api>>,
    caller: Caller,
    body: Body<Confirmation>,
) -> Result<StatusCode> {
    api.services.removals.remove(caller, body.0.password).await?;
    Ok(StatusCode::NO_CONTENT)
}
