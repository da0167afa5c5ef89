//! Each test breaks an invariant by hand in a run that is clean otherwise. Random runs of a correct
//! server are clean.

mod epochs;
mod log;
mod random;
mod sessions;
mod streams;

use super::scenario::Scenario;
use super::{Invariant, Report};
use crate::history::Name;

/// A chat with a few messages, its members Ann and Bob, the stranger Eve, and a device of each.
struct Crew {
    run: Scenario,
    ann: Name,
    bob: Name,
    eve: Name,
    chat: Name,
}

fn crew() -> Crew {
    let mut run = Scenario::new();
    let (ann, bob, eve) = (run.name("ann"), run.name("bob"), run.name("eve"));
    let chat = run.chat(&[ann, bob]);

    for user in [ann, bob, eve] {
        run.device(user);
    }

    for _ in 0..3 {
        run.send(ann, chat);
        run.send(bob, chat);
    }

    Crew { run, ann, bob, eve, chat }
}

/// Checks that a run is clean, changes it, and returns the report of the changed run.
fn broken(mut run: Scenario, change: impl FnOnce(&mut Scenario)) -> Report {
    let report = run.check();
    assert!(report.is_clean(), "not clean before the change:\n{report}");
    change(&mut run);
    run.check()
}

#[track_caller]
fn violates(report: &Report, invariant: Invariant) {
    assert!(report.count(invariant) > 0, "{invariant:?} was not found:\n{report}");
}
