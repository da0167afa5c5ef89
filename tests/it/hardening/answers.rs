//! Answers that their clients do not read, and the largest size of a page.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use starling::config::Config;

use super::raw::{Http2, metrics, read_body};
use crate::support::{Backend, TestServer, User, eventually, everywhere};

everywhere!(
    a_page_of_history_stops_at_its_bytes_and_the_pages_together_hold_everything,
    a_page_of_changes_stops_at_its_bytes_and_names_the_rev_that_it_reaches,
);

/// The longest text, 16 KiB as stored.
fn longest(number: usize) -> String {
    format!("{number:04}{}", "🐢".repeat(4092))
}

/// Messages of the longest text, more than a page may hold.
const MESSAGES: usize = 70;
/// The number of them that a page holds: 512 KiB.
const OF_A_PAGE: usize = 32;

/// A chat with [`MESSAGES`] messages of the longest text.
async fn long_chat(ada: &User, bob: &User) -> String {
    let chat = ada.private_chat(bob).await;
    for number in 1..=MESSAGES {
        ada.say(&chat, &longest(number)).await;
    }
    chat
}

fn ids(page: &Value) -> Vec<usize> {
    let messages = page["messages"].as_array().unwrap();
    messages
        .iter()
        .map(|message| usize::try_from(message["id"].as_u64().unwrap()).unwrap())
        .collect()
}

async fn a_page_of_history_stops_at_its_bytes_and_the_pages_together_hold_everything(
    server: TestServer,
) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = long_chat(&ada, &bob).await;
    let page = async |query: &str| {
        let page = bob.get(&format!("/chats/{chat}/messages?max=100{query}")).await.expect(200);
        let ids = ids(&page);
        assert!(!ids.is_empty() && ids.len() <= OF_A_PAGE + 1, "{ids:?}");
        assert!(
            ids.windows(2).all(|two| two[0] + 1 == two[1]),
            "ascending, without a gap: {ids:?}"
        );
        ids
    };

    assert_eq!(page("").await.last(), Some(&MESSAGES), "the newest page lacks the oldest");
    assert_eq!(page("&after=0").await.first(), Some(&1), "the oldest page lacks the newest");

    let mut back = page("").await;
    while back[0] > 1 {
        let mut before = page(&format!("&before={}", back[0])).await;
        before.extend(back);
        back = before;
    }
    assert_eq!(back, (1..=MESSAGES).collect::<Vec<_>>());

    let mut forth = page("&after=0").await;
    while *forth.last().unwrap() < MESSAGES {
        forth.extend(page(&format!("&after={}", forth.last().unwrap())).await);
    }
    assert_eq!(forth, back);

    let short = bob.get(&format!("/chats/{chat}/messages?max=3")).await.expect(200);
    assert_eq!(ids(&short), [MESSAGES - 2, MESSAGES - 1, MESSAGES], "a short page is complete");
}

async fn a_page_of_changes_stops_at_its_bytes_and_names_the_rev_that_it_reaches(
    server: TestServer,
) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = long_chat(&ada, &bob).await;
    let end = bob.get(&format!("/chats/{chat}")).await.expect(200)["rev"].as_u64().unwrap();

    let (mut rev, mut seen, mut pages, mut members) = (0, Vec::new(), 0, 0);
    loop {
        let page =
            bob.get(&format!("/chats/{chat}/changes?after_rev={rev}&max=100")).await.expect(200);
        let of_page = ids(&page);
        assert!(of_page.len() <= OF_A_PAGE + 1, "{of_page:?}");
        let (reached, complete) =
            (page["rev"].as_u64().unwrap(), page["complete"].as_bool().unwrap());

        assert!(reached > rev, "every page makes progress");
        if let Some(last) = page["messages"].as_array().unwrap().last() {
            assert!(
                complete || last["rev"] == reached,
                "the page reaches no further than its last item"
            );
        }

        members += page["members"].as_array().unwrap().len();
        seen.extend(of_page);
        (rev, pages) = (reached, pages + 1);

        if complete {
            break;
        }
    }

    assert_eq!((seen, rev), ((1..=MESSAGES).collect::<Vec<_>>(), end));
    assert!(pages >= 3 && members >= 2, "{pages} pages, {members} members");
}

/// Connections and streams of one account that read nothing.
const CONNECTIONS: usize = 6;
const STREAMS: usize = 12;
/// The most requests of a user at once.
const AT_ONCE: usize = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_answers_of_one_account_are_bounded_and_their_connections_closed() {
    let stall = |config: &mut Config| config.patience.stall = Duration::from_secs(10);
    let server = TestServer::tuned(Backend::Sqlite, |_| {}, stall).await;
    metrics(&server).await;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = long_chat(&ada, &bob).await;
    let path = format!("/chats/{chat}/messages?max=10");

    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(Http2::connect(server.address(), 0).await);
    }

    let mut requests = Vec::new();
    for connection in &mut connections {
        for _ in 0..STREAMS {
            requests.push(connection.get(&ada, &path).await.unwrap());
        }
    }

    // A dropped body would count as read, so the bodies are kept.
    let answers: Vec<_> = join_all(requests).await.into_iter().flatten().collect();
    let with = |status: u16| answers.iter().filter(|answer| answer.status() == status).count();
    assert_eq!((with(200), with(503)), (AT_ONCE, CONNECTIONS * STREAMS - AT_ONCE));

    bob.get(&path).await.expect(200);
    for connection in connections {
        connection.until_closed().await;
    }
    drop(answers);

    let metrics = metrics(&server).await;
    assert!(metrics.contains(r#"starling_connections_closed_total{reason="answer_stalled"}"#));
    assert!(metrics.contains(r#"starling_requests_refused_total{bound="requests_per_user"}"#));

    eventually("the permits of the account are free again", async || {
        join_all((0..AT_ONCE).map(|_| ada.get("/users/me")))
            .await
            .iter()
            .all(|answer| answer.status == 200)
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_client_gets_its_complete_answer_and_many_requests_at_once_succeed() {
    let stall = |config: &mut Config| config.patience.stall = Duration::from_secs(5);
    let server = TestServer::tuned(Backend::Sqlite, |_| {}, stall).await;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = long_chat(&ada, &bob).await;
    let path = format!("/chats/{chat}/messages?max=100");

    let mut http2 = Http2::connect(server.address(), 16 * 1024).await;
    let response = http2.get(&ada, &path).await.unwrap().await.unwrap();
    let (expected, mut body, mut taken) =
        (response.headers()["content-length"].clone(), response.into_body(), 0);

    while let Some(piece) = body.data().await {
        let piece = piece.unwrap();
        taken += piece.len();
        // In total this takes longer than an answer may stall.
        tokio::time::sleep(Duration::from_millis(200)).await;
        body.flow_control().release_capacity(piece.len()).unwrap();
    }
    assert_eq!(taken.to_string(), expected.to_str().unwrap());

    let requests = join_all((0..60).map(|_| async {
        let mut http2 = Http2::connect(server.address(), 65_535).await;
        let response = http2.get(&bob, "/users/me").await.unwrap().await.unwrap();
        (
            response.status().as_u16(),
            serde_json::from_slice::<Value>(&read_body(response).await).unwrap()["id"].clone(),
        )
    }));
    assert!(requests.await.iter().all(|answer| *answer == (200, json!(bob.id))));
    server.stop().await;
}
