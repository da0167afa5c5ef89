//! I7: a bounded time after the last fault and the last change, every device has every event of its
//! user's chats. Left out: devices that were stopped, that do not read, or whose session is over.

use super::facts::Facts;
use super::quick::HashMap;
use super::report::Sink;
use super::{Harm, Invariant, Place, us};
use crate::history::{DeviceRecord, Name, Told};

/// Where a device is at the deadline.
#[derive(Default)]
struct Progress {
    connected: bool,
    /// It will not come back, or is not to be counted.
    excused: bool,
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
        sink.add(Invariant::I7, Harm::Wrong, Place::default(), || {
            "the record ends before the time for healing is over: let the run wait longer"
                .to_owned()
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
        let progress = at(device, deadline_us);
        if progress.excused || progress.stalled {
            continue;
        }
        if !progress.connected {
            sink.add(Invariant::I7, Harm::Lost, Place::default().on(number), || {
                "not connected again".to_owned()
            });
            continue;
        }
        for (chat, rev) in chats_of.get(&device.user).into_iter().flatten() {
            let known = progress.revs.get(chat).copied().unwrap_or(0);
            if known < *rev {
                sink.add(Invariant::I7, Harm::Lost, Place::rev(*chat, *rev).on(number), || {
                    format!("told only up to rev {known} when the time for healing was over")
                });
            } else if progress.reloading.contains_key(chat) {
                sink.add(Invariant::I7, Harm::Lost, Place::rev(*chat, *rev).on(number), || {
                    "not reloaded when the time for healing was over".to_owned()
                });
            }
        }
    }
}

fn at(device: &DeviceRecord, deadline_us: u64) -> Progress {
    let mut progress = Progress { excused: device.entries.is_empty(), ..Progress::default() };
    for entry in device.entries.iter().take_while(|entry| entry.at_us <= deadline_us) {
        match &entry.told {
            Told::Ready { .. } => progress.excused = false,
            Told::Synced(chats) => {
                progress.connected = true;
                progress.revs.extend(chats.iter().copied());
            }
            Told::Reset { chat, rev } => {
                progress.revs.insert(*chat, *rev);
                progress.reloading.insert(*chat, *rev);
            }
            Told::Loaded { chat, rev } => {
                if progress.reloading.get(chat).is_some_and(|wanted| rev >= wanted) {
                    progress.reloading.remove(chat);
                }
            }
            Told::Added { chat, rev, .. } => {
                let known = progress.revs.entry(*chat).or_default();
                *known = (*known).max(*rev);
            }
            Told::Gone { chat } => {
                progress.revs.remove(chat);
                progress.reloading.remove(chat);
            }
            // It was told to stop.
            Told::Stopped => (progress.connected, progress.excused) = (false, true),
            Told::Closed { code } => {
                progress.connected = false;
                progress.excused = matches!(code, 4000..=4407 | 4409);
            }
            Told::Stalled { reading } => progress.stalled = !reading,
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
