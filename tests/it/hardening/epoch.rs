//! The log falls back to an older state: every client notices, and keeps nothing that the log
//! lacks.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use starling::config::Config;
use starling::model::Clock;
use starling::server::Server;

use crate::process::harness::Home;
use crate::support::{
    Backend, Database, Mode, OwnPostgres, Proxy, Socket, TestServer, User, everywhere, execute,
    redis_url, settings,
};

everywhere!(
    ready_names_the_epoch_and_a_sync_with_it_sends_only_missed_events,
    a_sync_of_another_epoch_is_reset_chat_by_chat,
    a_revision_that_the_chat_never_had_is_reset,
);

/// The most time for a replica to notice that the log fell back.
const NOTICED_MAX: Duration = Duration::from_secs(30);

/// A server on a directory or a database that outlives it.
pub async fn serve(dir: &Path, database_url: Option<String>) -> Server {
    serve_with(dir, database_url, None).await
}

/// Like [`serve`], as a replica of the fleet with this URL and prefix of Redis.
pub async fn serve_with(
    dir: &Path,
    database_url: Option<String>,
    redis: Option<(String, String)>,
) -> Server {
    let mut settings = settings(dir, database_url);
    (settings.redis_url, settings.redis_prefix) = redis.unzip();
    Server::start(Config::resolve(settings, None).unwrap(), Clock::system()).await.unwrap()
}

/// A new account, with a client of this server.
pub async fn account(server: &Server, login: &str) -> User {
    let made = server.services.accounts.make_user(login, login, true).await.unwrap();
    let base = format!("http://{}", server.address);
    User::new(base, made.user_id.to_string(), made.login, made.password, made.token.unwrap())
}

/// The same account, with a client of another server.
pub fn through(user: &User, server: &Server) -> User {
    let mut elsewhere = user.clone();
    elsewhere.base = format!("http://{}", server.address);
    elsewhere
}

/// An authenticated connection, and the epoch that `ready` names.
pub async fn connect(user: &User) -> (Socket, String) {
    let (mut socket, _) =
        Socket::open(Socket::authenticated(user)).await.expect("the handshake succeeds");
    let ready = socket.expect("ready").await;
    let epoch = ready["epoch"].as_str().unwrap_or_else(|| panic!("no epoch in {ready}")).to_owned();
    (socket, epoch)
}

/// Syncs a connection with this epoch; the frames up to `synced`, inclusive.
pub async fn sync(socket: &mut Socket, epoch: &str, chats: Value) -> Vec<Value> {
    socket.send(json!({ "type": "sync", "epoch": epoch, "chats": chats })).await;
    socket.until("synced").await
}

fn of_kind<'a>(frames: &'a [Value], kind: &str) -> Vec<&'a Value> {
    frames.iter().filter(|frame| frame["type"] == kind).collect()
}

/// Reads until the connection closes, which must be a restart announced by `reconnect`. Returns the
/// texts that came before.
pub async fn sent_away(socket: &mut Socket) -> Vec<String> {
    let (start, mut texts, mut announced) = (Instant::now(), Vec::new(), false);
    loop {
        assert!(start.elapsed() < NOTICED_MAX, "the connection stays open");
        let Some(message) = socket.next_raw_in(NOTICED_MAX).await else {
            panic!("the connection ended without a code")
        };

        match message {
            tokio_tungstenite::tungstenite::Message::Text(text) => {
                let frame: Value = serde_json::from_str(&text).unwrap();
                announced |= frame["type"] == "reconnect";
                texts.extend(frame["message"]["text"].as_str().map(str::to_owned));
            }
            tokio_tungstenite::tungstenite::Message::Close(close) => {
                assert_eq!(close.map(|close| u16::from(close.code)), Some(1012));
                assert!(announced, "`reconnect` comes first");
                return texts;
            }
            _ => {}
        }
    }
}

async fn ready_names_the_epoch_and_a_sync_with_it_sends_only_missed_events(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    ada.say(&chat, "one").await;
    let (mut socket, epoch) = connect(&bob).await;
    let frames = sync(&mut socket, &epoch, json!({})).await;
    let known = frames.last().unwrap()["chats"].clone();
    socket.close().await;

    ada.say(&chat, "two").await;
    let (mut socket, again) = connect(&bob).await;
    assert_eq!(epoch, again, "all replicas have one epoch");
    let frames = sync(&mut socket, &epoch, known).await;
    assert_eq!(frames[0]["message"]["text"], "two");
    assert_eq!(frames.len(), 2, "{frames:?}");
}

async fn a_sync_of_another_epoch_is_reset_chat_by_chat(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let (first, second) = (ada.private_chat(&bob).await, ada.group(&[&bob]).await);
    ada.say(&first, "one").await;
    for other in ["0198c0de-0000-7000-8000-000000000000", "no epoch at all", ""] {
        let (mut socket, _) = connect(&bob).await;
        let frames = sync(&mut socket, other, json!({ &first: 2, &second: 1 })).await;

        let synced = &frames.last().unwrap()["chats"];
        let resets = of_kind(&frames, "reset");
        assert_eq!((resets.len(), frames.len()), (2, 3), "{frames:?}");
        for reset in resets {
            let chat = reset["chat_id"].as_str().unwrap();
            assert_eq!(reset["rev"], synced[chat]);
        }

        ada.say(&first, "live").await;
        assert_eq!(socket.expect("new_message").await["message"]["text"], "live");
    }
}

async fn a_revision_that_the_chat_never_had_is_reset(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    ada.say(&chat, "one").await;
    let (mut socket, epoch) = connect(&bob).await;
    let frames = sync(&mut socket, &epoch, json!({ &chat: 3 })).await;
    assert_eq!(frames[0], json!({ "type": "reset", "chat_id": chat, "rev": 2 }));

    let (mut socket, frames) = Socket::resumed(&bob, json!({ &chat: 1_000_000 })).await;
    assert_eq!(frames[0], json!({ "type": "reset", "chat_id": chat, "rev": 2 }));
    ada.say(&chat, "two").await;
    assert_eq!(socket.expect("new_message").await["rev"], 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_sqlite_file_replaced_by_an_older_copy_has_another_epoch_and_resets_clients() {
    // Copied into the same file, whose inode stays; and renamed over it.
    for in_place in [true, false] {
        let (dir, backup) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (file, copy) = (dir.path().join("starling.db"), backup.path().join("starling.db"));
        let server = serve(dir.path(), None).await;
        let (ada, bob) = (account(&server, "ada").await, account(&server, "bob").await);
        let chat = ada.private_chat(&bob).await;
        ada.say(&chat, "kept").await;
        server.stop().await;
        std::fs::copy(&file, &copy).unwrap();

        let server = serve(dir.path(), None).await;
        let (ada, bob) = (through(&ada, &server), through(&bob, &server));
        let (mut socket, before) = connect(&bob).await;
        let known = sync(&mut socket, &before, json!({})).await.pop().unwrap()["chats"].clone();
        assert_eq!(known[&chat], 2);
        ada.say(&chat, "lost").await;
        socket.expect("new_message").await;
        server.stop().await;
        assert!(!dir.path().join("starling.db-wal").exists(), "the WAL is in the file");
        if in_place {
            std::fs::copy(&copy, &file).unwrap();
        } else {
            std::fs::rename(&copy, &file).unwrap();
        }

        let server = serve(dir.path(), None).await;
        let (ada, bob) = (through(&ada, &server), through(&bob, &server));
        ada.say(&chat, "instead").await;
        let (mut socket, after) = connect(&bob).await;
        assert_ne!(before, after, "in place: {in_place}");
        // By its rev alone, this client is up to date. It shows a message that the log lacks.
        let frames = sync(&mut socket, &before, json!({ &chat: 3 })).await;
        assert_eq!(frames[0], json!({ "type": "reset", "chat_id": chat, "rev": 3 }));
        assert_eq!(bob.texts(&chat, "").await, ["kept", "instead"]);
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordinary_restart_keeps_the_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let mut epochs = Vec::new();
    for round in 0..3 {
        let server = serve(dir.path(), None).await;
        let user = account(&server, &format!("u{round}")).await;
        let other = account(&server, &format!("v{round}")).await;
        user.private_chat(&other).await;
        epochs.push(connect(&user).await.1);
        server.stop().await;
    }
    assert!(epochs.iter().all(|epoch| *epoch == epochs[0]), "{epochs:?}");

    let mut postgres = OwnPostgres::start().await;
    crate::hardening::failover::prepare(&postgres).await;
    let mut epochs = Vec::new();
    for round in 0..3 {
        let server = serve(dir.path(), Some(postgres.url_of("starling", "chat"))).await;
        let user = account(&server, &format!("u{round}")).await;
        epochs.push(connect(&user).await.1);
        server.stop().await;
        if round == 0 {
            postgres.kill();
        } else {
            postgres.stop_immediately();
        }
        postgres.restart().await;
    }
    assert!(epochs.iter().all(|epoch| *epoch == epochs[0]), "{epochs:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chat_behind_its_delivered_rev_renews_the_epoch() {
    // Without Redis, a replica of a fleet resyncs every second.
    let redis = Proxy::to(&Proxy::target_of(&redis_url())).await;
    let server = TestServer::with(Backend::Postgres, |settings| {
        settings.redis_url = Some(redis.in_url(&redis_url()));
        settings.redis_prefix = Some(format!("test-{:016x}", rand::random::<u64>()));
    })
    .await;

    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    for text in ["kept", "lost", "lost too"] {
        ada.say(&chat, text).await;
    }

    let (mut socket, before) = connect(&bob).await;
    sync(&mut socket, &before, json!({})).await;

    let mut db = server.postgres().await;
    for sql in
        ["DELETE FROM messages WHERE id > 1", "UPDATE chats SET rev = 2, last_message_id = 1"]
    {
        execute(&mut db, sql).await;
    }

    redis.set(Mode::Refuse);
    sent_away(&mut socket).await;
    let (mut socket, after) = connect(&bob).await;
    assert_ne!(before, after);
    let frames = sync(&mut socket, &before, json!({ &chat: 4 })).await;
    assert_eq!(frames[0], json!({ "type": "reset", "chat_id": chat, "rev": 2 }));

    redis.set(Mode::Pass);
    server.stop().await;
}

#[tokio::test]
async fn the_operator_renews_the_epoch_also_while_the_server_runs() {
    for backend in [Backend::Sqlite, Backend::Postgres] {
        let home = Home::on(Database::create(backend).await);
        let code = home.run(&["invite"]).await.fine();
        let server = home.serve().await;
        let grant = server.register(code.trim(), "ada").await.expect(201);
        let ada = server.stranger().with_token(grant["token"].as_str().unwrap());

        let (mut socket, before) = connect(&ada).await;
        sync(&mut socket, &before, json!({})).await;

        let renewed = home.run(&["epoch", "renew"]).await.fine();
        sent_away(&mut socket).await;
        let (_socket, after) = connect(&ada).await;
        assert_eq!(after, renewed.trim());
        assert_ne!(after, before);

        server.stop().await;
        home.database.remove().await;
    }
}
