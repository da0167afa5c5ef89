//! Tests of a device against scripted replicas: its frames, its reconnects, and its end.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value as Json, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message as Text;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::{WebSocketStream, accept_async};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Device, DeviceOptions};
use crate::actor::{Account, Actor};
use crate::client::{Answer, Http};
use crate::history::{Bounds, DeviceEvent, History, Kind, Outcome, Record};

const SOON: Duration = Duration::from_secs(5);

/// A replica that is scripted by the test.
struct Replica(TcpListener);

struct Peer(WebSocketStream<TcpStream>);

impl Replica {
    async fn bind() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    fn base(&self) -> String {
        format!("http://{}", self.0.local_addr().unwrap())
    }

    /// Accepts a connection and sends `ready`. Returns the connection and the chats in its `sync`.
    async fn accept(&self) -> (Peer, Json) {
        let (stream, _) =
            tokio::time::timeout(SOON, self.0.accept()).await.expect("it connects").unwrap();
        let mut peer = Peer(accept_async(stream).await.unwrap());
        let ready = json!({
            "type": "ready", "session_id": "s", "user_id": "u", "heartbeat_interval_ms": 1000,
        });
        peer.send(ready).await;
        let sync = peer.receive("sync").await;
        (peer, sync["chats"].clone())
    }
}

impl Peer {
    async fn send(&mut self, frame: Json) {
        self.0.send(Text::text(frame.to_string())).await.unwrap();
    }

    async fn receive(&mut self, kind: &str) -> Json {
        loop {
            let next = tokio::time::timeout(SOON, self.0.next()).await.expect("a frame comes");
            let frame: Json =
                serde_json::from_str(next.unwrap().unwrap().to_text().unwrap()).unwrap();
            if frame["type"] == kind {
                return frame;
            }
        }
    }

    async fn close(mut self, code: u16) {
        self.0.close(Some(CloseFrame { code: code.into(), reason: "".into() })).await.unwrap();
    }
}

struct Bench {
    device: Device,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Bench {
    fn start(bases: &[String]) -> Self {
        let http = Http::new(bases, Duration::from_millis(800)).unwrap();
        let account =
            Account { user_id: "u".to_owned(), session_id: "s".to_owned(), ..Account::default() };
        let actor = Actor::new(http, History::new(Bounds::default()), account);
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let options =
            DeviceOptions { backoff: Duration::from_millis(10), ..DeviceOptions::default() };
        Self { device: Device::start(actor, options, &tasks, stop.clone()), tasks, stop }
    }

    async fn finish(self) -> Record {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.device.actor().history().take()
    }
}

fn message(rev: u32) -> Json {
    let message = json!({ "id": rev - 1, "rev": rev, "sender_id": "v", "text": "x", "later": 1 });
    json!({ "type": "new_message", "chat_id": "c", "rev": rev, "message": message })
}

#[tokio::test]
async fn after_a_restart_the_device_waits_then_syncs_with_the_next_replica() {
    let (one, two) = (Replica::bind().await, Replica::bind().await);
    let bench = Bench::start(&[one.base(), two.base()]);
    let (mut peer, named) = one.accept().await;
    assert_eq!(named, json!({}));
    peer.send(json!({ "type": "synced", "chats": { "c": 4 } })).await;
    peer.send(message(5)).await;
    peer.send(json!({ "type": "reconnect", "after_ms": 400 })).await;

    let closed = tokio::time::Instant::now();
    peer.close(1012).await;

    let (mut peer, named) = two.accept().await;
    assert!(closed.elapsed() >= Duration::from_millis(400), "{:?}", closed.elapsed());
    assert_eq!(named, json!({ "c": 5 }));
    peer.send(message(6)).await;
    peer.send(json!({ "type": "synced", "chats": { "c": 6 } })).await;
    assert!(bench.device.until_live(SOON).await);

    let chat = bench.device.actor().history().name("c");
    assert_eq!(bench.device.known(chat), Some(6));

    let record = bench.finish().await;
    let events =
        record.devices[0].entries.iter().filter_map(|entry| entry.told.event()).map(|(_, rev)| rev);
    assert_eq!(events.collect::<Vec<_>>(), [5, 6]);
    assert!(
        record.devices[0]
            .entries
            .iter()
            .any(|entry| entry.told == DeviceEvent::Closed { code: 1012 })
    );
}

#[tokio::test]
async fn a_device_whose_session_ended_does_not_reconnect() {
    let replica = Replica::bind().await;
    let bench = Bench::start(&[replica.base()]);
    let (peer, _) = replica.accept().await;
    peer.close(4401).await;
    assert!(bench.device.until_ended(SOON).await);
    assert_eq!(bench.device.status().ended, Some(4401));
    assert_eq!(bench.device.send("c", "x", None).await, super::not_connected());
    assert!(bench.finish().await.ops.is_empty());
}

#[tokio::test]
async fn a_send_is_acknowledged_refused_or_unknown() {
    let replica = Replica::bind().await;
    let bench = Bench::start(&[replica.base()]);
    let (mut peer, _) = replica.accept().await;
    peer.send(json!({ "type": "synced", "chats": {} })).await;
    assert!(bench.device.until_live(SOON).await);

    let device = bench.device.clone();
    let answers = async {
        let (ok, refused) =
            tokio::join!(device.send("c", "a", Some("k")), device.send("c", "b", None));
        // The first gets no answer. The second loses its connection.
        let overdue = device.send("c", "c", None).await;
        let cut = tokio::join!(device.send("c", "d", None), device.cut()).0;
        (ok, refused, overdue, cut)
    };

    let server = async {
        let (first, second) =
            (peer.receive("send_message").await, peer.receive("send_message").await);
        assert_eq!((first["client_id"].as_str(), second["client_id"].as_str()), (Some("k"), None));
        peer.send(
            json!({ "type": "error", "id": second["id"], "code": "not_allowed", "detail": "" }),
        )
        .await;
        let message = json!({ "id": 9, "rev": 10, "text": "a" });
        peer.send(json!({ "type": "ack", "id": first["id"], "message": message })).await;
        replica.accept().await
    };

    let ((ok, refused, overdue, cut), _) = tokio::join!(answers, server);
    assert_eq!(ok.ok().flatten().map(|message| message.id), Some(9));
    assert_eq!(refused, Answer::Refused { status: 0, code: "not_allowed".to_owned() });
    assert!(overdue.is_unknown() && cut.is_unknown());

    let record = bench.finish().await;
    assert!(
        record.ops.iter().all(|op| op.outcome.is_some() && matches!(op.kind, Kind::Send { .. }))
    );

    let unknown = record.ops.iter().filter(|op| op.outcome == Some(Outcome::Unknown)).count();
    assert_eq!((record.ops.len(), unknown), (4, 2));
}

#[tokio::test]
async fn a_silent_connection_counts_as_dead_and_a_stalled_device_keeps_its_heartbeat() {
    let replica = Replica::bind().await;
    let bench = Bench::start(&[replica.base()]);
    let (mut peer, _) = replica.accept().await;
    peer.send(json!({ "type": "synced", "chats": {} })).await;
    assert!(bench.device.until_live(SOON).await);
    bench.device.stall().await;

    for _ in 0..3 {
        peer.receive("ping").await;
    }

    assert_eq!(bench.device.status().connections, 1);
    bench.device.unstall().await;
    // The device received nothing for longer than two heartbeats.
    replica.accept().await;
    assert_eq!(bench.device.status().connections, 2);
    bench.finish().await;
}
