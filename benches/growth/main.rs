//! Costs that grow with the number of chats, of parts that the load generator cannot measure from
//! outside.
//!
//! `tests/with-services.sh cargo bench --bench growth [-- look|consumer|subscriptions]`, with
//! `STARLING_CHATS` chats (a million if absent). `look` and `consumer` make a database of their own
//! on the Postgres of `STARLING_TEST_POSTGRES`; `subscriptions` starts a Redis of its own.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench prints, and stops at a fault"
)]

mod consumer;
mod database;
mod look;
mod subscriptions;

use std::time::Duration;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let setting =
        |name: &str| std::env::vars().find_map(|(key, value)| (key == name).then_some(value));
    let chats = setting("STARLING_CHATS").map_or(1_000_000, |count| count.parse().unwrap());
    // `cargo bench` passes flags of the standard harness.
    let only = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let is_wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);

    match setting("STARLING_TEST_POSTGRES") {
        Some(server) => {
            if is_wanted("look") {
                runtime.block_on(look::measure(&server, chats));
            }
            if is_wanted("consumer") {
                runtime.block_on(consumer::measure(&server));
            }
        }
        None => println!("no Postgres: run it by tests/with-services.sh"),
    }
    if is_wanted("subscriptions") {
        runtime.block_on(subscriptions::measure(chats));
    }
}

fn median(mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    took[took.len() / 2]
}
