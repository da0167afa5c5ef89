//! Sync after a disconnect: no event is missed, none comes twice, and no gap stays unannounced.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::{Socket, TestServer, everywhere};

everywhere!(
    nothing_of_a_chat_comes_before_sync,
    a_second_sync_is_refused_and_the_stream_goes_on,
    chats_that_are_not_named_are_added,
    named_chats_that_are_not_the_callers_are_gone,
    missed_changes_come_in_order_with_their_latest_state,
    changed_members_and_names_are_sent,
    an_up_to_date_client_gets_nothing,
    live_events_go_on_where_sync_ended,
    a_client_may_sync_from_rev_0,
    bad_revs_and_chats_are_refused_and_sync_may_be_retried,
    many_chats_sync_at_once,
    syncs_under_load_neither_miss_nor_repeat_an_event,
    chats_created_and_joined_under_load_are_delivered_without_a_gap,
    joins_and_removals_under_load_neither_leak_nor_lose_events,
);

async fn nothing_of_a_chat_comes_before_sync(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    let mut b = Socket::connect(&bob).await;
    ada.say(&chat, "one").await;
    ada.group(&[&bob]).await;
    b.expect_silence().await;

    b.send(json!({ "type": "sync", "chats": { &chat: 1 } })).await;
    let replay = b.until("synced").await;
    let kinds: Vec<&str> = replay.iter().filter_map(|frame| frame["type"].as_str()).collect();
    assert_eq!(kinds, ["new_message", "chat_added", "synced"]);
}

async fn a_second_sync_is_refused_and_the_stream_goes_on(server: TestServer) {
    let ada = server.user().await;
    let chat = ada.group(&[]).await;
    let mut socket = Socket::live(&ada).await;
    let answer = socket.ask(json!({ "type": "sync" })).await;
    assert_eq!((&answer["type"], &answer["code"]), (&json!("error"), &json!("already_synced")));
    ada.say(&chat, "one").await;
    assert_eq!(socket.expect("new_message").await["rev"], 2);
}

async fn chats_that_are_not_named_are_added(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chats = [ada.group(&[&bob]).await, ada.private_chat(&bob).await];
    ada.say(&chats[0], "one").await;

    let mut b = Socket::connect(&bob).await;
    b.send(json!({ "type": "sync", "id": "s" })).await;
    let replay = b.until("synced").await;
    assert_eq!(replay.len(), 3, "{replay:?}");

    for frame in &replay[..2] {
        let path = format!("/chats/{}", frame["chat"]["id"].as_str().unwrap());
        assert_eq!(
            (&frame["type"], &frame["chat"]),
            (&json!("chat_added"), &bob.get(&path).await.expect(200))
        );
    }

    assert_eq!(
        replay[2],
        json!({ "type": "synced", "id": "s", "chats": { &chats[0]: 2, &chats[1]: 1 } })
    );
}

async fn named_chats_that_are_not_the_callers_are_gone(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let (left, foreign) = (ada.group(&[&bob]).await, ada.group(&[]).await);
    let unknown = "01890000-0000-7000-8000-000000000000";
    ada.delete(&format!("/chats/{left}/members/{}", bob.id)).await.expect(204);
    ada.say(&left, "among us").await;

    let (_, replay) = Socket::resumed(&bob, json!({ &left: 1, &foreign: 1, unknown: 0 })).await;
    let mut gone: Vec<&str> =
        replay[..3].iter().filter_map(|frame| frame["chat_id"].as_str()).collect();
    gone.sort_unstable();
    let mut expected = vec![left.as_str(), foreign.as_str(), unknown];
    expected.sort_unstable();
    assert_eq!(gone, expected);

    assert!(replay[..3].iter().all(|frame| frame["type"] == "chat_gone"), "{replay:?}");
    assert_eq!(replay[3], json!({ "type": "synced", "chats": {} }));
}

async fn missed_changes_come_in_order_with_their_latest_state(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    let path = |id: i64| format!("/chats/{chat}/messages/{id}");
    for text in ["old edited", "old removed", "old"] {
        ada.say(&chat, text).await;
    }

    // Bob's client is at rev 4.
    ada.say(&chat, "new").await; // 5, edited at 9
    ada.say(&chat, "new removed").await; // 6, removed at 10
    ada.patch(&path(1), json!({ "text": "edited" })).await.expect(200); // 7, again at 11
    ada.delete(&path(2)).await.expect(204); // 8
    ada.patch(&path(4), json!({ "text": "new edited" })).await.expect(200); // 9
    ada.delete(&path(5)).await.expect(204); // 10
    ada.patch(&path(1), json!({ "text": "edited twice" })).await.expect(200); // 11

    let (_, replay) = Socket::resumed(&bob, json!({ &chat: 4 })).await;
    let brief: Vec<Value> = replay
        .iter()
        .map(|frame| {
            json!([frame["type"], frame["rev"], frame["message"]["id"], frame["message"]["text"]])
        })
        .collect();

    assert_eq!(
        json!(brief[..4]),
        json!([
            ["message_removed", 8, null, null],
            ["new_message", 9, 4, "new edited"],
            ["new_message", 10, 5, null],
            ["message_edited", 11, 1, "edited twice"],
        ])
    );

    assert_eq!(replay[0]["message_id"], 2);
    assert!(replay[2]["message"]["removed_at"].is_string(), "{}", replay[2]);
    assert_eq!(replay[4], json!({ "type": "synced", "chats": { &chat: 11 } }));
}

async fn changed_members_and_names_are_sent(server: TestServer) {
    let (ada, bob, cleo) = (server.user().await, server.user().await, server.user().await);
    let (dan, eve) = (server.user().await, server.user().await);
    let chat = ada.group(&[&bob, &cleo, &dan]).await;

    let members = format!("/chats/{chat}/members");
    ada.delete(&format!("{members}/{}", cleo.id)).await.expect(204); // 2
    ada.post(&members, json!({ "user_id": eve.id })).await.expect(201); // 3
    ada.patch(&format!("{members}/{}", dan.id), json!({ "role": "admin" })).await.expect(200); // 4
    ada.patch(&format!("/chats/{chat}"), json!({ "name": "Others" })).await.expect(200); // 5

    let (_, replay) = Socket::resumed(&bob, json!({ &chat: 1 })).await;
    let brief: Vec<Value> =
        replay.iter().map(|frame| json!([frame["type"], frame["rev"]])).collect();
    assert_eq!(
        json!(brief[..4]),
        json!([
            ["member_left", 2],
            ["member_joined", 3],
            ["member_changed", 4],
            ["chat_changed", 5]
        ])
    );

    assert_eq!(replay[0]["user_id"], cleo.id);
    assert_eq!(replay[1]["member"]["user"]["id"], eve.id);
    assert_eq!(replay[2]["member"]["role"], "admin");
    assert_eq!(replay[3]["chat"]["name"], "Others");
}

async fn an_up_to_date_client_gets_nothing(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    ada.say(&chat, "one").await;
    let (_, replay) = Socket::resumed(&bob, json!({ &chat: 2 })).await;
    assert_eq!(replay, [json!({ "type": "synced", "chats": { &chat: 2 } })]);
}

async fn live_events_go_on_where_sync_ended(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    ada.say(&chat, "one").await;
    let (mut b, _) = Socket::resumed(&bob, json!({ &chat: 1 })).await;
    for rev in 3..=6 {
        ada.say(&chat, "more").await;
        assert_eq!(b.expect("new_message").await["rev"], rev);
    }
    b.expect_silence().await;
}

async fn a_client_may_sync_from_rev_0(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.group(&[&bob]).await;
    ada.say(&chat, "one").await;

    let (_, replay) = Socket::resumed(&bob, json!({ &chat: 0 })).await;
    let mut brief: Vec<String> =
        replay.iter().map(|frame| format!("{} {}", frame["type"], frame["rev"])).collect();
    brief[..3].sort_unstable();
    let expected = [
        r#""chat_changed" 1"#,
        r#""member_joined" 1"#,
        r#""member_joined" 1"#,
        r#""new_message" 2"#,
        r#""synced" null"#,
    ];
    assert_eq!(brief, expected);
}

async fn bad_revs_and_chats_are_refused_and_sync_may_be_retried(server: TestServer) {
    let ada = server.user().await;
    let chat = ada.group(&[]).await;
    let mut socket = Socket::connect(&ada).await;
    let many: BTreeMap<String, i64> =
        (0..10_001).map(|n| (format!("{n:08x}-0000-7000-8000-000000000000"), 1)).collect();

    for chats in [
        json!({ &chat: -1 }),
        json!({ &chat: "1" }),
        json!({ &chat: 1.5 }),
        json!({ &chat: u64::MAX }),
        json!({ &chat: null }),
        json!({ "x": 1 }),
        json!([]),
        json!("all"),
    ] {
        let answer = socket.ask(json!({ "type": "sync", "chats": chats })).await;
        assert_eq!(answer["code"], "invalid_fields", "{answer}");
        let field = answer["errors"][0]["field"].as_str().unwrap();
        assert!(field.starts_with("chats"), "{answer}");
    }

    let too_big = json!({ "type": "sync", "chats": many }).to_string();
    assert!(too_big.len() > 64 * 1024, "more chats than allowed do not fit in a frame");

    socket.send(json!({ "type": "sync", "chats": null })).await;
    assert_eq!(socket.until("synced").await.len(), 2);
}

async fn many_chats_sync_at_once(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let mut known = BTreeMap::new();
    for number in 0..60 {
        let chat = ada.group(&[&bob]).await;
        if number % 2 == 0 {
            ada.say(&chat, "missed").await;
        }
        known.insert(chat, if number % 3 == 0 { 1 } else { 2 });
    }

    let (_, replay) = Socket::resumed(&bob, json!(known)).await;
    let synced = replay.last().unwrap();
    assert_eq!(synced["chats"].as_object().unwrap().len(), 60);
    let of = |kind: &str| replay.iter().filter(|frame| frame["type"] == kind).count();

    // Known at rev 1 with a missed message: it comes. Known at rev 2 without one: ahead of the log.
    assert_eq!((of("new_message"), of("reset"), of("chat_added"), of("chat_gone")), (10, 20, 0, 0));
}

/// Checks that the chat's frames continue without a gap from its rev in `synced` to `last`.
fn contiguous(chat: &str, synced: &Value, live: &[Value], last: i64, who: &str) {
    let from = synced["chats"][chat]
        .as_i64()
        .unwrap_or_else(|| panic!("{who}: {chat} is not in {synced}"));
    let revs: Vec<i64> = live
        .iter()
        .filter(|frame| frame["chat_id"] == chat)
        .filter_map(|frame| frame["rev"].as_i64())
        .collect();
    assert_eq!(revs, (from + 1..=last).collect::<Vec<_>>(), "{who}, synced at {from}");
}

/// Reads until the chat's event at `last` arrives.
async fn read_up_to(socket: &mut Socket, chat: &str, last: i64) -> Vec<Value> {
    let mut live = Vec::new();
    loop {
        let frame = socket.next().await;
        let done = frame["chat_id"] == chat && frame["rev"] == last;
        live.push(frame);
        if done {
            return live;
        }
    }
}

async fn syncs_under_load_neither_miss_nor_repeat_an_event(server: TestServer) {
    const SENDS: i64 = 150;
    let writers =
        [server.user().await, server.user().await, server.user().await, server.user().await];
    let reader = server.user().await;
    let chat = writers[0].group(&[&writers[1], &writers[2], &writers[3], &reader]).await;

    // The last rev: the chat itself, all messages of the writers, and one after the last sync.
    let last = 1 + SENDS * 4 + 1;

    let writing = join_all(writers.iter().map(async |writer| {
        let mut socket = Socket::connect(writer).await;
        for burst in 0..SENDS / 10 {
            for number in 0..10 {
                let text = format!("{burst} {number}");
                socket.send(json!({ "type": "send_message", "chat_id": chat, "text": text })).await;
            }
            for _ in 0..10 {
                socket.expect("ack").await;
            }
        }
    }));

    // Readers sync all the time, several at once: some subscribe first, others find the
    // subscription.
    let reading = async {
        let mut synced = Vec::new();
        for round in 0..6 {
            let joins = join_all((0..3).map(async |number| {
                let known = if number == 0 { json!({}) } else { json!({ &chat: 1 + round * 40 }) };
                let (socket, replay) = Socket::resumed(&reader, known.clone()).await;
                let known = known[&chat].as_i64();
                (socket, replay, known)
            }));
            let mut joined = joins.await;

            // In even rounds one reader stays. The others leave, so that at times the chat has no
            // subscriber.
            for (socket, _, _) in joined.drain(usize::from(round % 2 == 0)..) {
                socket.close().await;
            }
            synced.extend(joined);
        }
        synced
    };

    let (_, mut synced) = tokio::join!(writing, reading);
    writers[0].say(&chat, "the end").await;

    for (index, (socket, replay, known)) in synced.iter_mut().enumerate() {
        let who = format!("reader {index}");
        let (replay, synced) = (&replay[..replay.len() - 1], replay.last().unwrap());

        if let Some(known) = known
            && replay.iter().all(|frame| frame["type"] != "reset")
        {
            let revs: Vec<i64> = replay.iter().filter_map(|frame| frame["rev"].as_i64()).collect();
            let up_to = synced["chats"][&chat].as_i64().unwrap();
            assert_eq!(revs, (*known + 1..=up_to).collect::<Vec<_>>(), "{who}");
        }

        let live = read_up_to(socket, &chat, last).await;
        contiguous(&chat, synced, &live, last, &who);
        socket.expect_silence().await;
    }
}

async fn chats_created_and_joined_under_load_are_delivered_without_a_gap(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    for round in 0..8 {
        let existing = ada.group(&[]).await;

        // Bob syncs while Ada adds him to one chat, makes another, and writes to both.
        let adding = async {
            ada.add_member(&existing, &bob).await;
            for text in ["one", "two", "three"] {
                ada.say(&existing, text).await;
            }
        };

        let making = async {
            let made = ada.group(&[&bob]).await;
            for text in ["one", "two", "three"] {
                ada.say(&made, text).await;
            }
            made
        };

        let syncing = join_all((0..4).map(|_| Socket::resumed(&bob, json!({}))));
        let ((), made, sockets) = tokio::join!(adding, making, syncing);

        ada.say(&existing, "the end").await;
        ada.say(&made, "the end").await;

        for (index, (mut socket, replay)) in sockets.into_iter().enumerate() {
            let mut frames = replay.clone();
            while [(&existing, 6), (&made, 5)].iter().any(|(chat, last)| {
                !frames.iter().any(|frame| frame["chat_id"] == **chat && frame["rev"] == *last)
            }) {
                frames.push(socket.next().await);
            }

            for (chat, last) in [(&existing, 6), (&made, 5)] {
                let added: Vec<i64> = frames
                    .iter()
                    .filter(|frame| frame["type"] == "chat_added" && frame["chat"]["id"] == **chat)
                    .filter_map(|frame| frame["chat"]["rev"].as_i64())
                    .collect();
                assert_eq!(added.len(), 1, "round {round}, socket {index}: {frames:?}");

                let revs: Vec<i64> = frames
                    .iter()
                    .filter(|frame| frame["chat_id"] == **chat)
                    .filter_map(|frame| frame["rev"].as_i64())
                    .collect();
                assert_eq!(
                    revs,
                    (added[0] + 1..=last).collect::<Vec<_>>(),
                    "round {round}, socket {index}: {frames:?}"
                );
            }
        }
    }
}

async fn joins_and_removals_under_load_neither_leak_nor_lose_events(server: TestServer) {
    const ROUNDS: i64 = 12;
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.group(&[&bob]).await;
    let member = format!("/chats/{chat}/members/{}", bob.id);

    // Each round: Bob is removed, a secret is sent, Bob is added, a message to all is sent.
    let churning = async {
        for _ in 0..ROUNDS {
            ada.delete(&member).await.expect(204);
            ada.say(&chat, "secret").await;
            ada.add_member(&chat, &bob).await;
            ada.say(&chat, "welcome").await;
        }
    };

    // Every other client names the chat, at the rev that it can see at that time.
    let coming = async |number: usize| {
        let seen = bob.get(&format!("/chats/{chat}")).await;
        let known = seen.body["rev"].as_i64().filter(|_| number.is_multiple_of(2));
        let chats = known.map_or(json!({}), |rev| json!({ &chat: rev }));
        let (socket, replay) = Socket::resumed(&bob, chats).await;
        (socket, replay, known)
    };

    let syncing = async {
        let mut sockets = Vec::new();
        for _ in 0..5 {
            sockets.extend(join_all((0..4).map(&coming)).await);
        }
        sockets
    };

    let ((), sockets) = tokio::join!(churning, syncing);
    let last = ada.say(&chat, "the end").await["rev"].as_i64().unwrap();

    for (index, (mut socket, replay, known)) in sockets.into_iter().enumerate() {
        let mut frames = replay.clone();
        frames.extend(read_up_to(&mut socket, &chat, last).await);
        socket.expect_silence().await;

        let mut at: Option<i64> = known;
        for frame in &frames {
            assert_ne!(frame["message"]["text"], "secret", "socket {index}: {frames:?}");
            match frame["type"].as_str().unwrap() {
                "chat_added" => at = frame["chat"]["rev"].as_i64(),
                "reset" => at = frame["rev"].as_i64(),
                "chat_gone" => at = None,
                "synced" => {
                    assert_eq!(at, frame["chats"][&chat].as_i64(), "socket {index}: {frames:?}");
                }
                _ => {
                    let rev = frame["rev"].as_i64().unwrap();
                    assert_eq!(at.map(|at| at + 1), Some(rev), "socket {index}: {frames:?}");
                    at = Some(rev);
                }
            }
        }

        assert_eq!(at, Some(last));
    }
}
