//! Removal of an account: nothing is created in its name afterwards, and the number of its chats
//! does not matter.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use starling::config::Config;
use starling::model::{ChatId, Clock, UserId};
use starling::server::Server;
use tempfile::TempDir;

use super::epoch::{account, through};
use crate::outages::send;
use crate::support::{
    Answer, Backend, Database, Mode, Proxy, Socket, TestServer, User, eventually, everywhere,
    execute, lock_waits, postgres_url, settings,
};

everywhere!(
    nothing_is_created_for_an_account_that_ends_meanwhile,
    an_account_that_is_removed_twice_at_once_is_removed_once,
);

/// Groups of the removed account.
const GROUPS: usize = 1000;

/// A database that outlives the servers of a test.
struct Site {
    dir: TempDir,
    database: Database,
}

impl Site {
    async fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            database: Database::create(Backend::Postgres).await,
        }
    }

    fn url(&self) -> String {
        self.database.url().unwrap()
    }

    async fn serve(&self, url: String) -> Server {
        let config = Config::resolve(settings(self.dir.path(), Some(url)), None).unwrap();
        Server::start(config, Clock::system()).await.unwrap()
    }

    async fn direct(&self) -> PgConnection {
        PgConnection::connect(&self.url()).await.unwrap()
    }
}

/// Creates groups in bulk. The first user owns them, the second is a member.
async fn make_groups(db: &mut PgConnection, owner: &User, member: &User, count: usize) {
    let sql = format!(
        "WITH made AS (
             INSERT INTO chats
                 (id, kind, name, created_at_ms, rev, renamed_rev, member_count, activity_at_ms)
             SELECT gen_random_uuid(), 'group', 'g' || i, i, 1, 1, 2, i
             FROM generate_series(1, {count}) i RETURNING id
         )
         INSERT INTO members
             (chat_id, user_id, role, joined_at_ms, joined_rev, rev, last_read_message_id)
         SELECT made.id, it.user_id, it.role, 1, 1, 1, 0
         FROM made, (VALUES ('{}'::uuid, 'owner'), ('{}'::uuid, 'member')) AS it (user_id, role)",
        owner.id, member.id
    );

    execute(db, &sql).await;
}

async fn count(db: &mut PgConnection, sql: &str, user: &User) -> i64 {
    let id: UserId = user.id.parse().unwrap();
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).bind(id).fetch_one(db).await.unwrap()
}

const MEMBERSHIPS: &str = "SELECT COUNT(*) FROM members WHERE user_id = $1 AND left_rev IS NULL";

/// The durations of sends, one after another, until `over` completes.
async fn sends_until(
    sender: &User,
    chat: &str,
    prefix: &str,
    over: impl Future<Output = ()>,
) -> Vec<Duration> {
    tokio::pin!(over);
    let mut times = Vec::new();

    loop {
        let start = Instant::now();
        send(sender, chat, &format!("{prefix}-{}", times.len())).await.expect(201);
        times.push(start.elapsed());
        if futures_util::FutureExt::now_or_never(&mut over).is_some() {
            return times;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_in_a_thousand_groups_ends_at_once_and_leaves_them_all_even_after_a_restart() {
    let site = Site::new().await;
    let proxy = Proxy::to(&Proxy::target_of(&postgres_url())).await;
    let server = site.serve(proxy.in_url(&site.url())).await;
    let (ada, bob) = (account(&server, "ada").await, account(&server, "bob").await);
    let (cid, dan) = (account(&server, "cid").await, account(&server, "dan").await);

    let mut db = site.direct().await;
    make_groups(&mut db, &ada, &bob, GROUPS).await;
    let shared: ChatId =
        sqlx::query_scalar("SELECT id FROM chats LIMIT 1").fetch_one(&mut db).await.unwrap();
    let (shared, unrelated) = (shared.to_string(), cid.private_chat(&dan).await);

    let mut socket = Socket::live(&ada).await;

    proxy.set(Mode::Delay(Duration::from_micros(700)));
    let (over, done) = tokio::sync::watch::channel(());
    let ended = || {
        let mut done = done.clone();
        async move { drop(done.changed().await) }
    };
    let removing = async {
        let start = Instant::now();
        ada.delete_with("/users/me", json!({ "password": ada.password })).await.expect(204);
        let took = start.elapsed();
        ada.get("/users/me").await.refused(401, "not_authenticated");
        drop(over);
        took
    };

    let (took, of_unrelated, of_shared) = tokio::join!(
        removing,
        sends_until(&cid, &unrelated, "unrelated", ended()),
        sends_until(&bob, &shared, "shared", ended())
    );

    assert!(took < Duration::from_secs(4), "{took:?}");
    assert_eq!(socket.close_code().await, 4401);
    let slowest = of_unrelated.iter().chain(&of_shared).max().unwrap();
    assert!(
        *slowest < Duration::from_secs(2),
        "no send waits until a thousand chats are left: {slowest:?}"
    );
    cid.get(&format!("/users/{}", ada.id)).await.expect(200);

    server.stop().await;
    let rest = count(&mut db, MEMBERSHIPS, &ada).await;
    let total = i64::try_from(GROUPS).unwrap();
    assert!(
        (1..total).contains(&rest),
        "the server stopped before the removal was complete: {rest}"
    );
    assert_eq!(
        count(&mut db, "SELECT COUNT(*) FROM account_removals WHERE user_id = $1", &ada).await,
        1
    );

    let one = site.serve(site.url()).await;
    let start = Instant::now();
    while count(&mut db, "SELECT COUNT(*) FROM account_removals WHERE user_id = $1", &ada).await > 0
    {
        assert!(
            start.elapsed() < Duration::from_mins(2),
            "{} left",
            count(&mut db, MEMBERSHIPS, &ada).await
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(count(&mut db, MEMBERSHIPS, &ada).await, 0);
    let owned =
        "SELECT COUNT(*) FROM members WHERE user_id = $1 AND left_rev IS NULL AND role = 'owner'";
    assert_eq!(count(&mut db, owned, &bob).await, total, "each group has an owner again");

    let bob = through(&bob, &one);
    let shown = bob.get(&format!("/chats/{shared}/members")).await.expect(200);
    assert_eq!(shown["members"].as_array().unwrap().len(), 1, "{shown}");

    one.stop().await;
    site.database.remove().await;
}

/// Fails unless the answer is a success, or refuses because the account has ended.
fn made_or_refused(answer: &Answer) {
    if answer.status != 201 {
        answer.refused(401, "not_authenticated");
    }
}

/// Fails unless the account has no chat and no invite left.
async fn nothing_is_left_of(server: &TestServer, user: &User) {
    let id: UserId = user.id.parse().unwrap();
    let store = server.store();
    eventually("the account has left its chats", async || {
        store.chat_heads(id).await.unwrap().is_empty()
    })
    .await;
    assert!(store.invites(id, server.clock().now(), 100).await.unwrap().is_empty());
}

async fn nothing_is_created_for_an_account_that_ends_meanwhile(server: TestServer) {
    let bob = server.user().await;
    for _ in 0..5 {
        let ada = server.user().await;
        let making = async {
            let chats = join_all((0..8).map(|_| {
                ada.post(
                    "/chats",
                    json!({ "kind": "group", "name": "Crew", "member_ids": [bob.id] }),
                )
            }));
            let invites = join_all((0..8).map(|_| ada.post("/invites", json!({}))));
            let (chats, invites) = tokio::join!(chats, invites);
            chats.iter().chain(&invites).for_each(made_or_refused);
        };

        let removing = ada.delete_with("/users/me", json!({ "password": ada.password }));
        let ((), removed) = tokio::join!(making, removing);
        removed.expect(204);
        nothing_is_left_of(&server, &ada).await;
    }
}

async fn an_account_that_is_removed_twice_at_once_is_removed_once(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.group(&[&bob]).await;
    let remove = || ada.delete_with("/users/me", json!({ "password": ada.password }));
    let answers = join_all((0..4).map(|_| remove())).await;

    assert!(answers.iter().any(|answer| answer.status == 204));
    for answer in answers.iter().filter(|answer| answer.status != 204) {
        assert!([401, 403].contains(&answer.status), "{}", answer.body);
    }

    nothing_is_left_of(&server, &ada).await;
    let shown = bob.get(&format!("/chats/{chat}")).await.expect(200);
    assert_eq!((&shown["member_count"], &shown["role"]), (&json!(1), &json!("owner")), "{shown}");
}

/// Waits until this many sessions of the database wait for a lock.
async fn waiting(server: &TestServer, count: i64) {
    let mut db = server.postgres().await;
    eventually("the sessions wait", async || lock_waits(&mut db).await >= count).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chat_an_invite_and_a_member_asked_for_before_the_account_ended_are_refused_after_it() {
    let server = TestServer::start(Backend::Postgres).await;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.group(&[]).await;
    let mut holder = server.postgres().await;
    let lock = format!("BEGIN; SELECT id FROM users WHERE id = '{}' FOR NO KEY UPDATE", ada.id);
    execute(&mut holder, &lock).await;

    // Postgres gives a row lock to the waiting sessions in the order of their arrival.
    let removing = ada.delete_with("/users/me", json!({ "password": ada.password }));
    let making = async {
        waiting(&server, 1).await;
        let (members, member) = (format!("/chats/{chat}/members"), json!({ "user_id": bob.id }));
        let (group, invite, member, ()) = tokio::join!(
            ada.post("/chats", json!({ "kind": "group", "name": "Crew", "member_ids": [] })),
            ada.post("/invites", json!({})),
            ada.post(&members, member),
            async {
                waiting(&server, 4).await;
                execute(&mut holder, "ROLLBACK").await;
            }
        );
        for answer in [group, invite, member] {
            answer.refused(401, "not_authenticated");
        }
    };

    let (removed, ()) = tokio::join!(removing, making);
    removed.expect(204);
    nothing_is_left_of(&server, &ada).await;
    assert_eq!(bob.get("/chats").await.expect(200)["chats"], json!([]));
    server.stop().await;
}
