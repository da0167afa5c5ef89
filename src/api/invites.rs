//! `/invites`: the caller's invites, and the view of an invite before registration.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::extract::{Ids, MaybeBody};
use super::problem::Problem;
use super::state::Api;
use crate::model::session::{Caller, Origin};
use crate::model::{Result, Timestamp};
use crate::service::Invite;

/// An invite to create.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewInvite {
    /// Number of accounts that may register with the invite; 1 if absent.
    #[schema(minimum = 1, maximum = 1000)]
    uses: Option<i64>,
    /// How long the invite is open, in seconds; a week if absent.
    #[schema(minimum = 1, maximum = 2_592_000)]
    expires_in_s: Option<i64>,
}

/// One of the caller's invites.
#[derive(Serialize, ToSchema)]
pub struct InviteView {
    /// The secret that a registration presents.
    code: String,
    /// Number of accounts that may still register with the invite.
    uses_left: i64,
    expires_at: Timestamp,
    created_at: Timestamp,
}

impl From<Invite> for InviteView {
    fn from(invite: Invite) -> Self {
        Self {
            code: invite.code,
            uses_left: invite.uses_left,
            expires_at: invite.expires_at_ms,
            created_at: invite.created_at_ms,
        }
    }
}

/// The caller's open invites.
#[derive(Serialize, ToSchema)]
pub struct InviteList {
    invites: Vec<InviteView>,
}

/// An invite as a client without an account sees it.
#[derive(Serialize, ToSchema)]
pub struct OpenInviteView {
    inviter: Inviter,
    expires_at: Timestamp,
}

/// The user that invites.
#[derive(Serialize, ToSchema)]
pub struct Inviter {
    /// The user's name. For an invite by the operator, the server's name.
    name: String,
}

/// Creates an invite.
#[utoipa::path(
    post,
    path = "/invites",
    tag = "invites",
    request_body(content = inline(Option<NewInvite>)),
    responses(
        (status = 201, body = InviteView),
        (status = 409, body = Problem),
    ),
)]
pub async fn create(
    State(api): State<Arc<Api>>,
    caller: Caller,
    body: MaybeBody<NewInvite>,
) -> Result<(StatusCode, Json<InviteView>)> {
    let NewInvite { uses, expires_in_s } = body.0;
    let invite = api.services.invites.create(caller, uses, expires_in_s).await?;
    Ok((StatusCode::CREATED, Json(invite.into())))
}

/// The caller's open invites, newest first.
#[utoipa::path(
    get,
    path = "/invites",
    tag = "invites",
    responses((status = 200, body = InviteList)),
)]
pub async fn list(State(api): State<Arc<Api>>, caller: Caller) -> Result<Json<InviteList>> {
    let invites = api.services.invites.list(caller).await?;
    Ok(Json(InviteList { invites: invites.into_iter().map(InviteView::from).collect() }))
}

/// An open invite, for a client without an account.
#[utoipa::path(
    get,
    path = "/invites/{code}",
    tag = "invites",
    security(()),
    params(("code" = String, Path)),
    responses(
        (status = 200, body = OpenInviteView),
        (status = 404, body = Problem),
    ),
)]
pub async fn show(
    State(api): State<Arc<Api>>,
    origin: Origin,
    code: Ids<String>,
) -> Result<Json<OpenInviteView>> {
    let invite = api.services.invites.open(&code.0, &origin).await?;
    let name = invite.inviter.unwrap_or_else(|| "Starling".to_owned());
    Ok(Json(OpenInviteView { inviter: Inviter { name }, expires_at: invite.expires_at_ms }))
}

/// Revokes one of the caller's invites.
#[utoipa::path(
    delete,
    path = "/invites/{code}",
    tag = "invites",
    params(("code" = String, Path)),
    responses(
        (status = 204),
        (status = 404, body = Problem),
    ),
)]
pub async fn revoke(
    State(api): State<Arc<Api>>,
    caller: Caller,
    code: Ids<String>,
) -> Result<StatusCode> {
    api.services.invites.revoke(caller, &code.0).await?;
    Ok(StatusCode::NO_CONTENT)
}
