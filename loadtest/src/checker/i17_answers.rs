//! I17: every request is answered, or given up, within its bound. None is open at the end.

use super::facts::Facts;
use super::report::Sink;
use super::{Harm, Invariant, Location, us};

pub(super) fn check(facts: &Facts<'_>, sink: &mut Sink<'_>) {
    let bound = us(facts.evidence.limits.request);
    for op in &facts.record.ops {
        let user = || facts.record.word(op.user);
        match op.completed_us {
            None => sink.add(Invariant::I17, Harm::Wrong, Location::default(), || {
                format!("{:?} of user {} never ended", op.kind, user())
            }),
            Some(at) if at - op.invoked_us > bound => {
                sink.add(Invariant::I17, Harm::Wrong, Location::default(), || {
                    format!(
                        "{:?} of user {} took {} ms",
                        op.kind,
                        user(),
                        (at - op.invoked_us) / 1000
                    )
                });
            }
            Some(_) => {}
        }
    }
}
