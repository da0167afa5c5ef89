//! A chat that another transaction locks delays its own sends and no others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlx::PgConnection;
use starling::model::limits::LANES_MAX;
use starling::model::message::Draft;
use starling::model::{ChatId, Code, MessageId};
use tokio::sync::watch;

use crate::outages::{ANSWER_MAX, send};
use crate::store::bench::{Bench, draft, keyed, new, on_both_stores, refused, repeated};
use crate::support::{Backend, Socket, TestServer, User, execute};

on_both_stores!(
    a_stranger_does_not_slow_down_the_members_of_a_chat,
    a_refused_draft_does_not_change_the_order_of_the_chat,
    a_repeated_client_id_is_found_without_a_retry_of_the_batch,
    a_reply_to_a_message_of_the_same_batch_succeeds,
);

/// Opens a transaction that locks these chats.
pub async fn hold(server: &TestServer, chats: &[String]) -> PgConnection {
    let mut db = server.postgres().await;
    let ids: Vec<String> = chats.iter().map(|chat| format!("'{chat}'")).collect();
    let lock = format!("BEGIN; SELECT id FROM chats WHERE id IN ({}) FOR UPDATE", ids.join(", "));
    execute(&mut db, &lock).await;
    db
}

/// Ends the transaction of [`hold`].
pub async fn release(mut holder: PgConnection) {
    execute(&mut holder, "ROLLBACK").await;
}

/// The durations of sends into a chat, one after another, until `end`.
async fn keep_sending(
    sender: &User,
    chat: &str,
    prefix: &str,
    end: watch::Receiver<bool>,
) -> Vec<Duration> {
    let mut times = Vec::new();
    while !*end.borrow() {
        let start = Instant::now();
        send(sender, chat, &format!("{prefix}-{}", times.len())).await.expect(201);
        times.push(start.elapsed());
    }
    times
}

/// The durations of sends into all these chats at once during `work`, shortest first.
async fn times_during(
    ada: &User,
    chats: &[String],
    prefix: &str,
    work: impl Future<Output = ()>,
) -> Vec<Duration> {
    let (end, ended) = watch::channel(false);
    let sending = join_all(chats.iter().map(|chat| keep_sending(ada, chat, prefix, ended.clone())));
    let working = async {
        work.await;
        end.send_replace(true);
    };

    let (times, ()) = tokio::join!(sending, working);
    let mut times: Vec<Duration> = times.into_iter().flatten().collect();
    times.sort_unstable();
    times
}

fn percentile(sorted: &[Duration], of_100: usize) -> Duration {
    sorted[(sorted.len() - 1) * of_100 / 100]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_chat_delays_its_own_sends_and_no_others() {
    let server = TestServer::start(Backend::Postgres).await;
    let (ada, bob) = (server.user().await, server.user().await);
    let held = ada.private_chat(&bob).await;
    let mut others = Vec::new();
    for _ in 0..8 {
        others.push(ada.group(&[&bob]).await);
    }

    let quiet =
        times_during(&ada, &others, "quiet", tokio::time::sleep(Duration::from_secs(4))).await;

    let mut socket = Socket::live(&bob).await;
    let holder = hold(&server, std::slice::from_ref(&held)).await;
    let work = async {
        // These sends wait in order, and arrive once the chat is released.
        let release = async {
            tokio::time::sleep(Duration::from_millis(1200)).await;
            release(holder).await;
        };
        let sending = async {
            for number in 0..20 {
                let number = number.to_string();
                let frame = json!({
                    "type": "send_message", "chat_id": held, "text": number,
                    "client_id": number, "id": number,
                });
                socket.send(frame).await;
            }
            for number in 0..20 {
                let ack = socket.until("ack").await.pop().unwrap();
                assert_eq!(ack["id"], number.to_string(), "in order: {ack}");
            }
        };

        tokio::join!(release, sending);

        // Locked for longer than a statement may take: the sends into this chat are refused, and
        // the others are not delayed.
        let holder = hold(&server, std::slice::from_ref(&held)).await;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(4) {
            let begun = Instant::now();
            send(&bob, &held, "too late").await.refused(503, "unavailable");
            assert!(begun.elapsed() < ANSWER_MAX, "{:?}", begun.elapsed());
        }
        self::release(holder).await;
    };
    let busy = times_during(&ada, &others, "busy", work).await;

    assert!(busy.len() > 100, "{}", busy.len());
    let (median, high) = (percentile(&busy, 50), percentile(&busy, 99));
    assert!(median < percentile(&quiet, 50) * 2 + Duration::from_millis(50), "{median:?}");
    assert!(
        high < percentile(&quiet, 99) * 2 + Duration::from_millis(100),
        "{high:?} {:?}",
        percentile(&quiet, 99)
    );

    let answer = send(&bob, &held, "too late").await;
    assert!([200, 201].contains(&answer.status), "{}", answer.body);
    let texts = bob.texts(&held, "?after=0").await;
    let expected: Vec<String> =
        (0..20).map(|number| number.to_string()).chain(["too late".to_owned()]).collect();
    assert_eq!(texts, expected, "each once, in order");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_locked_chats_than_lanes_are_answered_and_delay_no_others() {
    let server = TestServer::start(Backend::Postgres).await;
    let (ada, bob) = (server.user().await, server.user().await);
    let mut held = Vec::new();
    for _ in 0..LANES_MAX + 8 {
        held.push(ada.group(&[]).await);
    }
    let free = ada.private_chat(&bob).await;
    let holder = hold(&server, &held).await;

    let waiting = join_all(held.iter().map(|chat| async {
        let start = Instant::now();
        let answer = send(&ada, chat, "held").await;
        (answer, start.elapsed())
    }));
    let others = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let start = Instant::now();
        send(&bob, &free, "free").await.expect(201);
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    };
    let (answers, ()) = tokio::join!(waiting, others);

    for (answer, took) in answers {
        answer.refused(503, "unavailable");
        assert!(took < ANSWER_MAX, "{took:?}");
    }

    release(holder).await;
    for chat in &held {
        // A draft that was still in a lane may have been committed by now.
        let mut answer = send(&ada, chat, "held").await;
        while answer.status == 503 {
            answer = send(&ada, chat, "held").await;
        }
        assert!([200, 201].contains(&answer.status), "{}", answer.body);
        assert_eq!(ada.texts(chat, "?after=0").await, ["held"], "once");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_while_a_chat_is_locked_answers_waiting_sends() {
    let server = TestServer::start(Backend::Postgres).await;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    let holder = hold(&server, std::slice::from_ref(&chat)).await;

    let sending = async {
        let answers = join_all((0..5).map(|number| {
            let (ada, chat) = (&ada, &chat);
            async move { send(ada, chat, &number.to_string()).await }
        }));
        for answer in answers.await {
            assert_eq!(answer.status, 201, "{}", answer.body);
        }
    };

    let stopping = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let releasing = async {
            tokio::time::sleep(Duration::from_millis(600)).await;
            release(holder).await;
        };
        tokio::join!(server.stop(), releasing);
    };

    tokio::join!(sending, stopping);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_former_members_wait_for_no_lock_of_a_chat() {
    let server = TestServer::start(Backend::Postgres).await;
    let (ada, bob, eve) = (server.user().await, server.user().await, server.user().await);
    let chat = ada.group(&[&bob]).await;
    ada.say(&chat, "hello").await;
    bob.delete(&format!("/chats/{chat}/members/me")).await.expect(204);
    let holder = hold(&server, std::slice::from_ref(&chat)).await;

    for user in [&bob, &eve] {
        let (path, message) = (format!("/chats/{chat}"), format!("/chats/{chat}/messages/1"));
        let member = format!("/chats/{chat}/members/{}", ada.id);
        let answers = [
            user.patch(&path, json!({ "name": "Mine" })).boxed(),
            user.patch(&message, json!({ "text": "mine" })).boxed(),
            user.delete(&message).boxed(),
            user.patch(&member, json!({ "role": "admin" })).boxed(),
            user.delete(&member).boxed(),
        ];
        for answer in join_all(answers).await {
            answer.refused(404, "chat_not_found");
        }
    }

    release(holder).await;
    let shown: Value = ada.get(&format!("/chats/{chat}")).await.expect(200);
    assert_eq!((&shown["name"], &shown["rev"]), (&json!("Crew"), &json!(3)), "{shown}");
    server.stop().await;
}

/// One attempt by a batch, and three reads of the step-by-step path, which writes nothing.
const STATEMENTS: u64 = 4;

async fn a_stranger_does_not_slow_down_the_members_of_a_chat(bench: Arc<Bench>) {
    let (ada, bob, eve) = (bench.user().await, bench.user().await, bench.user().await);
    let chat = bench.group(ada, &[bob]).await;
    let nowhere = Draft { reply_to: Some(MessageId(99)), ..draft(chat, eve, "a reply to nothing") };
    let drafts =
        [draft(chat, eve, "let me in"), draft(chat, ada, "a1"), nowhere, draft(chat, bob, "b1")];

    let before = bench.store.statements();
    let sent = bench.store.append(&drafts, bench.now()).await.unwrap();
    let statements = bench.store.statements() - before;

    for stranger in [0, 2] {
        refused(&sent[stranger], Code::ChatNotFound);
    }
    assert_eq!((new(&sent[1]).id, new(&sent[3]).id), (MessageId(1), MessageId(2)));

    if !bench.store.is_embedded() {
        assert_eq!(statements, STATEMENTS, "of both paths");
    }
}

async fn a_refused_draft_does_not_change_the_order_of_the_chat(bench: Arc<Bench>) {
    let (ada, bob) = (bench.user().await, bench.user().await);
    let chat = bench.group(ada, &[bob]).await;
    let reply =
        |to: i64, text: &str| Draft { reply_to: Some(MessageId(to)), ..draft(chat, bob, text) };
    let drafts = [
        draft(chat, ada, "a1"),
        reply(3, "too early"),
        draft(chat, ada, "a2"),
        reply(2, "b1"),
        draft(chat, bob, "b2"),
    ];

    let sent = bench.store.append(&drafts, bench.now()).await.unwrap();
    refused(&sent[1], Code::MessageNotFound);
    let texts: Vec<String> = bench
        .log(chat, ada)
        .await
        .into_iter()
        .filter_map(|it| it.text().map(str::to_owned))
        .collect();
    assert_eq!(texts, ["a1", "a2", "b1", "b2"]);
}

async fn a_repeated_client_id_is_found_without_a_retry_of_the_batch(bench: Arc<Bench>) {
    let (ada, bob) = (bench.user().await, bench.user().await);
    let (chat, other) = (bench.group(ada, &[bob]).await, bench.group(ada, &[]).await);
    let first = bench.store.append(&[keyed(chat, ada, "once", "k")], bench.now()).await.unwrap();
    let drafts = [
        keyed(chat, ada, "once", "k"),
        draft(chat, bob, "hello"),
        draft(other, ada, "elsewhere"),
        keyed(other, ada, "twice", "same"),
        keyed(other, ada, "twice", "same"),
    ];

    let sent = bench.store.append(&drafts, bench.now()).await.unwrap();
    assert_eq!(repeated(&sent[0]), new(&first[0]));
    for index in [1, 2, 3] {
        new(&sent[index]);
    }
    assert_eq!(repeated(&sent[4]), new(&sent[3]));
    assert!(new(&sent[2]).id < new(&sent[3]).id);

    let before = bench.store.statements();
    let again = [keyed(chat, ada, "once", "k"), draft(chat, bob, "again")];
    let sent = bench.store.append(&again, bench.now()).await.unwrap();
    let statements = bench.store.statements() - before;
    assert_eq!(repeated(&sent[0]), new(&first[0]));
    new(&sent[1]);
    if !bench.store.is_embedded() {
        assert_eq!(statements, STATEMENTS, "of both paths");
    }
}

async fn a_reply_to_a_message_of_the_same_batch_succeeds(bench: Arc<Bench>) {
    let (ada, bob) = (bench.user().await, bench.user().await);
    let chat: ChatId = bench.group(ada, &[bob]).await;
    let reply = Draft { reply_to: Some(MessageId(1)), ..draft(chat, bob, "the reply") };
    let drafts = [draft(chat, ada, "the first"), reply, draft(chat, bob, "and more")];
    let sent = bench.store.append(&drafts, bench.now()).await.unwrap();
    let ids: Vec<i64> = sent.iter().map(|sent| new(sent).id.0).collect();
    assert_eq!(ids, [1, 2, 3]);
}
