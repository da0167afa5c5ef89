//! How passwords are stored. `users` tests which passwords are accepted.

use std::time::{Duration, Instant};

use argon2::{Algorithm, Argon2, Params, PasswordHasher, Version};
use futures_util::future::join_all;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};

use super::{log_in, on_another_at_full_cost};
use crate::support::{TestServer, User, everywhere};

everywhere!(
    a_password_is_stored_as_argon2id_with_19_mib_and_two_passes,
    a_hash_of_weaker_parameters_is_replaced_at_the_next_login,
    many_concurrent_logins_are_answered_and_delay_no_other_request,
);

/// The stored hash of a user's password.
async fn stored_hash(server: &TestServer, user: &User) -> String {
    let sql = format!("SELECT password_hash FROM users WHERE login = '{}'", user.login);
    if let Some(url) = server.database_url() {
        let mut db = PgConnection::connect(&url).await.unwrap();
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut db).await.unwrap()
    } else {
        let file = server.dir().join("starling.db").display().to_string();
        let mut db = SqliteConnection::connect(&file).await.unwrap();
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut db).await.unwrap()
    }
}

async fn a_password_is_stored_as_argon2id_with_19_mib_and_two_passes(server: TestServer) {
    on_another_at_full_cost(&server, |_| {}, is_kept_as_argon2id).await;
}

async fn is_kept_as_argon2id(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let hash = stored_hash(&server, &ada).await;
    assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
    // Two users with the same password have hashes with different salts.
    let change = json!({ "password": bob.password, "current_password": ada.password });
    ada.patch("/users/me", change).await.expect(200);
    assert_ne!(stored_hash(&server, &ada).await, stored_hash(&server, &bob).await);
}

async fn a_hash_of_weaker_parameters_is_replaced_at_the_next_login(server: TestServer) {
    let ada = server.user().await;
    let strong = stored_hash(&server, &ada).await;
    let weaker =
        Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(64, 1, 1, None).unwrap());
    let weaker = weaker.hash_password(ada.password.as_bytes()).unwrap().to_string();
    let set = format!("UPDATE users SET password_hash = '{weaker}' WHERE login = '{}'", ada.login);
    server.execute(&set).await;
    assert_eq!(stored_hash(&server, &ada).await, weaker);

    let wrong = json!({ "login": ada.login, "password": "not the password" });
    ada.post("/sessions", wrong).await.refused(401, "invalid_credentials");
    assert_eq!(stored_hash(&server, &ada).await, weaker, "a wrong password changes nothing");
    log_in(&ada).await;

    let renewed = stored_hash(&server, &ada).await;
    let parameters = |hash: &str| hash.rsplitn(3, '$').last().unwrap().to_owned();
    assert_eq!(parameters(&renewed), parameters(&strong));
    log_in(&ada).await;
    assert_eq!(stored_hash(&server, &ada).await, renewed, "once is enough");
}

async fn many_concurrent_logins_are_answered_and_delay_no_other_request(server: TestServer) {
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
