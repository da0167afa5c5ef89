//! Replicas and schemas of different versions, as in every rollout.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::harness::Home;
use crate::support::{Backend, redis_url};

/// A migration that the next version may have: it adds columns and an index, and removes nothing.
const NEXT_VERSION: &[&str] = &[
    "ALTER TABLE messages ADD COLUMN of_the_next_version TEXT",
    "ALTER TABLE chats ADD COLUMN of_the_next_version BIGINT NOT NULL DEFAULT 0",
    "ALTER TABLE members ADD COLUMN of_the_next_version BOOLEAN NOT NULL DEFAULT FALSE",
    "CREATE INDEX CONCURRENTLY of_the_next_version ON messages (sent_at_ms)",
    "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
     VALUES (9999, 'next', TRUE, '\\x00', 1)",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_serves_and_starts_while_the_schema_of_the_next_version_arrives() {
    let home = Home::of(Backend::Postgres).await;
    let server = home.serve().await;
    let users = home.users(&server.base, "u", 2).await;
    let chat = users[0].private_chat(&users[1]).await;

    let migrating = async {
        let mut db = PgConnection::connect(&home.database.url().unwrap()).await.unwrap();
        for statement in NEXT_VERSION {
            tokio::time::sleep(Duration::from_millis(300)).await;
            db.execute(AssertSqlSafe(*statement)).await.unwrap();
        }
    };

    let start = Instant::now();
    let working = join_all(users.iter().map(|user| async {
        let mut sent = 0;
        while start.elapsed() < Duration::from_secs(3) {
            user.post(&format!("/chats/{chat}/messages"), json!({ "text": "on and on" }))
                .await
                .expect(201);
            user.get("/chats").await.expect(200);
            user.get(&format!("/chats/{chat}/messages")).await.expect(200);
            sent += 1;
        }
        sent
    }));

    let (sent, ()) = tokio::join!(working, migrating);
    // A replica of this version can still be restarted.
    server.kill().await;

    let server = home.serve().await;
    let user = server.at(&users[0]);
    let last = user.say(&chat, "the last").await;
    assert_eq!(last["id"], sent.iter().sum::<i64>() + 1, "no message was lost or stored twice");
    home.run(&["migrate"]).await.failed(1, &["starling: ", "9999"]);
    server.stop().await;
    home.database.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_replicas_that_start_at_once_all_serve() {
    let prefix = format!("test-{:016x}", rand::random::<u64>());
    let home = Home::of(Backend::Postgres).await;
    let home = home.with("REDIS_URL", &redis_url()).with("STARLING_REDIS_PREFIX", &prefix);
    let servers = join_all((0..5).map(|_| home.serve())).await;
    let users = home.users(&servers[0].base, "u", 2).await;
    let chat = users[0].private_chat(&users[1]).await;
    for (number, server) in servers.iter().enumerate() {
        server.at(&users[0]).say(&chat, &number.to_string()).await;
    }

    for server in &servers {
        assert_eq!(server.at(&users[1]).texts(&chat, "").await, ["0", "1", "2", "3", "4"]);
    }

    let links: Vec<_> = servers.iter().map(super::harness::Process::first_invite).collect();
    assert!(
        links.iter().all(|link| link.is_some() && *link == links[0]),
        "one link for all: {links:?}"
    );
    join_all(servers.into_iter().map(super::harness::Process::stop)).await;
    home.database.remove().await;
}
