//! An account that is removed: nothing is made in its name after its end, and the number of its
//! chats is no obstacle.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use starling::config::Config;
use starling::model::{ChatId, Clock, UserId};
use starling::server::Server;
use tempfile::TempDir;

use crate::outages::send;
use crate::support::{
    Answer, Backend, Database, Mode, Proxy, Socket, TestServer, User, eventually, everywhere,
    postgres_url, settings,
};

everywhere!(
    nothing_is_made_in_the_name_of_an_account_that_ends_meanwhile,
    an_account_that_is_removed_twice_at_once_is_removed_once,
);

/// Groups of the account that is removed.
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

async fn user(server: &Server, login: &str) -> User {
    let made = server.services.accounts.make_user(login, login, true).await.unwrap();
    let base = format!("http://{}", server.address);
    User::new(base, made.user_id.to_string(), made.login, made.password, made.token.unwrap())
}

/// Makes groups in bulk, owned by the first user, with the second as a member.
async fn make_groups(db: &mut PgConnection, owner: &User, member: &User, count: usize) {
    let sql = format!(
        "WITH made AS (
             INSERT INTO chats (id, kind, name, created_at_ms, rev, renamed_rev, member_count, activity_at_ms)
             SELECT gen_random_uuid(), 'group', 'g' || i, i, 1, 1, 2, i FROM generate_series(1, {count}) i RETURNING id
         )
         INSERT INTO members (chat_id, user_id, role, joined_at_ms, joined_rev, rev, last_read_message_id)
         SELECT made.id, it.user_id, it.role, 1, 1, 1, 0
         FROM made, (VALUES ('{}'::uuid, 'owner'), ('{}'::uuid, 'member')) AS it (user_id, role)",
        owner.id, member.id
    );
    db.execute(AssertSqlSafe(sql)).await.unwrap();
}

async fn count(db: &mut PgConnection, sql: &str, user: &User) -> i64 {
    let id: UserId = user.id.parse().unwrap();
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).bind(id).fetch_one(db).await.unwrap()
}

const MEMBERSHIPS: &str = "SELECT COUNT(*) FROM members WHERE user_id = $1 AND left_rev IS NULL";

/// The time of each send, one after another, until the future is over.
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
    let (ada, bob) = (user(&server, "ada").await, user(&server, "bob").await);
    let (cid, dan) = (user(&server, "cid").await, user(&server, "dan").await);
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
    let (took, alone, beside) = tokio::join!(
        removing,
        sends_until(&cid, &unrelated, "unrelated", ended()),
        sends_until(&bob, &shared, "shared", ended())
    );
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert_eq!(socket.close_code().await, 4401);
    let slowest = alone.iter().chain(&beside).max().unwrap();
    assert!(
        *slowest < Duration::from_secs(2),
        "nobody waits for a thousand chats to be left: {slowest:?}"
    );
    cid.get(&format!("/users/{}", ada.id)).await.expect(200);

    server.stop().await;
    let rest = count(&mut db, MEMBERSHIPS, &ada).await;
    let total = i64::try_from(GROUPS).unwrap();
    assert!((1..total).contains(&rest), "the process ended in the middle of it: {rest}");
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
    let bob =
        User::new(format!("http://{}", one.address), bob.id, bob.login, bob.password, bob.token);
    let shown = bob.get(&format!("/chats/{shared}/members")).await.expect(200);
    assert_eq!(shown["members"].as_array().unwrap().len(), 1, "{shown}");
    one.stop().await;
    site.database.remove().await;
}

/// Each answer is fine, or says that there is no such account any more.
fn made_or_refused(answer: &Answer) {
    if answer.status != 201 {
        answer.refused(401, "not_authenticated");
    }
}

/// No chat and no invite is left of an account.
async fn nothing_is_left_of(server: &TestServer, user: &User) {
    let id: UserId = user.id.parse().unwrap();
    let store = server.store();
    eventually("all chats are left", async || store.chat_heads(id).await.unwrap().is_empty()).await;
    assert!(store.invites(id, server.clock().now(), 100).await.unwrap().is_empty());
}

async fn nothing_is_made_in_the_name_of_an_account_that_ends_meanwhile(server: TestServer) {
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
    let sql = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let mut db = PgConnection::connect(&server.database_url().unwrap()).await.unwrap();
    eventually("the sessions wait", async || {
        sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut db).await.unwrap() >= count
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chat_an_invite_and_a_member_asked_for_before_the_account_ended_are_refused_after_it() {
    let server = TestServer::start(Backend::Postgres).await;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.group(&[]).await;
    let mut holder = PgConnection::connect(&server.database_url().unwrap()).await.unwrap();
    let lock = format!("BEGIN; SELECT id FROM users WHERE id = '{}' FOR NO KEY UPDATE", ada.id);
    holder.execute(AssertSqlSafe(lock)).await.unwrap();

    // Those who wait for a row get it in the order in which they came.
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
                holder.execute("ROLLBACK").await.unwrap();
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
