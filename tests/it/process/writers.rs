//! Many concurrent writers on the embedded database, which has one writing connection.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rand::RngExt;
use serde_json::json;

use super::harness::Home;
use crate::support::{Answer, User};

/// The number of writers. Each has one request in progress.
const WRITERS: usize = 64;
/// How long they write.
const SPAN: Duration = Duration::from_secs(6);

/// A writer, and how often it got each status.
struct Writer {
    user: User,
    peer: String,
    chat: String,
    own: Vec<i64>,
    answers: BTreeMap<(&'static str, u16), u32>,
    slowest: Duration,
}

impl Writer {
    async fn write(&mut self, until: Instant) {
        while Instant::now() < until {
            let start = Instant::now();
            let (what, expected, answer) = self.act().await;
            assert!(answer.status < 500 && expected.contains(&answer.status), "{what}: {answer:?}");
            self.slowest = self.slowest.max(start.elapsed());
            *self.answers.entry((what, answer.status)).or_default() += 1;
        }
    }

    /// Makes a random request that writes. Returns its kind, the expected statuses, and the answer.
    async fn act(&mut self) -> (&'static str, &'static [u16], Answer) {
        let (user, chat) = (&self.user, &self.chat);
        let at = |id: i64| format!("/chats/{chat}/messages/{id}");
        match (rand::rng().random_range(0..100), self.own.last().copied()) {
            (0..20, Some(id)) => {
                ("edit", &[200], user.patch(&at(id), json!({ "text": "changed" })).await)
            }
            (20..30, Some(id)) => {
                self.own.pop();
                ("remove", &[204], user.delete(&at(id)).await)
            }
            (30..45, Some(id)) => (
                "read",
                &[200, 204],
                user.put(&format!("/chats/{chat}/read"), json!({ "message_id": id })).await,
            ),
            (45..48, _) => {
                let body = json!({ "kind": "group", "name": "Crew", "member_ids": [self.peer] });
                ("group", &[201], user.post("/chats", body).await)
            }
            (48..50, _) => {
                let body = json!({ "kind": "private", "member_ids": [self.peer] });
                ("private", &[200, 201], user.post("/chats", body).await)
            }
            (50, _) => {
                let body = json!({ "login": user.login, "password": user.password });
                ("login", &[201], user.post("/sessions", body).await)
            }
            // The first message is another user's, or already removed. A refusal reads the database
            // too.
            (51..54, _) => ("another's", &[204, 403, 404], user.delete(&at(1)).await),
            _ => {
                let sent =
                    user.post(&format!("/chats/{chat}/messages"), json!({ "text": "hello" })).await;
                self.own.extend(sent.body["id"].as_i64());
                ("send", &[201], sent)
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the figures are the result of the test")]
async fn sixty_four_concurrent_writers_on_sqlite_get_no_server_error() {
    let home = Home::new();
    let server = home.serve().await;
    let users = home.users(&server.base, "u", WRITERS).await;
    let mut writers = Vec::new();
    for (number, user) in users.iter().enumerate() {
        let peer = users[(number + 1) % WRITERS].id.clone();
        // Groups of sixteen. The first member sends the first message.
        if number % 16 == 0 {
            let others: Vec<&User> = users[number + 1..number + 16].iter().collect();
            let chat = user.group(&others).await;
            user.say(&chat, "the first").await;
            writers.push((user.clone(), peer, chat));
        } else {
            let chat = writers[number / 16 * 16].2.clone();
            writers.push((user.clone(), peer, chat));
        }
    }

    let writer = |(user, peer, chat): (User, String, String)| {
        let (own, answers, slowest) = (Vec::new(), BTreeMap::new(), Duration::ZERO);
        Writer { user, peer, chat, own, answers, slowest }
    };
    let mut writers: Vec<Writer> = writers.into_iter().map(writer).collect();
    let until = Instant::now() + SPAN;
    join_all(writers.iter_mut().map(|writer| writer.write(until))).await;

    let mut all: BTreeMap<(&str, u16), u32> = BTreeMap::new();
    for (key, count) in writers.iter().flat_map(|writer| &writer.answers) {
        *all.entry(*key).or_default() += count;
    }

    let slowest = writers.iter().map(|writer| writer.slowest).max();
    println!(
        "{} requests of {WRITERS} writers, slowest {slowest:?}: {all:?}",
        all.values().sum::<u32>()
    );

    let kinds: std::collections::BTreeSet<&str> = all.keys().map(|(what, _)| *what).collect();
    assert_eq!(kinds.len(), 8, "each kind of request was made: {kinds:?}");
    assert!(!home.log().contains("ERROR"), "{}", home.log());
    server.stop().await;
}
