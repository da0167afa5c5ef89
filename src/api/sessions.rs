//! `/sessions`: login, refresh, the caller's sessions and logout.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::extract::{Body, Ids};
use super::problem::Problem;
use super::state::Api;
use crate::model::session::{Caller, Origin};
use crate::model::{Result, Session, SessionId, Timestamp, User};
use crate::service::{Grant, Login};

/// A login.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    login: String,
    password: String,
    /// The live session of the account that gets new tokens. Its open sockets close with 4401.
    /// If absent, the login creates a session.
    session_id: Option<SessionId>,
    /// The client's description of the device, up to 100 characters.
    device: Option<String>,
}

/// A refresh.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Refresh {
    /// The latest refresh token of the session.
    refresh_token: String,
}

/// A session and its new tokens. The tokens are shown only here.
#[derive(Serialize, ToSchema)]
pub struct GrantView {
    user: User,
    session: Session,
    /// The access token, for `Authorization: Bearer`.
    token: String,
    /// For one `POST /sessions/refresh`.
    refresh_token: String,
    /// When `token` expires.
    expires_at: Timestamp,
}

impl From<Grant> for GrantView {
    fn from(grant: Grant) -> Self {
        let session = Session { current: true, ..grant.session };
        Self {
            user: grant.user,
            session,
            token: grant.token,
            refresh_token: grant.refresh_token,
            expires_at: grant.expires_at,
        }
    }
}

/// The session of the access token, and its user.
#[derive(Serialize, ToSchema)]
pub struct CurrentSession {
    session: Session,
    user: User,
}

/// The caller's sessions.
#[derive(Serialize, ToSchema)]
pub struct SessionList {
    sessions: Vec<Session>,
}

/// Logs in. An unknown login and a wrong password get the same answer.
#[utoipa::path(
    post,
    path = "/sessions",
    tag = "sessions",
    security(()),
    request_body = Credentials,
    responses(
        (status = 201, body = GrantView),
        (status = 401, body = Problem),
    ),
)]
pub async fn log_in(
    State(api): State<Arc<Api>>,
    origin: Origin,
    body: Body<Credentials>,
) -> Result<(StatusCode, Json<GrantView>)> {
    let Credentials { login, password, session_id, device } = body.0;
    let origin = Origin { device: device.or(origin.device), ..origin };
    let grant = api.services.sessions.log_in(Login { login, password, session_id }, origin).await?;
    Ok((StatusCode::CREATED, Json(grant.into())))
}

/// Replaces both tokens of a session.
///
/// A refresh token that is used a second time ends its session, except that the token before the
/// current one may be used again for ten seconds.
#[utoipa::path(
    post,
    path = "/sessions/refresh",
    tag = "sessions",
    security(()),
    request_body = Refresh,
    responses(
        (status = 200, body = GrantView),
        (status = 401, body = Problem),
    ),
)]
pub async fn refresh(
    State(api): State<Arc<Api>>,
    origin: Origin,
    body: Body<Refresh>,
) -> Result<Json<GrantView>> {
    let grant = api.services.sessions.refresh(&body.0.refresh_token, origin).await?;
    Ok(Json(grant.into()))
}

/// The session and the user of the access token.
#[utoipa::path(
    get,
    path = "/sessions/current",
    tag = "sessions",
    responses((status = 200, body = CurrentSession)),
)]
pub async fn current(State(api): State<Arc<Api>>, caller: Caller) -> Result<Json<CurrentSession>> {
    let (session, user) = api.services.sessions.current(caller).await?;
    Ok(Json(CurrentSession { session, user }))
}

/// The caller's live sessions, newest first.
#[utoipa::path(
    get,
    path = "/sessions",
    tag = "sessions",
    responses((status = 200, body = SessionList)),
)]
pub async fn list(State(api): State<Arc<Api>>, caller: Caller) -> Result<Json<SessionList>> {
    let sessions = api.services.sessions.list(caller).await?;
    Ok(Json(SessionList { sessions }))
}

/// Ends one of the caller's sessions and closes its connections.
#[utoipa::path(
    delete,
    path = "/sessions/{id}",
    tag = "sessions",
    params(("id" = SessionId, Path)),
    responses(
        (status = 204),
        (status = 404, body = Problem),
    ),
)]
pub async fn end(
    State(api): State<Arc<Api>>,
    caller: Caller,
    id: Ids<SessionId>,
) -> Result<StatusCode> {
    api.services.sessions.end(caller, id.0).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Logs out: ends the caller's session.
#[utoipa::path(delete, path = "/sessions/current", tag = "sessions", responses((status = 204)))]
pub async fn log_out(State(api): State<Arc<Api>>, caller: Caller) -> Result<StatusCode> {
    api.services.sessions.end(caller, caller.session_id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ends all of the caller's sessions except the current one.
#[utoipa::path(delete, path = "/sessions", tag = "sessions", responses((status = 204)))]
pub async fn end_others(State(api): State<Arc<Api>>, caller: Caller) -> Result<StatusCode> {
    api.services.sessions.end_others(caller).await?;
    Ok(StatusCode::NO_CONTENT)
}
