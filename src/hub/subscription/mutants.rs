//! What a subscription does wrong under the mutants of [`faults`](crate::model::faults). No release
//! contains this module.

use super::{Accepted, ChatSubscription};
use crate::hub::registry::Registry;
use crate::model::ChatEvent;

impl ChatSubscription {
    /// Delivers an event whatever its revision is.
    pub(super) fn accept_any(&mut self, event: ChatEvent, registry: &Registry) -> Accepted {
        self.deliver(event, registry);
        Accepted::Settled
    }

    /// Gives up the missing events: delivers the later ones.
    pub fn skip_gap(&mut self, registry: &Registry) {
        for (_, event) in std::mem::take(&mut self.waiting) {
            self.deliver(event, registry);
        }
        self.rev = self.rev.max(self.seen);
    }
}
