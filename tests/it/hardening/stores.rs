//! The store without a server: first views of a chat, sweepers at once, the limit of sessions.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use starling::model::ChatKind;
use starling::model::limits::JOB_BATCH;
use starling::store::{Creation, Opened, Store};

use crate::store::bench::{Bench, NO_HASH, draft, on_both_stores};

on_both_stores!(
    the_first_view_of_a_new_chat_equals_a_later_one,
    concurrent_sweepers_remove_each_row_of_a_removed_chat_once,
    a_login_over_the_limit_ends_an_expired_session_before_a_live_one,
);

async fn the_first_view_of_a_new_chat_equals_a_later_one(bench: Arc<Bench>) {
    let users = bench.users(4).await;
    let shared =
        |kind| Creation::Shared { kind, name: "Crew".to_owned(), members: users[1..].to_vec() };

    let kinds = [
        shared(ChatKind::Group),
        shared(ChatKind::Channel),
        Creation::Private(users[1]),
        Creation::SelfChat,
    ];

    for kind in kinds {
        let new = bench.new_chat(users[0], kind.clone());
        let Opened::New(views) = bench.store.create_chat(&new).await.unwrap() else {
            panic!("{kind:?} is new")
        };
        assert!(!views.is_empty());
        for (user_id, view) in views {
            let later = bench.store.chat(new.id, user_id).await.unwrap().unwrap();
            assert_eq!(format!("{view:?}"), format!("{later:?}"));
        }
    }
}

async fn concurrent_sweepers_remove_each_row_of_a_removed_chat_once(bench: Arc<Bench>) {
    let owner = bench.user().await;
    let members = bench.users(60).await;
    let mut chats = Vec::new();
    for _ in 0..4 {
        let chat = bench.group(owner, &members).await;
        for _ in 0..12 {
            let drafts: Vec<_> = (0..100).map(|n| draft(chat, owner, &n.to_string())).collect();
            bench.store.append(&drafts, bench.now()).await.unwrap();
        }
        bench.store.remove_chat(chat, owner, bench.now()).await.unwrap();
        chats.push(chat);
    }

    let sweepers =
        [bench.another_store().await, bench.another_store().await, bench.another_store().await];
    let mut total = 0;

    loop {
        let rounds = join_all(sweepers.iter().map(Store::delete_removed_chats)).await;
        let rounds: Vec<u64> = rounds.into_iter().map(|swept| swept.unwrap().chat_rows).collect();
        assert!(rounds.iter().all(|rows| *rows <= JOB_BATCH.unsigned_abs()));
        total += rounds.iter().sum::<u64>();
        if rounds.iter().all(|rows| *rows == 0) {
            break;
        }
    }

    assert_eq!(total, 4 * (1200 + 61), "each row once");
    let rows = bench.store.delete_expired(bench.now()).await.unwrap().chat_rows;
    assert_eq!(rows, 4, "the rows of the chats go last, once expired");
}

async fn a_login_over_the_limit_ends_an_expired_session_before_a_live_one(bench: Arc<Bench>) {
    let ada = bench.user().await;
    let live = bench.new_session(ada, 10_000_000);
    bench.store.log_in(&live, NO_HASH, None, 2).await.unwrap();
    bench.clock.advance(Duration::from_secs(1));

    let expired = bench.new_session(ada, 1_000);
    bench.store.log_in(&expired, NO_HASH, None, 2).await.unwrap();
    bench.clock.advance(Duration::from_mins(1));

    let third =
        bench.store.log_in(&bench.new_session(ada, 10_000_000), NO_HASH, None, 2).await.unwrap();
    assert_eq!(third.ended.iter().map(|session| session.id).collect::<Vec<_>>(), [expired.id]);
    assert!(bench.store.resolve(live.tokens.token, bench.now()).await.unwrap().is_some());
}
