//! Invites. Registration needs one.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::{column, newcomer, on_another};
use crate::support::{TestServer, everywhere};

everywhere!(
    an_invite_has_the_requested_number_of_uses,
    an_expired_invite_is_refused,
    an_unknown_invite_is_refused,
    of_64_concurrent_registrations_with_an_invite_for_one_exactly_one_succeeds,
    a_refused_registration_does_not_use_up_the_invite,
    without_a_body_an_invite_is_for_one_and_for_a_week,
    an_invite_out_of_bounds_is_refused_by_field,
    open_invites_are_listed_newest_first_and_only_to_their_creator,
    a_revoked_invite_is_gone,
    only_its_creator_revokes_an_invite,
    open_invites_of_a_user_are_limited,
    a_stranger_sees_the_inviter_and_the_expiry,
);

async fn an_invite_has_the_requested_number_of_uses(server: TestServer) {
    let (ada, stranger) = (server.user().await, server.stranger());
    let invite = ada.post("/invites", json!({ "uses": 2 })).await.expect(201);
    assert_eq!(invite["uses_left"], 2);
    let code = invite["code"].as_str().unwrap();
    stranger.post("/users", newcomer(code, "bob")).await.expect(201);
    let listed = ada.get("/invites").await.expect(200);
    assert_eq!(column(&listed["invites"], "uses_left"), [1]);
    stranger.post("/users", newcomer(code, "cid")).await.expect(201);
    stranger.post("/users", newcomer(code, "dan")).await.refused(404, "invite_not_found");
    assert_eq!(ada.get("/invites").await.expect(200)["invites"], json!([]));
}

async fn an_expired_invite_is_refused(server: TestServer) {
    let (ada, stranger) = (server.user().await, server.stranger());
    let invite = ada.post("/invites", json!({ "expires_in_s": 60 })).await.expect(201);
    let code = invite["code"].as_str().unwrap();
    server.advance(Duration::from_secs(30));
    stranger.get(&format!("/invites/{code}")).await.expect(200);
    server.advance(Duration::from_secs(31));
    stranger.post("/users", newcomer(code, "bob")).await.refused(404, "invite_not_found");
    stranger.get(&format!("/invites/{code}")).await.refused(404, "invite_not_found");
    assert_eq!(ada.get("/invites").await.expect(200)["invites"], json!([]));
}

async fn an_unknown_invite_is_refused(server: TestServer) {
    let stranger = server.stranger();
    for code in ["", "AAAAAAAAAAAAAAAAAAAAAA", "a\u{0}b", "' OR 1=1 --", &"x".repeat(10_000)] {
        stranger.post("/users", newcomer(code, "bob")).await.refused(404, "invite_not_found");
    }
    for code in ["AAAAAAAAAAAAAAAAAAAAAA", "%00", "%F0%9F%92%A9", "..%2F..%2Fetc", "%FF"] {
        stranger.get(&format!("/invites/{code}")).await.refused(404, "invite_not_found");
    }
}

async fn of_64_concurrent_registrations_with_an_invite_for_one_exactly_one_succeeds(
    server: TestServer,
) {
    let (code, stranger) = (server.invite(1).await, server.stranger());
    let logins: Vec<String> = (0..64).map(|number| format!("n{number}")).collect();
    let register = async |login: &String| loop {
        // The server may not hash so many passwords in time. Then the client retries.
        let answer = stranger.post("/users", newcomer(&code, login)).await;
        if answer.status != 503 {
            return answer;
        }
    };

    let answers = join_all(logins.iter().map(register)).await;
    let (won, lost): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| answer.status == 201);
    assert_eq!(won.len(), 1);
    for answer in &lost {
        answer.refused(404, "invite_not_found");
    }

    let winner = stranger.with_token(won[0].body["token"].as_str().unwrap());
    let directory = winner.get("/users").await.expect(200);
    assert_eq!(
        column(&directory["users"], "id"),
        [won[0].body["user"]["id"].clone()],
        "no refused registration left an account"
    );
}

async fn a_refused_registration_does_not_use_up_the_invite(server: TestServer) {
    let (ada, stranger) = (server.user().await, server.stranger());
    let code = server.invite(1).await;
    stranger.post("/users", newcomer(&code, &ada.login)).await.refused(409, "login_taken");
    stranger.post("/users", newcomer(&code, "not a login")).await.refused_fields(&["login"]);
    stranger.post("/users", newcomer(&code, "bob")).await.expect(201);
}

async fn without_a_body_an_invite_is_for_one_and_for_a_week(server: TestServer) {
    let ada = server.user().await;
    let invite = ada.send(ada.request(reqwest::Method::POST, "/invites")).await.expect(201);
    assert_eq!(invite["uses_left"], 1);

    let day = |key: &str| invite[key].as_str().unwrap()[8..10].parse::<i64>().unwrap();
    let days = day("expires_at") - day("created_at");
    assert!(days == 7 || days < 0, "a week, perhaps into the next month: {invite}");
    for nothing in [json!({}), json!(null), json!({ "uses": null, "expires_in_s": null })] {
        let same = ada.post("/invites", nothing).await.expect(201);
        assert_eq!(same["uses_left"], 1);
        assert_ne!(same["code"], invite["code"]);
    }
}

async fn an_invite_out_of_bounds_is_refused_by_field(server: TestServer) {
    let ada = server.user().await;
    for uses in [0, -1, 1001, i64::MIN, i64::MAX] {
        ada.post("/invites", json!({ "uses": uses })).await.refused_fields(&["uses"]);
    }

    for expires_in_s in [0, -1, 2_592_001, i64::MIN, i64::MAX] {
        ada.post("/invites", json!({ "expires_in_s": expires_in_s }))
            .await
            .refused_fields(&["expires_in_s"]);
    }

    ada.post("/invites", json!({ "uses": 0, "expires_in_s": 0 }))
        .await
        .refused_fields(&["uses", "expires_in_s"]);
    ada.post("/invites", json!({ "uses": 1000, "expires_in_s": 2_592_000 })).await.expect(201);
    assert_eq!(ada.get("/invites").await.expect(200)["invites"].as_array().unwrap().len(), 1);
}

async fn open_invites_are_listed_newest_first_and_only_to_their_creator(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let mut made: Vec<Value> = Vec::new();
    for uses in 1..=3 {
        made.push(ada.post("/invites", json!({ "uses": uses })).await.expect(201));
        server.advance(Duration::from_secs(1));
    }
    made.reverse();
    assert_eq!(ada.get("/invites").await.expect(200)["invites"], json!(made));
    assert_eq!(bob.get("/invites").await.expect(200)["invites"], json!([]));
}

async fn a_revoked_invite_is_gone(server: TestServer) {
    let (ada, stranger) = (server.user().await, server.stranger());
    let invite = ada.post("/invites", json!({})).await.expect(201);
    let code = invite["code"].as_str().unwrap();
    let path = format!("/invites/{code}");
    ada.delete(&path).await.expect(204);
    ada.delete(&path).await.refused(404, "invite_not_found");
    stranger.get(&path).await.refused(404, "invite_not_found");
    stranger.post("/users", newcomer(code, "bob")).await.refused(404, "invite_not_found");
    assert_eq!(ada.get("/invites").await.expect(200)["invites"], json!([]));
}

async fn only_its_creator_revokes_an_invite(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let invite = ada.post("/invites", json!({})).await.expect(201);
    let path = format!("/invites/{}", invite["code"].as_str().unwrap());
    let foreign = bob.delete(&path).await;
    foreign.refused(404, "invite_not_found");
    super::indistinguishable(&foreign, &bob.delete("/invites/AAAAAAAAAAAAAAAAAAAAAA").await);
    bob.delete(&format!("/invites/{}", server.invite(1).await))
        .await
        .refused(404, "invite_not_found");
    bob.get(&path).await.expect(200);
}

async fn open_invites_of_a_user_are_limited(server: TestServer) {
    on_another(
        &server,
        |settings| settings.invites_per_user_max = Some(2),
        |server| async move {
            let (ada, bob) = (server.user().await, server.user().await);
            let first = ada.post("/invites", json!({ "expires_in_s": 60 })).await.expect(201);
            ada.post("/invites", json!({})).await.expect(201);
            ada.post("/invites", json!({})).await.refused(409, "invite_limit_reached");
            bob.post("/invites", json!({})).await.expect(201);
            server.advance(Duration::from_mins(2));

            let second = ada.post("/invites", json!({})).await.expect(201);
            ada.post("/invites", json!({})).await.refused(409, "invite_limit_reached");
            ada.delete(&format!("/invites/{}", second["code"].as_str().unwrap())).await.expect(204);

            let third = ada.post("/invites", json!({})).await.expect(201);
            assert_ne!(third["code"], first["code"]);

            let at_once = join_all((0..8).map(|_| bob.post("/invites", json!({})))).await;
            assert_eq!(
                at_once.iter().filter(|answer| answer.status == 201).count(),
                1,
                "the limit holds for concurrent requests"
            );
        },
    )
    .await;
}

async fn a_stranger_sees_the_inviter_and_the_expiry(server: TestServer) {
    let (ada, stranger) = (server.user_named("ada").await, server.stranger());
    let invite = ada.post("/invites", json!({ "uses": 5 })).await.expect(201);
    let open =
        stranger.get(&format!("/invites/{}", invite["code"].as_str().unwrap())).await.expect(200);
    assert_eq!(
        open,
        json!({ "inviter": { "name": "ada" }, "expires_at": invite["expires_at"] }),
        "and nothing else"
    );

    let of_operator =
        stranger.get(&format!("/invites/{}", server.invite(1).await)).await.expect(200);
    assert_eq!(of_operator["inviter"]["name"], "Starling");
}
