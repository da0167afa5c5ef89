//! What a login ends, and what is decided on old knowledge: passwords verified before they changed,
//! tokens from before.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};

use crate::chaos::stage::{Stage, StageOptions};
use crate::support::{Answer, Backend, Mode, Socket, TestServer, User, eventually, everywhere};

everywhere!(
    a_login_into_the_same_session_closes_the_sockets_of_the_login_before,
    a_refresh_and_the_expiry_of_the_token_leave_the_socket_open,
    a_login_while_a_socket_of_the_login_before_authenticates_leaves_no_such_socket,
    a_refresh_token_two_generations_old_ends_the_session_within_the_grace_too,
    a_refresh_whose_answer_is_lost_twice_may_be_tried_a_third_time,
    the_refresh_token_before_a_login_into_the_session_has_no_grace,
    logins_at_once_with_an_outdated_hash_all_succeed,
    tokens_are_256_random_bits_with_a_prefix_and_never_the_same,
);

const CURRENT: &str = "/sessions/current";

async fn log_in(user: &User, session_id: Option<&Value>) -> (User, Value) {
    let body = json!({ "login": user.login, "password": user.password, "session_id": session_id });
    let grant = user.post("/sessions", body).await.expect(201);
    (user.with_token(grant["token"].as_str().unwrap()), grant)
}

async fn refresh(user: &User, grant: &Value) -> Answer {
    user.post("/sessions/refresh", json!({ "refresh_token": grant["refresh_token"] })).await
}

async fn stays(socket: &mut Socket) {
    assert_eq!(socket.ask(json!({ "type": "ping" })).await["type"], "pong");
}

async fn a_login_into_the_same_session_closes_the_sockets_of_the_login_before(server: TestServer) {
    let ada = server.user().await;
    let (phone, grant) = log_in(&ada, None).await;
    let mut elsewhere = Socket::live(&ada).await;
    let (mut first, mut second) = (Socket::live(&phone).await, Socket::connect(&phone).await);
    let (phone, grant) = log_in(&ada, Some(&grant["session"]["id"])).await;
    assert_eq!(first.close_code().await, 4401);
    assert_eq!(second.close_code().await, 4401);

    let mut third = Socket::live(&phone).await;
    let fresh = refresh(&ada, &grant).await.expect(200);
    let mut fourth = Socket::live(&ada.with_token(fresh["token"].as_str().unwrap())).await;
    log_in(&ada, None).await;
    for socket in [&mut third, &mut fourth, &mut elsewhere] {
        stays(socket).await;
    }
    log_in(&ada, Some(&grant["session"]["id"])).await;
    assert_eq!(third.close_code().await, 4401);
    assert_eq!(fourth.close_code().await, 4401);
    stays(&mut elsewhere).await;
}

async fn a_refresh_and_the_expiry_of_the_token_leave_the_socket_open(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let (phone, grant) = log_in(&ada, None).await;
    let mut refreshed = Socket::live(&phone).await;
    let mut expired = Socket::live(&ada).await;
    let session =
        bob.get(CURRENT).await.expect(200)["session"]["id"].as_str().unwrap().parse().unwrap();
    // One on each replica, where there are two.
    let mut bobs = [Socket::live(&bob).await, Socket::live(&bob).await];
    refresh(&ada, &grant).await.expect(200);
    server.advance(Duration::from_hours(25));
    phone.get(CURRENT).await.refused(401, "not_authenticated");
    ada.get(CURRENT).await.refused(401, "not_authenticated");

    // Nobody announces this end: each replica finds it when it compares all of its sessions with
    // the store.
    let bob = bob.id.parse().unwrap();
    server.store().end_session(bob, session).await.unwrap().unwrap();
    for socket in &mut bobs {
        assert_eq!(socket.close_code().await, 4401);
    }
    stays(&mut refreshed).await;
    stays(&mut expired).await;
}

async fn a_login_while_a_socket_of_the_login_before_authenticates_leaves_no_such_socket(
    server: TestServer,
) {
    let ada = server.user().await;
    let (mut phone, grant) = log_in(&ada, None).await;
    for _ in 0..20 {
        phone.get(CURRENT).await.expect(200);
        let connecting = async {
            let mut request = Socket::request(&phone);
            let bearer = format!("Bearer {}", phone.token).parse().unwrap();
            request.headers_mut().insert("authorization", bearer);
            Socket::open(request).await
        };
        let (opened, (next, _)) =
            tokio::join!(connecting, log_in(&ada, Some(&grant["session"]["id"])));
        if let Ok((mut socket, _)) = opened {
            assert_eq!(socket.close_code().await, 4401);
        }
        phone = next;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_into_the_same_session_closes_the_sockets_on_another_replica_whatever_became_of_redis()
 {
    let mut stage = Stage::set(2, &StageOptions::default()).await;
    for trouble in ["none", "flushed", "deaf", "down"] {
        let made = stage.make_user(trouble).await;
        let word = |key: &str| made[key].as_str().unwrap().to_owned();
        let [here, there] = [0, 1].map(|replica: usize| {
            let base = stage.bases()[replica].clone();
            User::new(base, word("user_id"), word("login"), word("password"), word("token"))
        });
        let (phone, grant) = log_in(&there, None).await;
        let (mut socket, mut other) = (Socket::live(&phone).await, Socket::live(&there).await);
        match trouble {
            "flushed" => drop(stage.redis.command::<String>(&["FLUSHALL"]).await),
            "deaf" => stage.replicas[1].to_redis.set(Mode::BlackHole),
            "down" => stage.redis.kill(),
            _ => {}
        }
        let (again, _) = log_in(&here, Some(&grant["session"]["id"])).await;
        assert_eq!(socket.close_code().await, 4401, "{trouble}");
        stays(&mut other).await;
        stays(&mut Socket::live(&again).await).await;
        eventually("the token before is refused", async || {
            phone.get("/users/me").await.status == 401
        })
        .await;
        stage.replicas[1].to_redis.set(Mode::Pass);
    }
}

async fn a_refresh_token_two_generations_old_ends_the_session_within_the_grace_too(
    server: TestServer,
) {
    let ada = server.user().await;
    let (_, first) = log_in(&ada, None).await;
    let second = refresh(&ada, &first).await.expect(200);
    let third = refresh(&ada, &second).await.expect(200);
    refresh(&ada, &first).await.refused(401, "invalid_refresh_token");
    ada.with_token(third["token"].as_str().unwrap())
        .get(CURRENT)
        .await
        .refused(401, "not_authenticated");
    refresh(&ada, &third).await.refused(401, "invalid_refresh_token");
    ada.get(CURRENT).await.expect(200);
}

async fn a_refresh_whose_answer_is_lost_twice_may_be_tried_a_third_time(server: TestServer) {
    let ada = server.user().await;
    let (_, first) = log_in(&ada, None).await;
    let lost = refresh(&ada, &first).await.expect(200);
    refresh(&ada, &first).await.expect(200);
    let third = refresh(&ada, &first).await.expect(200);
    ada.with_token(third["token"].as_str().unwrap()).get(CURRENT).await.expect(200);
    // The answer was not lost: two clients have the first token.
    refresh(&ada, &lost).await.refused(401, "invalid_refresh_token");
    refresh(&ada, &third).await.refused(401, "invalid_refresh_token");
}

async fn the_refresh_token_before_a_login_into_the_session_has_no_grace(server: TestServer) {
    let ada = server.user().await;
    let (_, first) = log_in(&ada, None).await;
    log_in(&ada, Some(&first["session"]["id"])).await;
    refresh(&ada, &first).await.refused(401, "invalid_refresh_token");
}

async fn logins_at_once_with_an_outdated_hash_all_succeed(server: TestServer) {
    use argon2::{Algorithm, Argon2, Params, PasswordHasher, Version};
    let ada = server.user().await;
    let weaker =
        Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(64, 1, 1, None).unwrap());
    let weaker = weaker.hash_password(ada.password.as_bytes()).unwrap().to_string();
    let url = server
        .database_url()
        .unwrap_or_else(|| server.dir().join("starling.db").display().to_string());
    execute(
        &url,
        &format!("UPDATE users SET password_hash = '{weaker}' WHERE login = '{}'", ada.login),
    )
    .await;
    let logins = join_all((0..6).map(|_| log_in(&ada, None))).await;
    assert_eq!(logins.len(), 6);
}

async fn tokens_are_256_random_bits_with_a_prefix_and_never_the_same(server: TestServer) {
    use base64::Engine;
    let ada = server.user().await;
    let (first, second) = (log_in(&ada, None).await.1, log_in(&ada, None).await.1);
    let third = refresh(&ada, &second).await.expect(200);
    let mut seen = std::collections::HashSet::new();
    for grant in [&first, &second, &third] {
        for key in ["token", "refresh_token"] {
            let random =
                grant[key].as_str().unwrap().strip_prefix("sl_").expect("secret scanners find it");
            let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(random).unwrap();
            assert!(bytes.len() == 32 && seen.insert(bytes), "{key}");
        }
    }
}

/// Runs a statement beside the server.
pub async fn execute(url: &str, sql: &str) {
    let sql = AssertSqlSafe(sql.to_owned());
    if url.starts_with("postgres") {
        sqlx::query(sql).execute(&mut PgConnection::connect(url).await.unwrap()).await.unwrap();
    } else {
        sqlx::query(sql).execute(&mut SqliteConnection::connect(url).await.unwrap()).await.unwrap();
    }
}

/// Answers what `act` is answered whose password is verified before, and whose turn comes after,
/// the password of `user` became that of `other`.
async fn while_the_password_changes<F: Future<Output = Answer>>(
    server: &TestServer,
    (user, other): (&User, &User),
    act: impl Fn() -> F,
) -> Answer {
    let url = server.database_url().unwrap();
    let mut watcher = PgConnection::connect(&url).await.unwrap();
    for _ in 0..5 {
        let mut changing = PgConnection::connect(&url).await.unwrap();
        let mut change = changing.begin().await.unwrap();
        let taking =
            "UPDATE users SET password_hash = (SELECT password_hash FROM users WHERE login = $2)
                      WHERE login = $1";
        sqlx::query(taking)
            .bind(&user.login)
            .bind(&other.login)
            .execute(&mut *change)
            .await
            .unwrap();
        let changing = async {
            eventually("it waits for the user's row", async || {
                let waiting: i64 = sqlx::query_scalar(
                    "SELECT COUNT(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND wait_event_type = 'Lock'",
                )
                .fetch_one(&mut watcher)
                .await
                .unwrap();
                waiting > 0
            })
            .await;
            change.commit().await.unwrap();
        };
        let (answer, ()) = tokio::join!(act(), changing);
        if answer.status != 503 {
            return answer;
        }
        // The machine was so busy that Postgres gave the waiting statement up. Once more.
        let back =
            "UPDATE users SET password_hash = (SELECT password_hash FROM users WHERE login = $2)
                    WHERE login = $1";
        sqlx::query(back)
            .bind(&user.login)
            .bind(format!("{}-kept", user.login))
            .execute(&mut watcher)
            .await
            .unwrap();
    }
    panic!("five times the statement was given up");
}

/// A user, a second one with the same password hash, and another.
async fn cast(server: &TestServer) -> (User, User) {
    let (ada, bob) = (server.user().await, server.user().await);
    let kept = server.user_named(&format!("{}-kept", ada.login)).await;
    let url = server.database_url().unwrap();
    let keep = format!(
        "UPDATE users SET password_hash = (SELECT password_hash FROM users WHERE login = '{}') WHERE login = '{}'",
        ada.login, kept.login
    );
    execute(&url, &keep).await;
    (ada, bob)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_began_before_the_password_changed_is_refused() {
    let server = TestServer::start(Backend::Postgres).await;
    let (ada, bob) = cast(&server).await;
    let session = ada.get(CURRENT).await.expect(200)["session"]["id"].clone();
    let body = json!({ "login": ada.login, "password": ada.password });
    let answer =
        while_the_password_changes(&server, (&ada, &bob), || ada.post("/sessions", body.clone()))
            .await;
    answer.refused(401, "invalid_credentials");
    let sessions = ada.get("/sessions").await.expect(200);
    assert_eq!(sessions["sessions"].as_array().unwrap().len(), 1);
    assert_eq!(sessions["sessions"][0]["id"], session);

    let (ada, bob) = cast(&server).await;
    let session = ada.get(CURRENT).await.expect(200)["session"]["id"].clone();
    let body = json!({ "login": ada.login, "password": ada.password, "session_id": session });
    let answer =
        while_the_password_changes(&server, (&ada, &bob), || ada.post("/sessions", body.clone()))
            .await;
    answer.refused(401, "invalid_credentials");
    ada.get(CURRENT).await.expect(200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_and_a_removal_that_began_before_the_password_changed_are_refused() {
    let server = TestServer::start(Backend::Postgres).await;
    let (ada, bob) = cast(&server).await;
    let body = json!({ "password": "chosen by a thief", "current_password": ada.password });
    let answer =
        while_the_password_changes(&server, (&ada, &bob), || ada.patch("/users/me", body.clone()))
            .await;
    answer.refused(403, "wrong_password");

    let (ada, bob) = cast(&server).await;
    let body = json!({ "password": ada.password });
    let answer = while_the_password_changes(&server, (&ada, &bob), || {
        ada.delete_with("/users/me", body.clone())
    })
    .await;
    answer.refused(403, "wrong_password");
    ada.get("/users/me").await.expect(200);
    server.stop().await;
}
