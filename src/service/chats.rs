//! Chats and their members.

use super::Service;
use crate::model::cursor::{self, InboxCursor, MemberCursor};
use crate::model::limits::{CHANGES, MEMBERS_AT_ONCE_MAX};
use crate::model::session::Caller;
use crate::model::text::{self, Checks};
use crate::model::{
    Change, Chat, ChatEvent, ChatId, ChatKind, Code, Error, Event, Member, Message, Result, Rev, Role, UserId,
};
use crate::store::{AddMember, Creation, NewChat, Opened};

/// A chat as a client asks for it.
#[derive(Clone, Debug)]
pub struct ChatRequest {
    /// Its kind.
    pub kind: ChatKind,
    /// Its name: for groups and channels.
    pub name: Option<String>,
    /// Who else: exactly one for `private`.
    pub member_ids: Vec<UserId>,
}

/// What changed in a chat, sorted by what it is.
#[derive(Debug)]
pub struct ChangesPage {
    /// Messages that were sent or changed, oldest change first.
    pub messages: Vec<Message>,
    /// Members who joined or changed.
    pub members: Vec<Member>,
    /// Members who left.
    pub removed_member_ids: Vec<UserId>,
    /// The chat, if it changed itself.
    pub chat: Option<Chat>,
    /// How far this goes.
    pub rev: Rev,
    /// Whether that is the chat's revision.
    pub complete: bool,
    /// Who left is no longer known that far back.
    pub members_forgotten: bool,
}

impl Service {
    /// A page of the caller's chats, last activity first, and the cursor behind it if there may be more.
    ///
    /// # Errors
    /// `invalid_fields` for a bad cursor.
    pub async fn inbox(
        &self,
        caller: Caller,
        limit: Option<i64>,
        after: Option<&str>,
    ) -> Result<(Vec<Chat>, Option<String>)> {
        let after: Option<InboxCursor> = after.map(cursor::decode).transpose()?;
        let limit = self.page("limit", limit)?;
        let mut found = self.store.inbox(caller.user_id, after, limit + 1).await?;
        let more = cut(&mut found, limit);
        let next = found.last().filter(|_| more).map(|(_, cursor)| cursor::encode(cursor));
        Ok((found.into_iter().map(|(chat, _)| chat).collect(), next))
    }

    /// A chat as the caller sees it.
    ///
    /// # Errors
    /// `chat_not_found`.
    pub async fn chat(&self, caller: Caller, chat_id: ChatId) -> Result<Chat> {
        self.store.chat(chat_id, caller.user_id).await?.ok_or(Error::new(Code::ChatNotFound))
    }

    /// Makes a chat, or finds the one `self` or `private` chat. Whether it is new.
    ///
    /// # Errors
    /// `invalid_fields`, `rate_limited`, `chat_limit_reached`, `member_limit_reached`.
    pub async fn create_chat(&self, caller: Caller, request: ChatRequest) -> Result<(Chat, bool)> {
        let kind = self.check_creation(caller.user_id, request)?;
        self.limit(CHANGES, &caller.user_id.to_string()).await?;
        let now = self.clock.now();
        let id = ChatId::new(now, &mut rand::rng());
        let new = NewChat { id, kind, creator: caller.user_id, now, chats_max: self.limits.chats_per_user_max };
        match self.store.create_chat(&new).await? {
            Opened::New(views) => {
                let mine = views.iter().find(|(user_id, _)| *user_id == caller.user_id).map(|(_, chat)| chat.clone());
                self.bus.publish(Event::Chat(ChatEvent { chat_id: id, rev: Rev(1), change: Change::Created(views) }));
                Ok((mine.ok_or(Error::new(Code::ChatNotFound))?, true))
            }
            Opened::Found { chat, was_off_the_list } => {
                if was_off_the_list {
                    self.bus.publish(Event::ChatBack { chat_id: chat.id, user_id: caller.user_id });
                }
                Ok((chat, false))
            }
        }
    }

    fn check_creation(&self, creator: UserId, request: ChatRequest) -> Result<Creation> {
        let ChatRequest { kind, name, member_ids } = request;
        let mut checks = Checks::new();
        let mut members = member_ids;
        if kind.has_membership() {
            // Naming oneself, or somebody twice, is harmless: the list says who shall be in the chat.
            members.retain(|id| *id != creator);
            members.sort_unstable();
            members.dedup();
        }
        if members.len() > MEMBERS_AT_ONCE_MAX {
            checks.fail("member_ids", format!("has more than {MEMBERS_AT_ONCE_MAX} users; add the others later"));
        }
        let creation = match kind {
            ChatKind::SelfChat => {
                if !members.is_empty() {
                    checks.fail("member_ids", "must be absent: nobody else is in this chat");
                }
                Creation::SelfChat
            }
            ChatKind::Private => match members.as_slice() {
                [peer] if *peer != creator => Creation::Private(*peer),
                _ => {
                    checks.fail("member_ids", "must name exactly one other user");
                    Creation::SelfChat
                }
            },
            ChatKind::Group | ChatKind::Channel => {
                let name = checks.keep("name", text::name(name.as_deref().unwrap_or_default()));
                Creation::Shared { kind, name, members }
            }
        };
        if !kind.has_membership() && request_has_name(name.as_deref()) {
            checks.fail("name", "must be absent: chats of this kind have no name of their own");
        }
        checks.done()?;
        match &creation {
            Creation::Shared { kind: ChatKind::Group, members, .. }
                if i64::try_from(members.len() + 1).unwrap_or(i64::MAX) > self.limits.group_members_max =>
            {
                Err(Code::MemberLimit.into())
            }
            _ => Ok(creation),
        }
    }

    /// Gives a group or channel another name.
    ///
    /// # Errors
    /// `invalid_fields`, `rate_limited`, `chat_not_found`, `not_allowed`, `wrong_chat_kind`.
    pub async fn rename_chat(&self, caller: Caller, chat_id: ChatId, name: &str) -> Result<Chat> {
        let mut checks = Checks::new();
        let name = checks.keep("name", text::name(name));
        checks.done()?;
        self.limit(CHANGES, &caller.user_id.to_string()).await?;
        let Some(chat) = self.store.rename_chat(chat_id, caller.user_id, &name).await? else {
            return self.chat(caller, chat_id).await;
        };
        let change = Change::Renamed(chat.clone().for_all());
        self.bus.publish(Event::Chat(ChatEvent { chat_id, rev: chat.rev, change }));
        Ok(chat)
    }

    /// Removes a group or channel for all; of a self or private chat the history for the caller alone.
    ///
    /// # Errors
    /// `rate_limited`, `chat_not_found`, `not_allowed`.
    pub async fn remove_chat(&self, caller: Caller, chat_id: ChatId) -> Result<()> {
        self.limit(CHANGES, &caller.user_id.to_string()).await?;
        match self.store.remove_chat(chat_id, caller.user_id, self.clock.now()).await? {
            Some(rev) => self.publish_change(ChatEvent { chat_id, rev, change: Change::Removed }),
            None => self.bus.publish(Event::ChatGone { chat_id, user_id: caller.user_id }),
        }
        Ok(())
    }

    /// A page of a chat's members, and the cursor behind it if there may be more.
    ///
    /// # Errors
    /// `chat_not_found`, `invalid_fields` for a bad cursor.
    pub async fn members(
        &self,
        caller: Caller,
        chat_id: ChatId,
        limit: Option<i64>,
        after: Option<&str>,
    ) -> Result<(Vec<Member>, Option<String>)> {
        let after: Option<MemberCursor> = after.map(cursor::decode).transpose()?;
        self.access(caller, chat_id).await?;
        let limit = self.page("limit", limit)?;
        let mut members = self.store.members(chat_id, after.map(|after| after.user_id), limit + 1).await?;
        let more = cut(&mut members, limit);
        let next =
            members.last().filter(|_| more).map(|member| cursor::encode(&MemberCursor { user_id: member.user.id }));
        Ok((members, next))
    }

    /// Adds a member to a group or channel.
    ///
    /// # Errors
    /// `rate_limited`, and what [`crate::store::Store::add_member`] refuses.
    pub async fn add_member(&self, caller: Caller, chat_id: ChatId, user_id: UserId, role: Role) -> Result<Member> {
        self.limit(CHANGES, &caller.user_id.to_string()).await?;
        let add = AddMember {
            chat_id,
            actor: caller.user_id,
            user_id,
            role,
            now: self.clock.now(),
            members_max: self.limits.group_members_max,
            chats_max: self.limits.chats_per_user_max,
        };
        let event = self.store.add_member(&add).await?;
        let Change::MemberJoined(joined) = &event.change else {
            return Err(Error::internal("adding a member made another change"));
        };
        let member = joined.0.clone();
        self.bus.publish(Event::Chat(event));
        Ok(member)
    }

    /// Gives a member another role.
    ///
    /// # Errors
    /// `rate_limited`, and what [`crate::store::Store::change_role`] refuses.
    pub async fn change_role(&self, caller: Caller, chat_id: ChatId, user_id: UserId, role: Role) -> Result<Member> {
        self.limit(CHANGES, &caller.user_id.to_string()).await?;
        let (member, event) = self.store.change_role(chat_id, caller.user_id, user_id, role).await?;
        if let Some(event) = event {
            self.bus.publish(Event::Chat(event));
        }
        Ok(member)
    }

    /// Removes a member, or lets the caller leave.
    ///
    /// # Errors
    /// `rate_limited`, and what [`crate::store::Store::remove_member`] refuses.
    pub async fn remove_member(&self, caller: Caller, chat_id: ChatId, user_id: UserId) -> Result<()> {
        self.limit(CHANGES, &caller.user_id.to_string()).await?;
        let event = self.store.remove_member(chat_id, caller.user_id, user_id, self.clock.now()).await?;
        self.publish_change(event);
        Ok(())
    }

    /// Tells the hubs of a change. What is left of a removed chat goes at once, so that it is nothing to pass by for long.
    pub(super) fn publish_change(&self, event: ChatEvent) {
        let removed = matches!(event.change, Change::Removed);
        self.bus.publish(Event::Chat(event));
        if removed {
            self.jobs_due.notify_one();
        }
    }

    /// What changed in a chat after a revision.
    ///
    /// # Errors
    /// `chat_not_found`.
    pub async fn changes(
        &self,
        caller: Caller,
        chat_id: ChatId,
        after_rev: Rev,
        max: Option<i64>,
    ) -> Result<ChangesPage> {
        let access = self.access(caller, chat_id).await?;
        let max = self.page("max", max)?;
        let not_found = || Error::new(Code::ChatNotFound);
        let changes = self.store.changes(chat_id, Some(caller.user_id), after_rev, max).await?.ok_or_else(not_found)?;
        let mut page = ChangesPage {
            messages: Vec::new(),
            members: Vec::new(),
            removed_member_ids: Vec::new(),
            chat: None,
            rev: changes.rev,
            complete: changes.complete,
            members_forgotten: changes.forgotten,
        };
        for (_, change) in changes.items {
            match change {
                Change::MessageSent(message) | Change::MessageEdited(message) | Change::MessageRemoved(message) => {
                    if message.id > access.cleared_message_id {
                        page.messages.push(message.for_viewer(caller.user_id));
                    }
                }
                Change::MemberJoined(joined) => page.members.push(joined.0),
                Change::MemberChanged(member) => page.members.push(member),
                Change::MemberLeft(user_id) => page.removed_member_ids.push(user_id),
                Change::Renamed(chat) => page.chat = Some(chat),
                Change::Created(_) | Change::Removed => {}
            }
        }
        if page.chat.is_some() {
            page.chat = Some(self.chat(caller, chat_id).await?);
        }
        Ok(page)
    }
}

fn request_has_name(name: Option<&str>) -> bool {
    name.is_some_and(|name| !name.trim().is_empty())
}

/// Cuts a list that was read one longer than asked. Whether there was more.
pub(super) fn cut<T>(list: &mut Vec<T>, limit: i64) -> bool {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = list.len() > limit;
    list.truncate(limit);
    more
}
