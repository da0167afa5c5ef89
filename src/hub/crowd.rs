//! Large channels: how many members one has, and which of its members get each change of the membership.
//!
//! Up to a bound every member gets every join. Above it only the owner and the admins do; the other members get the number
//! of members now and then ([`ServerFrame::MemberCount`](crate::wire::ServerFrame::MemberCount)), which stands for the revisions
//! that they did not get. So 10,000 joins cost each member a frame every few seconds, and no revision goes missing
//! unexplained.

use crate::model::{Change, Chat, ChatKind, Rev, Role};

/// The membership of a chat as far as its size matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crowd {
    is_channel: bool,
    member_count: i64,
    /// The revision that the count belongs to.
    rev: Rev,
}

/// What a connection's snapshot says about a chat.
#[derive(Clone, Copy, Debug, Default)]
pub struct Snapshot {
    /// The revision up to which the client knows the chat.
    pub rev: Rev,
    /// The role of the connection's user.
    pub role: Option<Role>,
    /// The membership.
    pub crowd: Crowd,
}

impl From<Rev> for Snapshot {
    fn from(rev: Rev) -> Self {
        Self { rev, ..Self::default() }
    }
}

impl Crowd {
    /// The membership that a view of a chat shows.
    pub fn of(chat: &Chat) -> Self {
        Self::new(chat.kind, chat.member_count, chat.rev)
    }

    /// A chat of this kind with this many members at a revision.
    pub fn new(kind: ChatKind, member_count: i64, rev: Rev) -> Self {
        Self { is_channel: kind == ChatKind::Channel, member_count, rev }
    }

    /// How many members there are.
    pub fn member_count(&self) -> i64 {
        self.member_count
    }

    /// Whether a member with this role gets the number of members instead of each change, if the chat has more than
    /// `events_max` members. A member whose role is not known yet counts as an ordinary one.
    pub fn is_counted_for(&self, role: Option<Role>, events_max: i64) -> bool {
        self.is_channel && self.member_count > events_max && !role.is_some_and(Role::leads)
    }

    /// Takes over what is known for a later revision.
    pub(super) fn learn(&mut self, other: Self) {
        if other.rev >= self.rev {
            *self = other;
        }
    }

    /// Counts a change. One that the count contains already counts for nothing.
    pub(super) fn count(&mut self, change: &Change, rev: Rev) {
        if rev <= self.rev {
            return;
        }
        match change {
            Change::MemberJoined(joined) => match &joined.1 {
                // A view that was read back from the store may be newer than the change.
                Some(view) => *self = Self::of(view),
                None => self.member_count += 1,
            },
            Change::MemberLeft(_) => self.member_count -= 1,
            _ => {}
        }
        self.rev = self.rev.max(rev);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::UserId;

    #[test]
    fn only_ordinary_members_of_a_channel_above_the_bound_get_a_count() {
        let counted = |kind, members, role| Crowd::new(kind, members, Rev(1)).is_counted_for(role, 10);
        assert!(counted(ChatKind::Channel, 11, Some(Role::Member)));
        assert!(counted(ChatKind::Channel, 11, None));
        assert!(!counted(ChatKind::Channel, 10, Some(Role::Member)));
        assert!(!counted(ChatKind::Channel, 11, Some(Role::Admin)));
        assert!(!counted(ChatKind::Channel, 11, Some(Role::Owner)));
        assert!(!counted(ChatKind::Group, 11, Some(Role::Member)));
    }

    #[test]
    fn a_change_is_counted_once_and_a_later_snapshot_wins() {
        let mut crowd = Crowd::new(ChatKind::Channel, 5, Rev(7));
        crowd.count(&Change::MemberLeft(UserId::default()), Rev(7));
        assert_eq!(crowd.member_count(), 5, "the snapshot contains it");
        crowd.count(&Change::MemberLeft(UserId::default()), Rev(8));
        assert_eq!(crowd.member_count(), 4);
        crowd.learn(Crowd::new(ChatKind::Channel, 9, Rev(6)));
        assert_eq!(crowd.member_count(), 4, "an earlier snapshot says nothing");
        crowd.learn(Crowd::new(ChatKind::Channel, 9, Rev(9)));
        assert_eq!(crowd.member_count(), 9);
    }
}
