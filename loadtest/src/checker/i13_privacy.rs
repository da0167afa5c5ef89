//! I13: users receive and read only what they may see: live events of revs at which they were
//! members, and history while they are members. A user who was never a member sees nothing.

use super::facts::{Facts, Membership};
use super::quick::HashMap;
use super::report::Sink;
use super::{Harm, Invariant, Location};
use crate::history::{DeviceEvent, Kind, Name, Op, Value};

pub(super) fn check(facts: &Facts<'_>, sink: &mut Sink<'_>) {
    check_frames(facts, sink);
    check_reads(facts, sink);
}

fn check_frames(facts: &Facts<'_>, sink: &mut Sink<'_>) {
    for (number, device) in facts.record.devices.iter().enumerate() {
        let mut stranger: HashMap<Name, bool> = HashMap::default();
        for entry in &device.entries {
            let (chat, rev) = match &entry.told {
                DeviceEvent::Added { chat, .. }
                | DeviceEvent::Reset { chat, .. }
                | DeviceEvent::Read { chat, .. }
                | DeviceEvent::Typing { chat, .. } => (*chat, None),
                told => match told.event() {
                    Some((chat, rev)) => (chat, Some(rev)),
                    None => continue,
                },
            };

            let location = Location { chat: Some(chat), rev, device: Some(number) };
            if *stranger.entry(chat).or_insert_with(|| facts.is_stranger(chat, device.user)) {
                sink.add(Invariant::I13, Harm::Leaked, location, || {
                    "sent to a user who was never a member".to_owned()
                });
            } else if let Some(rev) = rev
                && facts.membership(chat, device.user, rev) == Membership::Never
            {
                sink.add(Invariant::I13, Harm::Leaked, location, || {
                    "sent to a user who was no member then".to_owned()
                });
            }
        }
    }
}

fn check_reads(facts: &Facts<'_>, sink: &mut Sink<'_>) {
    for op in &facts.record.ops {
        let shown: Vec<Name> = match (op.kind, op.value()) {
            (
                Kind::History { chat, .. } | Kind::Changes { chat, .. } | Kind::Chat { chat },
                Some(_),
            ) => vec![chat],
            (Kind::Chats, Some(Value::Chats(chats))) => {
                chats.iter().map(|chat| chat.chat).collect()
            }
            _ => continue,
        };

        for chat in shown {
            let what = if facts.is_stranger(chat, op.user) {
                "read by a user who was never a member"
            } else if is_outside(facts.membership_ops(chat, op.user), op) {
                "read by a user who had left"
            } else {
                continue;
            };
            sink.add(Invariant::I13, Harm::Leaked, Location::chat(chat), || {
                format!("{what}: user {}", facts.record.word(op.user))
            });
        }
    }
}

/// Whether a leave was acknowledged before the read began, and no join can have happened between
/// that leave and the read's answer.
fn is_outside(membership_ops: &[&Op], read: &Op) -> bool {
    let done_us = read.completed_us.unwrap_or(u64::MAX);
    let leaves = membership_ops
        .iter()
        .filter(|op| matches!(op.kind, Kind::Leave { .. }) && op.value().is_some());
    let left_us = leaves
        .filter(|op| op.completed_us.is_some_and(|at| at < read.invoked_us))
        .map(|op| op.invoked_us);
    let Some(left_us) = left_us.max() else { return false };

    let may_have_joined = |op: &&&Op| {
        // A join with an unknown outcome may happen at any later time.
        let over_us =
            if op.value().is_some() { op.completed_us.unwrap_or(u64::MAX) } else { u64::MAX };
        matches!(op.kind, Kind::Join { .. }) && over_us >= left_us && op.invoked_us <= done_us
    };

    !membership_ops.iter().any(|op| may_have_joined(&op))
}
