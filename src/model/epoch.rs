//! The epoch of the log, shared by all parts of a replica that write or compare it.

use std::sync::Arc;

use parking_lot::RwLock;

use super::Epoch;

/// The epoch that this replica uses. Clones share one value.
#[derive(Clone, Debug, Default)]
pub struct PresentEpoch(Arc<RwLock<Epoch>>);

impl PresentEpoch {
    /// The present epoch.
    pub fn get(&self) -> Epoch {
        *self.0.read()
    }

    /// Replaces the epoch. Returns the previous epoch.
    pub fn set(&self, epoch: Epoch) -> Epoch {
        std::mem::replace(&mut *self.0.write(), epoch)
    }
}
