//! Invites: the only way in.

use std::time::Duration;

use super::sessions::Origin;
use super::{Service, secrets};
use crate::model::limits::{CHANGES, INVITE_LIFE, INVITE_LIFE_MAX, INVITE_LOOKUPS_PER_ADDRESS, INVITE_USES_MAX};
use crate::model::session::Caller;
use crate::model::text::Checks;
use crate::model::token::random_code;
use crate::model::{Code, Error, Result, UserId};
use crate::store::{Invite, OpenInvite};

impl Service {
    /// Makes an invite in the caller's name.
    ///
    /// # Errors
    /// `invalid_fields`, `rate_limited`, `invite_limit_reached`.
    pub async fn create_invite(&self, caller: Caller, uses: Option<i64>, expires_in_s: Option<i64>) -> Result<Invite> {
        self.limit(CHANGES, &caller.user_id.to_string()).await?;
        self.make_invite(Some(caller.user_id), uses, expires_in_s).await
    }

    /// Makes an invite in the operator's name, to which no limit applies.
    ///
    /// # Errors
    /// `invalid_fields`.
    pub async fn create_operator_invite(&self, uses: Option<i64>, expires_in_s: Option<i64>) -> Result<Invite> {
        self.make_invite(None, uses, expires_in_s).await
    }

    /// The invite for the very first account: one that is open already, else a new one.
    ///
    /// # Errors
    /// `unavailable`.
    pub async fn first_invite(&self) -> Result<Invite> {
        self.store.first_invite(self.new_invite(1, INVITE_LIFE)).await
    }

    fn new_invite(&self, uses: i64, life: Duration) -> Invite {
        let now = self.clock.now();
        Invite { code: random_code(&mut secrets()), uses_left: uses, expires_at_ms: now.plus(life), created_at_ms: now }
    }

    async fn make_invite(
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
        let life = expires_in_s.map_or(INVITE_LIFE, |s| Duration::from_secs(u64::try_from(s).unwrap_or(0)));
        if life.is_zero() || life > INVITE_LIFE_MAX {
            checks.fail("expires_in_s", format!("must be 1 to {}", INVITE_LIFE_MAX.as_secs()));
        }
        checks.done()?;
        let invite = self.new_invite(uses, life);
        self.store.create_invite(&invite, user_id, self.limits.invites_per_user_max).await?;
        Ok(invite)
    }

    /// The caller's open invites, newest first.
    ///
    /// # Errors
    /// `unavailable`.
    pub async fn invites(&self, caller: Caller) -> Result<Vec<Invite>> {
        self.store.invites(caller.user_id, self.clock.now(), self.limits.invites_per_user_max).await
    }

    /// What a stranger who has the code may know of an invite.
    ///
    /// # Errors
    /// `rate_limited`, `invite_not_found`.
    pub async fn open_invite(&self, code: &str, origin: &Origin) -> Result<OpenInvite> {
        self.limit(INVITE_LOOKUPS_PER_ADDRESS, &origin.rate_key()).await?;
        let found = if plausible(code) { self.store.open_invite(code, self.clock.now()).await? } else { None };
        found.ok_or(Error::new(Code::InviteNotFound))
    }

    /// Revokes one of the caller's invites.
    ///
    /// # Errors
    /// `rate_limited`, `invite_not_found`.
    pub async fn revoke_invite(&self, caller: Caller, code: &str) -> Result<()> {
        self.count_read(caller.user_id)?;
        let revoked = plausible(code) && self.store.revoke_invite(caller.user_id, code).await?;
        if revoked { Ok(()) } else { Err(Code::InviteNotFound.into()) }
    }
}

/// Whether this can be a code at all; what can't (such as U+0000) is not worth a query.
pub(super) fn plausible(code: &str) -> bool {
    code.len() <= 64 && code.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}
