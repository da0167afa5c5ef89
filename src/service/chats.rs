//! Chats: the caller's list, creating, renaming and removing, and the changes of a chat.

use super::page;
use super::publisher::Publisher;
use super::rates::RateLimits;
use crate::model::cursor::{self, InboxCursor};
use crate::model::limits::{CHANGES, MEMBERS_AT_ONCE_MAX, PAGE_BYTES_MAX};
use crate::model::session::Caller;
use crate::model::text::{self, Checks};
use crate::model::{
    Change, Chat, ChatEvent, ChatId, ChatKind, Clock, Code, Error, Event, Member, Message, Result,
    Rev, Topic, UserId,
};
use crate::store::{Changes, Creation, NewChat, Opened, Store};

/// A client's request to create a chat.
#[derive(Clone, Debug)]
pub struct ChatRequest {
    pub kind: ChatKind,
    /// Only groups and channels have a name.
    pub name: Option<String>,
    /// The other members: exactly one for `private`, none for `self`.
    pub member_ids: Vec<UserId>,
}

/// The changes of a chat after a revision, grouped by their subject.
#[derive(Debug)]
pub struct ChangesPage {
    /// Messages that were sent or changed, oldest change first.
    pub messages: Vec<Message>,
    /// Members that joined or changed.
    pub members: Vec<Member>,
    /// Members that left.
    pub removed_member_ids: Vec<UserId>,
    /// The chat, if its own fields changed.
    pub chat: Option<Chat>,
    /// The revision that this page reaches.
    pub rev: Rev,
    /// Whether [`ChangesPage::rev`] is the chat's current revision.
    pub complete: bool,
    /// Whether tombstones after the requested revision were deleted, so that `removed_member_ids`
    /// may be incomplete.
    pub members_forgotten: bool,
}

/// The service for chats.
pub struct Chats {
    pub(super) store: Store,
    pub(super) rates: RateLimits,
    pub(super) publisher: Publisher,
    pub(super) clock: Clock,
    pub(super) per_user_max: i64,
    pub(super) members_max: i64,
    pub(super) page_max: i64,
}

impl Chats {
    /// A page of the caller's chats, most recent activity first, and the cursor of the next page;
    /// `None` on the last page.
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
        let limit = page::size("limit", limit, self.page_max)?;

        let mut found = self.store.inbox(caller.user_id, after, limit + 1).await?;
        let more = page::cut(&mut found, limit);
        let next = found.last().filter(|_| more).map(|(_, cursor)| cursor::encode(cursor));
        Ok((found.into_iter().map(|(chat, _)| chat).collect(), next))
    }

    /// A chat as the caller sees it.
    ///
    /// # Errors
    /// `chat_not_found`.
    pub async fn view(&self, caller: Caller, chat_id: ChatId) -> Result<Chat> {
        self.store.chat(chat_id, caller.user_id).await?.ok_or(Error::new(Code::ChatNotFound))
    }

    /// Creates a chat, or finds the existing `self` or `private` chat. Returns `true` for a new
    /// chat.
    ///
    /// # Errors
    /// `invalid_fields`, `rate_limited`, `user_unreachable`, `chat_limit_reached`,
    /// `member_limit_reached`.
    pub async fn create(&self, caller: Caller, request: ChatRequest) -> Result<(Chat, bool)> {
        let kind = self.check_creation(caller.user_id, request)?;
        self.rates.count(CHANGES, &caller.user_id.to_string()).await?;

        let now = self.clock.now();
        let id = ChatId::new(now, &mut rand::rng());
        let new = NewChat { id, kind, creator: caller.user_id, now, chats_max: self.per_user_max };
        let created = self.store.create_chat(&new).await;
        let created = self.publisher.resync_if_unknown(created, || topics_of_members(&new))?;

        match created {
            Opened::New(views) => {
                let own_view = views
                    .iter()
                    .find(|(user_id, _)| *user_id == caller.user_id)
                    .map(|(_, chat)| chat.clone());

                let change = Change::Created(views);
                self.publisher.publish(Event::Chat(ChatEvent { chat_id: id, rev: Rev(1), change }));
                Ok((own_view.ok_or(Error::new(Code::ChatNotFound))?, true))
            }
            Opened::Found { chat, was_unlisted } => {
                if was_unlisted {
                    self.publisher
                        .publish(Event::ChatBack { chat_id: chat.id, user_id: caller.user_id });
                }
                Ok((chat, false))
            }
        }
    }

    fn check_creation(&self, creator: UserId, request: ChatRequest) -> Result<Creation> {
        let ChatRequest { kind, name, member_ids: mut members } = request;

        let mut checks = Checks::new();
        if kind.has_membership() {
            // The list is a set of members: it may name the creator, and a user twice.
            members.retain(|id| *id != creator);
            members.sort_unstable();
            members.dedup();
        }
        if members.len() > MEMBERS_AT_ONCE_MAX {
            checks.fail(
                "member_ids",
                format!("has more than {MEMBERS_AT_ONCE_MAX} users; add the others later"),
            );
        }

        let creation = match kind {
            ChatKind::SelfChat => {
                if !members.is_empty() {
                    checks.fail("member_ids", "must be absent: a self chat has no other members");
                }
                Creation::SelfChat
            }
            ChatKind::Private => match members.as_slice() {
                [peer] if *peer != creator => Creation::Private(*peer),
                _ => {
                    checks.fail("member_ids", "must name exactly one other user");
                    // Never created: `checks.done` returns the error.
                    Creation::SelfChat
                }
            },
            ChatKind::Group | ChatKind::Channel => {
                let name = checks.keep("name", text::name(name.as_deref().unwrap_or_default()));
                Creation::Shared { kind, name, members }
            }
        };

        if !kind.has_membership() && name.is_some_and(|name| !name.trim().is_empty()) {
            checks.fail("name", "must be absent: only groups and channels have a name");
        }
        checks.done()?;

        match &creation {
            Creation::Shared { kind: ChatKind::Group, members, .. }
                if i64::try_from(members.len() + 1).unwrap_or(i64::MAX) > self.members_max =>
            {
                Err(Code::MemberLimit.into())
            }
            _ => Ok(creation),
        }
    }

    /// Renames a group or channel.
    ///
    /// # Errors
    /// `invalid_fields`, `rate_limited`, `chat_not_found`, `not_allowed`, `wrong_chat_kind`.
    pub async fn rename(&self, caller: Caller, chat_id: ChatId, name: &str) -> Result<Chat> {
        let mut checks = Checks::new();
        let name = checks.keep("name", text::name(name));
        checks.done()?;

        self.rates.count(CHANGES, &caller.user_id.to_string()).await?;

        let renamed = self.store.rename_chat(chat_id, caller.user_id, &name).await;
        let renamed = self.publisher.resync_if_unknown(renamed, || vec![Topic::Chat(chat_id)])?;
        let Some(chat) = renamed else {
            return self.view(caller, chat_id).await;
        };

        let change = Change::Renamed(chat.clone().for_all());
        self.publisher.publish(Event::Chat(ChatEvent { chat_id, rev: chat.rev, change }));
        Ok(chat)
    }

    /// Removes a group or channel for all members. In a self or private chat, removes the history
    /// for the caller only.
    ///
    /// # Errors
    /// `rate_limited`, `chat_not_found`, `not_allowed`.
    pub async fn remove(&self, caller: Caller, chat_id: ChatId) -> Result<()> {
        self.rates.count(CHANGES, &caller.user_id.to_string()).await?;

        let removed = self.store.remove_chat(chat_id, caller.user_id, self.clock.now()).await;
        let removed = self.publisher.resync_if_unknown(removed, || vec![Topic::Chat(chat_id)])?;

        match removed {
            Some(rev) => {
                self.publisher.publish_change(ChatEvent { chat_id, rev, change: Change::Removed });
            }
            None => self.publisher.publish(Event::ChatGone { chat_id, user_id: caller.user_id }),
        }
        Ok(())
    }

    /// The changes of a chat after a revision: at most `max` items, and fewer if their texts reach
    /// [`PAGE_BYTES_MAX`].
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
        let max = page::size("max", max, self.page_max)?;

        let changes = self.store.changes(chat_id, Some(caller.user_id), after_rev, max).await?;
        let mut changes = changes.ok_or(Error::new(Code::ChatNotFound))?;
        changes.cut_to_bytes(PAGE_BYTES_MAX);

        let mut page = ChangesPage::of(changes, caller.user_id);
        // The change carries the chat as all members see it; the page has the caller's view.
        if page.chat.is_some() {
            page.chat = Some(self.view(caller, chat_id).await?);
        }
        Ok(page)
    }
}

impl ChangesPage {
    /// Groups changes by their subject. Leaves out the messages of a history that the viewer
    /// removed.
    fn of(changes: Changes, viewer: UserId) -> Self {
        let mut page = Self {
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
                Change::MessageSent(message)
                | Change::MessageEdited(message)
                | Change::MessageRemoved(message) => {
                    if message.id > changes.cleared_message_id {
                        page.messages.push(message.for_viewer(viewer));
                    }
                }
                Change::MemberJoined(joined) => page.members.push(joined.0),
                Change::MemberChanged(member) => page.members.push(member),
                Change::MemberLeft(user_id) => page.removed_member_ids.push(user_id),
                Change::Renamed(chat) => page.chat = Some(chat),
                Change::Created(_) | Change::Removed => {}
            }
        }

        page
    }
}

/// The user topics of the first members of a chat.
fn topics_of_members(new: &NewChat) -> Vec<Topic> {
    let others: &[UserId] = match &new.kind {
        Creation::SelfChat => &[],
        Creation::Private(peer) => std::slice::from_ref(peer),
        Creation::Shared { members, .. } => members,
    };
    others.iter().chain([&new.creator]).map(|user_id| Topic::User(*user_id)).collect()
}
