//! The sockets and tokens that a login ends, and decisions on outdated state: passwords that were
//! verified before they changed, and older tokens.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlx::Connection;

use crate::chaos::stage::{Stage, StageOptions};
use crate::support::{
    Answer, Backend, Mode, Socket, TestServer, User, eventually, everywhere, lock_waits,
};

everywhere!(
    a_login_into_the_same_session_closes_the_sockets_of_the_previous_login,
    a_refresh_and_the_expiry_of_the_token_leave_the_socket_open,
    a_login_closes_a_socket_of_the_previous_login_that_is_authenticating,
    a_refresh_token_two_generations_old_ends_the_session_within_the_grace_too,
    a_refresh_whose_answer_is_lost_twice_may_be_tried_a_third_time,
    the_refresh_token_before_a_login_into_the_session_has_no_grace,
    logins_at_once_with_an_outdated_hash_all_succeed,
    tokens_are_256_random_bits_with_a_prefix_and_never_the_same,
);

const CURRENT: &str = "/sessions/current";

async fn refresh(user: &User, grant: &Value) -> Answer {
    user.post("/sessions/refresh", json!({ "refresh_token": grant["refresh_token"] })).await
}

async fn a_login_into_the_same_session_closes_the_sockets_of_the_previous_login(
    server: TestServer,
) {
    let ada = server.user().await;
    let (phone, grant) = ada.log_in(None).await;
    let mut elsewhere = Socket::live(&ada).await;
    let (mut first, mut second) = (Socket::live(&phone).await, Socket::connect(&phone).await);
    let (phone, grant) = ada.log_in(Some(&grant["session"]["id"])).await;
    assert_eq!(first.close_code().await, 4401);
    assert_eq!(second.close_code().await, 4401);

    let mut third = Socket::live(&phone).await;
    let fresh = refresh(&ada, &grant).await.expect(200);
    let mut fourth = Socket::live(&ada.with_token(fresh["token"].as_str().unwrap())).await;

    ada.log_in(None).await;
    for socket in [&mut third, &mut fourth, &mut elsewhere] {
        socket.ping().await;
    }

    ada.log_in(Some(&grant["session"]["id"])).await;
    assert_eq!(third.close_code().await, 4401);
    assert_eq!(fourth.close_code().await, 4401);
    elsewhere.ping().await;
}

async fn a_refresh_and_the_expiry_of_the_token_leave_the_socket_open(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let (phone, grant) = ada.log_in(None).await;
    let mut refreshed = Socket::live(&phone).await;
    let mut expired = Socket::live(&ada).await;
    let session =
        bob.get(CURRENT).await.expect(200)["session"]["id"].as_str().unwrap().parse().unwrap();

    // One on each replica, if there are two.
    let mut bobs = [Socket::live(&bob).await, Socket::live(&bob).await];
    refresh(&ada, &grant).await.expect(200);
    server.advance(Duration::from_hours(25));
    phone.get(CURRENT).await.refused(401, "not_authenticated");
    ada.get(CURRENT).await.refused(401, "not_authenticated");

    // No event announces this end. Each replica finds it when it compares its sessions with the
    // store.
    let bob = bob.id.parse().unwrap();
    server.store().end_session(bob, session).await.unwrap().unwrap();
    for socket in &mut bobs {
        assert_eq!(socket.close_code().await, 4401);
    }
    refreshed.ping().await;
    expired.ping().await;
}

async fn a_login_closes_a_socket_of_the_previous_login_that_is_authenticating(server: TestServer) {
    let ada = server.user().await;
    let (mut phone, grant) = ada.log_in(None).await;
    for _ in 0..20 {
        phone.get(CURRENT).await.expect(200);

        let connecting = Socket::open(Socket::authenticated(&phone));
        let (opened, (next, _)) =
            tokio::join!(connecting, ada.log_in(Some(&grant["session"]["id"])));

        if let Ok((mut socket, _)) = opened {
            assert_eq!(socket.close_code().await, 4401);
        }
        phone = next;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_into_the_same_session_closes_its_sockets_on_every_replica_even_without_redis() {
    let mut stage = Stage::set(2, &StageOptions::default()).await;
    for trouble in ["none", "flushed", "silent", "down"] {
        let made = stage.make_user(trouble).await;
        let field = |key: &str| made[key].as_str().unwrap().to_owned();
        let [here, there] = [0, 1].map(|replica: usize| {
            let base = stage.bases()[replica].clone();
            User::new(base, field("user_id"), field("login"), field("password"), field("token"))
        });

        let (phone, grant) = there.log_in(None).await;
        let (mut socket, mut other) = (Socket::live(&phone).await, Socket::live(&there).await);

        match trouble {
            "flushed" => drop(stage.redis.command::<String>(&["FLUSHALL"]).await),
            "silent" => stage.replicas[1].to_redis.set(Mode::BlackHole),
            "down" => stage.redis.kill(),
            _ => {}
        }

        let (again, _) = here.log_in(Some(&grant["session"]["id"])).await;
        assert_eq!(socket.close_code().await, 4401, "{trouble}");
        other.ping().await;
        Socket::live(&again).await.ping().await;

        eventually("the older token is refused", async || {
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
    let (_, first) = ada.log_in(None).await;
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
    let (_, first) = ada.log_in(None).await;
    let lost = refresh(&ada, &first).await.expect(200);
    refresh(&ada, &first).await.expect(200);
    let third = refresh(&ada, &first).await.expect(200);
    ada.with_token(third["token"].as_str().unwrap()).get(CURRENT).await.expect(200);

    // The answer was not lost: two clients hold the first token.
    refresh(&ada, &lost).await.refused(401, "invalid_refresh_token");
    refresh(&ada, &third).await.refused(401, "invalid_refresh_token");
}

async fn the_refresh_token_before_a_login_into_the_session_has_no_grace(server: TestServer) {
    let ada = server.user().await;
    let (_, first) = ada.log_in(None).await;
    ada.log_in(Some(&first["session"]["id"])).await;
    refresh(&ada, &first).await.refused(401, "invalid_refresh_token");
}

async fn logins_at_once_with_an_outdated_hash_all_succeed(server: TestServer) {
    use argon2::{Algorithm, Argon2, Params, PasswordHasher, Version};
    let ada = server.user().await;

    let weaker =
        Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(64, 1, 1, None).unwrap());
    let weaker = weaker.hash_password(ada.password.as_bytes()).unwrap().to_string();
    let update =
        format!("UPDATE users SET password_hash = '{weaker}' WHERE login = '{}'", ada.login);
    server.execute(&update).await;

    let logins = join_all((0..6).map(|_| ada.log_in(None))).await;
    assert_eq!(logins.len(), 6);
}

async fn tokens_are_256_random_bits_with_a_prefix_and_never_the_same(server: TestServer) {
    use base64::Engine;
    let ada = server.user().await;
    let (first, second) = (ada.log_in(None).await.1, ada.log_in(None).await.1);
    let third = refresh(&ada, &second).await.expect(200);

    let mut seen = std::collections::HashSet::new();
    for grant in [&first, &second, &third] {
        for key in ["token", "refresh_token"] {
            let random = grant[key]
                .as_str()
                .unwrap()
                .strip_prefix("sl_")
                .expect("the prefix for secret scanners");
            let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(random).unwrap();
            assert!(bytes.len() == 32 && seen.insert(bytes), "{key}");
        }
    }
}

/// Gives the login `$1` the password of the login `$2`.
const COPY_PASSWORD: &str =
    "UPDATE users SET password_hash = (SELECT password_hash FROM users WHERE login = $2)
     WHERE login = $1";

/// The answer to `act`, whose password is verified before, and whose statement runs after, `user`
/// gets the password of `other`.
async fn while_the_password_changes<F: Future<Output = Answer>>(
    server: &TestServer,
    (user, other): (&User, &User),
    act: impl Fn() -> F,
) -> Answer {
    let mut watcher = server.postgres().await;
    for _ in 0..5 {
        let mut changing = server.postgres().await;
        let mut change = changing.begin().await.unwrap();
        sqlx::query(COPY_PASSWORD)
            .bind(&user.login)
            .bind(&other.login)
            .execute(&mut *change)
            .await
            .unwrap();

        let changing = async {
            eventually("it waits for the user's row", async || lock_waits(&mut watcher).await > 0)
                .await;
            change.commit().await.unwrap();
        };

        let (answer, ()) = tokio::join!(act(), changing);
        if answer.status != 503 {
            return answer;
        }

        // The machine was so busy that Postgres cancelled the waiting statement. Try once more.
        sqlx::query(COPY_PASSWORD)
            .bind(&user.login)
            .bind(format!("{}-kept", user.login))
            .execute(&mut watcher)
            .await
            .unwrap();
    }
    panic!("Postgres cancelled the statement five times");
}

/// Two users. A third one keeps the password hash of the first.
async fn users(server: &TestServer) -> (User, User) {
    let (ada, bob) = (server.user().await, server.user().await);
    let kept = server.user_named(&format!("{}-kept", ada.login)).await;
    let keep = format!(
        "UPDATE users SET password_hash = (SELECT password_hash FROM users WHERE login = '{}') \
         WHERE login = '{}'",
        ada.login, kept.login
    );
    server.execute(&keep).await;
    (ada, bob)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_began_before_the_password_changed_is_refused() {
    let server = TestServer::start(Backend::Postgres).await;
    let (ada, bob) = users(&server).await;
    let session = ada.get(CURRENT).await.expect(200)["session"]["id"].clone();

    let body = json!({ "login": ada.login, "password": ada.password });
    let answer =
        while_the_password_changes(&server, (&ada, &bob), || ada.post("/sessions", body.clone()))
            .await;
    answer.refused(401, "invalid_credentials");

    let sessions = ada.get("/sessions").await.expect(200);
    assert_eq!(sessions["sessions"].as_array().unwrap().len(), 1);
    assert_eq!(sessions["sessions"][0]["id"], session);

    let (ada, bob) = users(&server).await;
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
    let (ada, bob) = users(&server).await;
    let body = json!({ "password": "chosen by a thief", "current_password": ada.password });
    let answer =
        while_the_password_changes(&server, (&ada, &bob), || ada.patch("/users/me", body.clone()))
            .await;
    answer.refused(403, "wrong_password");

    let (ada, bob) = users(&server).await;
    let body = json!({ "password": ada.password });
    let answer = while_the_password_changes(&server, (&ada, &bob), || {
        ada.delete_with("/users/me", body.clone())
    })
    .await;
    answer.refused(403, "wrong_password");
    ada.get("/users/me").await.expect(200);
    server.stop().await;
}
