//! Chats, their members, and the permissions of each role.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::user::UserBrief;
use super::{ChatId, Code, MessageId, MessageKind, Result, Rev, Timestamp, UserId, words};

words! {
    /// The kinds of chat.
    ChatKind {
        /// A user's notes. A user has at most one self chat.
        SelfChat = "self",
        /// A chat of two users. A pair of users has at most one.
        Private = "private",
        /// A chat of a few users, in which every member writes.
        Group = "group",
        /// A chat in which the owners and admins write and the members read.
        Channel = "channel",
    }
}

words! {
    /// The roles, the one with the most rights first.
    Role {
        /// Has every right, including the removal of the chat.
        Owner = "owner",
        /// Manages plain members and removes messages of others.
        Admin = "admin",
        /// Reads, and writes except in channels.
        Member = "member",
    }
}

impl ChatKind {
    /// Whether users join and leave chats of this kind: groups and channels.
    pub const fn has_membership(self) -> bool {
        matches!(self, Self::Group | Self::Channel)
    }
}

impl Role {
    /// Whether the role is owner or admin.
    pub const fn leads(self) -> bool {
        matches!(self, Self::Owner | Self::Admin)
    }
}

/// An action of a member on a chat, on a member or on a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a message, or show that the member is typing.
    Write,
    /// Change the chat's name.
    Rename,
    /// Remove the chat for all members.
    RemoveChat,
    /// Add a member with this role.
    Add(Role),
    /// Change a member's role from the first to the second.
    ChangeRole(Role, Role),
    /// Remove a member with this role.
    Remove(Role),
    /// Remove a message of another user.
    RemoveMessage,
}

/// Checks whether a member with this role may do this in a chat of this kind. All permissions are
/// decided here.
///
/// # Errors
/// `wrong_chat_kind` if chats of this kind do not support the action; `not_allowed` if the role
/// lacks the right.
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
        // An admin manages plain members. Only an owner manages owners and admins.
        Action::Add(new) => role == Role::Owner || (role == Role::Admin && new == Role::Member),
        Action::RemoveChat | Action::ChangeRole(..) => role == Role::Owner,
        Action::Remove(target) => {
            role == Role::Owner || (role == Role::Admin && target == Role::Member)
        }
    };

    if allowed { Ok(()) } else { Err(Code::NotAllowed.into()) }
}

/// A summary of the newest message of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LastMessage {
    /// The position of the message in the chat.
    pub id: MessageId,
    /// The user who sent the message.
    pub sender_id: UserId,
    /// The first 140 characters of the text. Absent once the message is removed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub text: Option<String>,
    /// When the server accepted the message.
    pub sent_at: Timestamp,
    /// The type of the content.
    pub kind: MessageKind,
}

/// A chat as one of its members sees it. Events that go to all members leave out the fields that
/// differ between members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Chat {
    /// A UUID.
    pub id: ChatId,
    /// The kind, fixed when the chat was created.
    pub kind: ChatKind,
    /// The chat's name. A private chat has the name of the other member, a self chat the name of
    /// the caller.
    pub name: String,
    /// When the chat was created.
    pub created_at: Timestamp,
    /// The chat's revision when this view was read.
    pub rev: Rev,
    /// When the last message was sent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_message_at: Option<Timestamp>,
    /// The position of the last message; 0 in an empty chat.
    pub last_message_id: MessageId,
    /// The last message; null if there is none or the caller removed the history.
    pub last_message: Option<LastMessage>,
    /// The number of messages after the read marker: `last_message_id` − `last_read_message_id`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub unread_count: Option<i64>,
    /// The caller's read marker: the position of the last message that the caller read.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_read_message_id: Option<MessageId>,
    /// The caller's role in the chat.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub role: Option<Role>,
    /// The number of members.
    pub member_count: i64,
    /// The other member of a private chat.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub peer: Option<UserBrief>,
}

impl Chat {
    /// This view without the fields that differ between members.
    #[must_use]
    pub fn for_all(self) -> Self {
        Self { unread_count: None, last_read_message_id: None, role: None, peer: None, ..self }
    }
}

/// A member of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Member {
    /// The member's account.
    pub user: UserBrief,
    /// The member's rights in the chat.
    pub role: Role,
    /// When the user joined the chat.
    pub joined_at: Timestamp,
    /// The member's read marker: the position of the last message that the member read.
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
    fn a_member_cannot_remove_the_other_members_message_in_a_private_chat() {
        assert!(permit(ChatKind::Private, Role::Member, Action::RemoveMessage).is_err());
    }
}
