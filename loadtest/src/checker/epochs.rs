//! The part of a record that belongs to the last epoch of the log.
//!
//! After a lossy failover or a restore, acknowledged operations may be lost, and their ids and
//! revisions are used again. So the outcome of an operation that began before the new epoch counts
//! as unknown. Events that a device received before it prove nothing about the final log.

use std::collections::HashMap;

use crate::history::{DeviceEvent, Entry, Name, Outcome, Record};

/// The part of the record that belongs to its last epoch. `None` if there is only one epoch.
pub(super) fn of_last(record: &Record) -> Option<Record> {
    let (epoch, since_us) = last(record)?;
    let mut cut = record.clone();

    for op in cut.ops.iter_mut().filter(|op| op.invoked_us < since_us) {
        if let Some(Outcome::Ok(_)) = op.outcome {
            op.outcome = Some(Outcome::Unknown);
        }
    }

    for device in &mut cut.devices {
        let epochs: HashMap<u32, Name> = device.entries.iter().filter_map(presented).collect();
        device.entries.retain(|entry| epochs.get(&entry.connection).is_none_or(|of| *of == epoch));
    }

    Some(cut)
}

/// The newest epoch, and when a device first saw it. `None` if there is only one epoch.
pub(super) fn last(record: &Record) -> Option<(Name, u64)> {
    let mut since: HashMap<Name, u64> = HashMap::new();
    for entry in record.devices.iter().flat_map(|device| &device.entries) {
        if let Some((_, epoch)) = presented(entry) {
            let first_us = since.entry(epoch).or_insert(entry.at_us);
            *first_us = entry.at_us.min(*first_us);
        }
    }

    if since.len() < 2 {
        return None;
    }
    since.into_iter().max_by_key(|(_, at_us)| *at_us)
}

/// The connection of a `ready`, and its epoch.
fn presented(entry: &Entry) -> Option<(u32, Name)> {
    if let DeviceEvent::Ready { epoch } = entry.told {
        Some((entry.connection, epoch))
    } else {
        None
    }
}
