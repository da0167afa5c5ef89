//! Leases of background work and durable consumers.

use std::collections::HashMap;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use starling::cluster::BoxFuture;
use starling::model::limits::WORKER_LEASE;
use starling::model::{ChatId, Clock, Code, Error, MessageId, Result};
use starling::store::{Changes, Store};
use starling::tasks::Tasks;
use starling::worker::lease::Outcome;
use starling::worker::{Consumer, Lease, consumer};
use tokio_util::sync::CancellationToken;

use super::bench::{Bench, on_both_stores};
use crate::support::eventually;

on_both_stores!(
    one_holder_at_a_time_works_and_another_does_once_the_lease_expired,
    finished_work_is_not_repeated_within_its_pause_and_failed_work_is,
    a_lease_written_by_a_clock_that_was_days_ahead_delays_nobody,
    two_consumers_of_one_name_apply_each_change_of_many_writers_and_miss_none,
    a_consumer_that_dies_between_effect_and_position_applies_the_change_again,
    a_chat_whose_changes_cannot_be_applied_does_not_delay_the_others,
);

/// A lease whose holder sees the bench's clock.
fn lease(bench: &Bench) -> Lease {
    Lease::new(bench.store.clone(), bench.clock.clone(), "test")
}

fn nothing() -> Ready<Result<()>> {
    ready(Ok(()))
}

async fn one_holder_at_a_time_works_and_another_does_once_the_lease_expired(bench: Arc<Bench>) {
    let (first, second) = (lease(&bench), lease(&bench));

    // A holder that is dropped in the middle of its work, as by a crash, releases nothing.
    let begun = CancellationToken::new();
    let endless = async {
        begun.cancel();
        std::future::pending::<Result<()>>().await
    };
    tokio::select! {
        outcome = first.run(Duration::ZERO, endless) => panic!("it ended: {outcome:?}"),
        () = begun.cancelled() => {}
    }

    assert_eq!(second.run(Duration::ZERO, nothing()).await.unwrap(), Outcome::Elsewhere);
    bench.clock.advance(WORKER_LEASE);
    assert_eq!(second.run(Duration::ZERO, nothing()).await.unwrap(), Outcome::Done(()));
    assert_eq!(first.run(Duration::ZERO, nothing()).await.unwrap(), Outcome::Done(()));
}

async fn finished_work_is_not_repeated_within_its_pause_and_failed_work_is(bench: Arc<Bench>) {
    let (first, second) = (lease(&bench), lease(&bench));
    let pause = Duration::from_mins(1);

    let failing = async { Err::<(), _>(Error::new(Code::Internal)) };
    first.run(pause, failing).await.unwrap_err();
    assert_eq!(second.run(pause, nothing()).await.unwrap(), Outcome::Done(()));

    assert_eq!(first.run(pause, nothing()).await.unwrap(), Outcome::Elsewhere);
    assert_eq!(first.run(Duration::ZERO, nothing()).await.unwrap(), Outcome::Done(()));
    bench.clock.advance(pause);
    assert_eq!(second.run(pause, nothing()).await.unwrap(), Outcome::Done(()));
}

async fn a_lease_written_by_a_clock_that_was_days_ahead_delays_nobody(bench: Arc<Bench>) {
    let ahead = Clock::system();
    ahead.advance(Duration::from_hours(48));
    let wrong = Lease::new(bench.store.clone(), ahead, "test");
    assert_eq!(wrong.run(Duration::ZERO, nothing()).await.unwrap(), Outcome::Done(()));

    let right = lease(&bench);
    let pause = Duration::from_mins(1);
    assert_eq!(right.run(pause, nothing()).await.unwrap(), Outcome::Done(()));
}

/// Keeps what it was given, and fails where the test says so.
#[derive(Default)]
struct Recorder {
    /// How often each message was applied.
    applied: Mutex<HashMap<(ChatId, MessageId), usize>>,
    /// Chats whose changes cannot be applied.
    broken: Mutex<Vec<ChatId>>,
    /// Never returns after the first effect, as a replica that dies there.
    dies_after_effect: bool,
}

impl Consumer for Recorder {
    fn name(&self) -> &'static str {
        "recorder"
    }

    fn apply<'a>(
        &'a self,
        chat_id: ChatId,
        changes: Option<&'a Changes>,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if self.broken.lock().contains(&chat_id) {
                return Err(Error::new(Code::Unavailable));
            }
            let Some(changes) = changes else { return Ok(()) };
            {
                let mut applied = self.applied.lock();
                for (_, change) in &changes.items {
                    if let Some(id) = change.message_id() {
                        *applied.entry((chat_id, id)).or_default() += 1;
                    }
                }
            }
            if self.dies_after_effect {
                std::future::pending::<()>().await;
            }
            Ok(())
        })
    }
}

impl Recorder {
    fn count(&self, chat_id: ChatId) -> usize {
        self.applied.lock().keys().filter(|(chat, _)| *chat == chat_id).count()
    }
}

/// Runs a consumer in a task of its own until it is aborted.
fn start(consumer: &Arc<Recorder>, store: &Store, clock: &Clock) -> tokio::task::JoinHandle<()> {
    let consumer: Arc<dyn Consumer> = consumer.clone();
    let run = consumer::run(consumer, store.clone(), clock.clone(), CancellationToken::new());
    Tasks::default().spawn(run)
}

async fn two_consumers_of_one_name_apply_each_change_of_many_writers_and_miss_none(
    bench: Arc<Bench>,
) {
    let ada = bench.user().await;
    let mut chats = Vec::new();
    for _ in 0..5 {
        chats.push(bench.group(ada, &[]).await);
    }
    let recorder = Arc::new(Recorder::default());
    let other = bench.another_store().await;
    let tasks =
        [start(&recorder, &bench.store, &bench.clock), start(&recorder, &other, &bench.clock)];

    let writers = chats.iter().map(|chat_id| {
        let (bench, chat_id) = (bench.clone(), *chat_id);
        Tasks::default().spawn(async move {
            for number in 0..40 {
                bench.say(chat_id, ada, &number.to_string()).await;
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }

    eventually("every message is applied", async || {
        chats.iter().all(|chat_id| recorder.count(*chat_id) == 40)
    })
    .await;
    for task in tasks {
        task.abort();
    }
    other.close().await;
}

async fn a_consumer_that_dies_between_effect_and_position_applies_the_change_again(
    bench: Arc<Bench>,
) {
    let ada = bench.user().await;
    let chat_id = bench.group(ada, &[]).await;
    let sent = bench.say(chat_id, ada, "hello").await;

    let dying = Arc::new(Recorder { dies_after_effect: true, ..Recorder::default() });
    let task = start(&dying, &bench.store, &bench.clock);
    eventually("the effect has happened", async || dying.count(chat_id) == 1).await;
    task.abort();
    let _ = task.await;

    bench.clock.advance(WORKER_LEASE);
    let next = Arc::new(Recorder::default());
    let task = start(&next, &bench.store, &bench.clock);
    eventually("the next holder has applied it again", async || next.count(chat_id) == 1).await;

    // The position was stored: a later change comes without the earlier one.
    let later = bench.say(chat_id, ada, "again").await;
    eventually("the later message is applied", async || next.count(chat_id) == 2).await;
    task.abort();
    let _ = task.await;
    let applied = next.applied.lock().clone();
    assert_eq!(applied, HashMap::from([((chat_id, sent.id), 1), ((chat_id, later.id), 1)]));
}

async fn a_chat_whose_changes_cannot_be_applied_does_not_delay_the_others(bench: Arc<Bench>) {
    let ada = bench.user().await;
    let (broken, fine) = (bench.group(ada, &[]).await, bench.group(ada, &[]).await);
    bench.say(broken, ada, "one").await;
    bench.say(fine, ada, "two").await;

    let recorder = Arc::new(Recorder::default());
    recorder.broken.lock().push(broken);
    let task = start(&recorder, &bench.store, &bench.clock);
    eventually("the other chat is applied", async || recorder.count(fine) == 1).await;
    assert_eq!(recorder.count(broken), 0);

    recorder.broken.lock().clear();
    eventually("the changes come again", async || recorder.count(broken) == 1).await;
    task.abort();
    let _ = task.await;
}
