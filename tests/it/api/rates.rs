//! Rate limits over HTTP: which requests they refuse, and until when.

use std::time::Duration;

use serde_json::json;
use starling::config::{Settings, Switch};

use super::{PASSWORD, log_in, newcomer, on_another};
use crate::support::{Answer, TestServer, everywhere};

everywhere!(
    sends_of_a_user_are_limited_and_refused_sends_store_nothing,
    logins_to_an_account_are_limited_wherever_they_come_from,
    registrations_from_an_address_are_limited,
    all_addresses_of_an_ipv6_network_share_one_limit,
    only_a_trusted_proxys_forwarded_address_counts,
    other_changes_of_a_user_are_limited,
);

/// Runs `test` on a server with rate limits, behind these trusted proxies.
async fn limited<F: Future<Output = ()>>(
    server: &TestServer,
    proxies: Option<&str>,
    test: impl FnOnce(TestServer) -> F,
) {
    let change = |settings: &mut Settings| {
        settings.rate_limits = Some(Switch::On);
        settings.trusted_proxies = proxies.map(str::to_owned);
    };
    on_another(server, change, test).await;
}

/// Fails unless the answer is a 429. Returns the seconds to wait.
#[track_caller]
fn too_many(answer: &Answer) -> u64 {
    answer.refused(429, "rate_limited");
    let seconds = answer.header("retry-after").expect("a Retry-After header").parse().unwrap();
    assert!(seconds >= 1);
    seconds
}

async fn sends_of_a_user_are_limited_and_refused_sends_store_nothing(server: TestServer) {
    limited(&server, None, |server| async move {
        let (ada, bob) = (server.user().await, server.user().await);
        let chat = ada.private_chat(&bob).await;
        let path = format!("/chats/{chat}/messages");
        let sends = (0..120).map(|_| ada.post(&path, json!({ "text": "spam" })));
        let answers = futures_util::future::join_all(sends).await;
        let accepted = answers.iter().filter(|answer| answer.status == 201).count();
        assert!(
            (60..120).contains(&accepted),
            "a burst of sixty, and permits earned meanwhile: {accepted}"
        );

        let refused: Vec<&Answer> = answers.iter().filter(|answer| answer.status != 201).collect();
        let wait = refused.iter().map(|answer| too_many(answer)).max().unwrap();
        let end = bob.get(&format!("/chats/{chat}")).await.expect(200)["last_message_id"].clone();
        assert_eq!(end, json!(accepted), "a refused message was not sent");
        bob.say(&chat, "I may").await;
        server.advance(Duration::from_secs(wait));
        ada.say(&chat, "again").await;
    })
    .await;
}

async fn logins_to_an_account_are_limited_wherever_they_come_from(server: TestServer) {
    limited(&server, Some("127.0.0.1"), |server| async move {
        let (ada, bob) = (server.user().await, server.user().await);
        let stranger = server.stranger();
        let wait = {
            let mut waits = Vec::new();
            for guess in 0..75 {
                let body = json!({ "login": ada.login, "password": format!("{PASSWORD}{guess}") });
                let request = stranger.request(reqwest::Method::POST, "/sessions");
                let address = format!("203.0.113.{guess}");
                let answer =
                    stranger.send(request.header("x-forwarded-for", address).json(&body)).await;
                if answer.status == 401 {
                    assert!(waits.is_empty());
                } else {
                    waits.push(too_many(&answer));
                }
            }
            assert!(waits.len() >= 3, "a burst of fifty guesses, and permits earned meanwhile");
            waits.into_iter().max().unwrap()
        };
        let right = json!({ "login": ada.login, "password": ada.password });

        too_many(&stranger.post("/sessions", right).await);
        log_in(&bob).await;
        ada.get("/users/me").await.expect(200);
        server.advance(Duration::from_secs(wait));
        log_in(&ada).await;
    })
    .await;
}

async fn registrations_from_an_address_are_limited(server: TestServer) {
    limited(&server, None, |server| async move {
        let stranger = server.stranger();
        let mut refused = 0;
        for _ in 0..40 {
            let answer = stranger.post("/users", newcomer("AAAAAAAAAAAAAAAAAAAAAA", "ada")).await;
            if answer.status == 404 {
                assert_eq!(refused, 0);
            } else {
                refused += too_many(&answer).min(1);
            }
        }

        assert!(refused >= 8, "{refused}");
        let code = server.invite(1).await;
        too_many(&stranger.post("/users", newcomer(&code, "ada")).await);
        server.advance(Duration::from_secs(11));
        stranger.post("/users", newcomer(&code, "ada")).await.expect(201);
    })
    .await;
}

/// Guesses an invite once from each address, named in a header. Returns how many guesses are
/// refused with 429.
async fn refused_from(server: &TestServer, addresses: impl Iterator<Item = String>) -> usize {
    let stranger = server.stranger();
    let mut refused = 0;
    for address in addresses {
        let request =
            stranger.request(reqwest::Method::POST, "/users").header("x-forwarded-for", address);
        let answer = stranger.send(request.json(&newcomer("AAAAAAAAAAAAAAAAAAAAAA", "ada"))).await;
        if answer.status != 404 {
            too_many(&answer);
            refused += 1;
        }
    }
    refused
}

async fn all_addresses_of_an_ipv6_network_share_one_limit(server: TestServer) {
    limited(&server, Some("127.0.0.1"), |server| async move {
        let one_network = (0..40).map(|host| format!("2001:db8:1:2:{host:x}::1"));
        assert!(refused_from(&server, one_network).await >= 8);
        let other_networks = (0..40).map(|network| format!("2001:db8:1:{:x}::1", 16 + network));
        assert_eq!(refused_from(&server, other_networks).await, 0);
    })
    .await;
}

async fn only_a_trusted_proxys_forwarded_address_counts(server: TestServer) {
    limited(&server, None, |server| async move {
        let forged = (0..40).map(|host| format!("203.0.113.{host}"));
        assert!(refused_from(&server, forged).await >= 8);
    })
    .await;
}

async fn other_changes_of_a_user_are_limited(server: TestServer) {
    limited(&server, None, |server| async move {
        let (ada, bob) = (server.user().await, server.user().await);
        let changes = (0..100).map(|_| ada.post("/chats", json!({ "kind": "self" })));
        let answers = futures_util::future::join_all(changes).await;
        let (done, refused): (Vec<_>, Vec<_>) =
            answers.iter().partition(|answer| answer.status < 300);
        assert!(done.len() >= 60 && !refused.is_empty());

        let wait = refused.into_iter().map(too_many).max().unwrap();
        let others =
            futures_util::future::join_all((0..30).map(|_| ada.post("/invites", json!({})))).await;
        assert!(others.iter().any(|answer| answer.status == 429), "one bucket for all changes");
        ada.get("/chats").await.expect(200);
        bob.post("/invites", json!({})).await.expect(201);
        server.advance(Duration::from_secs(wait + 1));
        ada.patch("/users/me", json!({ "name": "Patient" })).await.expect(200);
    })
    .await;
}
