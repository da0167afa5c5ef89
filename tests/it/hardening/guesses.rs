//! Limits on guesses of passwords and tokens: what they stop, and what they never stop.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use starling::config::{Settings, Switch};
use tokio::time::Instant;

use crate::support::{Answer, Backend, TestServer, User, on_both_databases_by, run_with};

on_both_databases_by!(
    super::limited,
    correct_logins_are_not_counted,
    wrong_logins_at_once_are_counted_exactly,
    guesses_from_one_address_do_not_lock_the_owner_out_elsewhere,
    guesses_from_many_networks_never_lock_out_a_logged_in_user,
    unknown_refresh_tokens_block_no_refresh_from_the_same_address,
    a_refresh_loop_limits_only_its_own_session,
    a_stolen_session_cannot_block_a_password_change,
);

const WRONG: &str = "a wrong password, surely";

/// Runs a test on a server with rate limits on, behind a proxy whose header names the client's
/// address.
async fn limited<F: Future<Output = ()>>(backend: Backend, test: impl FnOnce(TestServer) -> F) {
    let change = |settings: &mut Settings| {
        settings.rate_limits = Some(Switch::On);
        settings.trusted_proxies = Some("127.0.0.1".to_owned());
        settings.sessions_per_user_max = Some(100);
    };
    run_with(backend, change, test).await;
}

async fn post_from(user: &User, address: &str, path: &str, body: Value) -> Answer {
    let request =
        user.with_token("").request(reqwest::Method::POST, path).header("x-forwarded-for", address);
    user.send(request.json(&body)).await
}

async fn log_in_from(user: &User, address: &str, password: &str) -> Answer {
    post_from(user, address, "/sessions", json!({ "login": user.login, "password": password }))
        .await
}

async fn correct_logins_are_not_counted(server: TestServer) {
    let ada = server.user().await;
    for _ in 0..25 {
        log_in_from(&ada, "203.0.113.1", &ada.password).await.expect(201);
    }
    for _ in 0..9 {
        log_in_from(&ada, "203.0.113.1", WRONG).await.refused(401, "invalid_credentials");
    }
    log_in_from(&ada, "203.0.113.1", &ada.password).await.expect(201);
}

async fn wrong_logins_at_once_are_counted_exactly(server: TestServer) {
    let ada = server.user().await;
    let start = Instant::now();
    let answers = join_all((0..30).map(|_| log_in_from(&ada, "203.0.113.1", WRONG))).await;

    // A busy answer means that the password was not verified, so the attempt does not count.
    let verified = answers.iter().filter(|answer| answer.status == 401).count();
    let refused = answers.iter().filter(|answer| answer.status == 429).count();
    let earned = usize::try_from(start.elapsed().as_secs() / 10).unwrap() + 1;

    assert!(
        verified <= 10 + earned && refused >= 20 - earned,
        "{verified} guesses, {refused} refused"
    );
}

/// Guesses from an address until the limit refuses one.
async fn guess_until_refused(user: &User, address: &str) {
    for _ in 0..40 {
        let answer = log_in_from(user, address, WRONG).await;
        if answer.status == 429 {
            return;
        }
        answer.refused(401, "invalid_credentials");
    }
    panic!("forty guesses passed");
}

async fn guesses_from_one_address_do_not_lock_the_owner_out_elsewhere(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    guess_until_refused(&ada, "203.0.113.1").await;
    log_in_from(&ada, "203.0.113.1", &ada.password).await.refused(429, "rate_limited");
    log_in_from(&bob, "203.0.113.1", &bob.password).await.expect(201);
    log_in_from(&ada, "198.51.100.1", &ada.password).await.expect(201);

    let flood = join_all((0..100).map(|_| log_in_from(&ada, "203.0.113.1", WRONG))).await;
    let refused = flood.iter().filter(|answer| answer.status == 429).count();
    assert!(refused > 90, "all but the refilled permits: {refused}");
    log_in_from(&bob, "203.0.113.1", &bob.password).await.expect(201);
}

/// Guesses at a login from many networks, until the account's own bound refuses them for some
/// seconds.
async fn guess_from_many_networks(server: &TestServer, login: &str) {
    let stranger = server.stranger();
    for _ in 0..150 {
        let address = format!("2001:db8:{:x}::1", rand::random_range(1..0x1000));
        let body = json!({ "login": login, "password": WRONG });
        let answer = post_from(&stranger, &address, "/sessions", body).await;

        if answer.status == 429 {
            let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
            if wait > 7 {
                return;
            }
            server.advance(Duration::from_secs(wait));
        }
    }
    panic!("a hundred and fifty guesses from as many networks passed");
}

/// The refusal of an attempt once the account's bound is used up. The bound may refill in between.
async fn refused_beyond_the_bound(
    server: &TestServer,
    login: &str,
    attempt: impl AsyncFn() -> Answer,
) -> Answer {
    for _ in 0..4 {
        guess_from_many_networks(server, login).await;
        let answer = attempt().await;
        if answer.status == 429 {
            return answer;
        }
    }
    panic!("four attempts passed beyond the bound");
}

/// An address in an unused network.
fn elsewhere() -> String {
    format!(
        "2001:db8:{:x}:{:x}::1",
        rand::random_range(0x2000..0x9000),
        rand::random_range(1..0x1000)
    )
}

async fn guesses_from_many_networks_never_lock_out_a_logged_in_user(server: TestServer) {
    let near = "2001:db8:aaaa:1::1";
    let ada = server.user().await;
    let home = log_in_from(&ada, near, &ada.password).await.expect(201);

    let right = async || log_in_from(&ada, &elsewhere(), &ada.password).await;
    refused_beyond_the_bound(&server, &ada.login, right).await.refused(429, "rate_limited");
    log_in_from(&ada, "2001:db8:aaaa:1:ffff::2", &ada.password).await.expect(201);
    let mut naming = json!({
        "login": ada.login,
        "password": ada.password,
        "session_id": home["session"]["id"],
    });
    let reused = post_from(&ada, &elsewhere(), "/sessions", naming.clone()).await.expect(201);
    assert_eq!(reused["session"]["id"], home["session"]["id"]);

    let bob = server.user().await;
    let of_bob = log_in_from(&bob, "203.0.113.9", &bob.password).await.expect(201);
    naming["session_id"] = of_bob["session"]["id"].clone();
    let foreign = async || post_from(&ada, &elsewhere(), "/sessions", naming.clone()).await;
    refused_beyond_the_bound(&server, &ada.login, foreign).await.refused(429, "rate_limited");

    // A wrong password from a network where the account is logged in gets the answer of an
    // unknown login, after a hash as well. On a busy machine each takes longer than a hash, and
    // none takes less.
    let (mut times, mut hash) = (Vec::new(), Duration::MAX);
    for _ in 0..3 {
        let start = Instant::now();
        log_in_from(&bob, "203.0.113.9", WRONG).await.refused(401, "invalid_credentials");
        hash = hash.min(start.elapsed());
    }

    for login in [ada.login.as_str(), "nobody"] {
        for _ in 0..3 {
            let body = json!({ "login": login, "password": WRONG });
            let took = std::cell::Cell::new(Duration::ZERO);
            let wrong = async || {
                let start = Instant::now();
                let answer = post_from(&ada, near, "/sessions", body.clone()).await;
                took.set(start.elapsed());
                answer
            };
            refused_beyond_the_bound(&server, login, wrong).await.refused(429, "rate_limited");
            times.push(took.get());
        }
    }

    assert!(
        times.iter().all(|time| *time * 2 > hash),
        "known and unknown {times:?}, a hash {hash:?}"
    );

    server.advance(Duration::from_mins(2));
    log_in_from(&ada, "2001:db8:dddd:1::1", &ada.password).await.expect(201);
}

async fn unknown_refresh_tokens_block_no_refresh_from_the_same_address(server: TestServer) {
    let mut grants = Vec::new();
    for _ in 0..3 {
        let user = server.user().await;
        grants.push(log_in_from(&user, "203.0.113.1", &user.password).await.expect(201));
    }

    let stranger = server.stranger();
    let refresh = async |token: &Value| {
        post_from(&stranger, "203.0.113.1", "/sessions/refresh", json!({ "refresh_token": token }))
            .await
    };

    let mut refused = 0;
    for number in 0..400 {
        // Of the form of a token, and not. None is a refresh token of a session.
        let garbage = if number % 2 == 0 { json!("nonsense") } else { grants[0]["token"].clone() };
        let answer = refresh(&garbage).await;
        if answer.status == 429 {
            refused += 1;
        } else {
            answer.refused(401, "invalid_refresh_token");
        }
    }

    assert!(refused > 0, "garbage is counted");
    for grant in &grants {
        let fresh = refresh(&grant["refresh_token"]).await.expect(200);
        refresh(&fresh["refresh_token"]).await.expect(200);
    }
}

async fn a_refresh_loop_limits_only_its_own_session(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let other = log_in_from(&bob, "203.0.113.1", &bob.password).await.expect(201);
    let mut grant = log_in_from(&ada, "203.0.113.1", &ada.password).await.expect(201);
    let refresh = async |grant: &Value| {
        let body = json!({ "refresh_token": grant["refresh_token"] });
        post_from(&ada, "203.0.113.1", "/sessions/refresh", body).await
    };

    let mut done = 0;
    loop {
        let answer = refresh(&grant).await;
        if answer.status == 429 {
            break;
        }
        grant = answer.expect(200);
        done += 1;
        assert!(done < 300, "the loop is limited");
    }

    assert!(done >= 30, "{done}");
    refresh(&other).await.expect(200);
    server.advance(Duration::from_secs(10));
    refresh(&grant).await.expect(200);
}

async fn a_stolen_session_cannot_block_a_password_change(server: TestServer) {
    let ada = server.user().await;
    let stolen = log_in_from(&ada, "203.0.113.1", &ada.password).await.expect(201);
    let thief = ada.with_token(stolen["token"].as_str().unwrap());

    let mut refused = 0;
    for guess in 0..16 {
        let change = json!({
            "password": "chosen by a thief",
            "current_password": format!("{WRONG} {guess}"),
        });
        let answer = thief.patch("/users/me", change).await;
        if answer.status == 429 { refused += 1 } else { answer.refused(403, "wrong_password") }
    }
    assert!(refused >= 3, "{refused}");

    let mut password = ada.password.clone();
    for number in 0..14 {
        let new = format!("correct horse battery {number}");
        let change = json!({ "password": new, "current_password": password });
        ada.patch("/users/me", change).await.expect(200);
        password = new;
    }

    thief.get("/users/me").await.refused(401, "not_authenticated");
}
