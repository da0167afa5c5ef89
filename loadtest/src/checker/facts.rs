//! What several invariants need, gathered once.

use super::ledger::{Item, Ledger, Move};
use super::quick::HashMap;
use super::{Evidence, FinalChat, FinalMessage};
use crate::history::{Kind, Name, Op, Record};

/// A chat of the final log, ready to be looked up.
pub(super) struct ChatFacts<'a> {
    pub log: &'a FinalChat,
    /// Messages by id.
    pub messages: Vec<&'a FinalMessage>,
    /// (rev of the last change, id), ascending.
    pub by_rev: Vec<(u32, u32)>,
    /// (rev that sent it, id), ascending; of messages of which it is known.
    pub by_sent_rev: Vec<(u32, u32)>,
    /// Revisions of members' last changes and of the last renaming, ascending, as far as they are
    /// known.
    pub other_revs: Vec<u32>,
}

impl ChatFacts<'_> {
    /// The message with this id.
    pub(super) fn message(&self, id: u32) -> Option<&FinalMessage> {
        let index = self.messages.binary_search_by_key(&id, |message| message.seen.id).ok()?;
        Some(self.messages[index])
    }

    /// The messages whose last change is after `from`, and not after `to`: (rev, id).
    pub(super) fn changed(&self, from: u32, to: u32) -> &[(u32, u32)] {
        between(&self.by_rev, from, to)
    }

    /// The messages sent after `from`, and not after `to`: (rev, id).
    pub(super) fn sent(&self, from: u32, to: u32) -> &[(u32, u32)] {
        between(&self.by_sent_rev, from, to)
    }

    /// Whether at the end something still is as this rev left it: then nobody may have been spared
    /// its event.
    pub(super) fn is_final(&self, rev: u32) -> bool {
        !self.changed(rev - 1, rev).is_empty() || self.other_revs.binary_search(&rev).is_ok()
    }
}

fn between(sorted: &[(u32, u32)], from: u32, to: u32) -> &[(u32, u32)] {
    let start = sorted.partition_point(|(rev, _)| *rev <= from);
    let end = sorted.partition_point(|(rev, _)| *rev <= to);
    sorted.get(start..end).unwrap_or_default()
}

/// Whether a user was a member at a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Membership {
    /// Or it can't be told.
    Possible,
    /// Certainly not.
    Never,
}

/// What several invariants need.
pub(super) struct Facts<'a> {
    pub evidence: &'a Evidence<'a>,
    pub record: &'a Record,
    pub chats: HashMap<Name, ChatFacts<'a>>,
    pub ledger: Ledger,
    /// Edits and removals that may have been done, by (chat, message).
    pub changes: HashMap<(Name, u32), Vec<&'a Op>>,
    /// Joins and leavings that may have been done, by (chat, user).
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

    /// Edits and removals of a message that may have been done.
    pub(super) fn changes(&self, chat: Name, id: u32) -> &[&'a Op] {
        self.changes.get(&(chat, id)).map_or(&[], |ops| ops)
    }

    /// Joins and leavings of a user that may have been done.
    pub(super) fn membership_ops(&self, chat: Name, user: Name) -> &[&'a Op] {
        self.membership_ops.get(&(chat, user)).map_or(&[], |ops| ops)
    }

    /// What a rev changed, if anybody knows.
    pub(super) fn item(&self, chat: Name, rev: u32) -> Option<Item> {
        self.ledger.claims.get(&(chat, rev)).map(|claim| claim.item)
    }

    /// Whether anything at all makes this user a member of this chat, at any time.
    pub(super) fn is_stranger(&self, chat: Name, user: Name) -> bool {
        let Some(facts) = self.chats.get(&chat) else { return false };
        let listed = facts.log.members.iter().any(|member| member.user == user);
        let joining =
            self.membership_ops(chat, user).iter().any(|op| matches!(op.kind, Kind::Join { .. }));
        !listed && !joining && !self.ledger.moves.contains_key(&(chat, user))
    }

    /// Whether a user may have been a member when this rev came to be. Membership ends with the rev
    /// of the leaving.
    pub(super) fn membership(&self, chat: Name, user: Name, rev: u32) -> Membership {
        let Some(moves) = self.ledger.moves.get(&(chat, user)) else { return Membership::Possible };
        let turns = || moves.iter().filter(|(_, what)| *what != Move::Changed);
        let last = turns().rfind(|(at, what)| *at < rev || (*at == rev && *what == Move::Joined));
        let outside = match last {
            Some((_, what)) => *what == Move::Left,
            None => turns().next().is_some_and(|(at, what)| *at > rev && *what == Move::Joined),
        };
        if outside && self.all_turns_known(chat, user, moves) {
            Membership::Never
        } else {
            Membership::Possible
        }
    }

    /// Whether every join and leaving that may have been done is one that somebody saw.
    fn all_turns_known(&self, chat: Name, user: Name, moves: &[(u32, Move)]) -> bool {
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
