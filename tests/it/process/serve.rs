//! Starting and stopping.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::harness::Home;
use crate::support::{Backend, Database, Socket};

/// How long a stop may take: the drain of 200 ms, and the time in which a client must answer the
/// close frame.
const STOP_MAX: Duration = Duration::from_secs(4);

#[tokio::test]
async fn an_empty_server_prints_a_link_for_exactly_one_account() {
    let home = Home::new();
    let server = home.serve().await;
    assert_eq!(server.said.len(), 3, "{:?}", server.said);

    let code = server.first_invite().expect("a link");
    assert_eq!(server.said[1].trim(), format!("{}/join#{code}", server.base));
    server.register(&code, "ada").await.expect(201);
    server.register(&code, "eve").await.refused(404, "invite_not_found");
    server.stop().await;

    let again = home.serve().await;
    assert_eq!(
        again.said,
        [format!("listening on {}", again.base)],
        "there is an account, so no link"
    );
    again.stop().await;
}

#[tokio::test]
async fn the_first_link_stays_the_same_until_it_is_used_and_names_the_public_url() {
    let home =
        Home::of(Backend::Postgres).await.with("STARLING_PUBLIC_URL", "https://chat.example.org/");
    let first = home.serve().await;
    let code = first.first_invite();
    assert!(code.is_some());
    assert!(first.said[1].trim().starts_with("https://chat.example.org/join#"), "{:?}", first.said);
    first.stop().await;

    let second = home.serve().await;
    assert_eq!(second.first_invite(), code);
    second.stop().await;
    home.database.remove().await;
}

/// Sends until the server is gone. Returns the number of acknowledged messages.
async fn send_until_gone(user: &crate::support::User, chat: &str) -> u64 {
    let mut acknowledged = 0;
    loop {
        let body = json!({ "text": format!("message {acknowledged}") });
        let request =
            user.request(reqwest::Method::POST, &format!("/chats/{chat}/messages")).json(&body);
        match request.send().await {
            Ok(response) if response.status() == 201 => acknowledged += 1,
            _ => return acknowledged,
        }
    }
}

async fn it_stops_in_time_whatever_its_clients_do(signal: &str) {
    let home = Home::new();
    let server = home.serve().await;
    let users = home.users(&server.base, "u", 3).await;
    let chat = users[0].group(&[&users[1], &users[2]]).await;
    let mut listening = Socket::live(&users[1]).await;
    let silent = Socket::live(&users[2]).await;
    let idle = TcpStream::connect(server.address()).await.unwrap();
    let address = server.address();
    let stopping = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        server.signal(signal).await;
        server.end().await
    };

    let closing = async {
        let frames = listening.until("reconnect").await;
        assert!(frames.len() > 1, "messages came before the end");
        listening.close_code().await
    };

    let sending = join_all((0..4).map(|_| send_until_gone(&users[0], &chat)));
    let ((code, rest, took), close_code, acknowledged) = tokio::join!(stopping, closing, sending);
    assert_eq!((code, rest), (Some(0), Vec::new()));
    assert!(took < STOP_MAX, "{took:?}");
    assert_eq!(close_code, 1012);
    assert!(TcpStream::connect(address).await.is_err());
    drop((silent, idle));

    let again = home.serve().await;
    let chat = again.at(&users[0]).get(&format!("/chats/{chat}")).await.expect(200);
    let last = chat["last_message_id"].as_u64().unwrap();
    let acknowledged: u64 = acknowledged.iter().sum();
    assert!(
        acknowledged > 0 && last >= acknowledged,
        "{last} messages, {acknowledged} acknowledged"
    );
    again.stop().await;
}

#[tokio::test]
async fn sigterm_ends_the_server_with_0_in_seconds_under_load() {
    it_stops_in_time_whatever_its_clients_do("TERM").await;
}

#[tokio::test]
async fn sigint_ends_it_with_0_in_seconds_though_sockets_are_open_and_requests_under_way() {
    it_stops_in_time_whatever_its_clients_do("INT").await;
}

#[tokio::test]
async fn an_unready_server_closes_kept_connections_and_accepts_sockets() {
    let home = Home::new().with("STARLING_UNREADY_MS", "1500");
    let server = home.serve().await;
    let user = home.users(&server.base, "u", 1).await.remove(0);
    let mut kept = TcpStream::connect(server.address()).await.unwrap();

    let mut ask = async || {
        kept.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut answer = [0; 4096];
        let read = kept.read(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[..read]).into_owned()
    };

    for _ in 0..2 {
        assert!(!ask().await.contains("connection: close"));
    }
    server.signal("TERM").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(ask().await.contains("connection: close"));
    assert_eq!(kept.read(&mut [0]).await.unwrap(), 0, "the server closes the connection");

    let mut late = Socket::live(&user).await;
    late.until("reconnect").await;
    assert_eq!(late.close_code().await, 1012);
    assert_eq!(server.end().await.0, Some(0));
}

#[tokio::test]
async fn an_unfinished_request_delays_the_stop_by_at_most_its_deadline() {
    const REQUEST_READ_MAX: Duration = Duration::from_secs(15);

    let home = Home::new();
    let server = home.serve().await;
    let (nameless, _) = Socket::open(Socket::request(&server.stranger())).await.unwrap();
    let mut half = TcpStream::connect(server.address()).await.unwrap();
    let head = "POST /sessions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
                content-length: 40\r\n\r\n{";
    half.write_all(head.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.signal("TERM").await;

    let (code, _, took) = server.end().await;
    assert_eq!(code, Some(0));
    assert!(took < REQUEST_READ_MAX + Duration::from_secs(2), "{took:?}");
    drop((nameless, half));
}

#[tokio::test]
async fn a_taken_port_is_reported_in_one_sentence_and_exit_1() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for key in ["STARLING_LISTEN", "STARLING_INTERNAL_LISTEN"] {
        Home::new().with(key, &address).run(&[]).await.failed(1, &["starling: ", &address, key]);
    }
}

#[tokio::test]
async fn an_unreachable_postgres_is_said_in_one_sentence_and_exit_1() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let home = Home::new()
        .with("DATABASE_URL", &format!("postgres://starling:s3cret-word@{free}/starling"));
    for command in [&["serve"][..], &["migrate"], &["invite"], &["user", "create", "--login", "a"]]
    {
        let finished = home.run(command).await;
        finished.failed(1, &["starling: ", "DATABASE_URL", &free.to_string()]);
        assert!(!finished.err.contains("s3cret-word"), "{}", finished.err);
    }
}

#[tokio::test]
async fn an_unknown_database_is_said_in_one_sentence_and_exit_1() {
    let database = Database::blank().await;
    database.remove().await;
    Home::on(database)
        .run(&["serve"])
        .await
        .failed(1, &["starling: ", "does not exist", "DATABASE_URL"]);
}

#[tokio::test]
async fn a_postgres_without_the_schema_is_left_unchanged_and_the_error_names_the_command() {
    let home = Home::on(Database::blank().await);
    for command in [&["serve"][..], &["invite"], &["user", "create", "--login", "a"]] {
        home.run(command).await.failed(1, &["starling: ", "`starling migrate`"]);
    }
    home.run(&["migrate"]).await.fine();
    home.serve().await.stop().await;
    home.database.remove().await;
}

#[tokio::test]
async fn five_migrations_at_once_all_succeed() {
    let home = Home::on(Database::blank().await);
    let all = join_all((0..5).map(|_| home.run(&["migrate"]))).await;
    for finished in all {
        assert_eq!(finished.fine(), "");
    }
    home.run(&["migrate"]).await.fine();
    let server = home.serve().await;
    assert!(server.first_invite().is_some());
    server.stop().await;
    home.database.remove().await;
}

#[tokio::test]
async fn concurrent_first_commands_on_an_empty_directory_succeed() {
    for _ in 0..3 {
        let home = Home::new();
        let codes = join_all((0..4).map(|_| home.run(&["invite"]))).await;
        let codes: Vec<String> = codes.into_iter().map(super::harness::Finished::fine).collect();
        let server = home.serve().await;
        for (number, code) in codes.iter().enumerate() {
            server.register(code.trim(), &format!("u{number}")).await.expect(201);
        }
        server.stop().await;
    }
}

#[tokio::test]
async fn a_second_server_on_the_same_sqlite_file_is_refused_and_the_commands_are_not() {
    let home = Home::new();
    let server = home.serve().await;
    home.run(&["serve"]).await.failed(1, &["starling: ", "starling.lock", "STARLING_DATA_DIR"]);
    for command in [&["invite"][..], &["user", "create", "--login", "ada"], &["doctor"]] {
        home.run(command).await.fine();
    }

    server.stranger().get("/readyz").await.expect(200);

    // A successor of a stopping or killed server is not refused.
    let going = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        server.stop().await;
    };
    let (next, ()) = tokio::join!(home.serve(), going);

    next.kill().await;
    home.serve().await.stop().await;
}

#[tokio::test]
async fn probes_and_metrics_are_on_the_internal_port() {
    let internal = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let server = Home::new().with("STARLING_INTERNAL_LISTEN", &internal.to_string());
    let process = server.serve().await;
    let ask = |path: &'static str| async move {
        reqwest::get(format!("http://{internal}{path}")).await.unwrap().text().await.unwrap()
    };
    assert_eq!((ask("/livez").await, ask("/readyz").await), ("ok".to_owned(), "ok".to_owned()));
    process.stranger().get("/livez").await.expect(200);

    let refused: Value = process.stranger().get("/metrics").await.body;
    assert_eq!(refused["code"], "route_not_found", "the public port serves no metrics");
    assert!(ask("/metrics").await.contains("# HELP"));
    process.stop().await;
}
