//! I1: the message ids of a chat are 1 to n. Each rev is used at most once, and the highest one is
//! the chat's rev.

use super::facts::Facts;
use super::report::Sink;
use super::{Harm, Invariant, Location};

pub(super) fn check(facts: &Facts<'_>, sink: &mut Sink<'_>) {
    for facts in facts.chats.values() {
        let (log, chat) = (facts.log, facts.log.chat);
        for (expected, message) in (1..).zip(&facts.messages) {
            if message.seen.id != expected {
                let harm = if message.seen.id < expected { Harm::Doubled } else { Harm::Lost };
                sink.add(Invariant::I1, harm, Location::chat(chat), || {
                    format!("found message {}, expected message {expected}", message.seen.id)
                });
                break;
            }
        }

        for pair in facts.by_rev.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
            sink.add(Invariant::I1, Harm::Reordered, Location::rev(chat, pair[0].0), || {
                format!("messages {} and {} share a rev", pair[0].1, pair[1].1)
            });
        }

        for rev in facts.other_revs.iter().filter(|rev| !facts.changed(**rev - 1, **rev).is_empty())
        {
            sink.add(Invariant::I1, Harm::Reordered, Location::rev(chat, *rev), || {
                "a message and a member share a rev".to_owned()
            });
        }

        let last = facts
            .by_rev
            .last()
            .map_or(0, |(rev, _)| *rev)
            .max(facts.other_revs.last().copied().unwrap_or(0));

        let others_known =
            log.members.iter().all(|member| member.rev > 0) && !log.members.is_empty();
        // The last change may belong to a member whose rev is unknown.
        if last > log.rev || (others_known && log.renamed_rev > 0 && last.max(1) != log.rev) {
            sink.add(Invariant::I1, Harm::Wrong, Location::rev(chat, log.rev), || {
                format!("the chat's rev is {}, but the highest in its log is {last}", log.rev)
            });
        }
    }
}
