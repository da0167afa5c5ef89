//! Chats, their members, and who may do what.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::user::UserBrief;
use super::{ChatId, Code, MessageId, MessageKind, Result, Rev, Timestamp, UserId, words};

words! {
    /// The kinds of chat.
    ChatKind {
        /// Notes to oneself; everyone has at most one.
        SelfChat = "self",
        /// Two people; a pair has at most one.
        Private = "private",
        /// A few people who all write.
        Group = "group",
        /// Owner and admins write, members read.
        Channel = "channel",
    }
}

words! {
    /// What a member may do, least last.
    Role {
        /// Everything, removing the chat included.
        Owner = "owner",
        /// Members and other people's messages.
        Admin = "admin",
        /// Read, and write where members write.
        Member = "member",
    }
}

impl ChatKind {
    /// Whether people come and go: groups and channels.
    pub const fn has_membership(self) -> bool {
        matches!(self, Self::Group | Self::Channel)
    }
}

impl Role {
    /// Owner or admin.
    pub const fn leads(self) -> bool {
        matches!(self, Self::Owner | Self::Admin)
    }
}

/// What a member wants to do to a chat or somebody in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a message, or say that one is being typed.
    Write,
    /// Change the chat's name.
    Rename,
    /// Remove the chat for all.
    RemoveChat,
    /// Add a member with this role.
    Add(Role),
    /// Change a member's role from the first to the second.
    ChangeRole(Role, Role),
    /// Remove a member who has this role.
    Remove(Role),
    /// Remove somebody else's message.
    RemoveMessage,
}

/// The one table of permissions.
///
/// # Errors
/// `wrong_chat_kind` where chats of this kind don't have that; `not_allowed` where the role lacks
/// the right.
pub fn permit(kind: ChatKind, role: Role, action: Action) -> Result<()> {
    let membership_only =
        !matches!(action, Action::Write | Action::RemoveMessage) && !kind.has_membership();
    if membership_only {
        return Err(Code::WrongChatKind.into());
    }
    let allowed = match action {
        Action::Write => kind != ChatKind::Channel || role.leads(),
        Action::RemoveMessage => kind.has_membership() && role.leads(),
        Action::Rename => role.leads(),
        // An admin manages plain members; only owners touch owners and admins.
        Action::Add(new) => role == Role::Owner || (role == Role::Admin && new == Role::Member),
        Action::RemoveChat | Action::ChangeRole(..) => role == Role::Owner,
        Action::Remove(target) => {
            role == Role::Owner || (role == Role::Admin && target == Role::Member)
        }
    };
    if allowed { Ok(()) } else { Err(Code::NotAllowed.into()) }
}

/// The newest message of a chat, in few words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LastMessage {
    /// Its position.
    pub id: MessageId,
    /// Who sent it.
    pub sender_id: UserId,
    /// Its beginning. Absent once removed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub text: Option<String>,
    /// When it was sent.
    pub sent_at: Timestamp,
    /// What it carries.
    pub kind: MessageKind,
}

/// A chat as one of its members sees it. In events that go to all members, what differs between
/// them is absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Chat {
    /// Its id.
    pub id: ChatId,
    /// Its kind.
    pub kind: ChatKind,
    /// Its name; of a private chat the other member's, of the self chat the caller's.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// Its revision at the moment of this view.
    pub rev: Rev,
    /// When the last message was sent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_message_at: Option<Timestamp>,
    /// Position of the last message; 0 in an empty chat.
    pub last_message_id: MessageId,
    /// The last message, unless there is none or the caller removed the history.
    pub last_message: Option<LastMessage>,
    /// `last_message_id` − `last_read_message_id`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub unread_count: Option<i64>,
    /// The caller's read marker.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_read_message_id: Option<MessageId>,
    /// The caller's role.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub role: Option<Role>,
    /// How many members it has.
    pub member_count: i64,
    /// The other member of a private chat.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub peer: Option<UserBrief>,
}

impl Chat {
    /// What of this view is the same for every member.
    #[must_use]
    pub fn for_all(self) -> Self {
        Self { unread_count: None, last_read_message_id: None, role: None, peer: None, ..self }
    }
}

/// A member of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Member {
    /// Who.
    pub user: UserBrief,
    /// What they may do.
    pub role: Role,
    /// Since when.
    pub joined_at: Timestamp,
    /// How far they have read.
    pub last_read_message_id: MessageId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_a_channel_only_owner_and_admins_write() {
        assert!(permit(ChatKind::Channel, Role::Owner, Action::Write).is_ok());
        assert!(permit(ChatKind::Channel, Role::Admin, Action::Write).is_ok());
        assert!(permit(ChatKind::Channel, Role::Member, Action::Write).is_err());
        assert!(permit(ChatKind::Group, Role::Member, Action::Write).is_ok());
    }

    #[test]
    fn an_admin_manages_members_but_neither_admins_nor_owners() {
        for action in [
            Action::Add(Role::Admin),
            Action::Remove(Role::Owner),
            Action::Remove(Role::Admin),
            Action::RemoveChat,
        ] {
            assert!(permit(ChatKind::Group, Role::Admin, action).is_err(), "{action:?}");
        }
        assert!(permit(ChatKind::Group, Role::Admin, Action::Remove(Role::Member)).is_ok());
        assert!(permit(ChatKind::Group, Role::Admin, Action::Add(Role::Member)).is_ok());
    }

    #[test]
    fn nobody_removes_the_other_ones_message_in_a_private_chat() {
        assert!(permit(ChatKind::Private, Role::Member, Action::RemoveMessage).is_err());
    }
}
