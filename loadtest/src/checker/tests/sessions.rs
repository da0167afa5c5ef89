//! Tests of I12 and I14: sessions and presence.

use super::super::Invariant;
use super::{Crew, broken, crew, violates};
use crate::history::{DeviceEvent, Kind, Outcome, Value};

#[test]
fn success_and_frames_of_a_revoked_session_are_found_after_the_bound() {
    let revoked = || {
        let Crew { mut run, ann, bob, .. } = crew();
        run.deliver(1, DeviceEvent::Closed { code: 4401 });
        run.op(ann, Kind::Revoke { session: bob }, Outcome::Ok(Value::Done));
        run.op(bob, Kind::Other, Outcome::Ok(Value::Done));
        run.deliver(1, DeviceEvent::Other);
        run
    };

    assert!(revoked().check().is_clean(), "{}", revoked().check());

    let report = broken(revoked(), |run| {
        run.now_us += 6_000_000;
        run.deliver(1, DeviceEvent::Other);
    });
    violates(&report, Invariant::I12);

    let report = broken(revoked(), |run| {
        run.now_us += 6_000_000;
        let bob = run.record.devices[1].user;
        run.op(bob, Kind::Other, Outcome::Ok(Value::Done));
    });
    violates(&report, Invariant::I12);
}

#[test]
fn users_shown_online_or_offline_wrongly_are_found() {
    let watched = || {
        let Crew { mut run, ann, bob, .. } = crew();
        run.deliver(0, DeviceEvent::Presence { user: bob, online: true });
        run.now_us += 30_000_000;
        run.cut(1);
        run.now_us += 10_000_000;
        run.deliver(0, DeviceEvent::Presence { user: bob, online: false });
        run.record.ended_us = run.now_us;
        assert_ne!(ann, bob);
        run
    };

    let report = broken(watched(), |run| {
        let bob = run.record.devices[1].user;
        run.now_us += 30_000_000;
        run.deliver(0, DeviceEvent::Presence { user: bob, online: true });
    });
    violates(&report, Invariant::I14);

    let report = broken(watched(), |run| {
        let entries = &mut run.record.devices[0].entries;
        entries.last_mut().unwrap().told = DeviceEvent::Other;
        entries.last_mut().unwrap().at_us += 30_000_000;
    });
    violates(&report, Invariant::I14);

    let report = broken(watched(), |run| {
        let bob = run.record.devices[1].user;
        let at_us = run.record.devices[1].entries.last().unwrap().at_us - 1_000_000;
        let index = run.record.devices[0].entries.len() - 1;
        let mut early = run.record.devices[0].entries[index].clone();
        (early.at_us, early.told) = (at_us, DeviceEvent::Presence { user: bob, online: false });
        run.record.devices[0].entries.insert(index, early);
    });
    violates(&report, Invariant::I14);
}
