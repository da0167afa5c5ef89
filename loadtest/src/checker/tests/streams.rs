//! Tests of I6, I7 and I13: the events that devices receive.

use super::super::Invariant;
use super::super::scenario::Scenario;
use super::{Crew, broken, crew, violates};
use crate::history::{DeviceEvent, Name};

/// The index of the entry of a device with this rev.
fn entry(run: &Scenario, device: usize, rev: u32) -> usize {
    let entries = &run.record.devices[device].entries;
    entries
        .iter()
        .position(|entry| entry.told.event().is_some_and(|(_, told)| told == rev))
        .unwrap()
}

#[test]
fn a_gap_in_the_live_stream_is_found() {
    let Crew { mut run, .. } = crew();
    run.finish();
    let report = broken(run, |run| {
        let index = entry(run, 1, 4);
        run.record.devices[1].entries.remove(index);
    });
    violates(&report, Invariant::I6);
    assert_eq!(report.counts.lost, 1, "{report}");
}

#[test]
fn a_gap_needs_a_later_state_of_the_item() {
    let Crew { mut run, chat, .. } = crew();
    run.block(1);
    run.edit(chat, 2);
    run.edit(chat, 2);
    run.finish();

    let report = broken(run, |run| {
        let index = entry(run, 1, 9);
        run.record.devices[1].entries.remove(index);
        // The device receives a later event, so it did get past the gap.
        run.send_after_the_end();
    });
    violates(&report, Invariant::I6);
}

#[test]
fn member_count_replaces_only_changes_of_members() {
    let Crew { mut run, ann, eve, chat, .. } = crew();
    run.join(ann, chat, eve);

    let joined = run.log.chats[0].rev;
    run.finish();

    let count = |run: &mut Scenario, at: u32, rev: u32| {
        let index = entry(run, 1, at);
        run.record.devices[1].entries[index].told = DeviceEvent::Counted { chat, rev };
    };

    let mut sound = copy(&run);
    count(&mut sound, joined, joined);
    assert!(sound.check().is_clean(), "{}", sound.check());

    let report = broken(run, |run| count(run, 4, 4));
    violates(&report, Invariant::I6);
}

impl Scenario {
    /// Sends a message, which all connected devices receive.
    fn send_after_the_end(&mut self) {
        let (chat, user) = (self.log.chats[0].chat, self.log.chats[0].members[0].user);
        self.send(user, chat);
    }
}

#[test]
fn a_repeated_event_and_a_stream_that_goes_back_are_found() {
    let Crew { mut run, .. } = crew();
    run.finish();

    let report = broken(run, |run| {
        let index = entry(run, 1, 4);
        let again = run.record.devices[1].entries[index].clone();
        run.record.devices[1].entries.insert(index, again);
    });
    violates(&report, Invariant::I6);
    assert!(report.counts.doubled > 0, "{report}");

    let Crew { mut run, .. } = crew();
    run.finish();

    let report = broken(run, |run| {
        let index = entry(run, 1, 4);
        run.record.devices[1].entries.swap(index, index + 1);
    });
    violates(&report, Invariant::I6);
    assert!(report.counts.reordered > 0, "{report}");
}

#[test]
fn a_replay_with_a_hole_is_found_at_synced() {
    let Crew { mut run, ann, chat, .. } = crew();
    run.cut(1);

    let id = run.send(ann, chat);
    run.send(ann, chat);
    run.edit(chat, id);
    run.connect(1);
    run.finish();

    for rev in [9, 10] {
        let report = broken(copy(&run), |run| {
            let index = entry(run, 1, rev);
            run.record.devices[1].entries.remove(index);
        });
        violates(&report, Invariant::I6);
    }

    let report = broken(run, |run| {
        let entries = &mut run.record.devices[1].entries;
        let synced =
            entries.iter_mut().rfind(|entry| matches!(entry.told, DeviceEvent::Synced(_))).unwrap();
        synced.told = DeviceEvent::Synced(Box::new([]));
    });
    violates(&report, Invariant::I6);
}

fn copy(run: &Scenario) -> Scenario {
    let mut copy = Scenario::new();
    (copy.record, copy.log, copy.limits) = (run.record.clone(), run.log.clone(), run.limits);
    copy
}

#[test]
fn a_message_that_is_new_again_after_a_reconnect_is_found() {
    let Crew { mut run, chat, .. } = crew();
    run.cut(1);
    run.edit(chat, 2);
    run.connect(1);
    run.finish();

    let report = broken(run, |run| {
        let index = entry(run, 1, 8);
        let DeviceEvent::Edited { chat, rev, seen } = run.record.devices[1].entries[index].told
        else {
            panic!()
        };
        run.record.devices[1].entries[index].told = DeviceEvent::New { chat, rev, seen };
    });
    violates(&report, Invariant::I6);
    assert_eq!(report.counts.doubled, 1, "{report}");
}

#[test]
fn a_page_of_changes_with_a_hole_is_found() {
    let Crew { mut run, ann, chat, .. } = crew();
    let read = run.changes(ann, chat, 0);
    run.finish();

    let report = broken(run, |run| {
        use crate::history::{Outcome, Value};
        let Some(Outcome::Ok(Value::Changes { messages, .. })) = &mut run.record.ops[read].outcome
        else {
            panic!()
        };
        *messages = messages[1..].into();
    });
    violates(&report, Invariant::I6);
}

#[test]
fn a_device_that_does_not_catch_up_is_found() {
    let Crew { mut run, .. } = crew();
    run.finish();

    let report = broken(run, |run| {
        let index = entry(run, 1, 7);
        run.record.devices[1].entries.remove(index);
    });
    violates(&report, Invariant::I7);

    let Crew { mut run, .. } = crew();
    run.finish();

    let report = broken(run, |run| {
        let index = entry(run, 1, 7);
        run.record.devices[1].entries[index].at_us = run.limits.healed_us.unwrap() + 11_000_000;
    });
    violates(&report, Invariant::I7);
    assert_eq!(report.count(Invariant::I6), 0, "{report}");
}

#[test]
fn a_device_that_does_not_reconnect_is_found() {
    let Crew { mut run, .. } = crew();
    run.finish();
    violates(&broken(run, |run| run.cut_now(1)), Invariant::I7);
}

impl Scenario {
    /// Ends the device's connection at the end of the last fault.
    fn cut_now(&mut self, device: usize) {
        self.cut(device);
        let at_us = self.limits.healed_us.unwrap();
        self.record.devices[device].entries.last_mut().unwrap().at_us = at_us;
    }
}

#[test]
fn events_after_a_removal_are_found_and_those_before_are_not() {
    let Crew { mut run, ann, bob, chat, .. } = crew();
    run.leave(ann, chat, bob);
    run.send(ann, chat);
    run.join(ann, chat, bob);
    run.send(ann, chat);
    run.finish();
    let report = broken(run, |run| leak(run, 1, 9));
    violates(&report, Invariant::I13);
    assert_eq!(report.counts.leaked, 1, "{report}");
}

#[test]
fn events_and_pages_for_a_stranger_are_found() {
    let Crew { mut run, .. } = crew();
    run.finish();
    violates(&broken(run, |run| leak(run, 2, 4)), Invariant::I13);
    let Crew { mut run, ann, eve, chat, .. } = crew();
    let read = run.history(ann, chat, 50);
    run.finish();
    violates(&broken(run, |run| run.record.ops[read].user = eve), Invariant::I13);
}

#[test]
fn a_page_for_a_former_member_is_found() {
    let Crew { mut run, ann, bob, chat, .. } = crew();
    run.leave(ann, chat, bob);
    let read = run.history(ann, chat, 50);
    run.finish();
    violates(&broken(run, |run| run.record.ops[read].user = bob), Invariant::I13);
}

/// Copies the first device's event of this rev to another device: just after its `chat_gone` or,
/// if it has none, at the end.
fn leak(run: &mut Scenario, device: usize, rev: u32) {
    let leaked = run.record.devices[0].entries[entry(run, 0, rev)].clone();
    let entries = &mut run.record.devices[device].entries;
    let gone = |told: &DeviceEvent| matches!(told, DeviceEvent::Gone { .. });
    let index =
        entries.iter().position(|entry| gone(&entry.told)).map_or(entries.len(), |index| index + 1);
    let connection = entries[0].connection;
    entries.insert(index, crate::history::Entry { connection, ..leaked });
}

#[test]
fn a_violation_names_chat_rev_and_device() {
    let Crew { mut run, bob, .. } = crew();
    run.finish();
    let report = broken(run, |run| {
        let index = entry(run, 1, 4);
        run.record.devices[1].entries.remove(index);
    });
    let example = &report.findings[&Invariant::I6].examples[0];
    assert!(example.contains("chat chat: ") && example.contains("(rev 4)"), "{example}");
    assert!(example.contains("device 1 of user bob") && bob != Name::NONE, "{example}");
}
