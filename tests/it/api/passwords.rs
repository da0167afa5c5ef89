//! How passwords are kept. What may be one is told with registration, in `users`.

use std::time::{Duration, Instant};

use argon2::{Algorithm, Argon2, Params, PasswordHasher, Version};
use futures_util::future::join_all;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};

use super::{log_in, on_another_at_full_cost};
use crate::support::{TestServer, User, everywhere};

everywhere!(
    a_password_is_kept_as_argon2id_with_19_mib_and_two_passes,
    a_hash_of_weaker_parameters_is_made_anew_at_the_next_login,
    many_logins_at_once_are_all_answered_and_hold_nobody_else_up,
);

/// What is kept of a user's password; before that, what is to be kept from now on.
async fn kept(server: &TestServer, user: &User, new: Option<&str>) -> String {
    let set = new.map(|hash| {
        format!("UPDATE users SET password_hash = '{hash}' WHERE login = '{}'", user.login)
    });
    let get = format!("SELECT password_hash FROM users WHERE login = '{}'", user.login);
    macro_rules! on {
        ($db:expr) => {{
            let mut db = $db;
            if let Some(set) = set {
                sqlx::query(AssertSqlSafe(set)).execute(&mut db).await.unwrap();
            }
            sqlx::query_scalar(AssertSqlSafe(get)).fetch_one(&mut db).await.unwrap()
        }};
    }
    match server.database_url() {
        Some(url) => on!(PgConnection::connect(&url).await.unwrap()),
        None => {
            on!(SqliteConnection::connect(&server.dir().join("starling.db").display().to_string())
                .await
                .unwrap())
        }
    }
}

async fn a_password_is_kept_as_argon2id_with_19_mib_and_two_passes(server: TestServer) {
    on_another_at_full_cost(&server, |_| {}, is_kept_as_argon2id).await;
}

async fn is_kept_as_argon2id(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let hash = kept(&server, &ada, None).await;
    assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
    // The same password, another salt.
    let change = json!({ "password": bob.password, "current_password": ada.password });
    ada.patch("/users/me", change).await.expect(200);
    assert_ne!(kept(&server, &ada, None).await, kept(&server, &bob, None).await);
}

async fn a_hash_of_weaker_parameters_is_made_anew_at_the_next_login(server: TestServer) {
    let ada = server.user().await;
    let strong = kept(&server, &ada, None).await;
    let weaker =
        Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(64, 1, 1, None).unwrap());
    let weaker = weaker.hash_password(ada.password.as_bytes()).unwrap().to_string();
    assert_eq!(kept(&server, &ada, Some(&weaker)).await, weaker);
    let wrong = json!({ "login": ada.login, "password": "not the password" });
    ada.post("/sessions", wrong).await.refused(401, "invalid_credentials");
    assert_eq!(kept(&server, &ada, None).await, weaker, "a wrong one changes nothing");
    log_in(&ada).await;
    let renewed = kept(&server, &ada, None).await;
    let parameters = |hash: &str| hash.rsplitn(3, '$').last().unwrap().to_owned();
    assert_eq!(parameters(&renewed), parameters(&strong));
    log_in(&ada).await;
    assert_eq!(kept(&server, &ada, None).await, renewed, "once is enough");
}

async fn many_logins_at_once_are_all_answered_and_hold_nobody_else_up(server: TestServer) {
    on_another_at_full_cost(
        &server,
        |settings| settings.hashes_at_once_max = Some(1),
        async |server| {
            let (ada, bob) = (server.user().await, server.user().await);
            let credentials = json!({ "login": ada.login, "password": ada.password });
            let logging_in = join_all((0..150).map(|_| async {
                let start = Instant::now();
                let answer = ada.post("/sessions", credentials.clone()).await;
                assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
                if answer.status != 201 {
                    answer.refused(503, "unavailable");
                    assert!(answer.header("retry-after").is_some());
                }
                answer.status == 201
            }));
            let others = async {
                for _ in 0..10 {
                    let start = Instant::now();
                    bob.get("/chats").await.expect(200);
                    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            let (let_in, ()) = tokio::join!(logging_in, others);
            assert!(let_in.iter().filter(|it| **it).count() >= 10, "{let_in:?}");
            log_in(&ada).await;
        },
    )
    .await;
}
