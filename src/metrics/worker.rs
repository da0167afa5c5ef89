//! Background work of one replica at a time.

use metrics::{counter, describe_counter};

const LEASES_LOST: &str = "starling_worker_leases_lost_total";
const CONSUMER_FAILURES: &str = "starling_consumer_failures_total";

/// Registers the help of these metrics with the exporter.
pub(super) fn describe() {
    describe_counter!(
        LEASES_LOST,
        "Background work that was dropped because its lease was not renewed in time, by worker. If \
         it rises, the database answers too slowly, and another replica begins the work again"
    );
    describe_counter!(
        CONSUMER_FAILURES,
        "Chats whose changes a consumer could not apply, by consumer; each is retried a second \
         later. If it rises, the log has the cause, and effects such as webhooks are late"
    );
}

/// Records that this worker lost its lease.
pub fn worker_lease_lost(worker: &'static str) {
    counter!(LEASES_LOST, "worker" => worker).increment(1);
}

/// Records a chat whose changes this consumer could not apply.
pub fn consumer_failed(consumer: &'static str) {
    counter!(CONSUMER_FAILURES, "consumer" => consumer).increment(1);
}
