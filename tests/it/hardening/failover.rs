//! Failover of Postgres: to a standby that lagged behind, or by way of one that is not promoted.

use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use starling::server::Server;
use starling::store::{Store, StoreOptions};
use starling_loadtest::actor::Account;
use starling_loadtest::workload;
use tempfile::TempDir;

use super::epoch::{account, connect, sent_away, serve, serve_with, sync, through};
use crate::breakdown::Clients;
use crate::outages::send;
use crate::support::{
    Backend, Mode, OwnPostgres, Proxy, Socket, TestServer, User, eventually, redis_url,
};

/// Makes the database `chat` of the ordinary user `starling`, with its schema.
pub async fn prepare(postgres: &OwnPostgres) {
    postgres.execute("CREATE ROLE starling LOGIN").await;
    postgres.execute("CREATE DATABASE chat OWNER starling").await;
    let options =
        StoreOptions::Postgres { url: postgres.url_of("starling", "chat"), connections_max: 2 };
    let store = Store::open(&options).await.unwrap();
    store.migrate().await.unwrap();
    store.close().await;
}

/// The number of messages on a server.
async fn messages(postgres: &OwnPostgres) -> i64 {
    let mut db = PgConnection::connect(&postgres.url_of("starling", "chat")).await.unwrap();
    sqlx::query_scalar("SELECT COUNT(*) FROM messages").fetch_one(&mut db).await.unwrap()
}

/// Sends until the server accepts the message.
async fn send_until_accepted(user: &User, chat: &str, key: &str) {
    let start = Instant::now();
    while ![200, 201].contains(&send(user, chat, key).await.status) {
        assert!(start.elapsed() < Duration::from_secs(30), "the send succeeds in time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the replica is ready.
async fn until_ready(user: &User) {
    let start = Instant::now();
    while user.get("/readyz").await.status != 200 {
        assert!(start.elapsed() < Duration::from_secs(30), "the replica is ready in time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A primary, a standby that follows it, and two replicas of the server.
struct Pair {
    primary: OwnPostgres,
    standby: OwnPostgres,
    /// Between the standby and the primary.
    replication: Proxy,
    /// Between the replicas and the database, in place of a DNS name.
    name: Proxy,
    replicas: Vec<Server>,
    dir: TempDir,
}

impl Pair {
    async fn start() -> Self {
        let primary = OwnPostgres::start().await;
        prepare(&primary).await;
        let replication = Proxy::to(&Proxy::target_of(&primary.url())).await;
        let standby = primary.standby(Some(replication.address())).await;
        let name = Proxy::to(&Proxy::target_of(&primary.url())).await;

        let (dir, prefix) =
            (tempfile::tempdir().unwrap(), format!("test-{:016x}", rand::random::<u64>()));
        let url = name.in_url(&primary.url_of("starling", "chat"));
        let mut replicas = Vec::new();
        for _ in 0..2 {
            replicas.push(
                serve_with(dir.path(), Some(url.clone()), Some((redis_url(), prefix.clone())))
                    .await,
            );
        }
        Self { primary, standby, replication, name, replicas, dir }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_lossy_failover_every_client_holds_exactly_the_log() {
    let Pair { mut primary, standby, replication, name, replicas, dir: _dir } = Pair::start().await;
    let (ada, bob) = (account(&replicas[0], "ada").await, account(&replicas[0], "bob").await);
    let bob = through(&bob, &replicas[1]);
    let chat = ada.private_chat(&bob).await;
    let mut kept: Vec<String> = (0..5).map(|n| format!("kept {n}")).collect();
    for text in &kept {
        ada.say(&chat, text).await;
    }
    eventually("the standby has them", || async { messages(&standby).await == 5 }).await;

    replication.set(Mode::Refuse);
    let (mut of_ada, epoch) = connect(&ada).await;
    let (mut of_bob, _) = connect(&bob).await;
    let (mut gone, _) = connect(&bob).await;
    for socket in [&mut of_ada, &mut of_bob, &mut gone] {
        sync(socket, &epoch, json!({})).await;
    }
    for n in 0..3 {
        ada.say(&chat, &format!("lost {n}")).await;
        for socket in [&mut of_ada, &mut of_bob, &mut gone] {
            assert_eq!(socket.expect("new_message").await["message"]["text"], format!("lost {n}"));
        }
    }
    gone.close().await;
    let known = json!({ &chat: 9 });

    primary.stop_immediately();
    standby.promote().await;
    name.retarget(&Proxy::target_of(&standby.url()));
    for socket in [&mut of_ada, &mut of_bob] {
        sent_away(socket).await;
    }

    until_ready(&ada).await;
    until_ready(&bob).await;

    // More than were lost: by their revs alone, the clients would be up to date.
    for n in 0..5 {
        send_until_accepted(&ada, &chat, &format!("after {n}")).await;
        kept.push(format!("after {n}"));
    }

    let mut back = Vec::new();
    for user in [&ada, &bob, &bob] {
        let (mut socket, present) = connect(user).await;
        assert_ne!(present, epoch);
        let frames = sync(&mut socket, &epoch, known.clone()).await;
        assert_eq!(frames[0], json!({ "type": "reset", "chat_id": chat, "rev": 11 }));
        assert_eq!(frames.len(), 2, "{frames:?}");
        assert_eq!(user.texts(&chat, "").await, kept, "the history that the client reloads");
        back.push(socket);

        // Within the new epoch, revs count again.
        let (mut again, _) = connect(user).await;
        let frames = sync(&mut again, &present, json!({ &chat: 10 })).await;
        assert_eq!(frames[0]["message"]["text"], "after 4");
    }

    ada.say(&chat, "live").await;
    for socket in &mut back {
        assert_eq!(socket.expect("new_message").await["message"]["text"], "live");
    }

    for replica in replicas {
        replica.stop().await;
    }
}

/// The checker tests the devices and the log for all its invariants; I20 is about such a failover.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_connected_during_a_lossy_failover_hold_nothing_that_the_log_lacks() {
    let Pair { mut primary, standby, replication, name, replicas, dir: _dir } = Pair::start().await;
    let mut accounts = Vec::new();
    for login in ["ada", "bob", "eve"] {
        let user = account(&replicas[0], login).await;
        accounts.push(Account {
            user_id: user.id,
            login: user.login,
            token: user.token,
            ..Account::default()
        });
    }

    let bases: Vec<String> =
        replicas.iter().map(|replica| format!("http://{}", replica.address)).collect();
    let herd = Clients::with(accounts, &bases, 2, |number| number).await;
    let chat = herd.community.group(&[0, 1, 2]).await.unwrap();
    for actor in &herd.community.actors {
        let work = herd.work.at_pace(Duration::from_millis(100));
        herd.work.spawn(workload::write(work, actor.clone(), vec![chat.clone()]));
    }
    eventually("the standby has some", || async { messages(&standby).await >= 20 }).await;

    replication.set(Mode::Refuse);
    let kept = messages(&standby).await;
    eventually("the standby lacks some", || async { messages(&primary).await >= kept + 20 }).await;
    primary.stop_immediately();
    standby.promote().await;
    name.retarget(&Proxy::target_of(&standby.url()));
    eventually("more is sent than was lost", || async { messages(&standby).await >= kept + 40 })
        .await;

    let (_, report) = herd.end().await;
    assert!(report.is_clean(), "{report}");
    assert!(report.counts.acknowledged > report.counts.messages, "something was lost: {report}");
    for replica in replicas {
        replica.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_points_to_a_standby_causes_an_outage_that_ends_completely() {
    let primary = OwnPostgres::start().await;
    prepare(&primary).await;
    let standby = primary.standby(None).await;
    let name = Proxy::to(&Proxy::target_of(&primary.url())).await;
    let dir = tempfile::tempdir().unwrap();

    let server = serve(dir.path(), Some(name.in_url(&primary.url_of("starling", "chat")))).await;
    let (ada, bob) = (account(&server, "ada").await, account(&server, "bob").await);
    let chat = ada.private_chat(&bob).await;
    ada.say(&chat, "before").await;
    eventually("the standby has it", || async { messages(&standby).await == 1 }).await;

    let (mut socket, epoch) = connect(&bob).await;
    sync(&mut socket, &epoch, json!({})).await;

    name.retarget(&Proxy::target_of(&standby.url()));
    name.cut_all().await;
    for _ in 0..10 {
        send(&ada, &chat, "meanwhile").await.refused(503, "unavailable");
        // Unready once the ping of each second reached the standby, and not ready before the
        // primary is back.
        eventually("the replica is unready", || async { bob.get("/readyz").await.status == 503 })
            .await;
        bob.get(&format!("/chats/{chat}/messages")).await.refused(503, "unavailable");
    }

    // Connections to the standby stay open, if any were kept.
    name.retarget(&Proxy::target_of(&primary.url()));
    let start = Instant::now();
    until_ready(&bob).await;
    send_until_accepted(&ada, &chat, "after").await;
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());

    for n in 0..20 {
        send(&ada, &chat, &format!("after {n}")).await.expect(201);
        bob.get("/chats").await.expect(200);
    }

    assert_eq!(
        socket.expect("new_message").await["message"]["text"],
        "after",
        "the connection stayed open"
    );
    assert_eq!(connect(&bob).await.1, epoch, "the log is the same");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_refuses_writes_is_closed() {
    let server =
        TestServer::with(Backend::Postgres, |settings| settings.database_connections_max = Some(2))
            .await;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    let url = server.database_url().unwrap();
    let (base, database) = url.rsplit_once('/').unwrap();
    let mut db = PgConnection::connect(&format!("{base}/postgres")).await.unwrap();

    let sessions = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}' \
         AND application_name = 'starling'"
    );
    let (read_only, as_before) = (
        format!("ALTER DATABASE {database} SET default_transaction_read_only = on"),
        format!("ALTER DATABASE {database} RESET default_transaction_read_only"),
    );

    // New sessions are read-only, as on a demoted server.
    for sql in [&read_only, &sessions] {
        db.execute(AssertSqlSafe(sql.clone())).await.unwrap();
    }

    for n in 0..6 {
        send(&ada, &chat, &format!("refused {n}")).await.refused(503, "unavailable");
    }

    db.execute(AssertSqlSafe(as_before)).await.unwrap();
    // Each connection that was opened meanwhile closes by the first refusal on one of them.
    let refused = send(&ada, &chat, "again").await.status;
    assert!([201, 503].contains(&refused));
    for n in 0..10 {
        send(&ada, &chat, &format!("taken {n}")).await.expect(201);
    }

    let mut socket = Socket::live(&bob).await;
    ada.say(&chat, "live").await;
    socket.expect("new_message").await;
    server.stop().await;
}
