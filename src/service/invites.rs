//! Invites. Registration requires one; only the operator can create an account without one.

use std::sync::Arc;
use std::time::Duration;

use super::budget::Budgets;
use super::random::secrets;
use super::rates::RateLimits;
use crate::model::limits::{
    CHANGES, INVITE_LIFE, INVITE_LIFE_MAX, INVITE_LOOKUPS_PER_ADDRESS, INVITE_USES_MAX,
};
use crate::model::session::{Caller, Origin};
use crate::model::text::Checks;
use crate::model::token::random_code;
use crate::model::{Clock, Code, Error, Result, UserId};
use crate::store::Store;

pub use crate::store::{Invite, OpenInvite};

/// Longest invite code, in bytes.
const CODE_BYTES_MAX: usize = 64;

/// The service for invites.
pub struct Invites {
    pub(super) store: Store,
    pub(super) rates: RateLimits,
    pub(super) budgets: Arc<Budgets>,
    pub(super) clock: Clock,
    pub(super) per_user_max: i64,
}

impl Invites {
    /// Creates an invite for the caller. `uses` defaults to 1, `expires_in_s` (seconds) to
    /// [`INVITE_LIFE`].
    ///
    /// # Errors
    /// `invalid_fields`, `rate_limited`, `invite_limit_reached`.
    pub async fn create(
        &self,
        caller: Caller,
        uses: Option<i64>,
        expires_in_s: Option<i64>,
    ) -> Result<Invite> {
        self.rates.count(CHANGES, &caller.user_id.to_string()).await?;
        self.insert(Some(caller.user_id), uses, expires_in_s).await
    }

    /// Creates an invite for the operator. The limit on open invites does not apply.
    ///
    /// # Errors
    /// `invalid_fields`.
    pub async fn create_operator(
        &self,
        uses: Option<i64>,
        expires_in_s: Option<i64>,
    ) -> Result<Invite> {
        self.insert(None, uses, expires_in_s).await
    }

    /// The invite for the first account: an open invite if one exists, else a new one.
    ///
    /// # Errors
    /// `unavailable`.
    pub async fn first(&self) -> Result<Invite> {
        self.store.first_invite(self.new_invite(1, INVITE_LIFE)).await
    }

    fn new_invite(&self, uses: i64, life: Duration) -> Invite {
        let now = self.clock.now();
        Invite {
            code: random_code(&mut secrets()),
            uses_left: uses,
            expires_at_ms: now.plus(life),
            created_at_ms: now,
        }
    }

    async fn insert(
        &self,
        user_id: Option<UserId>,
        uses: Option<i64>,
        expires_in_s: Option<i64>,
    ) -> Result<Invite> {
        let mut checks = Checks::new();
        let uses = uses.unwrap_or(1);
        if !(1..=INVITE_USES_MAX).contains(&uses) {
            checks.fail("uses", format!("must be 1 to {INVITE_USES_MAX}"));
        }

        let life = expires_in_s
            .map_or(INVITE_LIFE, |s| Duration::from_secs(u64::try_from(s).unwrap_or(0)));
        if life.is_zero() || life > INVITE_LIFE_MAX {
            checks.fail("expires_in_s", format!("must be 1 to {}", INVITE_LIFE_MAX.as_secs()));
        }
        checks.done()?;

        let invite = self.new_invite(uses, life);
        self.store.create_invite(&invite, user_id, self.per_user_max).await?;
        Ok(invite)
    }

    /// The caller's open invites, newest first.
    ///
    /// # Errors
    /// `unavailable`.
    pub async fn list(&self, caller: Caller) -> Result<Vec<Invite>> {
        self.store.invites(caller.user_id, self.clock.now(), self.per_user_max).await
    }

    /// The part of an open invite that a client without an account may see.
    ///
    /// # Errors
    /// `rate_limited`, `invite_not_found`.
    pub async fn open(&self, code: &str, origin: &Origin) -> Result<OpenInvite> {
        self.rates.count(INVITE_LOOKUPS_PER_ADDRESS, &origin.rate_key()).await?;

        let found = if is_plausible(code) {
            self.store.open_invite(code, self.clock.now()).await?
        } else {
            None
        };
        found.ok_or(Error::new(Code::InviteNotFound))
    }

    /// Revokes one of the caller's invites.
    ///
    /// # Errors
    /// `rate_limited`, `invite_not_found`.
    pub async fn revoke(&self, caller: Caller, code: &str) -> Result<()> {
        self.budgets.count_read(caller.user_id)?;
        let revoked = is_plausible(code) && self.store.revoke_invite(caller.user_id, code).await?;
        if revoked { Ok(()) } else { Err(Code::InviteNotFound.into()) }
    }
}

/// Whether a text has the form of an invite code. Other texts, such as one with U+0000, cost no
/// query.
pub(super) fn is_plausible(code: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    code.len() <= CODE_BYTES_MAX && code.chars().all(is_allowed)
}
