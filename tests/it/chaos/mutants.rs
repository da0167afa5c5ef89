//! A checker that can't fail proves nothing: each deliberate fault of the server must be noticed, by the invariant that is
//! there for it.

use std::time::Duration;

use starling::model::faults::Mutant;
use starling_loadtest::checker::Invariant;

use super::fault::Fault;
use super::stage::Wrong;
use super::{Run, TURN, run};

/// Runs the fleet with a mutant until it is noticed, at most three times; the faults are those that it hides from.
async fn is_noticed(mutant: Mutant, faults: &'static [Fault], failpoints: &'static str, by: &[Invariant]) {
    let _turn = TURN.lock().await;
    let mut reports = String::new();
    for seed in 1..=3 {
        let wrong = Wrong { mutant: Some(mutant.word()), failpoints, quick_heartbeat: true };
        let (span, pace, revoke) = (Duration::from_secs(12), Duration::from_millis(60), Duration::from_secs(5));
        let (_, verdict) = run(&Run { seed, span, faults, wrong, pace, revoke }).await;
        if by.iter().any(|invariant| verdict.report.count(*invariant) > 0) {
            return;
        }
        reports.push_str(&verdict.report.to_string());
    }
    panic!("{mutant:?} survives: {reports}");
}

/// In a busy chat the next event shows that one is missing; so this one is noticed in a quiet one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn not_looking_when_a_replica_dies_is_noticed() {
    let _turn = TURN.lock().await;
    let wrong = Wrong { mutant: Some(Mutant::NoLookOnDeath.word()), ..Wrong::default() };
    // The slow check of all chats may come in time by chance, now and then.
    let slowest = crate::breakdown::last_words(&wrong, 6).await;
    assert!(slowest > Duration::from_secs(5), "it survives: {slowest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn believing_the_dead_is_noticed() {
    let _turn = TURN.lock().await;
    let wrong = Wrong { mutant: Some(Mutant::GhostsNeverExpire.word()), ..Wrong::default() };
    assert_eq!(crate::breakdown::ghosts_go(&wrong).await, None, "it survives");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letting_an_outbox_grow_is_noticed() {
    let _turn = TURN.lock().await;
    let wrong = Wrong { mutant: Some(Mutant::UnboundedOutbox.word()), ..Wrong::default() };
    assert!(crate::breakdown::stalled(&wrong).await.0 > crate::breakdown::MANY, "it survives");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_what_does_not_fit_is_noticed() {
    let _turn = TURN.lock().await;
    let wrong = Wrong { mutant: Some(Mutant::DropOnOverflow.word()), ..Wrong::default() };
    assert!(!crate::breakdown::stalled(&wrong).await.1, "it survives");
}

macro_rules! mutants {
    ($($name:ident: $mutant:ident, $faults:expr, $failpoints:literal, [$($by:ident),+];)+) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            is_noticed(Mutant::$mutant, $faults, $failpoints, &[$(Invariant::$by),+]).await;
        })+
    };
}

const CUTS: &[Fault] = &[Fault::SubscriptionsCut];
const CALM: &[Fault] = &[];

mutants! {
    acknowledging_before_the_commit_is_noticed: AckBeforeCommit, CALM, "", [I1, I2, I3, I4];
    placing_before_the_commit_is_noticed: SequenceOrder, CALM, "", [I6, I7];
    not_fetching_what_the_bus_lost_is_noticed: NoGapFill, CUTS, "", [I6, I7];
    following_after_reading_is_noticed: SubscribeAfterFetch, CALM, "", [I6, I7];
    dropping_what_happens_during_a_sync_is_noticed: NoHold, CALM, "snapshot_read=wait:50/2", [I6, I7];
    telling_who_left_is_noticed: CachedMembership, CALM, "", [I13];
    delivering_as_it_comes_is_noticed: ArrivalOrder, CUTS, "", [I6, I7];
    forgetting_client_ids_is_noticed: DedupeForgotten, CALM, "", [I4];
    delivering_twice_is_noticed: SeenAgain, CALM, "", [I6];
    healing_backwards_is_noticed: HealBackwards, CUTS, "", [I6, I7];
    subscribing_to_nothing_after_a_cut_is_noticed: NoResubscribe, CUTS, "", [I6, I7];
    leaving_the_sockets_of_an_ended_session_open_is_noticed: RevokeWithoutClosing, CALM, "", [I12];
    remembering_dead_tokens_is_noticed: StaleSessions, CALM, "", [I12];
}
