//! `kill -9`: each acknowledged message is stored once, at the acknowledged id.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::harness::{Home, Process};
use crate::support::{Backend, Socket, User};

/// The number of kills, each at another moment.
const ROUNDS: u64 = 15;
/// The number of senders over HTTP, and of senders over a WebSocket.
const SENDERS: usize = 3;

/// A sender: the number of its next message, and the ids of acknowledged messages by `client_id`.
struct Sender {
    user: User,
    chat: String,
    next: u64,
    acknowledged: BTreeMap<String, i64>,
}

impl Sender {
    fn frame(&self) -> (String, Value) {
        let key = format!("{}-{}", self.user.login, self.next);
        (key.clone(), json!({ "text": format!("text of {key}"), "client_id": key }))
    }

    /// Records an acknowledgement. The next message gets a new key only then, as with a client that
    /// retries.
    fn acknowledge(&mut self, key: String, id: i64) {
        let before = self.acknowledged.insert(key, id);
        assert!(before.is_none_or(|before| before == id), "a key has one message");
        self.next += 1;
    }

    async fn send_over_http(&mut self) {
        let path = format!("/chats/{}/messages", self.chat);
        loop {
            let (key, body) = self.frame();
            let request = self.user.request(reqwest::Method::POST, &path).json(&body);
            let Ok(response) = request.send().await else { return };
            let status = response.status().as_u16();
            let Ok(message) = response.json::<Value>().await else { return };
            match status {
                200 | 201 => self.acknowledge(key, message["id"].as_i64().unwrap()),
                503 => {}
                _ => panic!("{status}: {message}"),
            }
        }
    }

    async fn send_over_socket(&mut self) {
        use futures_util::{SinkExt, StreamExt};
        use tokio_tungstenite::tungstenite::Message;

        let mut request = Socket::request(&self.user);
        let bearer = format!("Bearer {}", self.user.token);
        request.headers_mut().insert("authorization", bearer.parse().unwrap());

        let Ok((mut socket, _)) = tokio_tungstenite::connect_async(request).await else { return };
        loop {
            let (key, mut frame) = self.frame();
            frame["type"] = json!("send_message");
            frame["chat_id"] = json!(self.chat);
            frame["id"] = json!(key);
            if socket.send(Message::text(frame.to_string())).await.is_err() {
                return;
            }

            let id = loop {
                let Some(Ok(message)) = socket.next().await else { return };
                let Ok(text) = message.into_text() else { continue };
                let Ok(answer) = serde_json::from_str::<Value>(&text) else { continue };
                if answer["id"] == json!(key) {
                    assert_eq!(answer["type"], "ack", "{answer}");
                    break answer["message"]["id"].as_i64().unwrap();
                }
            };
            self.acknowledge(key, id);
        }
    }

    async fn work(&mut self, over_socket: bool) {
        if over_socket { self.send_over_socket().await } else { self.send_over_http().await }
    }
}

/// All messages of a chat.
async fn log_of(user: &User, chat: &str) -> Vec<Value> {
    let mut log: Vec<Value> = Vec::new();
    loop {
        let path = format!("/chats/{chat}/messages?after={}&max=100", log.len());
        let page = user.get(&path).await.expect(200);
        let page = page["messages"].as_array().unwrap();
        if page.is_empty() {
            return log;
        }
        log.extend(page.iter().cloned());
    }
}

async fn everything_acknowledged_is_there_once(
    server: &Process,
    senders: &[Sender],
    chats: &[String],
) {
    let reader = server.at(&senders[0].user);
    for chat in chats {
        let log = log_of(&reader, chat).await;
        let ids: Vec<i64> = log.iter().map(|message| message["id"].as_i64().unwrap()).collect();
        assert_eq!(
            ids,
            (1..=i64::try_from(log.len()).unwrap()).collect::<Vec<_>>(),
            "ids have no gap"
        );

        let texts: Vec<&str> =
            log.iter().map(|message| message["text"].as_str().unwrap()).collect();
        for sender in senders.iter().filter(|sender| sender.chat == *chat) {
            for (key, id) in &sender.acknowledged {
                let text = format!("text of {key}");
                assert_eq!(
                    texts[usize::try_from(*id).unwrap() - 1],
                    text,
                    "the message at the acknowledged id"
                );
                assert_eq!(
                    texts.iter().filter(|it| **it == text).count(),
                    1,
                    "{key} is there once"
                );
            }
        }

        let shown = reader.get(&format!("/chats/{chat}")).await.expect(200);
        assert_eq!(
            shown["last_message_id"].as_u64(),
            Some(log.len() as u64),
            "the chat agrees with its log"
        );
        assert_eq!(shown["rev"].as_u64(), Some(log.len() as u64 + 1));
    }
}

async fn kill_9_in_a_loop_loses_nothing_acknowledged(backend: Backend) {
    let home = Home::of(backend).await;
    let mut server = home.serve().await;
    let users = home.users(&server.base, "u", SENDERS * 2).await;
    let others: Vec<&User> = users[1..].iter().collect();
    let chats = [users[0].group(&others).await, users[0].group(&others).await];

    let sender = |(number, user): (usize, &User)| Sender {
        user: user.clone(),
        chat: chats[number % 2].clone(),
        next: 1,
        acknowledged: BTreeMap::new(),
    };

    let mut senders: Vec<Sender> = users.iter().enumerate().map(sender).collect();
    for round in 0..ROUNDS {
        let killing = async {
            tokio::time::sleep(Duration::from_millis(60 + round * 23)).await;
            server.kill().await;
        };
        let working =
            senders.iter_mut().enumerate().map(|(number, sender)| sender.work(number >= SENDERS));
        tokio::join!(killing, join_all(working));
        server = home.serve().await;
        for sender in &mut senders {
            sender.user = server.at(&sender.user);
        }
        everything_acknowledged_is_there_once(&server, &senders, &chats).await;
    }

    let acknowledged: usize = senders.iter().map(|sender| sender.acknowledged.len()).sum();
    assert!(acknowledged > 15 * SENDERS * 2, "messages were sent before each kill: {acknowledged}");
    assert!(!home.log().contains("ERROR"), "{}", home.log());
    server.stop().await;
    home.database.remove().await;
}

#[tokio::test]
async fn on_sqlite_kill_9_in_a_loop_loses_no_acknowledged_message() {
    kill_9_in_a_loop_loses_nothing_acknowledged(Backend::Sqlite).await;
}

#[tokio::test]
async fn on_postgres_kill_9_in_a_loop_loses_no_acknowledged_message() {
    kill_9_in_a_loop_loses_nothing_acknowledged(Backend::Postgres).await;
}
