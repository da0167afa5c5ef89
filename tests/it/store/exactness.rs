//! Uniqueness and limits, also for concurrent requests.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use starling::model::{ChatId, Code, Role, SessionId, Timestamp};
use starling::store::{Creation, Invite, Opened, Refreshed, Store, StoreOptions};

use super::bench::{Bench, NO_HASH, on_both_stores, refused};

on_both_stores!(
    a_pair_has_one_private_chat_though_both_make_it_at_once,
    a_user_has_one_self_chat_though_many_make_it_at_once,
    a_private_chat_is_found_again_by_users_who_have_a_self_chat_too,
    the_session_limit_is_exact_under_concurrent_logins,
    an_invite_has_exactly_its_number_of_uses,
    concurrently_started_processes_share_one_first_invite,
    a_refused_registration_gives_the_use_back,
    the_limit_of_open_invites_is_exact,
    the_limits_of_members_and_chats_are_exact,
    of_two_owners_who_leave_at_once_one_stays,
    a_spent_refresh_token_ends_its_session_after_the_grace,
    an_account_removed_while_it_joins_leaves_no_member,
);

/// If two processes create one file at once, SQLite refuses the slower one without waiting for the
/// lock.
#[tokio::test]
async fn opening_waits_for_a_file_that_another_process_creates() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteConnectOptions::new()
        .filename(dir.path().join("starling.db"))
        .create_if_missing(true);
    let mut other = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();

    let making = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        sqlx::query("COMMIT").execute(&mut other).await.unwrap();
    };
    let options = StoreOptions::Sqlite { dir: dir.path().to_owned() };
    let (opened, ()) = tokio::join!(Store::open(&options), making);
    assert!(opened.is_ok(), "{:?}", opened.err());
}

/// A function that returns one of two stores on the same database, by number.
async fn two(bench: &Bench) -> impl Fn(usize) -> Store + use<> {
    let stores = [bench.store.clone(), bench.another_store().await];
    move |number| stores[number % 2].clone()
}

fn is_new(opened: &Opened) -> bool {
    matches!(opened, Opened::New(_))
}

fn id(opened: &Opened) -> ChatId {
    match opened {
        Opened::New(views) => views[0].1.id,
        Opened::Found { chat, .. } => chat.id,
    }
}

async fn a_pair_has_one_private_chat_though_both_make_it_at_once(bench: Arc<Bench>) {
    let store = two(&bench).await;
    for _ in 0..4 {
        let (ada, bob) = (bench.user().await, bench.user().await);
        let make = |number: usize| {
            let (creator, peer) = if number.is_multiple_of(3) { (ada, bob) } else { (bob, ada) };
            let new = bench.new_chat(creator, Creation::Private(peer));
            let store = store(number);
            async move { store.create_chat(&new).await.unwrap() }
        };

        let outcomes = join_all((0..16).map(make)).await;
        assert_eq!(outcomes.iter().filter(|opened| is_new(opened)).count(), 1);

        let ids: BTreeSet<ChatId> = outcomes.iter().map(id).collect();
        assert_eq!(ids.len(), 1);
        for user in [ada, bob] {
            assert_eq!(bench.store.inbox(user, None, 10).await.unwrap().len(), 1);
        }
    }
}

async fn a_user_has_one_self_chat_though_many_make_it_at_once(bench: Arc<Bench>) {
    let store = two(&bench).await;
    let ada = bench.user().await;
    let make = |number: usize| {
        let (store, new) = (store(number), bench.new_chat(ada, Creation::SelfChat));
        async move { store.create_chat(&new).await.unwrap() }
    };
    let outcomes = join_all((0..16).map(make)).await;
    assert_eq!(outcomes.iter().filter(|opened| is_new(opened)).count(), 1);
    assert_eq!(bench.store.chat_heads(ada).await.unwrap().len(), 1);
}

async fn a_private_chat_is_found_again_by_users_who_have_a_self_chat_too(bench: Arc<Bench>) {
    let (ada, bob) = (bench.user().await, bench.user().await);
    let open = async |creator, kind| {
        let opened = bench.store.create_chat(&bench.new_chat(creator, kind)).await.unwrap();
        (is_new(&opened), id(&opened))
    };

    let mut expected = Vec::new();
    for user in [ada, bob] {
        let (new, own) = open(user, Creation::SelfChat).await;
        assert!(new);
        expected.push((user, own));
    }

    let (_, private) = open(ada, Creation::Private(bob)).await;
    for (user, peer) in [(ada, bob), (bob, ada)] {
        assert_eq!(open(user, Creation::Private(peer)).await, (false, private));
    }
    for (user, own) in expected {
        assert_eq!(open(user, Creation::SelfChat).await, (false, own));
    }
}

async fn the_session_limit_is_exact_under_concurrent_logins(bench: Arc<Bench>) {
    const LIMIT: i64 = 5;

    let store = two(&bench).await;
    let (ada, bob) = (bench.user().await, bench.user().await);
    let other = bench.new_session(bob, 1_000_000);
    bench.store.log_in(&other, NO_HASH, None, LIMIT).await.unwrap();

    let log_in = |number: usize| {
        let (store, new) = (store(number), bench.new_session(ada, 1_000_000));
        async move {
            let logged_in = store.log_in(&new, NO_HASH, None, LIMIT).await.unwrap();
            assert_eq!(logged_in.session_id, new.id);
            (new, logged_in.ended.iter().map(|session| session.id).collect::<Vec<_>>())
        }
    };

    let logins = join_all((0..16).map(log_in)).await;
    let made: BTreeSet<SessionId> = logins.iter().map(|(new, _)| new.id).collect();
    let ended: Vec<SessionId> = logins.iter().flat_map(|(_, ended)| ended.clone()).collect();
    let live = bench.store.sessions(Bench::caller(&logins[0].0), bench.now()).await.unwrap();
    let live: BTreeSet<SessionId> = live.into_iter().map(|session| session.id).collect();
    assert_eq!((live.len(), ended.len()), (5, 11));

    let ended: BTreeSet<SessionId> = ended.into_iter().collect();
    assert_eq!(ended.len(), 11, "each ended once");
    assert!(
        live.is_disjoint(&ended) && live.union(&ended).copied().collect::<BTreeSet<_>>() == made
    );

    for (new, _) in &logins {
        let resolved = bench.store.resolve(new.tokens.token, bench.now()).await.unwrap();
        assert_eq!(
            resolved.is_some(),
            live.contains(&new.id),
            "an ended session's token is refused"
        );
    }

    assert!(
        bench.store.resolve(other.tokens.token, bench.now()).await.unwrap().is_some(),
        "another user's session stays"
    );
}

async fn an_invite_has_exactly_its_number_of_uses(bench: Arc<Bench>) {
    let store = two(&bench).await;
    for (uses, guests) in [(1_usize, 64_usize), (5, 16)] {
        let invite = bench.new_invite(i64::try_from(uses).unwrap(), 1_000_000);
        bench.store.create_invite(&invite, None, 0).await.unwrap();

        let register = |number: usize| {
            let (store, user, code) = (store(number), bench.new_user(), invite.code.clone());
            let session = bench.new_session(user.id, 1_000_000);
            async move { (store.register(&code, &user, &session).await, user.id, session) }
        };

        let outcomes = join_all((0..guests).map(register)).await;
        assert_eq!(outcomes.iter().filter(|(outcome, ..)| outcome.is_ok()).count(), uses);

        for (outcome, user_id, session) in &outcomes {
            let there = bench.store.user(*user_id).await.unwrap().is_some();
            let resolved =
                bench.store.resolve(session.tokens.token, bench.now()).await.unwrap().is_some();
            assert_eq!((there, resolved), (outcome.is_ok(), outcome.is_ok()), "all or nothing");
            if outcome.is_err() {
                refused(outcome, Code::InviteNotFound);
            }
        }

        assert!(bench.store.open_invite(&invite.code, bench.now()).await.unwrap().is_none());
    }
}

async fn concurrently_started_processes_share_one_first_invite(bench: Arc<Bench>) {
    const LIFE_MS: i64 = 60_000;

    let (store, began_ms) = (two(&bench).await, bench.now().as_ms());
    for round in 0..16 {
        // The invite of the previous round has expired.
        let now_ms = began_ms + round * LIFE_MS;
        let start = |number: usize| {
            let times = [now_ms, now_ms + LIFE_MS].map(Timestamp::from_ms);
            let new = Invite {
                created_at_ms: times[0],
                expires_at_ms: times[1],
                ..bench.new_invite(1, LIFE_MS)
            };
            let store = store(number);
            async move { store.first_invite(new).await.unwrap().code }
        };

        let codes: BTreeSet<String> = join_all((0..16).map(start)).await.into_iter().collect();
        assert_eq!(codes.len(), 1, "{codes:?}");
    }
}

async fn a_refused_registration_gives_the_use_back(bench: Arc<Bench>) {
    let store = two(&bench).await;
    let invite = bench.new_invite(8, 1_000_000);
    bench.store.create_invite(&invite, None, 0).await.unwrap();

    let login = bench.new_user().login;
    let register = |number: usize| {
        let (store, code) = (store(number), invite.code.clone());
        let user = starling::store::NewUser { login: login.clone(), ..bench.new_user() };
        let session = bench.new_session(user.id, 1_000_000);
        async move { store.register(&code, &user, &session).await }
    };

    let outcomes = join_all((0..8).map(register)).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    for outcome in outcomes.iter().filter(|outcome| outcome.is_err()) {
        refused(outcome, Code::LoginTaken);
    }

    for _ in 0..7 {
        let user = bench.new_user();
        bench
            .store
            .register(&invite.code, &user, &bench.new_session(user.id, 1_000_000))
            .await
            .unwrap();
    }

    let user = bench.new_user();
    let late =
        bench.store.register(&invite.code, &user, &bench.new_session(user.id, 1_000_000)).await;
    refused(&late, Code::InviteNotFound);

    let expired = bench.new_invite(8, -60_000);
    bench.store.create_invite(&expired, None, 0).await.unwrap();

    let late =
        bench.store.register(&expired.code, &user, &bench.new_session(user.id, 1_000_000)).await;
    refused(&late, Code::InviteNotFound);
}

async fn the_limit_of_open_invites_is_exact(bench: Arc<Bench>) {
    let store = two(&bench).await;
    let ada = bench.user().await;
    for invite in [bench.new_invite(1, -60_000), bench.new_invite(0, 1_000_000)] {
        bench.store.create_invite(&invite, Some(ada), 1000).await.unwrap();
    }

    let invite = |number: usize| {
        let (store, invite) = (store(number), bench.new_invite(1, 1_000_000));
        async move { store.create_invite(&invite, Some(ada), 5).await }
    };
    let outcomes = join_all((0..16).map(invite)).await;
    assert_eq!(
        outcomes.iter().filter(|outcome| outcome.is_ok()).count(),
        5,
        "expired and used invites don't count"
    );

    for outcome in outcomes.iter().filter(|outcome| outcome.is_err()) {
        refused(outcome, Code::InviteLimit);
    }
    assert_eq!(bench.store.invites(ada, bench.now(), 100).await.unwrap().len(), 5);
}

async fn the_limits_of_members_and_chats_are_exact(bench: Arc<Bench>) {
    let store = two(&bench).await;
    let ada = bench.user().await;
    let guests = bench.users(12).await;
    let chat = bench.group(ada, &[]).await;
    let add = |number: usize| {
        let (store, mut add) = (store(number), bench.adding(chat, ada, guests[number]));
        add.members_max = 6;
        async move { store.add_member(&add).await }
    };

    let outcomes = join_all((0..12).map(add)).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 5);
    for outcome in outcomes.iter().filter(|outcome| outcome.is_err()) {
        refused(outcome, Code::MemberLimit);
    }

    assert_eq!(bench.store.members(chat, ada, None, 100).await.unwrap().len(), 6);

    let bob = bench.user().await;
    let mut chats = Vec::new();
    for _ in 0..12 {
        chats.push(bench.group(ada, &[]).await);
    }

    let join = |number: usize| {
        let (store, mut add) = (store(number), bench.adding(chats[number], ada, bob));
        add.chats_max = 4;
        async move { store.add_member(&add).await }
    };

    let outcomes = join_all((0..12).map(join)).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 4);
    assert_eq!(bench.store.chat_heads(bob).await.unwrap().len(), 4);
}

async fn of_two_owners_who_leave_at_once_one_stays(bench: Arc<Bench>) {
    let store = two(&bench).await;
    for _ in 0..8 {
        let users = bench.users(3).await;
        let chat = bench.group(users[0], &users[1..]).await;
        bench.store.change_role(chat, users[0], users[1], Role::Owner).await.unwrap();
        let leave = |number: usize| {
            let (store, user, now) = (store(number), users[number], bench.now());
            async move { store.remove_member(chat, user, user, now).await }
        };
        let outcomes = join_all((0..2).map(leave)).await;
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
        refused(outcomes.iter().find(|outcome| outcome.is_err()).unwrap(), Code::LastOwner);
    }
}

async fn a_spent_refresh_token_ends_its_session_after_the_grace(bench: Arc<Bench>) {
    let ada = bench.user().await;
    let session = bench.new_session(ada, 1_000_000_000);
    bench.store.log_in(&session, NO_HASH, None, 5).await.unwrap();

    let refresh = async |presented| {
        let fresh = bench.new_session(ada, 1_000_000_000).tokens;
        (bench.store.refresh(presented, &fresh, None, bench.now()).await.unwrap(), fresh)
    };
    let (first, second) =
        tokio::join!(refresh(session.tokens.refresh), refresh(session.tokens.refresh));

    for (outcome, _) in [&first, &second] {
        assert!(
            matches!(outcome, Refreshed::Rotated { session: it, .. } if it.id == session.id),
            "the answer may have been lost, so a retry is allowed"
        );
    }

    assert!(
        bench.store.resolve(session.tokens.token, bench.now()).await.unwrap().is_none(),
        "the old token is refused"
    );
    bench.clock.advance(Duration::from_secs(11));

    let (outcome, _) = refresh(session.tokens.refresh).await;
    assert!(matches!(outcome, Refreshed::Reused(it) if it.id == session.id));

    for (_, fresh) in [&first, &second] {
        assert!(
            bench.store.resolve(fresh.token, bench.now()).await.unwrap().is_none(),
            "the session is over"
        );
        assert!(matches!(refresh(fresh.refresh).await.0, Refreshed::Unknown));
    }
}

async fn an_account_removed_while_it_joins_leaves_no_member(bench: Arc<Bench>) {
    let store = two(&bench).await;
    let ada = bench.user().await;
    for _ in 0..6 {
        let bob = bench.user().await;
        let mut chats = Vec::new();
        for _ in 0..3 {
            chats.push(bench.group(ada, &[]).await);
        }

        let join = |number: usize| {
            let (store, add) = (store(number), bench.adding(chats[number], ada, bob));
            async move { drop(store.add_member(&add).await) }
        };
        let going = bench.remove_account(bob);
        let (_, events) = tokio::join!(join_all((0..3).map(join)), going);
        assert!(bench.store.chat_heads(bob).await.unwrap().is_empty());
        for chat in chats {
            assert_eq!(bench.store.members(chat, ada, None, 10).await.unwrap().len(), 1);
            assert_eq!(bench.store.chat(chat, ada).await.unwrap().unwrap().member_count, 1);
        }

        assert!(events.len() <= 3);
    }
}
