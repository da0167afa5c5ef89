//! The speeds and sizes that the server promises, measured on the real binary through its real
//! ports: `make bench`.
//!
//! Prints one line a figure. The client runs on the same cores and is part of what is measured.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a bench prints, and stops at a fault"
)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use starling::model::message::Draft;
use starling::model::{ChatId, Timestamp, UserId};
use starling::store::{Creation, NewChat, Opened, Store, StoreOptions};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

const IDLE_CONNECTIONS: usize = 5_000;
const CONNECTIONS_PER_USER: usize = 20;
const SENDERS: usize = 64;
const SEND_TIME: Duration = Duration::from_secs(8);
const SINGLE_SENDS: usize = 1_000;
const INBOX_CHATS: usize = 200;
const HISTORY_MESSAGES: usize = 100_000;
const READS: usize = 500;

fn main() {
    // `cargo bench` and `cargo test` pass flags of the standard harness; a word chooses the
    // database.
    let only = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let postgres = std::env::vars()
        .find_map(|(key, value)| (key == "STARLING_TEST_POSTGRES").then_some(value));
    println!("cores: {}", std::thread::available_parallelism().unwrap());
    for (name, url) in [("postgres", postgres), ("sqlite", None)] {
        if only.as_deref().is_some_and(|only| only != name) || (name == "postgres" && url.is_none())
        {
            continue;
        }
        runtime.block_on(measure(name, url));
    }
}

async fn measure(name: &str, server_url: Option<String>) {
    let dir = tempfile::tempdir().unwrap();
    let url = match server_url {
        Some(url) => Some(create_database(&url).await),
        None => None,
    };
    let site = Site { dir: dir.path(), url: url.as_deref() };
    if url.is_some() {
        assert!(site.command(&["migrate"]).status().unwrap().success());
    }
    let users = site.create_users(IDLE_CONNECTIONS / CONNECTIONS_PER_USER);
    site.seed(&users).await;
    let server = site.serve();
    idle_memory(name, &server, &users).await;
    reads(name, &server, &users[0]).await;
    single_sends(name, &server, &users).await;
    many_sends(name, &server, &users).await;
    drop(server);
}

async fn create_database(server_url: &str) -> String {
    use sqlx::{Connection, Executor};
    let name = format!("bench_{:016x}", rand::random::<u64>());
    let mut connection = sqlx::PgConnection::connect(server_url).await.unwrap();
    connection.execute(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
    format!("{}/{name}", server_url.rsplit_once('/').unwrap().0)
}

struct BenchUser {
    id: UserId,
    token: String,
}

struct Site<'a> {
    dir: &'a Path,
    url: Option<&'a str>,
}

impl Site<'_> {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_starling"));
        command
            .args(args)
            .env("STARLING_DATA_DIR", self.dir)
            .env("STARLING_LISTEN", "127.0.0.1:0")
            .env("STARLING_INTERNAL_LISTEN", "127.0.0.1:0")
            .env("STARLING_RATE_LIMITS", "off")
            .env("STARLING_LOG", "error")
            .env_remove("DATABASE_URL");
        if let Some(url) = self.url {
            command.env("DATABASE_URL", url);
        }
        command
    }

    fn create_users(&self, count: usize) -> Vec<BenchUser> {
        let count = count.to_string();
        let output = self
            .command(&["user", "create", "--login", "u", "--count", &count, "--with-session"])
            .output()
            .unwrap();
        let user = |line: &str| {
            let line: Value = serde_json::from_str(line).unwrap();
            let word = |key: &str| line[key].as_str().unwrap().to_owned();
            BenchUser { id: word("user_id").parse().unwrap(), token: word("token") }
        };
        String::from_utf8(output.stdout).unwrap().lines().map(user).collect()
    }

    /// The first user's 200 chats, one of them with a long history; private chats of neighbours for
    /// the senders.
    async fn seed(&self, users: &[BenchUser]) {
        let options = match self.url {
            Some(url) => StoreOptions::Postgres { url: url.to_owned(), connections_max: 4 },
            None => StoreOptions::Sqlite { dir: self.dir.to_owned() },
        };
        let store = Store::open(&options).await.unwrap();
        store.migrate().await.unwrap();
        let now = starling::model::Clock::system().now();
        let mut chats = Vec::new();
        for peer in users.iter().skip(1).take(INBOX_CHATS) {
            chats.push(create_private(&store, users[0].id, peer.id, now).await);
        }
        let text = "A message of ordinary length, as people write them all day long.".to_owned();
        let draft = |chat_id| Draft {
            chat_id,
            sender_id: users[0].id,
            text: text.clone(),
            reply_to: None,
            client_id: None,
        };
        for batch in chats.chunks(128) {
            store
                .append(&batch.iter().map(|chat| draft(*chat)).collect::<Vec<_>>(), now)
                .await
                .unwrap();
        }
        let batch: Vec<Draft> = (0..128).map(|_| draft(chats[0])).collect();
        for _ in 0..HISTORY_MESSAGES.div_ceil(128) {
            // Later than the others, so that this chat comes first in the inbox.
            store.append(&batch, now.plus(Duration::from_secs(1))).await.unwrap();
        }
        store.close().await;
    }

    fn serve(&self) -> Server {
        let mut child = self.command(&["serve"]).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("listening on http://").map(str::to_owned));
        Server { child, address: address.unwrap() }
    }
}

async fn create_private(store: &Store, creator: UserId, peer: UserId, now: Timestamp) -> ChatId {
    let id = ChatId::new(now, &mut rand::rng());
    let new = NewChat { id, kind: Creation::Private(peer), creator, now, chats_max: i64::MAX };
    assert!(matches!(store.create_chat(&new).await.unwrap(), Opened::New(_)), "this pair had none");
    id
}

struct Server {
    child: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn status(&self, key: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// CPU seconds that the server has used.
    fn cpu_s(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
    }

    async fn connect(&self, user: &BenchUser) -> Socket {
        let mut request = format!("ws://{}/ws", self.address).into_client_request().unwrap();
        request
            .headers_mut()
            .insert("authorization", format!("Bearer {}", user.token).parse().unwrap());
        let stream = TcpStream::connect(&self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let config = WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(0);
        let (stream, _) = client_async_with_config(request, stream, Some(config)).await.unwrap();
        let mut socket = Socket(stream);
        socket.until("ready").await;
        socket.send(json!({ "type": "sync" })).await;
        socket.until("synced").await;
        socket
    }
}

struct Socket(WebSocketStream<TcpStream>);

impl Socket {
    async fn send(&mut self, frame: Value) {
        self.0.send(Message::text(frame.to_string())).await.unwrap();
    }

    /// The next frame of this type, as text.
    async fn until(&mut self, kind: &str) -> String {
        let start = format!("{{\"type\":\"{kind}\"");
        loop {
            if let Message::Text(text) = self.0.next().await.unwrap().unwrap() {
                assert!(!text.starts_with("{\"type\":\"error\""), "{text}");
                if text.starts_with(&start) {
                    return text.to_string();
                }
            }
        }
    }
}

async fn idle_memory(name: &str, server: &Server, users: &[BenchUser]) {
    drop(server.connect(&users[1]).await);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = server.status("VmRSS");
    let start = Instant::now();
    let mut sockets = Vec::with_capacity(IDLE_CONNECTIONS);
    // The first user has hundreds of chats and belongs to the other figures.
    for user in users[1..]
        .iter()
        .cycle()
        .take(IDLE_CONNECTIONS.min((users.len() - 1) * CONNECTIONS_PER_USER))
    {
        sockets.push(server.connect(user).await);
    }
    let took = start.elapsed();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = server.status("VmRSS");
    let each = (after - before) as f64 / sockets.len() as f64;
    let rate = sockets.len() as f64 / took.as_secs_f64();
    println!(
        "{name}: idle connection: {each:.2} KiB resident each ({} connections, {before} to {after} KiB); {rate:.0} connects/s",
        sockets.len()
    );
}

async fn reads(name: &str, server: &Server, user: &BenchUser) {
    let http = reqwest::Client::new();
    let get = async |path: &str| {
        let response = http
            .get(format!("http://{}{path}", server.address))
            .bearer_auth(&user.token)
            .send()
            .await
            .unwrap();
        assert!(response.status().is_success());
        response.bytes().await.unwrap()
    };
    let inbox: Value = serde_json::from_slice(&get("/chats").await).unwrap();
    let long = inbox["chats"]
        .as_array()
        .unwrap()
        .iter()
        .find(|chat| chat["last_message_id"].as_u64() > Some(1000));
    let long = long.unwrap()["id"].as_str().unwrap().to_owned();
    let history = format!("/chats/{long}/messages?before=50000&max=50");
    for (what, path) in [
        ("inbox, the first page (50) of 200 chats", "/chats"),
        ("history, 50 of 100,000 messages", history.as_str()),
    ] {
        let mut times = Vec::with_capacity(READS);
        for _ in 0..READS {
            let start = Instant::now();
            get(path).await;
            times.push(start.elapsed());
        }
        print_latency(name, what, times);
    }
}

async fn single_sends(name: &str, server: &Server, users: &[BenchUser]) {
    let (mut socket, chat_id) = sender(server, users, 0).await;
    let mut times = Vec::with_capacity(SINGLE_SENDS);
    for number in 0..SINGLE_SENDS {
        let start = Instant::now();
        socket.send(json!({ "type": "send_message", "chat_id": chat_id, "text": "hello", "client_id": format!("one-{number}") })).await;
        socket.until("ack").await;
        times.push(start.elapsed());
    }
    print_latency(name, "send, one at a time", times);
}

/// A sender with a private chat of its own.
async fn sender(server: &Server, users: &[BenchUser], number: usize) -> (Socket, String) {
    let (user, peer) = (&users[2 * number + 1], &users[2 * number + 2]);
    let socket = server.connect(user).await;
    let response = reqwest::Client::new()
        .post(format!("http://{}/chats", server.address))
        .bearer_auth(&user.token)
        .json(&json!({ "kind": "private", "member_ids": [peer.id] }))
        .send()
        .await
        .unwrap();
    let chat: Value = response.json().await.unwrap();
    (socket, chat["id"].as_str().unwrap().to_owned())
}

async fn many_sends(name: &str, server: &Server, users: &[BenchUser]) {
    let mut ready = Vec::new();
    for number in 0..SENDERS {
        ready.push(sender(server, users, number).await);
    }
    let (start, cpu) = (Instant::now(), server.cpu_s());
    let mut senders = JoinSet::new();
    for (number, (mut socket, chat_id)) in ready.into_iter().enumerate() {
        senders.spawn(async move {
            let mut times = Vec::new();
            while start.elapsed() < SEND_TIME {
                let sent = Instant::now();
                let frame = json!({ "type": "send_message", "chat_id": chat_id, "text": "A message of ordinary length, as people write them.", "client_id": format!("{number}-{}", times.len()) });
                socket.send(frame).await;
                socket.until("ack").await;
                times.push(sent.elapsed());
            }
            times
        });
    }
    let times: Vec<Duration> = senders.join_all().await.into_iter().flatten().collect();
    let took = start.elapsed().as_secs_f64();
    let rate = times.len() as f64 / took;
    println!(
        "{name}: {SENDERS} senders: {rate:.0} durable sends/s; the server used {:.0} us of CPU a send",
        (server.cpu_s() - cpu) * 1e6 / times.len() as f64
    );
    print_latency(name, "send, 64 at once", times);
}

fn print_latency(name: &str, what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!(
        "{name}: {what}: p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms ({} times)",
        at(50),
        at(99),
        at(100),
        times.len()
    );
}
