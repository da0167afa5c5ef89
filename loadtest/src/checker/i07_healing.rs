//! I7: a bounded time after the last fault and the last change, every device has every event of its
//! user's chats. Devices that were stopped, that do not read, or whose session ended are excluded.

use super::facts::Facts;
use super::quick::HashMap;
use super::report::Sink;
use super::{Harm, Invariant, Location, us};
use crate::history::{DeviceEvent, DeviceRecord, Name};

/// The state of a device at the deadline.
#[derive(Default)]
struct Progress {
    connected: bool,
    /// The device never connected, was stopped, or must not reconnect.
    excluded: bool,
    stalled: bool,
    revs: HashMap<Name, u32>,
    reloading: HashMap<Name, u32>,
}

pub(super) fn check(facts: &Facts<'_>, sink: &mut Sink<'_>) {
    let limits = facts.evidence.limits;
    let Some(healed_us) = limits.healed_us else { return };

    let changes = facts.record.ops.iter().filter(|op| op.kind.changes_log());
    let last_change_us =
        changes.map(|op| op.completed_us.unwrap_or(op.invoked_us)).max().unwrap_or(0);
    let deadline_us = healed_us.max(last_change_us) + us(limits.heal);

    if facts.record.ended_us < deadline_us {
        sink.add(Invariant::I7, Harm::Wrong, Location::default(), || {
            "the record ends before the healing deadline: let the run wait longer".to_owned()
        });
        return;
    }

    let mut chats_of: HashMap<Name, Vec<(Name, u32)>> = HashMap::default();
    for log in &facts.evidence.log.chats {
        for member in log.members.iter().filter(|member| member.left_rev.is_none()) {
            chats_of.entry(member.user).or_default().push((log.chat, log.rev));
        }
    }

    for (number, device) in facts.record.devices.iter().enumerate() {
        let progress = progress_at(device, deadline_us);
        if progress.excluded || progress.stalled {
            continue;
        }

        if !progress.connected {
            sink.add(Invariant::I7, Harm::Lost, Location::default().on(number), || {
                "not reconnected at the healing deadline".to_owned()
            });
            continue;
        }

        for (chat, rev) in chats_of.get(&device.user).into_iter().flatten() {
            let known = progress.revs.get(chat).copied().unwrap_or(0);
            if known < *rev {
                sink.add(Invariant::I7, Harm::Lost, Location::rev(*chat, *rev).on(number), || {
                    format!("received only rev {known} and lower before the healing deadline")
                });
            } else if progress.reloading.contains_key(chat) {
                sink.add(Invariant::I7, Harm::Lost, Location::rev(*chat, *rev).on(number), || {
                    "not reloaded at the healing deadline".to_owned()
                });
            }
        }
    }
}

fn progress_at(device: &DeviceRecord, deadline_us: u64) -> Progress {
    let mut progress = Progress { excluded: device.entries.is_empty(), ..Progress::default() };
    for entry in device.entries.iter().take_while(|entry| entry.at_us <= deadline_us) {
        match &entry.told {
            DeviceEvent::Ready { .. } => progress.excluded = false,
            DeviceEvent::Synced(chats) => {
                progress.connected = true;
                progress.revs.extend(chats.iter().copied());
            }
            DeviceEvent::Reset { chat, rev } => {
                progress.revs.insert(*chat, *rev);
                progress.reloading.insert(*chat, *rev);
            }
            DeviceEvent::Loaded { chat, rev } => {
                if progress.reloading.get(chat).is_some_and(|wanted| rev >= wanted) {
                    progress.reloading.remove(chat);
                }
            }
            DeviceEvent::Added { chat, rev, .. } => {
                let known = progress.revs.entry(*chat).or_default();
                *known = (*known).max(*rev);
            }
            DeviceEvent::Gone { chat } => {
                progress.revs.remove(chat);
                progress.reloading.remove(chat);
            }
            DeviceEvent::Stopped => (progress.connected, progress.excluded) = (false, true),
            DeviceEvent::Closed { code } => {
                progress.connected = false;
                progress.excluded = matches!(code, 4000..=4407 | 4409);
            }
            DeviceEvent::Stalled { reading } => progress.stalled = !reading,
            told => {
                if let Some((chat, rev)) = told.event() {
                    let known = progress.revs.entry(chat).or_default();
                    *known = (*known).max(rev);
                }
            }
        }
    }

    progress
}
