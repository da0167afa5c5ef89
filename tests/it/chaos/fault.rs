//! The faults: one at a time or two at once, each for a limited time, chosen by a seed.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::stage::Stage;
use crate::support::{Mode, Way};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    ReplicaKilled,
    ReplicaStopped,
    ReplicaTerminated,
    RollingRestart,
    RedisKilled,
    RedisFlushed,
    RedisPaused,
    RedisReadOnly,
    RedisOutOfMemory,
    SubscriptionsCut,
    RedisBlackHole,
    RedisRefused,
    RedisSlow,
    PostgresStoppedAtOnce,
    PostgresKilled,
    BackendsTerminated,
    PostgresBlackHole,
    PostgresRefused,
    PostgresSlow,
    AnswerOfCommitCut,
    MessagesLocked,
}

impl Fault {
    pub const ALL: &[Self] = &[
        Self::ReplicaKilled,
        Self::ReplicaStopped,
        Self::ReplicaTerminated,
        Self::RollingRestart,
        Self::RedisKilled,
        Self::RedisFlushed,
        Self::RedisPaused,
        Self::RedisReadOnly,
        Self::RedisOutOfMemory,
        Self::SubscriptionsCut,
        Self::RedisBlackHole,
        Self::RedisRefused,
        Self::RedisSlow,
        Self::PostgresStoppedAtOnce,
        Self::PostgresKilled,
        Self::BackendsTerminated,
        Self::PostgresBlackHole,
        Self::PostgresRefused,
        Self::PostgresSlow,
        Self::AnswerOfCommitCut,
        Self::MessagesLocked,
    ];
}

/// How often each kind of fault happened.
pub type Tally = BTreeMap<Fault, u64>;

/// Causes the fault, waits, and ends it.
pub async fn happen(fault: Fault, stage: &mut Stage, rng: &mut StdRng) {
    let span = Duration::from_millis(rng.random_range(200..2500));
    let one = rng.random_range(0..stage.replicas.len());
    match fault {
        Fault::ReplicaKilled => {
            stage.replicas[one].kill().await;
            tokio::time::sleep(span).await;
            stage.replicas[one].start();
        }
        Fault::ReplicaStopped => {
            stage.replicas[one].signal("-STOP");
            tokio::time::sleep(span * 2).await;
            stage.replicas[one].signal("-CONT");
        }
        Fault::ReplicaTerminated => {
            stage.replicas[one].terminate().await;
            stage.replicas[one].start();
        }
        Fault::RollingRestart => {
            for replica in &mut stage.replicas {
                replica.terminate().await;
                replica.start();
                replica.until_ready_again().await;
            }
        }
        Fault::RedisKilled
        | Fault::RedisFlushed
        | Fault::RedisPaused
        | Fault::RedisReadOnly
        | Fault::RedisOutOfMemory
        | Fault::SubscriptionsCut => redis(fault, stage, span).await,
        Fault::RedisBlackHole => with_redis_proxy(stage, rng, Mode::BlackHole, span).await,
        Fault::RedisRefused => with_redis_proxy(stage, rng, Mode::Refuse, span).await,
        Fault::RedisSlow => {
            with_redis_proxy(stage, rng, Mode::Delay(Duration::from_millis(80)), span).await;
        }
        Fault::PostgresStoppedAtOnce
        | Fault::PostgresKilled
        | Fault::BackendsTerminated
        | Fault::MessagesLocked => postgres(fault, stage, span).await,
        Fault::PostgresBlackHole => with_postgres_proxy(stage, one, Mode::BlackHole, span).await,
        Fault::PostgresRefused => with_postgres_proxy(stage, one, Mode::Refuse, span).await,
        Fault::PostgresSlow => {
            with_postgres_proxy(stage, one, Mode::Delay(Duration::from_millis(30)), span).await;
        }
        Fault::AnswerOfCommitCut => {
            for _ in 0..5 {
                // Every text of the run has these words, so the cut hits the answer to a send.
                let cut = if rng.random() {
                    Mode::CutAnswerTo(b" of run ".to_vec())
                } else {
                    Mode::CutAfter(Way::ToClient, rng.random_range(1..2000))
                };
                with_postgres_proxy(stage, one, cut, span / 5).await;
            }
        }
    }
}

async fn redis(fault: Fault, stage: &mut Stage, span: Duration) {
    match fault {
        Fault::RedisKilled => {
            stage.redis.kill();
            tokio::time::sleep(span).await;
            stage.redis.restart().await;
        }
        Fault::RedisFlushed => {
            let _: String = stage.redis.command(&["FLUSHALL"]).await;
        }
        Fault::RedisPaused => {
            let _: String =
                stage.redis.command(&["CLIENT", "PAUSE", &span.as_millis().to_string()]).await;
            tokio::time::sleep(span).await;
        }
        Fault::RedisReadOnly => {
            let _: String = stage.redis.command(&["REPLICAOF", "127.0.0.1", "1"]).await;
            tokio::time::sleep(span).await;
            let _: String = stage.redis.command(&["REPLICAOF", "NO", "ONE"]).await;
        }
        Fault::RedisOutOfMemory => {
            let _: String = stage.redis.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
            tokio::time::sleep(span).await;
            let _: String = stage.redis.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
        }
        _ => {
            let end = tokio::time::Instant::now() + span;
            while tokio::time::Instant::now() < end {
                let _: i64 = stage.redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn postgres(fault: Fault, stage: &mut Stage, span: Duration) {
    match fault {
        Fault::PostgresStoppedAtOnce => {
            stage.postgres.stop_immediately();
            tokio::time::sleep(span / 2).await;
            stage.postgres.restart().await;
        }
        Fault::PostgresKilled => {
            stage.postgres.kill();
            tokio::time::sleep(span / 2).await;
            stage.postgres.restart().await;
        }
        Fault::BackendsTerminated => {
            let all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                       WHERE pid <> pg_backend_pid()";
            for _ in 0..3 {
                stage.postgres.execute(all).await;
                tokio::time::sleep(span / 3).await;
            }
        }
        _ => {
            let s = span.as_secs_f64();
            let lock = format!(
                "BEGIN; LOCK TABLE messages IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep({s}); COMMIT"
            );
            stage.postgres.execute(&lock).await;
        }
    }
}

/// Sets the proxy between Redis and one replica or all for a while.
async fn with_redis_proxy(stage: &Stage, rng: &mut StdRng, mode: Mode, span: Duration) {
    let all: Vec<usize> = (0..stage.replicas.len()).collect();
    let count = *[1, all.len()].choose(rng).unwrap();
    let some: Vec<usize> = all.sample(rng, count).copied().collect();
    for number in &some {
        stage.replicas[*number].to_redis.set(mode.clone());
    }
    tokio::time::sleep(span).await;
    for number in &some {
        stage.replicas[*number].to_redis.set(Mode::Pass);
    }
}

/// Sets the proxy between Postgres and one replica for a while.
async fn with_postgres_proxy(stage: &Stage, one: usize, mode: Mode, span: Duration) {
    stage.replicas[one].to_postgres.set(mode);
    tokio::time::sleep(span).await;
    stage.replicas[one].to_postgres.set(Mode::Pass);
}
