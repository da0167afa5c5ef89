//! Tests of I20: the data that devices hold after the epoch changed.

use super::super::Invariant;
use super::super::scenario::Scenario;
use super::{Crew, broken, crew, violates};
use crate::history::{DeviceEvent, Digest, Name};

/// A run that lost two messages in a failover; three more were sent after it.
fn failed_over() -> Crew {
    let mut crew = crew();
    let (run, ann, chat) = (&mut crew.run, crew.ann, crew.chat);
    run.fail_over(chat, 2);

    for device in 0..3 {
        run.connect(device);
    }

    for _ in 0..3 {
        run.send(ann, chat);
    }

    run.finish();
    crew
}

/// The index of a device's last entry of a kind.
fn last(run: &Scenario, device: usize, is: impl Fn(&DeviceEvent) -> bool) -> usize {
    run.record.devices[device].entries.iter().rposition(|entry| is(&entry.told)).unwrap()
}

#[test]
fn messages_lost_in_a_failover_are_no_violation_if_every_device_reloads() {
    let Crew { run, .. } = failed_over();
    let report = run.check();
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.counts.acknowledged, report.counts.messages), (9, 7));
}

#[test]
fn a_device_that_is_not_reset_after_the_epoch_changed_is_found() {
    let Crew { run, .. } = failed_over();
    let report = broken(run, |run| {
        let reset = last(run, 1, |told| matches!(told, DeviceEvent::Reset { .. }));
        run.record.devices[1].entries.remove(reset);
    });
    violates(&report, Invariant::I20);
}

#[test]
fn a_message_that_the_log_does_not_have_is_found_on_the_device_that_holds_it() {
    let Crew { run, .. } = failed_over();
    let report = broken(run, |run| {
        let told = last(run, 1, |told| matches!(told, DeviceEvent::New { .. }));
        if let DeviceEvent::New { seen, .. } = &mut run.record.devices[1].entries[told].told {
            seen.text = Digest::of("of the history that was lost");
        }
    });
    violates(&report, Invariant::I20);
}

#[test]
fn a_device_that_returns_to_an_earlier_epoch_is_found() {
    let Crew { mut run, .. } = failed_over();
    run.cut(1);
    run.connect(1);
    let report = broken(run, |run| {
        let ready = last(run, 1, |told| matches!(told, DeviceEvent::Ready { .. }));
        run.record.devices[1].entries[ready].told = DeviceEvent::Ready { epoch: Name::default() };
    });
    violates(&report, Invariant::I20);
}
