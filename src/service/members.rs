//! Members of chats: listing, adding, changing roles, removing and leaving.

use super::access::access;
use super::page;
use super::publisher::Publisher;
use super::rates::RateLimits;
use crate::model::cursor::{self, MemberCursor};
use crate::model::limits::CHANGES;
use crate::model::session::Caller;
use crate::model::{Change, ChatId, Clock, Error, Event, Member, Result, Role, Topic, UserId};
use crate::store::{AddMember, Store};

/// The service for members of chats.
pub struct Members {
    pub(super) store: Store,
    pub(super) rates: RateLimits,
    pub(super) publisher: Publisher,
    pub(super) clock: Clock,
    pub(super) chats_max: i64,
    pub(super) per_group_max: i64,
    pub(super) page_max: i64,
}

impl Members {
    /// A page of a chat's members, and the cursor of the next page; `None` on the last page.
    ///
    /// # Errors
    /// `chat_not_found`, `invalid_fields` for a bad cursor.
    pub async fn list(
        &self,
        caller: Caller,
        chat_id: ChatId,
        limit: Option<i64>,
        after: Option<&str>,
    ) -> Result<(Vec<Member>, Option<String>)> {
        let after: Option<MemberCursor> = after.map(cursor::decode).transpose()?;
        let limit = page::size("limit", limit, self.page_max)?;
        let after = after.map(|after| after.user_id);

        let mut members = self.store.members(chat_id, caller.user_id, after, limit + 1).await?;
        if members.is_empty() {
            // Either no member follows the cursor, or the caller is not a member.
            access(&self.store, caller, chat_id).await?;
        }

        let more = page::cut(&mut members, limit);
        let last = members.last().filter(|_| more);
        let next = last.map(|member| cursor::encode(&MemberCursor { user_id: member.user.id }));
        Ok((members, next))
    }

    /// Adds a member to a group or channel.
    ///
    /// # Errors
    /// `rate_limited`, and those of [`Store::add_member`].
    pub async fn add(
        &self,
        caller: Caller,
        chat_id: ChatId,
        user_id: UserId,
        role: Role,
    ) -> Result<Member> {
        self.rates.count(CHANGES, &caller.user_id.to_string()).await?;

        let add = AddMember {
            chat_id,
            actor: caller.user_id,
            user_id,
            role,
            now: self.clock.now(),
            members_max: self.per_group_max,
            chats_max: self.chats_max,
        };
        let added = self.store.add_member(&add).await;
        let topics = || vec![Topic::Chat(chat_id), Topic::User(user_id)];
        let event = self.publisher.resync_if_unknown(added, topics)?;

        let Change::MemberJoined(joined) = &event.change else {
            return Err(Error::internal("add_member returned another change than a join"));
        };
        let member = joined.0.clone();
        self.publisher.publish(Event::Chat(event));
        Ok(member)
    }

    /// Changes the role of a member.
    ///
    /// # Errors
    /// `rate_limited`, and those of [`Store::change_role`].
    pub async fn change_role(
        &self,
        caller: Caller,
        chat_id: ChatId,
        user_id: UserId,
        role: Role,
    ) -> Result<Member> {
        self.rates.count(CHANGES, &caller.user_id.to_string()).await?;

        let changed = self.store.change_role(chat_id, caller.user_id, user_id, role).await;
        let changed = self.publisher.resync_if_unknown(changed, || vec![Topic::Chat(chat_id)])?;

        let (member, event) = changed;
        if let Some(event) = event {
            self.publisher.publish(Event::Chat(event));
        }
        Ok(member)
    }

    /// Removes a member. If `user_id` is the caller, the caller leaves.
    ///
    /// # Errors
    /// `rate_limited`, and those of [`Store::remove_member`].
    pub async fn remove(&self, caller: Caller, chat_id: ChatId, user_id: UserId) -> Result<()> {
        self.rates.count(CHANGES, &caller.user_id.to_string()).await?;

        let removed =
            self.store.remove_member(chat_id, caller.user_id, user_id, self.clock.now()).await;
        let event = self.publisher.resync_if_unknown(removed, || vec![Topic::Chat(chat_id)])?;
        self.publisher.publish_change(event);
        Ok(())
    }
}
