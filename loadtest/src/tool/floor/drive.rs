//! The load on a bare server: the same connections and loops as on the real one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt, stream};
use starling_loadtest::services::process::resident_bytes;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::server::{JOIN, TO_ALL};
use crate::tool::arith::{ratio, real, real_len};
use crate::tool::light::open;
use crate::tool::site::replica::Replica;

/// How long each is measured, after a second of warm-up.
const SPAN: Duration = Duration::from_secs(3);
const WARM_UP: Duration = Duration::from_secs(1);
/// Handshakes at once.
const HANDSHAKES_MAX: usize = 32;
/// How long an echo may take.
const ANSWER: Duration = Duration::from_secs(10);
/// About as long as an event of a message.
const EVENT: &str = "{\"type\":\"new_message\",\"chat_id\":\"019ab0c0-0000-7000-8000-000000000000\",\"rev\":123456,\
    \"message\":{\"id\":123456,\"text\":\"A message of ordinary length, as people write them all day long.\",\
    \"sender_id\":\"019ab0c0-0000-7000-8000-000000000001\",\"sent_at\":\"2026-11-21T23:59:59.123Z\"}}";

type Socket = WebSocketStream<TcpStream>;

async fn connect(server: &Replica, count: usize) -> Result<Vec<Socket>, String> {
    let connecting = (0..count).map(|_| open(&server.base, "/", ""));
    let mut opening = stream::iter(connecting).buffer_unordered(HANDSHAKES_MAX);
    let mut sockets = Vec::with_capacity(count);
    while let Some(socket) = opening.next().await {
        sockets.push(socket?);
    }
    Ok(sockets)
}

/// Resident KiB of the server for each of `count` idle connections.
pub async fn connection_kib(server: &Replica, count: usize) -> Result<f64, String> {
    drop(connect(server, 1).await?);
    sleep(Duration::from_millis(300)).await;
    let memory = || resident_bytes(server.pid()).unwrap_or(0);
    let before = memory();
    let sockets = connect(server, count).await?;
    sleep(Duration::from_secs(1)).await;
    let after = memory();
    drop(sockets);
    Ok(ratio(real(after.saturating_sub(before)), real_len(count)) / 1024.0)
}

async fn echo(socket: &mut Socket, text: String) -> Result<(), String> {
    socket.send(Message::text(text)).await.map_err(|error| error.to_string())?;
    match timeout(ANSWER, socket.next()).await {
        Ok(Some(Ok(_))) => Ok(()),
        _ => Err("a bare server did not answer".to_owned()),
    }
}

/// Frames a second that come back on `count` connections, each of which waits for its own.
pub async fn round_trips(server: &Replica, count: usize) -> Result<f64, String> {
    let from = Instant::now() + WARM_UP;
    let until = from + SPAN;
    let mut senders = JoinSet::new();
    for mut socket in connect(server, count).await? {
        senders.spawn(async move {
            let mut counted = 0;
            while Instant::now() < until {
                echo(&mut socket, EVENT.to_owned()).await?;
                counted += u64::from(Instant::now() >= from);
            }
            Ok::<u64, String>(counted)
        });
    }
    let mut all = 0;
    for each in senders.join_all().await {
        all += each?;
    }
    Ok(ratio(real(all), SPAN.as_secs_f64()))
}

/// Frames a second that reach `count` connections, all of them each time.
pub async fn fan_out(server: &Replica, count: usize) -> Result<f64, String> {
    let delivered = Arc::new(AtomicU64::new(0));
    let mut members = JoinSet::new();
    for mut socket in connect(server, count).await? {
        socket.send(Message::text(JOIN)).await.map_err(|error| error.to_string())?;
        let delivered = delivered.clone();
        members.spawn(async move {
            while let Some(Ok(_)) = socket.next().await {
                delivered.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let mut owner = connect(server, 1).await?.pop().ok_or("no connection")?;
    // All have joined once their frames are read, which come before this one's connection or soon after.
    sleep(Duration::from_millis(500)).await;
    let from = Instant::now() + WARM_UP;
    let mut before = 0;
    while Instant::now() < from + SPAN {
        echo(&mut owner, format!("{TO_ALL}{EVENT}")).await?;
        if Instant::now() < from {
            before = delivered.load(Ordering::Relaxed);
        }
    }
    let after = delivered.load(Ordering::Relaxed);
    members.abort_all();
    Ok(ratio(real(after - before), SPAN.as_secs_f64()))
}
