//! Which replicas may serve on a Postgres database, and poolers in front of it.

use std::time::{Duration, Instant};

use sqlx::{Connection, Executor, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::harness::Home;
use crate::support::{Backend, execute_at};

/// Parts of the error that a second replica prints.
const REFUSED: [&str; 3] = ["starling: ", "another replica serves on this database", "REDIS_URL"];

const END_HOLDERS: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                           WHERE application_name = 'starling-replica'
                             AND datname = current_database()";

#[tokio::test]
async fn a_second_replica_without_redis_is_refused_and_the_commands_are_not() {
    let home = Home::of(Backend::Postgres).await;
    let server = home.serve().await;
    home.run(&["serve"]).await.failed(1, &REFUSED);
    for command in
        [&["invite"][..], &["migrate"], &["user", "create", "--login", "ada"], &["doctor"]]
    {
        home.run(command).await.fine();
    }

    server.stranger().get("/readyz").await.expect(200);
    server.stop().await;
    home.serve().await.stop().await;
    home.database.remove().await;
}

#[tokio::test]
async fn a_successor_waits_for_a_replica_that_is_going_away() {
    let home = Home::of(Backend::Postgres).await;
    let old = home.serve().await;
    let going = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        old.stop().await;
    };
    let (new, ()) = tokio::join!(home.serve(), going);
    new.stranger().get("/readyz").await.expect(200);
    new.stop().await;
    home.database.remove().await;
}

#[tokio::test]
async fn a_killed_replica_leaves_no_lock_behind() {
    let home = Home::of(Backend::Postgres).await;
    home.serve().await.kill().await;
    let start = Instant::now();
    let next = home.serve().await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    next.stop().await;
    home.database.remove().await;
}

#[tokio::test]
async fn a_replica_that_lost_its_lock_takes_it_again_and_goes_on() {
    let home = Home::of(Backend::Postgres).await;
    let server = home.serve().await;
    execute_at(&home.database.url().unwrap(), END_HOLDERS).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    home.run(&["serve"]).await.failed(1, &REFUSED);
    server.stranger().get("/readyz").await.expect(200);
    server.stop().await;
    home.database.remove().await;
}

#[tokio::test]
async fn a_replica_that_loses_its_lock_to_another_exits_with_1_and_logs_why() {
    let home = Home::of(Backend::Postgres).await;
    let server = home.serve().await;

    // A session that waits for the lock gets it as soon as the holder's session ends.
    let url = home.database.url().unwrap();
    let mut other = PgConnection::connect(&url).await.unwrap();
    let stealing = async {
        other.execute("SELECT pg_advisory_lock(x'7265706c69636173'::bigint)").await.unwrap();
    };
    let ending = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        execute_at(&home.database.url().unwrap(), END_HOLDERS).await;
    };

    tokio::join!(stealing, ending);
    let (code, _, took) = server.end().await;
    assert_eq!(code, Some(1));
    assert!(took < Duration::from_secs(12), "{took:?}");

    let log = home.log();
    assert!(REFUSED.iter().all(|words| log.contains(words)), "{log}");
    drop(other);
    home.database.remove().await;
}

#[tokio::test]
async fn a_pooler_that_drops_settings_is_reported_in_one_sentence() {
    let pooler = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = pooler.local_addr().unwrap();
    let answering = async {
        loop {
            let (mut client, _) = pooler.accept().await.unwrap();
            let mut startup = [0; 1024];
            let _ = client.read(&mut startup).await.unwrap();
            // PgBouncer answers so.
            let fields = b"SFATAL\0C08P01\0Munsupported startup parameter: options\0\0";
            let length = u32::try_from(fields.len() + 4).unwrap().to_be_bytes();
            client.write_all(&[&b"E"[..], &length, fields].concat()).await.unwrap();
        }
    };

    let url = format!("postgres://starling@{address}/starling?sslmode=disable");
    let home = Home::new().with("DATABASE_URL", &url);
    tokio::select! {
        () = answering => {}
        finished = home.run(&["serve"]) => {
            let advice = "let DATABASE_URL name Postgres itself";
            finished.failed(1, &["starling: ", &address.to_string(), "PgBouncer", advice]);
        }
    }
}
