//! Clean-up jobs: a large chat is removed in steps, and a clock that jumps removes nothing.

use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::{AssertSqlSafe, PgConnection};
use starling::model::limits::CLEANUP_GRACE;
use starling::model::{ChatId, ChatKind, Code, UserId};
use starling::store::{Creation, NewChat};

use crate::support::{Backend, TestServer, User, execute, on_both_databases};

on_both_databases!(
    a_removed_chat_does_not_count_even_before_its_members_are_cleared,
    expired_invites_are_removed_after_a_day,
    a_clock_that_jumps_for_a_moment_removes_no_session_and_no_invite,
);

const MEMBERS: usize = 100_000;

async fn count(db: &mut PgConnection, sql: &str, chat: &str) -> i64 {
    let chat: ChatId = chat.parse().unwrap();
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).bind(chat).fetch_one(db).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_of_a_hundred_thousand_is_removed_at_once_and_cleared_in_steps() {
    let server = TestServer::start(Backend::Postgres).await;
    let (ada, bob) = (server.user().await, server.user().await);
    let channel = ada.channel(&[&bob]).await;
    let mut db = server.postgres().await;

    let bulk = format!(
        "WITH made AS (
             INSERT INTO users (id, name, password_hash, created_at_ms)
             SELECT gen_random_uuid(), 'x', '', i FROM generate_series(1, {MEMBERS}) i RETURNING id
         ), counted AS (
             UPDATE chats SET member_count = member_count + {MEMBERS} WHERE id = '{channel}'
         )
         INSERT INTO members
             (chat_id, user_id, role, joined_at_ms, joined_rev, rev, last_read_message_id)
         SELECT '{channel}', id, 'member', 1, 1, 1, 0 FROM made"
    );
    execute(&mut db, &bulk).await;

    let start = Instant::now();
    ada.delete(&format!("/chats/{channel}")).await.expect(204);
    assert!(start.elapsed() < Duration::from_millis(2500), "{:?}", start.elapsed());
    bob.get(&format!("/chats/{channel}")).await.refused(404, "chat_not_found");
    assert_eq!(bob.get("/chats").await.expect(200)["chats"], json!([]));

    // The job starts long before its own interval of a minute is over.
    while count(&mut db, "SELECT COUNT(*) FROM members WHERE chat_id = $1", &channel).await > 90_000
    {
        assert!(start.elapsed() < Duration::from_secs(45), "the removal starts the job");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    while count(&mut db, "SELECT COUNT(*) FROM members WHERE chat_id = $1", &channel).await > 0 {
        assert!(start.elapsed() < Duration::from_mins(5), "the job ends in time");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    let row = "SELECT COUNT(*) FROM chats WHERE id = $1 AND removed_at_ms IS NOT NULL";
    assert_eq!(
        count(&mut db, row, &channel).await,
        1,
        "the row stays for replicas that missed the removal"
    );
    server.stop().await;
}

fn id_of(user: &User) -> UserId {
    user.id.parse().unwrap()
}

async fn a_removed_chat_does_not_count_even_before_its_members_are_cleared(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.group(&[&bob]).await;
    let store = server.store();
    let pair = [(id_of(&ada), id_of(&bob))];
    assert_eq!(store.users_sharing_a_chat(&pair).await.unwrap().len(), 1);

    // The state between the removal and the job.
    let id = if server.database_url().is_some() {
        format!("'{chat}'")
    } else {
        format!("x'{}'", chat.replace('-', ""))
    };
    server.execute(&format!("UPDATE chats SET removed_at_ms = 1 WHERE id = {id}")).await;

    assert!(store.users_sharing_a_chat(&pair).await.unwrap().is_empty());
    let counts = store.chat_counts(&[id_of(&bob)]).await.unwrap();
    assert!(counts.iter().all(|(_, count)| *count == 0), "{counts:?}");

    let limited = |members: Vec<UserId>| NewChat {
        id: ChatId::new(server.clock().now(), &mut rand::rng()),
        kind: Creation::Shared { kind: ChatKind::Group, name: "Crew".to_owned(), members },
        creator: id_of(&ada),
        now: server.clock().now(),
        chats_max: 1,
    };

    store.create_chat(&limited(vec![id_of(&bob)])).await.unwrap();
    let refused = store.create_chat(&limited(Vec::new())).await;
    assert_eq!(refused.err().map(|error| error.code), Some(Code::ChatLimit));
}

async fn expired_invites_are_removed_after_a_day(server: TestServer) {
    let ada = server.user().await;
    ada.post("/invites", json!({ "expires_in_s": 60 })).await.expect(201);
    server.advance(Duration::from_mins(10));
    assert_eq!(server.cleanup().run_once().await.unwrap().invites, 0, "a day of grace");
    assert_eq!(
        ada.get("/invites").await.expect(200)["invites"],
        json!([]),
        "an expired invite is not listed"
    );

    server.advance(CLEANUP_GRACE);
    assert_eq!(server.cleanup().run_once().await.unwrap().invites, 1);
}

async fn a_clock_that_jumps_for_a_moment_removes_no_session_and_no_invite(server: TestServer) {
    let ada = server.user().await;
    let invite = ada.post("/invites", json!({})).await.expect(201);
    let clock = server.clock();
    server.cleanup().run_once().await.unwrap();

    let right = clock.now();
    clock.follow(right.plus(Duration::from_hours(400 * 24)));
    let swept = server.cleanup().run_once().await.unwrap();
    assert!(swept.sessions.is_empty() && swept.invites == 0);
    let again = server.cleanup().run_once().await.unwrap();
    assert!(
        again.sessions.is_empty() && again.invites == 0,
        "the second run removes nothing either"
    );
    clock.follow(right);

    ada.get("/users/me").await.expect(200);
    let open = ada.get("/invites").await.expect(200);
    assert_eq!(open["invites"][0]["code"], invite["code"], "{open}");
}
