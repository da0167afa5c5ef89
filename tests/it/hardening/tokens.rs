//! Sessions in the store: decisions on outdated state, and spent refresh tokens.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{Connection, PgConnection, SqliteConnection};
use starling::model::Code;
use starling::model::limits::SPENT_TOKENS_MAX;
use starling::store::{AccountChange, NewSession, Refreshed, SessionTokens};

use crate::store::bench::{Bench, NO_HASH, on_both_stores, refused};
use crate::support::execute_at;

on_both_stores!(
    a_request_verified_before_a_password_change_is_refused_after_it,
    a_session_keeps_its_most_recent_spent_tokens_however_often_it_is_refreshed,
    a_session_of_the_previous_version_is_refreshed_with_its_grace,
);

async fn a_request_verified_before_a_password_change_is_refused_after_it(bench: Arc<Bench>) {
    let ada = bench.user().await;
    let session = bench.new_session(ada, 1_000_000);
    bench.store.log_in(&session, NO_HASH, None, 5).await.unwrap();

    let change = |confirmed: &str| AccountChange {
        password: Some(("the new hash".to_owned(), session.id)),
        confirmed: Some(confirmed.to_owned()),
        ..AccountChange::default()
    };
    bench.store.change_account(ada, &change(NO_HASH)).await.unwrap();

    let (late, reused) = (bench.new_session(ada, 1_000_000), Some(session.id));
    refused(&bench.store.log_in(&late, NO_HASH, None, 5).await.map(drop), Code::InvalidCredentials);
    refused(
        &bench.store.log_in(&late, NO_HASH, reused, 5).await.map(drop),
        Code::InvalidCredentials,
    );
    refused(
        &bench.store.change_account(ada, &change(NO_HASH)).await.map(drop),
        Code::WrongPassword,
    );
    refused(
        &bench.store.end_account(ada, NO_HASH, bench.now()).await.map(drop),
        Code::WrongPassword,
    );

    assert!(bench.store.resolve(session.tokens.token, bench.now()).await.unwrap().is_some());
    assert!(bench.store.resolve(late.tokens.token, bench.now()).await.unwrap().is_none());
    bench.store.log_in(&late, "the new hash", None, 5).await.unwrap();
    bench.store.end_account(ada, "the new hash", bench.now()).await.unwrap();
}

/// A session and its tokens so far, newest last.
async fn refreshed(bench: &Bench, times: usize) -> (NewSession, Vec<SessionTokens>) {
    let ada = bench.user().await;
    let session = bench.new_session(ada, i64::from(u32::MAX) * 1000);
    bench.store.log_in(&session, NO_HASH, None, 5).await.unwrap();

    let mut tokens = vec![session.tokens];
    for _ in 0..times {
        bench.clock.advance(Duration::from_secs(1));
        let fresh = bench.new_session(ada, i64::from(u32::MAX) * 1000).tokens;
        let presented = tokens.last().unwrap().refresh;
        let outcome = bench.store.refresh(presented, &fresh, None, bench.now()).await.unwrap();
        assert!(matches!(outcome, Refreshed::Rotated { .. }));
        tokens.push(fresh);
    }
    (session, tokens)
}

async fn kept_tokens(bench: &Bench) -> i64 {
    let count = "SELECT COUNT(*) FROM refresh_tokens";
    let url = bench.url();

    if url.starts_with("postgres") {
        sqlx::query_scalar(count)
            .fetch_one(&mut PgConnection::connect(&url).await.unwrap())
            .await
            .unwrap()
    } else {
        sqlx::query_scalar(count)
            .fetch_one(&mut SqliteConnection::connect(&url).await.unwrap())
            .await
            .unwrap()
    }
}

async fn a_session_keeps_its_most_recent_spent_tokens_however_often_it_is_refreshed(
    bench: Arc<Bench>,
) {
    const TIMES: usize = 2_000;
    let (session, tokens) = refreshed(&bench, TIMES).await;
    assert_eq!(kept_tokens(&bench).await, SPENT_TOKENS_MAX + 1, "and the current one");
    let spent = usize::try_from(SPENT_TOKENS_MAX).unwrap();

    let present = async |generation: usize| {
        let fresh = bench.new_session(session.user_id, 1_000_000).tokens;
        bench.store.refresh(tokens[generation].refresh, &fresh, None, bench.now()).await.unwrap()
    };

    for dropped in [0, 1, TIMES / 2, TIMES - spent - 1] {
        assert!(matches!(present(dropped).await, Refreshed::Unknown), "{dropped}");
    }

    assert!(
        bench.store.resolve(tokens[TIMES].token, bench.now()).await.unwrap().is_some(),
        "the session is open"
    );
    assert!(matches!(present(TIMES - spent).await, Refreshed::Reused(it) if it.id == session.id));
    assert!(
        bench.store.resolve(tokens[TIMES].token, bench.now()).await.unwrap().is_none(),
        "the session has ended"
    );
    assert_eq!(kept_tokens(&bench).await, 0);
}

async fn a_session_of_the_previous_version_is_refreshed_with_its_grace(bench: Arc<Bench>) {
    let (session, tokens) = refreshed(&bench, 2).await;
    execute_at(&bench.url(), "UPDATE refresh_tokens SET parent = NULL").await;
    let fresh = bench.new_session(session.user_id, 1_000_000).tokens;
    let outcome = bench.store.refresh(tokens[1].refresh, &fresh, None, bench.now()).await.unwrap();
    assert!(matches!(outcome, Refreshed::Rotated { .. }), "as after a lost answer");
    let outcome = bench.store.refresh(tokens[0].refresh, &fresh, None, bench.now()).await.unwrap();
    assert!(matches!(outcome, Refreshed::Reused(_)), "this version stores the parent");
}
