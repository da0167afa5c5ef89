//! Indices over the record and the final log that several invariants share.

use super::ledger::{Item, Ledger, Move};
use super::quick::HashMap;
use super::{Evidence, FinalChat, FinalMessage};
use crate::history::{Kind, Name, Op, Record};

/// Indices over a chat of the final log.
pub(super) struct ChatFacts<'a> {
    pub log: &'a FinalChat,
    /// Messages by id.
    pub messages: Vec<&'a FinalMessage>,
    /// (rev of the last change, id), ascending.
    pub by_rev: Vec<(u32, u32)>,
    /// (rev of the send, id), ascending, for messages whose send is known.
    pub by_sent_rev: Vec<(u32, u32)>,
    /// Known revisions of the members' last changes and of the last rename, ascending.
    pub other_revs: Vec<u32>,
}

impl ChatFacts<'_> {
    pub(super) fn message(&self, id: u32) -> Option<&FinalMessage> {
        let index = self.messages.binary_search_by_key(&id, |message| message.seen.id).ok()?;
        Some(self.messages[index])
    }

    /// (rev, id) of the messages whose last change is after `from` and not after `to`.
    pub(super) fn changed(&self, from: u32, to: u32) -> &[(u32, u32)] {
        between(&self.by_rev, from, to)
    }

    /// (rev, id) of the messages sent after `from` and not after `to`.
    pub(super) fn sent(&self, from: u32, to: u32) -> &[(u32, u32)] {
        between(&self.by_sent_rev, from, to)
    }

    /// Whether a message or member was last changed at this rev. If so, its event must reach every
    /// member.
    pub(super) fn is_final(&self, rev: u32) -> bool {
        !self.changed(rev - 1, rev).is_empty() || self.other_revs.binary_search(&rev).is_ok()
    }
}

fn between(sorted: &[(u32, u32)], from: u32, to: u32) -> &[(u32, u32)] {
    let start = sorted.partition_point(|(rev, _)| *rev <= from);
    let end = sorted.partition_point(|(rev, _)| *rev <= to);
    sorted.get(start..end).unwrap_or_default()
}

/// Whether a user can have been a member at a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Membership {
    /// The user was a member, or the record cannot exclude it.
    Possible,
    /// The user was certainly not a member.
    Never,
}

/// The record, the final log and the indices over both.
pub(super) struct Facts<'a> {
    pub evidence: &'a Evidence<'a>,
    pub record: &'a Record,
    pub chats: HashMap<Name, ChatFacts<'a>>,
    pub ledger: Ledger,
    /// Edits and removals that the server may have done, by (chat, message).
    pub changes: HashMap<(Name, u32), Vec<&'a Op>>,
    /// Joins and leaves that the server may have done, by (chat, user).
    pub membership_ops: HashMap<(Name, Name), Vec<&'a Op>>,
}

impl<'a> Facts<'a> {
    pub(super) fn gather(evidence: &'a Evidence<'a>) -> Self {
        let ledger = Ledger::read(evidence);
        let chats =
            evidence.log.chats.iter().map(|log| (log.chat, chat_facts(log, &ledger))).collect();
        let mut changes: HashMap<_, Vec<_>> = HashMap::default();
        let mut membership_ops: HashMap<_, Vec<_>> = HashMap::default();

        for op in evidence.record.ops.iter().filter(|op| op.may_be_done()) {
            match op.kind {
                Kind::Edit { chat, message_id, .. } | Kind::Remove { chat, message_id } => {
                    changes.entry((chat, message_id)).or_default().push(op);
                }
                Kind::Join { chat, user } | Kind::Leave { chat, user } => {
                    membership_ops.entry((chat, user)).or_default().push(op);
                }
                _ => {}
            }
        }

        Self { evidence, record: evidence.record, chats, ledger, changes, membership_ops }
    }

    /// Edits and removals of a message that the server may have done.
    pub(super) fn changes(&self, chat: Name, id: u32) -> &[&'a Op] {
        self.changes.get(&(chat, id)).map_or(&[], |ops| ops)
    }

    /// Joins and leaves of a user that the server may have done.
    pub(super) fn membership_ops(&self, chat: Name, user: Name) -> &[&'a Op] {
        self.membership_ops.get(&(chat, user)).map_or(&[], |ops| ops)
    }

    /// The item that a rev changed, if a read or a frame showed it.
    pub(super) fn item(&self, chat: Name, rev: u32) -> Option<Item> {
        self.ledger.claims.get(&(chat, rev)).map(|claim| claim.item)
    }

    /// Whether the user was certainly never a member of the chat.
    pub(super) fn is_stranger(&self, chat: Name, user: Name) -> bool {
        let Some(facts) = self.chats.get(&chat) else { return false };
        let listed = facts.log.members.iter().any(|member| member.user == user);
        let joining =
            self.membership_ops(chat, user).iter().any(|op| matches!(op.kind, Kind::Join { .. }));
        !listed && !joining && !self.ledger.moves.contains_key(&(chat, user))
    }

    /// Whether a user can have been a member at this rev. At the rev of a leave, the user still
    /// counts as a member.
    pub(super) fn membership(&self, chat: Name, user: Name, rev: u32) -> Membership {
        let Some(moves) = self.ledger.moves.get(&(chat, user)) else { return Membership::Possible };
        let changes = || moves.iter().filter(|(_, what)| *what != Move::Changed);
        let last = changes().rfind(|(at, what)| *at < rev || (*at == rev && *what == Move::Joined));

        let outside = match last {
            Some((_, what)) => *what == Move::Left,
            None => changes().next().is_some_and(|(at, what)| *at > rev && *what == Move::Joined),
        };

        if outside && self.all_changes_seen(chat, user, moves) {
            Membership::Never
        } else {
            Membership::Possible
        }
    }

    /// Whether `moves` contains every join and leave that the server may have done.
    fn all_changes_seen(&self, chat: Name, user: Name, moves: &[(u32, Move)]) -> bool {
        let seen = |wanted| moves.iter().filter(|(rev, what)| *what == wanted && *rev > 1).count();
        let ops = self.membership_ops(chat, user);
        let joins = ops.iter().filter(|op| matches!(op.kind, Kind::Join { .. })).count();
        joins <= seen(Move::Joined) && ops.len() - joins <= seen(Move::Left)
    }
}

fn chat_facts<'a>(log: &'a FinalChat, ledger: &Ledger) -> ChatFacts<'a> {
    let mut messages: Vec<&FinalMessage> = log.messages.iter().collect();
    messages.sort_unstable_by_key(|message| message.seen.id);

    let mut by_rev: Vec<(u32, u32)> =
        messages.iter().map(|message| (message.seen.rev, message.seen.id)).collect();
    by_rev.sort_unstable();

    let sent_rev =
        |id: u32| ledger.origins.get(&(log.chat, id)).map_or(0, |origin| origin.sent_rev);
    let mut by_sent_rev: Vec<(u32, u32)> = messages
        .iter()
        .map(|message| (sent_rev(message.seen.id), message.seen.id))
        .filter(|(rev, _)| *rev > 0)
        .collect();
    by_sent_rev.sort_unstable();

    let mut other_revs: Vec<u32> = log.members.iter().map(|member| member.rev).collect();
    other_revs.push(log.renamed_rev);
    other_revs.retain(|rev| *rev > 1);
    other_revs.sort_unstable();

    ChatFacts { log, messages, by_rev, by_sent_rev, other_revs }
}
