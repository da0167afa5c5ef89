//! A committed change reaches the members although its answer was lost, its event was lost, or the
//! event is of another version.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::Executor;
use starling::cluster::redis::Channel;
use starling::model::message::Draft;
use starling::model::{ChatId, ChatKind, Clock, MessageBody, Rev, Topic, UserId};
use starling::store::{Creation, NewChat};

use crate::cluster::{next_version_message, publish_to_any};
use crate::outages::send;
use crate::support::{Backend, Mode, Proxy, Socket, TestServer, postgres_url, redis_url};

/// The most time for a committed change to reach the members: far below the 30 s until the next
/// unconditional resync.
const DELIVERED_MAX: Duration = Duration::from_secs(10);

/// Two replicas that reach their database through a proxy.
async fn fleet_behind_proxy() -> (TestServer, Proxy) {
    let proxy = Proxy::to(&Proxy::target_of(&postgres_url())).await;
    let server = TestServer::with(Backend::Fleet, |settings| {
        settings.database_url = settings.database_url.as_deref().map(|url| proxy.in_url(url));
    })
    .await;
    (server, proxy)
}

/// Reads until a frame for which `holds` returns true.
async fn until(socket: &mut Socket, what: &str, mut holds: impl FnMut(&Value) -> bool) {
    let start = Instant::now();
    loop {
        let frame = socket.next().await;
        if holds(&frame) {
            assert!(start.elapsed() < DELIVERED_MAX, "{what} after {:?}", start.elapsed());
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_whose_commit_was_not_answered_reaches_all_members_without_a_retry() {
    let (server, proxy) = fleet_behind_proxy().await;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    // Each connection gets another replica.
    let mut sockets = [Socket::live(&bob).await, Socket::live(&bob).await];

    for n in 0..4 {
        let key = format!("never repeated {n}");
        proxy.set(Mode::CutAnswerTo(key.clone().into_bytes()));
        send(&ada, &chat, &key).await.refused(503, "unavailable");
        assert_eq!(proxy.mode(), Mode::Pass, "the answer was cut off");
        for socket in &mut sockets {
            until(socket, &key, |frame| frame["message"]["text"] == key).await;
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_whose_commit_was_not_answered_reaches_the_members_on_every_replica() {
    let (server, proxy) = fleet_behind_proxy().await;
    let (ada, bob, eve) = (server.user().await, server.user().await, server.user().await);
    let chat = ada.group(&[&bob]).await;
    ada.say(&chat, "first").await;
    ada.say(&chat, "second").await;
    let mut sockets = [Socket::live(&bob).await, Socket::live(&bob).await];
    let mut of_eve = [Socket::live(&eve).await, Socket::live(&eve).await];

    let path = format!("/chats/{chat}");
    let member = format!("{path}/members/{}", eve.id);
    for step in [
        "message_edited",
        "message_removed",
        "chat_changed",
        "member_joined",
        "member_changed",
        "member_left",
    ] {
        proxy.set(Mode::CutAnswerTo(b"COMMIT\0".to_vec()));
        let answer = match step {
            "message_edited" => {
                ada.patch(&format!("{path}/messages/1"), json!({ "text": "edited" })).await
            }
            "message_removed" => ada.delete(&format!("{path}/messages/2")).await,
            "chat_changed" => ada.patch(&path, json!({ "name": "Renamed" })).await,
            "member_joined" => {
                ada.post(&format!("{path}/members"), json!({ "user_id": eve.id })).await
            }
            "member_changed" => ada.patch(&member, json!({ "role": "admin" })).await,
            _ => ada.delete(&member).await,
        };

        answer.refused(503, "unavailable");
        assert_eq!(proxy.mode(), Mode::Pass, "{step}: the answer was cut off");
        for socket in &mut sockets {
            until(socket, step, |frame| frame["type"] == step).await;
        }

        let of_joiner = if step == "member_joined" { "chat_added" } else { "chat_gone" };
        if step == "member_joined" || step == "member_left" {
            for socket in &mut of_eve {
                until(socket, of_joiner, |frame| frame["type"] == of_joiner).await;
            }
        }
    }

    proxy.set(Mode::CutAnswerTo(b"COMMIT\0".to_vec()));
    ada.delete(&path).await.refused(503, "unavailable");
    for socket in &mut sockets {
        until(socket, "chat_gone", |frame| frame["type"] == "chat_gone").await;
    }

    proxy.set(Mode::CutAnswerTo(b"COMMIT\0".to_vec()));
    let group = json!({ "kind": "group", "name": "New", "member_ids": [bob.id] });
    ada.post("/chats", group).await.refused(503, "unavailable");
    for socket in &mut sockets {
        until(socket, "chat_added", |frame| frame["type"] == "chat_added").await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_slowly_and_pings_in_time_is_not_silent() {
    let server =
        TestServer::with(Backend::Sqlite, |settings| settings.heartbeat_interval_ms = Some(500))
            .await;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;

    // Four bytes a character: far more than the system buffers for a client that does not read.
    let text = "\u{1F426}".repeat(4096);
    for _ in 0..400 {
        ada.say(&chat, &text).await;
    }

    for round in 0..6 {
        let mut socket = Socket::narrow(&bob).await;
        socket.send(json!({ "type": "sync", "chats": { &chat: 1 } })).await;
        // For longer than two intervals, the server writes and does not read.
        for id in 0..10 {
            socket.send(json!({ "type": "ping", "id": id })).await;
            tokio::time::sleep(Duration::from_millis(250)).await;
        }

        let (mut synced, mut pongs) = (false, 0);
        while !synced || pongs < 10 {
            let frame = socket.next().await;
            synced |= frame["type"] == "synced";
            pongs += usize::from(frame["type"] == "pong");
        }
        assert!(synced, "round {round}");
        socket.close().await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_another_replicas_changes_joins_and_removals_are_found_by_resyncs() {
    let redis = Proxy::to(&Proxy::target_of(&redis_url())).await;
    let server = TestServer::with(Backend::Fleet, |settings| {
        settings.redis_url = Some(redis.in_url(&redis_url()));
    })
    .await;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.group(&[&bob]).await;
    // Each connection gets another replica; each request, too.
    let mut sockets = [Socket::live(&bob).await, Socket::live(&bob).await];

    redis.set(Mode::Refuse);
    for round in 0..3 {
        let text = format!("without redis {round}");
        ada.say(&chat, &text).await;
        let joined = ada.channel(&[]).await;
        ada.add_member(&joined, &bob).await;
        let made = ada.group(&[&bob]).await;

        for socket in &mut sockets {
            let mut missing = vec![text.clone(), joined.clone(), made.clone()];
            while !missing.is_empty() {
                let frame = socket.next().await;
                let news = [&frame["message"]["text"], &frame["chat"]["id"]];
                missing.retain(|it| !news.iter().any(|news| *news == it));
            }
        }

        ada.delete(&format!("/chats/{joined}/members/{}", bob.id)).await.expect(204);
        ada.delete(&format!("/chats/{made}")).await.expect(204);
        for socket in &mut sockets {
            let mut missing = vec![joined.clone(), made.clone()];
            while !missing.is_empty() {
                let frame = socket.next().await;
                missing.retain(|it| frame["type"] != "chat_gone" || frame["chat_id"] != *it);
            }
        }
    }
    redis.set(Mode::Pass);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resync_of_changed_chats_reads_an_index_and_finds_the_changes_of_the_last_slots() {
    let server = TestServer::start(Backend::Postgres).await;
    let mut db = server.postgres().await;

    let seed = "INSERT INTO chats \
                (id, kind, created_at_ms, rev, renamed_rev, member_count, activity_at_ms) \
                SELECT gen_random_uuid(), 'group', 1, 1, 1, 1, 1 FROM generate_series(1, 20000)";
    for sql in [
        seed,
        "ALTER TABLE chats DISABLE TRIGGER chats_changed",
        "UPDATE chats SET changed_slot = 7",
    ] {
        db.execute(sql).await.unwrap();
    }
    for sql in
        ["ALTER TABLE chats ENABLE TRIGGER chats_changed", "VACUUM FULL chats", "ANALYZE chats"]
    {
        db.execute(sql).await.unwrap();
    }

    let resync = "EXPLAIN \
                SELECT changed_slot, id, rev, removed_at_ms IS NOT NULL AS removed FROM chats \
                WHERE (changed_slot, id) > (100, '00000000-0000-0000-0000-000000000000') \
                ORDER BY changed_slot, id LIMIT 1000";
    let plan: Vec<String> = sqlx::query_scalar(resync).fetch_all(&mut db).await.unwrap();
    let plan = plan.join("\n");
    assert!(
        plan.contains("Index Scan using chats_by_change") && !plan.contains("Seq Scan"),
        "{plan}"
    );

    let store = server.store();
    assert_eq!(store.chats_changed(100, ChatId::default(), 1000).await.unwrap(), []);
    let updates = "DO $$ DECLARE it UUID; BEGIN SELECT id INTO it FROM chats LIMIT 1; \
                   FOR n IN 1..200 LOOP \
                   UPDATE chats SET rev = rev + 1 WHERE id = it; END LOOP; END $$";
    db.execute(updates).await.unwrap();
    let changed = store.chats_changed(100, ChatId::default(), 1000).await.unwrap();
    assert_eq!((changed.len(), changed[0].rev, changed[0].removed), (1, Rev(201), false));
    let slot = store.change_slot().await.unwrap();
    assert!((slot - 6..=slot).contains(&changed[0].changed_slot), "{changed:?} at {slot}");
    server.stop().await;
}

/// A replica of the next version, as the others see it: it commits to their database, and they
/// cannot read its events.
struct NextVersion<'a> {
    server: &'a TestServer,
    key: [u8; 32],
    prefix: String,
}

impl NextVersion<'_> {
    async fn publish(&self, topics: &[Topic]) {
        let names: Vec<String> = topics
            .iter()
            .map(|topic| match topic {
                Topic::Chat(id) => format!("chat:{id}"),
                Topic::User(id) => format!("user:{id}"),
                other => panic!("{other:?}"),
            })
            .collect();
        let message = next_version_message(self.key, &names);
        for topic in topics {
            // A new chat has no subscribed replica.
            publish_to_any(&Channel::of(*topic).name(&self.prefix), &message).await;
        }
    }

    async fn send(&self, chat_id: ChatId, sender_id: UserId, text: &str) {
        let draft = Draft {
            chat_id,
            sender_id,
            body: MessageBody::Text(text.to_owned()),
            reply_to: None,
            client_id: None,
        };
        let sent = self.server.store().append(&[draft], Clock::system().now()).await.unwrap();
        assert!(sent.iter().all(Result::is_ok));
        self.publish(&[Topic::Chat(chat_id)]).await;
    }

    async fn create_group(&self, creator: UserId, member: UserId) -> ChatId {
        let now = Clock::system().now();
        let id = ChatId::new(now, &mut rand::rng());
        let kind = Creation::Shared {
            kind: ChatKind::Group,
            name: "Crew".to_owned(),
            members: vec![member],
        };
        let new = NewChat { id, kind, creator, now, chats_max: 100 };
        self.server.store().create_chat(&new).await.unwrap();
        self.publish(&[Topic::Chat(id), Topic::User(member)]).await;
        id
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn during_a_rolling_update_no_message_or_join_of_the_next_version_is_missed() {
    let (server, prefix) = TestServer::fleet().await;
    let key = server.store().cluster_key([0; 32]).await.unwrap();
    let next_version = NextVersion { server: &server, key, prefix };
    let (ada, bob) = (server.user().await, server.user().await);
    let (ada_id, bob_id): (UserId, UserId) = (ada.id.parse().unwrap(), bob.id.parse().unwrap());

    // One chat gets events of both versions, the other one only of the next version.
    let (mixed, next_only) = (ada.group(&[&bob]).await, ada.group(&[&bob]).await);
    // Each connection gets another replica.
    let mut sockets = [Socket::live(&bob).await, Socket::live(&bob).await];
    let mut expected = Vec::new();
    for n in 0..40 {
        if n % 2 == 0 {
            ada.say(&mixed, &format!("present {n}")).await;
            expected.push(format!("present {n}"));
        } else {
            next_version.send(mixed.parse().unwrap(), ada_id, &format!("next {n}")).await;
            expected.push(format!("next {n}"));
        }
    }
    next_version.send(next_only.parse().unwrap(), ada_id, "only next").await;
    let joined = next_version.create_group(ada_id, bob_id).await.to_string();

    for socket in &mut sockets {
        let (mut texts, mut has_next_only, mut is_added) = (Vec::new(), false, false);
        until(socket, "all of both versions", |frame| {
            let text = frame["message"]["text"].as_str().unwrap_or_default();
            if frame["chat_id"] == mixed {
                texts.push(text.to_owned());
            }
            has_next_only |= frame["chat_id"] == next_only && text == "only next";
            is_added |= frame["type"] == "chat_added" && frame["chat"]["id"] == joined;
            texts.len() >= expected.len() && has_next_only && is_added
        })
        .await;
        assert_eq!(texts, expected);
    }

    // The connections joined this chat by a resync, and get its live events.
    next_version.send(joined.parse().unwrap(), ada_id, "welcome").await;
    for socket in &mut sockets {
        until(socket, "the first message", |frame| frame["message"]["text"] == "welcome").await;
    }
    server.stop().await;
}
