//! Connections without authentication: how long they last, how many an address may have, and that
//! new clients are served beside them.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use rustix::process::{Resource, Rlimit};
use serde_json::json;
use starling::config::{Config, Settings};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::http::HeaderValue;

use super::raw::{Http2, ask, ask_once, metrics, read_body, say, until_closed};
use crate::process::harness::{Files, Home};
use crate::support::{Backend, Socket, TestServer, User, eventually};

/// The start of an HTTP/2 connection: the preface and an empty SETTINGS frame.
const HTTP2_OPENING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Ways to send no request: nothing, half a preface, half a head, HTTP/2 without a request.
const SILENT: [&[u8]; 4] =
    [b"", b"PRI * HTTP/2.0\r\n", b"GET /livez HTTP/1.1\r\nhost:", HTTP2_OPENING];

/// A server with changed settings and deadlines.
async fn with_patience(
    change: impl FnOnce(&mut Settings),
    tune: impl FnOnce(&mut Config),
) -> TestServer {
    let server = TestServer::tuned(Backend::Sqlite, change, tune).await;
    // The counters start with the first request for the metrics.
    metrics(&server).await;
    server
}

fn internal(server: &TestServer) -> SocketAddr {
    server.internal_base().trim_start_matches("http://").parse().unwrap()
}

/// This many connections that send no request.
async fn silent(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    // Both ends are open files of this process.
    let hard = rustix::process::getrlimit(Resource::Nofile).maximum;
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard }).unwrap();
    let opening = (0..count).map(|n| say(address, SILENT[n % SILENT.len()]));
    stream::iter(opening).buffer_unordered(64).collect().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_sends_nothing_is_closed_and_gives_its_slot_back() {
    let short = |config: &mut Config| config.patience.first_head = Duration::from_millis(300);
    let server = with_patience(|settings| settings.connections_max = Some(4), short).await;
    for address in [server.address(), internal(&server)] {
        for bytes in SILENT {
            let mut connections = join_all((0..4).map(|_| say(address, bytes))).await;
            for connection in &mut connections {
                until_closed(connection).await;
            }

            // With a deadline this short, a request may be late on a busy machine.
            eventually("the slots are free again", async || {
                ask_once(address, "/livez", "").await == Some(200)
            })
            .await;
        }
    }

    assert!(
        metrics(&server)
            .await
            .contains(r#"starling_connections_closed_total{reason="no_request"}"#)
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http_2_connection_that_only_answers_pings_is_closed() {
    let short = |config: &mut Config| config.patience.first_head = Duration::from_millis(300);
    let server = with_patience(|_| {}, short).await;
    Http2::connect(server.address(), 65_535).await.until_closed().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_without_a_request_in_progress_is_closed_after_its_time_and_a_socket_is_not() {
    let short = |config: &mut Config| config.patience.idle = Duration::from_millis(400);
    let server = with_patience(|_| {}, short).await;
    let ada = server.user().await;
    let mut socket = Socket::live(&ada).await;

    let mut kept = TcpStream::connect(server.address()).await.unwrap();
    assert_eq!(ask(&mut kept, "/livez", "").await, Some(200));

    let mut http2 = Http2::connect(server.address(), 65_535).await;
    let answer = http2.get(&ada, "/users/me").await.unwrap().await.unwrap();
    assert_eq!(read_body(answer).await.first(), Some(&b'{'));

    until_closed(&mut kept).await;
    http2.until_closed().await;

    socket.ping().await;
    assert!(metrics(&server).await.contains(r#"starling_connections_closed_total{reason="idle"}"#));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newcomers_are_served_while_silent_connections_hold_every_slot() {
    let server = with_patience(|settings| settings.connections_max = Some(6), |_| {}).await;
    let ada = server.user().await;
    let mut held = silent(server.address(), 30).await;

    for _ in 0..5 {
        assert_eq!(ask_once(server.address(), "/livez", "").await, Some(200));
        held.extend(silent(server.address(), 10).await);
    }

    let mut socket = Socket::live(&ada).await;
    held.extend(silent(server.address(), 30).await);
    socket.ping().await;

    assert!(
        metrics(&server).await.contains(r#"starling_connections_closed_total{reason="evicted"}"#)
    );

    drop(held);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_silent_connections_block_neither_new_clients_nor_internal_probes() {
    let many = |settings: &mut Settings| {
        settings.connections_max = Some(1000);
        settings.connections_per_address_max = Some(10_000);
    };

    let server = with_patience(many, |_| {}).await;
    let ada = server.user().await;
    let (public, internal) =
        (silent(server.address(), 2100).await, silent(internal(&server), 600).await);

    for _ in 0..5 {
        ada.get("/chats").await.expect(200);
        ada.get("/livez").await.expect(200);
        for path in ["/livez", "/readyz"] {
            let answer = reqwest::get(format!("{}{path}", server.internal_base())).await.unwrap();
            assert_eq!(answer.status(), 200, "{path}");
        }
    }

    Socket::live(&ada).await;
    drop((public, internal));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unauthenticated_connections_of_an_address_are_bounded() {
    let few = |settings: &mut Settings| settings.connections_per_address_max = Some(5);
    let server = with_patience(few, |_| {}).await;
    let ada = server.user().await;
    let bearer = format!("authorization: Bearer {}\r\n", ada.token);

    // An authenticated connection gives its slot back: by a request, a handshake, a first frame.
    let mut authenticated = Vec::new();
    for _ in 0..7 {
        let mut connection = TcpStream::connect(server.address()).await.unwrap();
        assert_eq!(ask(&mut connection, "/users/me", &bearer).await, Some(200));
        authenticated.push(connection);
    }

    let sockets = [Socket::live(&ada).await, Socket::live(&ada).await];
    let (mut by_frame, _) = Socket::open(Socket::request(&ada)).await.unwrap();
    by_frame.send(json!({ "type": "authenticate", "token": ada.token })).await;
    by_frame.expect("ready").await;

    let mut anonymous = Vec::new();
    for _ in 0..5 {
        let mut connection = TcpStream::connect(server.address()).await.unwrap();
        assert_eq!(ask(&mut connection, "/livez", "").await, Some(200));
        anonymous.push(connection);
    }

    assert_eq!(ask_once(server.address(), "/livez", "").await, None, "one too many is closed");
    assert_eq!(
        ask_once(internal(&server), "/livez", "").await,
        Some(200),
        "the internal port does not count addresses"
    );
    assert!(metrics(&server).await.contains(r#"bound="connections_per_address""#));

    anonymous.pop();
    eventually("a slot is free", async || {
        ask_once(server.address(), "/livez", "").await == Some(200)
    })
    .await;

    drop((authenticated, sockets, by_frame));
    server.stop().await;
}

/// A socket without a token, from this client behind a proxy; the status if it is refused.
async fn socket_of(server: &TestServer, client: &str) -> Result<Socket, u16> {
    let mut request = Socket::request(&server.stranger());
    request.headers_mut().insert("x-forwarded-for", HeaderValue::from_str(client).unwrap());
    match Socket::open(request).await {
        Ok((socket, _)) => Ok(socket),
        Err(tokio_tungstenite::tungstenite::Error::Http(response)) => {
            assert!(response.headers().contains_key("retry-after"));
            Err(response.status().as_u16())
        }
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_trusted_proxy_its_clients_are_counted_and_not_its_connections() {
    let few = |settings: &mut Settings| {
        settings.connections_per_address_max = Some(3);
        settings.trusted_proxies = Some("127.0.0.0/8".to_owned());
    };
    let server = with_patience(few, |_| {}).await;
    let ada = server.user().await;

    let mut of_proxy = Vec::new();
    for _ in 0..8 {
        let mut connection = TcpStream::connect(server.address()).await.unwrap();
        assert_eq!(ask(&mut connection, "/livez", "").await, Some(200));
        of_proxy.push(connection);
    }

    let (crowded, other) = ("203.0.113.9", "203.0.113.10");
    let mut sockets = Vec::new();
    for _ in 0..3 {
        sockets.push(socket_of(&server, crowded).await.unwrap());
    }
    assert_eq!(socket_of(&server, crowded).await.err(), Some(429));

    let header = |client: &str| format!("x-forwarded-for: {client}\r\n");
    assert_eq!(ask(&mut of_proxy[0], "/livez", &header(crowded)).await, Some(429));
    assert_eq!(
        ask(&mut of_proxy[0], "/livez", &header(other)).await,
        Some(200),
        "another client, the same connection"
    );

    sockets[0].send(json!({ "type": "authenticate", "token": ada.token })).await;
    sockets[0].expect("ready").await;
    eventually("an authenticated client gives its slot back", async || {
        ask(&mut of_proxy[0], "/livez", &header(crowded)).await == Some(200)
    })
    .await;

    drop(sockets);
    server.stop().await;
}

async fn forwarded(user: &User) {
    let request =
        user.request(reqwest::Method::GET, "/livez").header("x-forwarded-for", "203.0.113.77");
    user.send(request).await.expect(200);
}

#[tokio::test]
async fn an_untrusted_proxy_is_logged_once_without_its_address() {
    let home = Home::new().with("STARLING_LOG", "warn").with("STARLING_CONNECTIONS_MAX", "100");
    let server = home.serve().await;
    for _ in 0..3 {
        forwarded(&server.stranger()).await;
    }
    server.stop().await;

    let warnings: Vec<_> = home
        .log()
        .lines()
        .filter(|line| line.contains("X-Forwarded-For"))
        .map(str::to_owned)
        .collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("STARLING_TRUSTED_PROXIES"), "{warnings:?}");
    assert!(
        !warnings[0].contains("203.0.113") && !warnings[0].contains("127.0.0.1"),
        "{warnings:?}"
    );

    let trusting = home.with("STARLING_TRUSTED_PROXIES", "127.0.0.1");
    let server = trusting.serve().await;
    forwarded(&server.stranger()).await;
    server.stop().await;
    assert_eq!(trusting.log().matches("X-Forwarded-For").count(), 1, "no new warning");
}

#[tokio::test]
async fn the_soft_limit_of_open_files_is_raised_and_one_that_stays_too_low_is_warned_of() {
    let home = Home::new().without("STARLING_RATE_LIMITS").with("STARLING_LOG", "warn");
    let home = home.with("STARLING_CONNECTIONS_MAX", "400");
    let server = home.serve_with_files(Files::Soft(100)).await;
    let open = join_all((0..150).map(|_| TcpStream::connect(server.address()))).await;
    let asked = ask_once(server.address(), "/livez", "").await;
    assert_eq!(asked, Some(200), "it is connection 151");

    drop(open);
    server.stop().await;
    assert_eq!(home.log(), "");

    assert!(
        !home.run_with_files(Files::Soft(100), &["doctor"]).await.fine().contains("files open")
    );

    home.serve_with_files(Files::Hard(500)).await.stop().await;
    assert!(
        home.log().contains("500 files open") && home.log().contains("STARLING_CONNECTIONS_MAX"),
        "{}",
        home.log()
    );
    assert!(
        home.run_with_files(Files::Hard(500), &["doctor"]).await.fine().contains("500 files open")
    );
}
