//! I15: the counts of a chat, and the replicas' views of them, match the log.

use super::facts::{ChatFacts, Facts};
use super::report::Sink;
use super::{FinalView, Harm, Invariant, Location};

pub(super) fn check(facts: &Facts<'_>, sink: &mut Sink<'_>) {
    let mut report =
        |location: Location, what: String| sink.add(Invariant::I15, Harm::Wrong, location, || what);
    for facts in facts.chats.values() {
        let (log, location) = (facts.log, Location::chat(facts.log.chat));
        let messages = u32::try_from(facts.messages.len()).unwrap_or(u32::MAX);

        if log.last_message_id != messages {
            report(
                location,
                format!("last_message_id is {}, but the log has {messages}", log.last_message_id),
            );
        }

        let members = members(facts);
        if !log.members.is_empty() && log.member_count != members {
            report(
                location,
                format!("member_count is {}, but the log has {members}", log.member_count),
            );
        }

        for member in log.members.iter().filter(|member| member.last_read_message_id > messages) {
            report(
                location,
                format!(
                    "a read marker is at message {}, after the last message",
                    member.last_read_message_id
                ),
            );
        }
    }

    for view in &facts.evidence.log.views {
        let Some(chat) = facts.chats.get(&view.chat.chat) else { continue };
        for what in faults(chat, view) {
            let user = facts.record.word(view.user);
            report(
                Location::chat(view.chat.chat),
                format!("replica {} shows user {user} {what}", view.replica),
            );
        }
    }
}

fn members(facts: &ChatFacts<'_>) -> u32 {
    let members = facts.log.members.iter().filter(|member| member.left_rev.is_none()).count();
    u32::try_from(members).unwrap_or(u32::MAX)
}

fn faults(facts: &ChatFacts<'_>, view: &FinalView) -> Vec<String> {
    let (log, chat) = (facts.log, view.chat);
    let mut faults = Vec::new();

    let mut expect = |what: &str, shown: u32, expected: u32| {
        if shown != expected {
            faults.push(format!("{what} {shown} instead of {expected}"));
        }
    };

    let last = facts.messages.last().map(|message| message.seen);
    expect("rev", chat.rev, log.rev);
    expect("last message", chat.last_message_id, last.map_or(0, |seen| seen.id));

    if !log.members.is_empty() {
        expect("member count", chat.member_count, members(facts));
    }

    if let (Some(unread), Some(read)) = (chat.unread_count, chat.last_read_message_id) {
        expect("unread count", unread, chat.last_message_id.saturating_sub(read));
    }

    let member =
        log.members.iter().find(|member| member.user == view.user && member.left_rev.is_none());
    if let (Some(read), Some(member)) = (chat.last_read_message_id, member) {
        expect("read marker", read, member.last_read_message_id);
    }

    if let Some(last) = last.filter(|_| chat.last_sender.0 != 0)
        && last.sender != chat.last_sender
    {
        faults.push("a wrong sender of the last message".to_owned());
    }
    faults
}
