//! The epoch that is in force, for every part that labels something with it or compares it.

use std::sync::Arc;

use parking_lot::RwLock;

use super::Epoch;

/// The epoch of the log as this process knows it. Clones are the same value.
#[derive(Clone, Debug, Default)]
pub struct PresentEpoch(Arc<RwLock<Epoch>>);

impl PresentEpoch {
    /// The epoch now.
    pub fn get(&self) -> Epoch {
        *self.0.read()
    }

    /// Puts another epoch in force. Returns the one before.
    pub fn set(&self, epoch: Epoch) -> Epoch {
        std::mem::replace(&mut *self.0.write(), epoch)
    }
}
