//! The load on a bare server. Connections and loops are the same as for the real server.

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
use crate::tool::meter::{Meter, Summary};
use crate::tool::proc::of_tree;
use crate::tool::site::replica::Replica;

/// Measured duration, after the warm-up.
const SPAN: Duration = Duration::from_secs(2);
const WARM_UP: Duration = Duration::from_secs(1);
/// Concurrent handshakes.
const HANDSHAKES_MAX: usize = 32;
/// Timeout of an echo.
const ANSWER: Duration = Duration::from_secs(10);
/// A frame about as long as a `new_message` frame.
const EVENT: &str = "{\"type\":\"new_message\",\
    \"chat_id\":\"019ab0c0-0000-7000-8000-000000000000\",\"rev\":123456,\
    \"message\":{\"id\":123456,\
    \"text\":\"A message of ordinary length, as people write them all day long.\",\
    \"sender_id\":\"019ab0c0-0000-7000-8000-000000000001\",\
    \"sent_at\":\"2026-11-21T23:59:59.123Z\"}}";

/// Digits of the send time in a frame to all members, in microseconds since the start of the run.
const STAMP_DIGITS: usize = 12;

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

/// The result of a load on a bare server or on the database.
#[derive(Clone, Copy, Debug)]
pub struct Driven {
    /// Operations per second.
    pub rate: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// CPU time of the bare server per operation, in microseconds.
    pub cpu_us: f64,
}

impl Driven {
    /// The result of a run in which the server used `cpu_s` CPU seconds, warm-up included.
    pub fn of(summary: &Summary, cpu_s: f64) -> Self {
        Self {
            rate: summary.rate,
            p50_ms: real(summary.p50_us) / 1e3,
            p99_ms: real(summary.p99_us) / 1e3,
            cpu_us: ratio(cpu_s * 1e6, real(summary.count_with_warm_up)),
        }
    }
}

/// The cost of idle connections to a bare server.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// Resident memory of the server per connection, in KiB.
    pub kib: f64,
    /// Connections made per second.
    pub connects: f64,
}

/// Opens and holds `count` connections.
pub async fn hold(server: &Replica, count: usize) -> Result<Held, String> {
    drop(connect(server, 1).await?);
    sleep(Duration::from_millis(300)).await;

    let memory = || resident_bytes(server.pid()).unwrap_or(0);
    let (before, began) = (memory(), Instant::now());
    let sockets = connect(server, count).await?;
    let connects = ratio(real_len(count), began.elapsed().as_secs_f64());
    sleep(Duration::from_secs(1)).await;
    let after = memory();
    drop(sockets);
    Ok(Held { kib: ratio(real(after.saturating_sub(before)), real_len(count)) / 1024.0, connects })
}

async fn echo(socket: &mut Socket, text: String) -> Result<(), String> {
    socket.send(Message::text(text)).await.map_err(|error| error.to_string())?;
    match timeout(ANSWER, socket.next()).await {
        Ok(Some(Ok(_))) => Ok(()),
        _ => Err("a bare server did not answer".to_owned()),
    }
}

/// Measures echoes on `count` connections; each sends its next frame when the echo of the previous
/// one has arrived.
pub async fn round_trips(server: &Replica, count: usize) -> Result<Driven, String> {
    let sockets = connect(server, count).await?;
    let (meter, cpu_s) = (Meter::new("floor", WARM_UP)?, of_tree(server.pid()).cpu_s);

    let until = Instant::now() + WARM_UP + SPAN;

    let mut senders = JoinSet::new();
    for mut socket in sockets {
        let meter = meter.clone();
        senders.spawn(async move {
            while Instant::now() < until {
                let began = Instant::now();
                echo(&mut socket, EVENT.to_owned()).await?;
                meter.record(began.elapsed());
            }
            Ok::<(), String>(())
        });
    }
    for result in senders.join_all().await {
        result?;
    }
    meter.stop();
    Ok(Driven::of(&meter.summary(), of_tree(server.pid()).cpu_s - cpu_s))
}

/// Measures the delivery of frames to `count` connections. Each frame goes to all of them.
pub async fn fan_out(server: &Replica, count: usize) -> Result<Driven, String> {
    let (meter, cpu_s, epoch) =
        (Meter::new("floor", WARM_UP)?, of_tree(server.pid()).cpu_s, Instant::now());

    let mut members = JoinSet::new();
    for mut socket in connect(server, count).await? {
        socket.send(Message::text(JOIN)).await.map_err(|error| error.to_string())?;
        let meter = meter.clone();
        members.spawn(async move {
            while let Some(Ok(message)) = socket.next().await {
                let sent_us = message
                    .to_text()
                    .ok()
                    .and_then(|text| text.get(1..=STAMP_DIGITS)?.parse().ok());
                meter.record(
                    epoch.elapsed().saturating_sub(Duration::from_micros(sent_us.unwrap_or(0))),
                );
            }
        });
    }

    let mut owner = connect(server, 1).await?.pop().ok_or("no connection")?;
    // The server must have read all join frames before the first frame to all members.
    sleep(Duration::from_millis(500)).await;
    let until = Instant::now() + WARM_UP + SPAN;
    while Instant::now() < until {
        echo(&mut owner, format!("{TO_ALL}{:0STAMP_DIGITS$}{EVENT}", epoch.elapsed().as_micros()))
            .await?;
    }

    meter.stop();
    members.abort_all();
    Ok(Driven::of(&meter.summary(), of_tree(server.pid()).cpu_s - cpu_s))
}
