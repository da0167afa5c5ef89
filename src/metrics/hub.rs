//! Subscriptions, resyncs and healing on this replica.

use metrics::{counter, describe_counter, describe_gauge, gauge};

const HUB_CHATS: &str = "starling_hub_chats";
const HUB_CHATS_RESYNCED: &str = "starling_hub_chats_resynced_total";
const HUB_RESYNCS: &str = "starling_hub_resyncs_total";
const HUB_RESYNCS_OVERFLOWED: &str = "starling_hub_resyncs_overflowed_total";
const HUB_HEALS: &str = "starling_hub_heals_total";

/// Registers the help of these metrics with the exporter.
pub(super) fn describe() {
    describe_gauge!(
        HUB_CHATS,
        "Chats that have a subscriber on this replica. It rises with the number of connected users"
    );
    describe_counter!(
        HUB_CHATS_RESYNCED,
        "Changed chats whose revision was compared with the store, in case the bus lost an event. \
         It follows the number of chats that change; if it rises faster than that, resyncs are \
         frequent because the bus is unstable"
    );
    describe_counter!(
        HUB_RESYNCS,
        "Comparisons of a chat or user with the store after a unit of work with an unknown \
         outcome. If it rises, answers of the database are lost or late"
    );
    describe_counter!(
        HUB_RESYNCS_OVERFLOWED,
        "Times that all chats were compared because too many comparisons waited. If it rises, the \
         database was unavailable for long"
    );
    describe_counter!(
        HUB_HEALS,
        "Times that the hub read missing events of a chat from the store, by reason (gap, sync, \
         check, join). If it rises faster than the traffic, the bus loses events"
    );
}

/// Sets the number of chats that have a subscriber on this replica.
pub fn hub_chats(count: usize) {
    #[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
    gauge!(HUB_CHATS).set(count as f64);
}

/// Records changed chats that were compared with the store.
pub fn hub_chats_resynced(count: usize) {
    counter!(HUB_CHATS_RESYNCED).increment(count as u64);
}

/// Records topics that were compared with the store after an unknown outcome.
pub fn hub_resynced(count: usize) {
    counter!(HUB_RESYNCS).increment(count as u64);
}

/// Records that too many topics waited for such a comparison.
pub fn hub_resyncs_overflowed() {
    counter!(HUB_RESYNCS_OVERFLOWED).increment(1);
}

/// Records that missing events of a chat were read from the store.
pub fn hub_heal(reason: &'static str) {
    counter!(HUB_HEALS, "reason" => reason).increment(1);
}
