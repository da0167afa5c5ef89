//! I14: after the bound, a user without connections is not shown as online, and a connected user is
//! not shown as offline.

use super::facts::Facts;
use super::quick::HashMap;
use super::report::Sink;
use super::{Harm, Invariant, Location, us};
use crate::history::{DeviceEvent, DeviceRecord, Name, Record};

/// Intervals in which a user is connected; ascending and disjoint.
type Spans = Vec<(u64, u64)>;

pub(super) fn check(facts: &Facts<'_>, sink: &mut Sink<'_>) {
    let record = facts.record;
    let watches = |device: &DeviceRecord| {
        device.entries.iter().any(|entry| matches!(entry.told, DeviceEvent::Presence { .. }))
    };

    if !record.devices.iter().any(watches) {
        return;
    }

    let (bound, connected) = (us(facts.evidence.limits.presence), connected(record));
    let away_since = |user: Name, at: u64| -> Option<u64> {
        let spans = connected.get(&user)?;
        let before = spans.partition_point(|(start, _)| *start <= at);
        let end = before.checked_sub(1).map(|index| spans[index].1)?;
        (end < at).then_some(end)
    };

    let connected_since = |user: Name, at: u64| -> Option<u64> {
        let spans = connected.get(&user)?;
        let before = spans.partition_point(|(start, _)| *start <= at);
        let (start, end) = spans[before.checked_sub(1)?];
        (at < end).then_some(start)
    };

    for (number, device) in record.devices.iter().enumerate() {
        let mut believed: HashMap<Name, bool> = HashMap::default();
        let mut watching = false;

        for entry in &device.entries {
            match entry.told {
                DeviceEvent::Presence { user, online } => {
                    watching = true;
                    believed.insert(user, online);

                    let since = if online {
                        away_since(user, entry.at_us)
                    } else {
                        connected_since(user, entry.at_us)
                    };

                    if since.is_some_and(|since| entry.at_us > since + bound) {
                        let what = if online {
                            "online without a connection"
                        } else {
                            "offline while connected"
                        };
                        sink.add(
                            Invariant::I14,
                            Harm::Wrong,
                            Location::default().on(number),
                            || format!("user {} was shown as {what}", record.word(user)),
                        );
                    }
                }
                // The device has to watch again on the next connection.
                DeviceEvent::Closed { .. } => (watching, believed) = (false, HashMap::default()),
                DeviceEvent::Stopped => break,
                _ => {}
            }
        }

        let until = device.entries.last().map_or(0, |entry| entry.at_us);
        for (user, _) in believed.into_iter().filter(|(_, online)| *online && watching) {
            if away_since(user, until).is_some_and(|since| until > since + bound) {
                sink.add(Invariant::I14, Harm::Wrong, Location::default().on(number), || {
                    format!("never told that user {} went offline", record.word(user))
                });
            }
        }
    }
}

fn connected(record: &Record) -> HashMap<Name, Spans> {
    let mut spans: HashMap<Name, Spans> = HashMap::default();
    for device in &record.devices {
        let of_user = spans.entry(device.user).or_default();
        let mut since = None;

        for entry in &device.entries {
            match entry.told {
                DeviceEvent::Ready { .. } => since = Some(entry.at_us),
                DeviceEvent::Closed { .. } | DeviceEvent::Stopped => {
                    of_user.extend(since.take().map(|start| (start, entry.at_us)));
                }
                _ => {}
            }
        }

        of_user.extend(since.map(|start| (start, record.ended_us)));
    }

    for of_user in spans.values_mut() {
        of_user.sort_unstable();
        let mut merged: Spans = Vec::with_capacity(of_user.len());
        for (start, end) in of_user.drain(..) {
            match merged.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        *of_user = merged;
    }

    spans
}
