//! `greedy`: one account makes as many requests as it can, on as many connections as the server
//! accepts, while other users write. The server must limit rates.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt, TryStreamExt, stream};
use reqwest::Method;
use serde_json::{Value, json};
use starling_loadtest::client::Answer;
use starling_loadtest::wire::Chat;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use super::speed::{REQUESTS_MAX, Ran, chat, drive, sender};
use super::{CONNECTIONS_PER_USER, Measured};
use crate::tool::arith::{ratio, real};
use crate::tool::light;
use crate::tool::stage::{Figure, Stage};

/// Clients of the greedy account.
const GREEDY: usize = 300;
/// Pause between two calls of a greedy client. 3000 calls per second leave enough CPU for the
/// server on a small machine.
const PAUSE: Duration = Duration::from_millis(100);
/// Messages per second of the other users, unless `--rate` is given.
const RATE: u32 = 200;
/// Frames that a greedy connection sends in one go.
const FRAMES: usize = 8;
/// How long a greedy connection reads answers before it sends again.
const LISTEN: Duration = Duration::from_millis(50);

/// Counts the calls of the greedy account by outcome.
#[derive(Debug, Default)]
struct Calls {
    done: AtomicU64,
    refused: AtomicU64,
}

impl Calls {
    fn count(&self, refused: bool) {
        let counter = if refused { &self.refused } else { &self.done };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

pub(super) async fn run(stage: &Stage) -> Result<Measured, String> {
    let users = usize::from(stage.load.senders);
    stage.need_accounts(2 * users + 2)?;
    let (greedy, peer) = (2 * users, 2 * users + 1);
    let grabbed = chat(stage, greedy, "private", &[peer]).await?;
    let _: Value = stage
        .request(
            0,
            peer,
            Method::POST,
            &format!("/chats/{}/messages", grabbed.id),
            Some(&json!({ "text": "hello" })),
        )
        .await?;

    eprintln!("measuring the other users alone");
    let alone = others(stage, "alone").await?;

    eprintln!("measuring the other users beside {GREEDY} clients of one account");
    let (calls, over, began) = (Arc::<Calls>::default(), CancellationToken::new(), Instant::now());
    let mut clients = JoinSet::new();
    for number in 0..GREEDY {
        let client = Client {
            stage: stage.clone(),
            number,
            user: greedy,
            chat: grabbed.id.clone(),
            calls: calls.clone(),
            over: over.clone(),
        };
        clients.spawn(client.run());
    }

    let beside = others(stage, "beside").await;
    let seconds = began.elapsed().as_secs_f64();
    over.cancel();
    clients.join_all().await;
    let beside = beside?;

    let p99 = |ran: &Ran| real(ran.sends.p99_us) / 1e3;
    let each = |count: &AtomicU64| ratio(real(count.load(Ordering::Relaxed)), seconds);
    let figures = vec![
        Figure::cost("sends of others alone, p99", p99(&alone), "ms"),
        Figure::cost(
            format!("sends of others beside {GREEDY} greedy clients, p99"),
            p99(&beside),
            "ms",
        ),
        Figure::cost("sends of others alone, p50", real(alone.sends.p50_us) / 1e3, "ms"),
        Figure::cost("sends of others beside them, p50", real(beside.sends.p50_us) / 1e3, "ms"),
        Figure::rate("calls of the greedy account done", each(&calls.done), "/s"),
        Figure::rate("calls of the greedy account refused", each(&calls.refused), "/s"),
    ];

    if calls.refused.load(Ordering::Relaxed) == 0 {
        return Err("the greedy account was never refused: the server must limit rates".to_owned());
    }

    let mut measured = beside.measured(figures);
    let mut first = alone.measured(Vec::new());
    first.meters.iter_mut().for_each(|meter| "sends of others alone".clone_into(&mut meter.name));
    measured.errors += first.errors;
    measured.meters.extend(first.meters);
    Ok(measured)
}

/// Measures senders, each in its own private chat.
async fn others(stage: &Stage, word: &str) -> Result<Ran, String> {
    // Both measurements use the same chats, so each needs its own idempotency keys.
    let mut stage = Stage { tag: format!("{}-{word}", stage.tag), ..stage.clone() };
    stage.load.rate.get_or_insert(RATE);
    let users = usize::from(stage.load.senders);

    let making = (0..users).map(|number| {
        let (stage, members) = (&stage, [2 * number + 1]);
        async move { chat(stage, 2 * number, "private", &members).await }
    });
    let chats: Vec<Chat> =
        stream::iter(making.collect::<Vec<_>>()).buffered(REQUESTS_MAX).try_collect().await?;

    let lights = stage.connect_all((0..users).map(|number| 2 * number)).await?;
    let senders = lights.into_iter().zip(chats).enumerate();
    let senders =
        senders.map(|(number, (light, chat))| sender(&stage, (light, 2 * number), chat)).collect();
    drive(&stage, senders, Vec::new(), None, None).await
}

/// A client of the greedy account.
struct Client {
    stage: Stage,
    number: usize,
    user: usize,
    chat: String,
    calls: Arc<Calls>,
    over: CancellationToken,
}

impl Client {
    async fn run(self) {
        // The held connections take half of the limit, so those that come and go compete for the
        // other half.
        let (holders, comers) = (CONNECTIONS_PER_USER / 2, CONNECTIONS_PER_USER);
        while !self.over.is_cancelled() {
            match self.number {
                number if number < holders => self.hold().await,
                number if number < holders + comers => self.come_and_go().await,
                _ => self.request().await,
            }
            sleep(PAUSE).await;
        }
    }

    async fn request(&self) {
        let chat = &self.chat;
        let marker = json!({ "message_id": 1 });
        let (method, path, body) = match self.number % 4 {
            0 => (Method::GET, "/chats".to_owned(), None),
            1 => (Method::GET, format!("/chats/{chat}/messages"), None),
            2 => (Method::GET, format!("/chats/{chat}/members"), None),
            _ => (Method::PUT, format!("/chats/{chat}/read"), Some(&marker)),
        };
        let token = &self.stage.accounts[self.user].token;
        let answer: Answer<Value> =
            self.stage.http.request(self.number, token, method, &path, body).await;
        self.calls.count(!matches!(answer, Answer::Ok(_)));
    }

    /// Connects, syncs and leaves.
    async fn come_and_go(&self) {
        let token = &self.stage.accounts[self.user].token;
        let Ok(mut socket) = light::open(self.stage.http.base(self.number), "/ws", token).await
        else {
            return self.calls.count(true);
        };
        self.calls.count(false);
        let sync = json!({ "type": "sync" }).to_string();
        if socket.send(Message::text(sync)).await.is_ok() {
            // `ready` and the answer to `sync`.
            let _ =
                timeout(LISTEN, socket.by_ref().take(2).for_each(|_| std::future::ready(()))).await;
        }
        let _ = socket.close(None).await;
    }

    /// Holds a connection and sends `typing` and `read` frames until the connection ends.
    async fn hold(&self) {
        let token = &self.stage.accounts[self.user].token;
        let Ok(mut socket) = light::open(self.stage.http.base(self.number), "/ws", token).await
        else {
            return self.calls.count(true);
        };
        let typing = json!({ "type": "typing", "chat_id": self.chat }).to_string();
        let read =
            json!({ "type": "read", "chat_id": self.chat, "message_id": 1, "id": 1 }).to_string();

        while !self.over.is_cancelled() {
            for number in 0..FRAMES {
                let frame = if number % 2 == 0 { &typing } else { &read };
                if socket.send(Message::text(frame.clone())).await.is_err() {
                    return;
                }
            }

            let answers = timeout(LISTEN, async {
                while let Some(Ok(message)) = socket.next().await {
                    if let Ok(text) = message.to_text() {
                        self.calls.count(text.contains("rate_limited"));
                    }
                }
            });
            if answers.await.is_ok() {
                return;
            }
            sleep(PAUSE).await;
        }
    }
}
