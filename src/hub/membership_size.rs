//! The size of a chat's membership, and which members get each change of it.
//!
//! Up to a bound every member gets every join. Above it only the owner and the admins do; the other
//! members get the number of members every few seconds
//! ([`ServerFrame::MemberCount`](crate::wire::ServerFrame::MemberCount)). That frame stands for the
//! revisions that they did not get. So 10,000 joins cost each member a frame every few seconds, and
//! the client can account for every revision.

use crate::model::{Change, Chat, ChatKind, Rev, Role};

/// The number of members of a chat at a revision, as counted by this replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MembershipSize {
    is_channel: bool,
    member_count: i64,
    /// The revision that the count belongs to.
    rev: Rev,
}

/// The state of a chat in a connection's snapshot.
#[derive(Clone, Copy, Debug, Default)]
pub struct Snapshot {
    /// The revision of the chat in the snapshot.
    pub rev: Rev,
    /// The role of the connection's user.
    pub role: Option<Role>,
    /// The size of the membership.
    pub size: MembershipSize,
}

impl From<Rev> for Snapshot {
    fn from(rev: Rev) -> Self {
        Self { rev, ..Self::default() }
    }
}

impl MembershipSize {
    /// The size in a view of a chat.
    pub fn of(chat: &Chat) -> Self {
        Self::new(chat.kind, chat.member_count, chat.rev)
    }

    /// The size of a chat that has `member_count` members at `rev`.
    pub fn new(kind: ChatKind, member_count: i64, rev: Rev) -> Self {
        Self { is_channel: kind == ChatKind::Channel, member_count, rev }
    }

    /// The number of members at the revision of this size.
    pub fn member_count(&self) -> i64 {
        self.member_count
    }

    /// Whether a member with this role gets the number of members instead of each change, if the
    /// chat has more than `events_max` members. A member whose role has not been read yet counts as
    /// an ordinary one.
    pub fn gets_counts(&self, role: Option<Role>, events_max: i64) -> bool {
        self.is_channel && self.member_count > events_max && !role.is_some_and(Role::leads)
    }

    /// Adopts another size, unless it is older.
    pub(super) fn update(&mut self, other: Self) {
        if other.rev >= self.rev {
            *self = other;
        }
    }

    /// Counts a change, unless the count includes it already.
    pub(super) fn apply(&mut self, change: &Change, rev: Rev) {
        if rev <= self.rev {
            return;
        }

        match change {
            Change::MemberJoined(joined) => match &joined.1 {
                // A view from the store may be newer than the change.
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
        let counted =
            |kind, members, role| MembershipSize::new(kind, members, Rev(1)).gets_counts(role, 10);
        assert!(counted(ChatKind::Channel, 11, Some(Role::Member)));
        assert!(counted(ChatKind::Channel, 11, None));
        assert!(!counted(ChatKind::Channel, 10, Some(Role::Member)));
        assert!(!counted(ChatKind::Channel, 11, Some(Role::Admin)));
        assert!(!counted(ChatKind::Channel, 11, Some(Role::Owner)));
        assert!(!counted(ChatKind::Group, 11, Some(Role::Member)));
    }

    #[test]
    fn a_change_is_counted_once_and_a_later_snapshot_wins() {
        let mut size = MembershipSize::new(ChatKind::Channel, 5, Rev(7));
        size.apply(&Change::MemberLeft(UserId::default()), Rev(7));
        assert_eq!(size.member_count(), 5, "the snapshot includes it");
        size.apply(&Change::MemberLeft(UserId::default()), Rev(8));
        assert_eq!(size.member_count(), 4);

        size.update(MembershipSize::new(ChatKind::Channel, 9, Rev(6)));
        assert_eq!(size.member_count(), 4, "an earlier snapshot is ignored");
        size.update(MembershipSize::new(ChatKind::Channel, 9, Rev(9)));
        assert_eq!(size.member_count(), 9);
    }
}
