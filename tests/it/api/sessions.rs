//! Sessions: logging in, refreshing, ending.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    NOBODY, PASSWORD, column, granted, indistinguishable, log_in, on_another,
    on_another_at_full_cost, server_of,
};
use crate::support::{Answer, TestServer, User, everywhere};

everywhere!(
    logging_in_gives_a_session_with_its_device_and_address,
    a_session_is_reused_by_its_id_and_its_old_tokens_end_at_once,
    a_foreign_or_unknown_session_is_not_reused,
    over_the_limit_the_oldest_session_ends,
    an_unknown_login_and_a_wrong_password_are_answered_alike,
    an_unknown_login_takes_as_long_as_a_wrong_password,
    an_invalid_login_or_password_is_answered_like_a_wrong_one,
    refreshing_rotates_both_tokens,
    a_refresh_token_may_be_reused_within_the_grace,
    reuse_of_a_refresh_token_after_the_grace_ends_the_session,
    a_refresh_token_two_generations_old_ends_the_session,
    only_a_refresh_token_refreshes,
    the_caller_s_sessions_are_listed_and_the_current_one_is_marked,
    ending_a_session_ends_no_other_session,
    another_users_session_cannot_be_ended,
    ending_the_other_sessions_keeps_the_callers,
    a_token_expires_and_a_refresh_brings_a_new_one,
    a_session_that_nobody_refreshes_ends,
    without_a_valid_token_a_401_names_the_bearer_scheme,
    no_token_is_stored_in_clear,
);

const CURRENT: &str = "/sessions/current";

async fn refresh(user: &User, token: &Value) -> Answer {
    server_of(user).post("/sessions/refresh", json!({ "refresh_token": token })).await
}

/// Logs in to an existing session.
async fn log_in_to(user: &User, session_id: &Value) -> Answer {
    let body = json!({ "login": user.login, "password": user.password, "session_id": session_id });
    server_of(user).post("/sessions", body).await
}

async fn logging_in_gives_a_session_with_its_device_and_address(server: TestServer) {
    let ada = server.user().await;
    let body = json!({
        "login": ada.login.to_uppercase(), "password": ada.password, "device": " Ada's phone "
    });
    let grant = server_of(&ada).post("/sessions", body).await.expect(201);
    assert_eq!(grant["session"]["device"], "Ada's phone");
    assert_eq!(grant["session"]["ip"], "127.0.0.1");
    assert_eq!(grant["user"]["id"], json!(ada.id));

    let current = granted(&ada, &grant).get(CURRENT).await.expect(200);
    assert_eq!((&current["session"], &current["user"]), (&grant["session"], &grant["user"]));

    let request = server_of(&ada)
        .request(reqwest::Method::POST, "/sessions")
        .header("user-agent", "a browser");
    let unnamed = json!({ "login": ada.login, "password": ada.password });
    let grant = server_of(&ada).send(request.json(&unnamed)).await.expect(201);
    assert_eq!(grant["session"]["device"], "a browser");

    let too_long =
        json!({ "login": ada.login, "password": ada.password, "device": "x".repeat(101) });
    server_of(&ada).post("/sessions", too_long).await.refused_fields(&["device"]);
}

async fn a_session_is_reused_by_its_id_and_its_old_tokens_end_at_once(server: TestServer) {
    let ada = server.user().await;
    let first = log_in(&ada).await;
    granted(&ada, &first).get(CURRENT).await.expect(200);

    let second = log_in_to(&ada, &first["session"]["id"]).await.expect(201);
    assert_eq!(second["session"]["id"], first["session"]["id"]);
    assert_eq!(second["session"]["created_at"], first["session"]["created_at"]);
    assert_ne!(second["token"], first["token"]);
    assert_ne!(second["refresh_token"], first["refresh_token"]);
    granted(&ada, &first).get(CURRENT).await.refused(401, "not_authenticated");

    let sessions = granted(&ada, &second).get("/sessions").await.expect(200);
    assert_eq!(sessions["sessions"].as_array().unwrap().len(), 2, "this one and the fixture's");
    server.advance(Duration::from_secs(11));
    refresh(&ada, &first["refresh_token"]).await.refused(401, "invalid_refresh_token");
}

async fn a_foreign_or_unknown_session_is_not_reused(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let foreign = bob.get(CURRENT).await.expect(200)["session"]["id"].clone();
    let ended = log_in(&ada).await;
    granted(&ada, &ended).delete(CURRENT).await.expect(204);
    for session_id in [&foreign, &json!(NOBODY), &ended["session"]["id"]] {
        let grant = log_in_to(&ada, session_id).await.expect(201);
        assert_ne!(&grant["session"]["id"], session_id);
    }
    bob.get(CURRENT).await.expect(200);
    log_in_to(&ada, &json!("nonsense")).await.refused_fields(&["session_id"]);
}

async fn over_the_limit_the_oldest_session_ends(server: TestServer) {
    on_another(
        &server,
        |settings| settings.sessions_per_user_max = Some(3),
        |server| async move {
            let (ada, bob) = (server.user().await, server.user().await);
            let mut grants = Vec::new();
            for _ in 0..3 {
                server.advance(Duration::from_secs(1));
                grants.push(log_in(&ada).await);
            }

            ada.get(CURRENT).await.refused(401, "not_authenticated");
            for grant in &grants {
                granted(&ada, grant).get(CURRENT).await.expect(200);
            }
            bob.get(CURRENT).await.expect(200);

            let reused = log_in_to(&ada, &grants[0]["session"]["id"]).await.expect(201);
            granted(&ada, &grants[1]).get(CURRENT).await.expect(200);
            server.advance(Duration::from_secs(1));
            log_in(&ada).await;
            granted(&ada, &reused).get(CURRENT).await.refused(401, "not_authenticated");

            let sessions = granted(&ada, &grants[2]).get("/sessions").await.expect(200);
            assert_eq!(sessions["sessions"].as_array().unwrap().len(), 3);
        },
    )
    .await;
}

async fn an_unknown_login_and_a_wrong_password_are_answered_alike(server: TestServer) {
    let ada = server.user().await;
    let stranger = server.stranger();
    let wrong =
        stranger.post("/sessions", json!({ "login": ada.login, "password": PASSWORD })).await;
    let unknown =
        stranger.post("/sessions", json!({ "login": "nobody", "password": PASSWORD })).await;
    wrong.refused(401, "invalid_credentials");
    assert_eq!(wrong.header("www-authenticate"), Some("Bearer"));
    indistinguishable(&wrong, &unknown);
}

async fn an_unknown_login_takes_as_long_as_a_wrong_password(server: TestServer) {
    on_another_at_full_cost(&server, |_| {}, takes_as_long_as_a_wrong_password).await;
}

async fn takes_as_long_as_a_wrong_password(server: TestServer) {
    let ada = server.user().await;
    let stranger = server.stranger();
    let (mut wrong, mut unknown) = (Duration::MAX, Duration::MAX);
    for round in 0..500 {
        for (login, fastest) in [(ada.login.as_str(), &mut wrong), ("nobody", &mut unknown)] {
            let start = Instant::now();
            stranger
                .post("/sessions", json!({ "login": login, "password": PASSWORD }))
                .await
                .expect(401);
            *fastest = start.elapsed().min(*fastest);
        }

        // The fastest login of each kind consists almost only of the hash. A busy machine needs
        // more rounds until a login runs undisturbed.
        if round >= 15 && unknown < wrong * 2 && wrong < unknown * 2 {
            return;
        }
    }

    panic!("wrong password {wrong:?}, unknown login {unknown:?}");
}

async fn an_invalid_login_or_password_is_answered_like_a_wrong_one(server: TestServer) {
    let ada = server.user().await;
    let stranger = server.stranger();
    for login in ["", " ", "a\u{0}", "ädä", "' OR 1=1 --", &"x".repeat(10_000)] {
        stranger
            .post("/sessions", json!({ "login": login, "password": PASSWORD }))
            .await
            .refused(401, "invalid_credentials");
    }

    for password in ["", "\u{0}", &"x".repeat(129), &"x".repeat(50_000)] {
        let body = json!({ "login": ada.login, "password": password });
        stranger.post("/sessions", body).await.refused(401, "invalid_credentials");
    }
}

async fn refreshing_rotates_both_tokens(server: TestServer) {
    let ada = server.user().await;
    let first = log_in(&ada).await;
    granted(&ada, &first).get(CURRENT).await.expect(200);
    server.advance(Duration::from_hours(1));

    let second = refresh(&ada, &first["refresh_token"]).await.expect(200);
    assert_eq!(second["session"]["id"], first["session"]["id"]);
    assert_ne!(second["token"], first["token"]);
    assert_ne!(second["refresh_token"], first["refresh_token"]);
    assert!(second["expires_at"].as_str() > first["expires_at"].as_str());
    granted(&ada, &first).get(CURRENT).await.refused(401, "not_authenticated");
    granted(&ada, &second).get(CURRENT).await.expect(200);
    refresh(&ada, &second["refresh_token"]).await.expect(200);
}

async fn a_refresh_token_may_be_reused_within_the_grace(server: TestServer) {
    let ada = server.user().await;
    let first = log_in(&ada).await;
    let lost = refresh(&ada, &first["refresh_token"]).await.expect(200);
    server.advance(Duration::from_secs(5));
    let again = refresh(&ada, &first["refresh_token"]).await.expect(200);
    assert_eq!(again["session"]["id"], first["session"]["id"]);
    granted(&ada, &again).get(CURRENT).await.expect(200);
    granted(&ada, &lost).get(CURRENT).await.refused(401, "not_authenticated");
    server.advance(Duration::from_mins(1));
    refresh(&ada, &again["refresh_token"]).await.expect(200);
}

async fn reuse_of_a_refresh_token_after_the_grace_ends_the_session(server: TestServer) {
    let ada = server.user().await;
    let stolen = log_in(&ada).await;
    let fresh = refresh(&ada, &stolen["refresh_token"]).await.expect(200);
    granted(&ada, &fresh).get(CURRENT).await.expect(200);
    server.advance(Duration::from_secs(11));
    refresh(&ada, &stolen["refresh_token"]).await.refused(401, "invalid_refresh_token");
    granted(&ada, &fresh).get(CURRENT).await.refused(401, "not_authenticated");
    refresh(&ada, &fresh["refresh_token"]).await.refused(401, "invalid_refresh_token");
    ada.get(CURRENT).await.expect(200);
}

async fn a_refresh_token_two_generations_old_ends_the_session(server: TestServer) {
    let ada = server.user().await;
    let first = log_in(&ada).await;
    server.advance(Duration::from_secs(20));
    let second = refresh(&ada, &first["refresh_token"]).await.expect(200);
    server.advance(Duration::from_secs(20));
    let third = refresh(&ada, &second["refresh_token"]).await.expect(200);
    refresh(&ada, &first["refresh_token"]).await.refused(401, "invalid_refresh_token");
    granted(&ada, &third).get(CURRENT).await.refused(401, "not_authenticated");
}

async fn only_a_refresh_token_refreshes(server: TestServer) {
    let ada = server.user().await;
    let grant = log_in(&ada).await;
    for token in [
        &grant["token"],
        &json!("sl_nonsense"),
        &json!(""),
        &json!("\u{0}"),
        &json!("x".repeat(10_000)),
    ] {
        refresh(&ada, token).await.refused(401, "invalid_refresh_token");
    }

    ada.with_token(grant["refresh_token"].as_str().unwrap())
        .get(CURRENT)
        .await
        .refused(401, "not_authenticated");
    granted(&ada, &grant).get(CURRENT).await.expect(200);
}

async fn the_caller_s_sessions_are_listed_and_the_current_one_is_marked(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    server.advance(Duration::from_secs(1));
    let phone = log_in(&ada).await;
    let list = granted(&ada, &phone).get("/sessions").await.expect(200);
    assert_eq!(column(&list["sessions"], "current"), [true, false], "newest first");
    assert_eq!(list["sessions"][0]["id"], phone["session"]["id"]);
    assert!(!list.to_string().contains("sl_"), "no token is shown again");
    assert_eq!(bob.get("/sessions").await.expect(200)["sessions"].as_array().unwrap().len(), 1);
}

async fn ending_a_session_ends_no_other_session(server: TestServer) {
    let ada = server.user().await;
    let (phone, tablet) = (log_in(&ada).await, log_in(&ada).await);
    granted(&ada, &phone).get(CURRENT).await.expect(200);

    let path = format!("/sessions/{}", phone["session"]["id"].as_str().unwrap());
    ada.delete(&path).await.expect(204);
    ada.delete(&path).await.refused(404, "session_not_found");
    granted(&ada, &phone).get(CURRENT).await.refused(401, "not_authenticated");
    refresh(&ada, &phone["refresh_token"]).await.refused(401, "invalid_refresh_token");
    granted(&ada, &tablet).delete(CURRENT).await.expect(204);
    granted(&ada, &tablet).get(CURRENT).await.refused(401, "not_authenticated");
    ada.get(CURRENT).await.expect(200);
}

async fn another_users_session_cannot_be_ended(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let session = bob.get(CURRENT).await.expect(200)["session"]["id"].as_str().unwrap().to_owned();
    let foreign = ada.delete(&format!("/sessions/{session}")).await;
    foreign.refused(404, "session_not_found");
    indistinguishable(&foreign, &ada.delete(&format!("/sessions/{NOBODY}")).await);
    ada.delete("/sessions/nonsense").await.refused(404, "session_not_found");
    bob.get(CURRENT).await.expect(200);
}

async fn ending_the_other_sessions_keeps_the_callers(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let phone = log_in(&ada).await;
    granted(&ada, &phone).delete("/sessions").await.expect(204);
    ada.get(CURRENT).await.refused(401, "not_authenticated");
    let left = granted(&ada, &phone).get("/sessions").await.expect(200);
    assert_eq!(column(&left["sessions"], "id"), [phone["session"]["id"].clone()]);
    bob.get(CURRENT).await.expect(200);
}

async fn a_token_expires_and_a_refresh_brings_a_new_one(server: TestServer) {
    let ada = server.user().await;
    let grant = log_in(&ada).await;
    server.advance(Duration::from_hours(23));
    granted(&ada, &grant).get(CURRENT).await.expect(200);
    server.advance(Duration::from_hours(2));
    let refused = granted(&ada, &grant).get(CURRENT).await;
    refused.refused(401, "not_authenticated");
    assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    let fresh = refresh(&ada, &grant["refresh_token"]).await.expect(200);
    granted(&ada, &fresh).get(CURRENT).await.expect(200);
}

async fn a_session_that_nobody_refreshes_ends(server: TestServer) {
    let ada = server.user().await;
    let grant = log_in(&ada).await;
    server.advance(Duration::from_hours(29 * 24));
    let fresh = refresh(&ada, &grant["refresh_token"]).await.expect(200);
    server.advance(Duration::from_hours(31 * 24));
    refresh(&ada, &fresh["refresh_token"]).await.refused(401, "invalid_refresh_token");
    let new = log_in_to(&ada, &grant["session"]["id"]).await.expect(201);
    assert_ne!(new["session"]["id"], grant["session"]["id"], "an expired session is not revived");
    let list = granted(&ada, &new).get("/sessions").await.expect(200);
    assert_eq!(list["sessions"].as_array().unwrap().len(), 1);
}

async fn without_a_valid_token_a_401_names_the_bearer_scheme(server: TestServer) {
    let ada = server.user().await;
    let stranger = server.stranger();
    let values = [
        String::new(),
        "Bearer".to_owned(),
        "Bearer ".to_owned(),
        "Bearer nonsense".to_owned(),
        "Bearer sl_nonsense".to_owned(),
        format!("Bearer {}x", ada.token),
        format!("Basic {}", ada.token),
        ada.token.clone(),
        format!("Bearer {}", "x".repeat(5000)),
    ];

    for value in values {
        let request =
            stranger.request(reqwest::Method::GET, CURRENT).header("authorization", &value);
        let answer = stranger.send(request).await;
        answer.refused(401, "not_authenticated");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{value}");
    }

    let request = stranger
        .request(reqwest::Method::GET, CURRENT)
        .header("authorization", format!("bearer {}", ada.token));
    stranger.send(request).await.expect(200);

    let in_url =
        stranger.get(&format!("{CURRENT}?token={}&access_token={}", ada.token, ada.token)).await;
    in_url.refused(401, "not_authenticated");
}

async fn no_token_is_stored_in_clear(server: TestServer) {
    let ada = server.user().await;
    let grant = log_in(&ada).await;
    let fresh = refresh(&ada, &grant["refresh_token"]).await.expect(200);
    let mut secrets: Vec<String> = vec![ada.token.clone(), ada.password.clone()];
    for grant in [&grant, &fresh] {
        secrets
            .extend(["token", "refresh_token"].map(|key| grant[key].as_str().unwrap().to_owned()));
    }

    let stored = super::stored_bytes(&server).await;
    let holds = |needle: &[u8]| stored.windows(needle.len()).any(|window| window == needle);
    assert!(holds(ada.login.as_bytes()), "the search finds stored bytes");
    for secret in secrets {
        // The random part without the prefix must not be stored either: it is the secret.
        assert!(!holds(secret.as_bytes()) && !holds(secret.trim_start_matches("sl_").as_bytes()));
    }
}
