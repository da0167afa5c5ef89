//! Health probes during a flood of requests for readiness.

use std::time::Duration;

use futures_util::future::join_all;
use sqlx::{Connection, Executor, PgConnection};

use crate::support::{Backend, TestServer, eventually, on_both_databases};

on_both_databases!(readiness_probes_run_no_statements);

async fn readiness_probes_run_no_statements(server: TestServer) {
    let store = server.store();
    let (before, start) = (store.statements(), std::time::Instant::now());

    for _ in 0..10 {
        let probes = join_all(
            (0..40).map(|_| async { reqwest::get(format!("{}/readyz", server.base())).await }),
        );
        for answer in probes.await {
            assert_eq!(answer.unwrap().status(), 200);
        }
    }

    // The health task pings once a second; jobs and the hub run a statement now and then.
    let allowed = 20 + 4 * start.elapsed().as_secs();
    let made = store.statements() - before;
    assert!(made <= allowed, "{made} statements for 400 probes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_readiness_probes_does_not_make_a_replica_unready() {
    let server = TestServer::start(Backend::Postgres).await;
    let flood = async {
        let wave = || {
            join_all(
                (0..300).map(|_| async { reqwest::get(format!("{}/readyz", server.base())).await }),
            )
        };
        let mut statuses = Vec::new();
        for _ in 0..4 {
            statuses
                .extend(wave().await.into_iter().flatten().map(|answer| answer.status().as_u16()));
        }
        statuses
    };

    let probing = async {
        for _ in 0..20 {
            let answer = reqwest::get(format!("{}/readyz", server.internal_base())).await.unwrap();
            assert_eq!(answer.status(), 200);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };

    let (statuses, ()) = tokio::join!(flood, probing);
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_ports_are_unready_while_the_database_is_away_and_ready_again_after() {
    let server = TestServer::start(Backend::Postgres).await;
    let url = server.database_url().unwrap();
    let (base, name) = url.rsplit_once('/').unwrap();
    let mut db = PgConnection::connect(&format!("{base}/postgres")).await.unwrap();

    let allow = |allowed: bool| {
        sqlx::AssertSqlSafe(format!("ALTER DATABASE {name} WITH ALLOW_CONNECTIONS {allowed}"))
    };
    let kill =
        format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");

    let both = async |expected: u16| {
        let mut statuses = Vec::new();
        for base in [server.base(), server.internal_base()] {
            statuses.push(reqwest::get(format!("{base}/readyz")).await.unwrap().status().as_u16());
        }
        statuses == [expected, expected]
    };

    assert!(both(200).await);
    db.execute(allow(false)).await.unwrap();
    db.execute(sqlx::AssertSqlSafe(kill)).await.unwrap();
    eventually("both are unready", async || both(503).await).await;
    db.execute(allow(true)).await.unwrap();
    eventually("both are ready", async || both(200).await).await;
    server.stop().await;
}
