//! The presence of a user goes to the connections that watch the user and share a chat, and to no
//! others.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use starling::model::{ChatId, ChatKind, Timestamp, UserId};
use starling::store::{Creation, NewChat, NewUser};

use crate::support::{Backend, Socket, TestServer, User, everywhere};

everywhere!(
    a_watcher_gets_the_state_at_once_and_every_change,
    a_connection_watches_before_and_after_its_sync,
    a_user_with_another_device_stays_online,
    no_presence_is_sent_of_strangers_and_unknown_users,
    a_watcher_without_a_common_chat_gets_no_more_presence,
    an_empty_list_stops_the_watch,
    a_watcher_that_asks_again_gets_the_state_again,
    the_ack_comes_after_the_presence_of_each_user,
    too_many_users_in_a_frame_or_on_a_connection_are_refused,
    every_presence_frame_has_last_seen,
    last_seen_never_moves_back,
    a_session_that_ends_takes_its_user_offline,
    every_watcher_of_a_user_gets_its_presence_and_no_other_connection_does,
);

async fn watch(socket: &mut Socket, users: &[&User]) {
    let ids: Vec<&str> = users.iter().map(|user| user.id.as_str()).collect();
    socket.send(json!({ "type": "watch_presence", "user_ids": ids })).await;
}

/// Expects this presence as the next frame.
async fn expect(socket: &mut Socket, user: &User, online: bool) -> Value {
    let frame = socket.expect("presence").await;
    assert_eq!((&frame["user_id"], &frame["online"]), (&json!(user.id), &json!(online)), "{frame}");
    frame
}

async fn quiet(socket: &mut Socket) {
    // Longer than the linger time of these tests.
    tokio::time::sleep(Duration::from_millis(300)).await;
    socket.expect_silence().await;
}

async fn a_watcher_gets_the_state_at_once_and_every_change(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    ada.private_chat(&bob).await;
    let mut a = Socket::connect(&ada).await;
    watch(&mut a, &[&bob]).await;
    expect(&mut a, &bob, false).await;

    for _ in 0..2 {
        let b = Socket::connect(&bob).await;
        expect(&mut a, &bob, true).await;
        b.close().await;
        expect(&mut a, &bob, false).await;
    }

    let b = Socket::connect(&bob).await;
    expect(&mut a, &bob, true).await;
    // The connection ends without a close frame.
    drop(b);
    expect(&mut a, &bob, false).await;
    quiet(&mut a).await;
}

async fn a_connection_watches_before_and_after_its_sync(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    let (mut before, mut after) = (Socket::connect(&ada).await, Socket::live(&ada).await);
    for socket in [&mut before, &mut after] {
        watch(socket, &[&bob]).await;
        expect(socket, &bob, false).await;
    }

    let b = Socket::connect(&bob).await;
    for socket in [&mut before, &mut after] {
        expect(socket, &bob, true).await;
    }

    before.send(json!({ "type": "sync" })).await;
    before.until("synced").await;
    b.close().await;
    for socket in [&mut before, &mut after] {
        expect(socket, &bob, false).await;
    }

    bob.say(&chat, "bye").await;
    for socket in [&mut before, &mut after] {
        socket.expect("new_message").await;
    }
}

async fn a_user_with_another_device_stays_online(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    ada.private_chat(&bob).await;
    let (first, second) = (Socket::connect(&bob).await, Socket::connect(&bob).await);
    let mut a = Socket::connect(&ada).await;
    watch(&mut a, &[&bob]).await;
    expect(&mut a, &bob, true).await;

    first.close().await;
    quiet(&mut a).await;

    let third = Socket::connect(&bob).await;
    second.close().await;
    quiet(&mut a).await;
    third.close().await;
    expect(&mut a, &bob, false).await;
}

async fn no_presence_is_sent_of_strangers_and_unknown_users(server: TestServer) {
    let (ada, bob, eve) = (server.user().await, server.user().await, server.user().await);
    ada.private_chat(&bob).await;
    let mut e = Socket::connect(&eve).await;
    let nobody = "01890000-0000-7000-8000-000000000000";
    let frame = json!({ "type": "watch_presence", "user_ids": [ada.id, bob.id, nobody] });
    assert_eq!(
        e.ask(frame.clone()).await["type"],
        "ack",
        "the answer does not show which of them exist"
    );

    let b = Socket::connect(&bob).await;
    quiet(&mut e).await;

    // Once they share a chat, a request of Eve's is answered.
    ada.group(&[&bob, &eve]).await;
    b.close().await;
    quiet(&mut e).await;
    e.send(frame).await;
    let (first, second) = (e.expect("presence").await, e.expect("presence").await);
    assert!(
        first["online"] == false
            && second["online"] == false
            && first["user_id"] != second["user_id"]
    );

    let _b = Socket::connect(&bob).await;
    expect(&mut e, &bob, true).await;
}

async fn a_watcher_without_a_common_chat_gets_no_more_presence(server: TestServer) {
    let (ada, bob, eve) = (server.user().await, server.user().await, server.user().await);
    let (one, two) = (ada.group(&[&bob]).await, ada.group(&[&bob, &eve]).await);
    let (mut a, mut b, mut e) =
        (Socket::connect(&ada).await, Socket::connect(&bob).await, Socket::connect(&eve).await);

    watch(&mut a, &[&eve]).await;
    expect(&mut a, &eve, true).await;
    watch(&mut b, &[&ada]).await;
    expect(&mut b, &ada, true).await;
    watch(&mut e, &[&ada]).await;
    expect(&mut e, &ada, true).await;

    // Bob and Ada still share the other group; Eve shares none.
    bob.delete(&format!("/chats/{two}/members/me")).await.expect(204);
    ada.delete(&format!("/chats/{two}/members/{}", eve.id)).await.expect(204);

    a.close().await;
    expect(&mut b, &ada, false).await;
    quiet(&mut e).await;

    let mut a = Socket::connect(&ada).await;
    expect(&mut b, &ada, true).await;
    watch(&mut a, &[&eve, &bob]).await;
    expect(&mut a, &bob, true).await;

    ada.delete(&format!("/chats/{one}")).await.expect(204);
    a.close().await;
    quiet(&mut b).await;
    quiet(&mut e).await;
}

async fn an_empty_list_stops_the_watch(server: TestServer) {
    let (ada, bob, eve) = (server.user().await, server.user().await, server.user().await);
    ada.group(&[&bob, &eve]).await;
    let mut a = Socket::connect(&ada).await;
    watch(&mut a, &[&bob]).await;
    expect(&mut a, &bob, false).await;
    watch(&mut a, &[&eve]).await;
    expect(&mut a, &eve, false).await;

    let b = Socket::connect(&bob).await;
    expect(&mut a, &bob, true).await;

    assert_eq!(a.ask(json!({ "type": "watch_presence", "user_ids": [] })).await["type"], "ack");
    b.close().await;
    let _e = Socket::connect(&eve).await;
    quiet(&mut a).await;

    watch(&mut a, &[&bob]).await;
    expect(&mut a, &bob, false).await;
}

async fn a_watcher_that_asks_again_gets_the_state_again(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    ada.private_chat(&bob).await;
    let _b = Socket::connect(&bob).await;
    let mut a = Socket::connect(&ada).await;
    for _ in 0..3 {
        watch(&mut a, &[&bob, &bob]).await;
        expect(&mut a, &bob, true).await;
    }
    a.expect_silence().await;
}

async fn the_ack_comes_after_the_presence_of_each_user(server: TestServer) {
    let ada = server.user().await;
    let mut others = Vec::new();
    for _ in 0..5 {
        let user = server.user().await;
        ada.private_chat(&user).await;
        others.push(user);
    }

    let mut a = Socket::connect(&ada).await;
    for id in [json!(7), json!("seven")] {
        let ids: Vec<&str> = others.iter().map(|user| user.id.as_str()).collect();
        a.send(json!({ "type": "watch_presence", "user_ids": ids, "id": id })).await;
        let frames = a.until("ack").await;
        assert_eq!(frames.len(), 6, "{frames:?}");
        assert_eq!(frames[5], json!({ "type": "ack", "id": id }));
    }
}

fn refused(answer: &Value, field: &str) {
    assert_eq!(
        (&answer["type"], &answer["code"]),
        (&json!("error"), &json!("invalid_fields")),
        "{answer}"
    );
    assert_eq!(answer["errors"][0]["field"], field, "{answer}");
}

async fn too_many_users_in_a_frame_or_on_a_connection_are_refused(server: TestServer) {
    let ada = server.user().await;
    let (store, now) = (server.store(), Timestamp::from_ms(1));

    let mut members = Vec::new();
    for number in 0..1001 {
        let id = UserId::new(now, &mut rand::rng());
        let (login, name) = (format!("m{number}"), format!("m{number}"));
        store
            .create_user(&NewUser {
                id,
                login,
                name,
                password_hash: String::new(),
                created_at: now,
            })
            .await
            .unwrap();
        members.push(id);
    }

    let kind =
        Creation::Shared { kind: ChatKind::Channel, name: "all".into(), members: members.clone() };
    let id = ChatId::new(now, &mut rand::rng());
    let creator = ada.id.parse().unwrap();
    store.create_chat(&NewChat { id, kind, creator, now, chats_max: 100 }).await.unwrap();

    let mut socket = Socket::connect(&ada).await;
    let frame = |users: &[UserId]| json!({ "type": "watch_presence", "user_ids": users });
    refused(&socket.ask(frame(&members[..201])).await, "user_ids");

    // A user without a common chat does not count, once the server has checked it.
    let strangers: Vec<UserId> = (0..200).map(|_| UserId::new(now, &mut rand::rng())).collect();
    for _ in 0..6 {
        assert_eq!(socket.ask(frame(&strangers)).await["type"], "ack");
    }

    for part in members[..1000].chunks(200) {
        assert_eq!(socket.ask(frame(part)).await["type"], "ack");
    }
    refused(&socket.ask(frame(&members[1000..])).await, "user_ids");

    assert_eq!(
        socket.ask(frame(&members[..200])).await["type"],
        "ack",
        "these are watched already"
    );

    assert_eq!(socket.ask(frame(&[])).await["type"], "ack");
    assert_eq!(socket.ask(frame(&members[1000..])).await["type"], "ack", "there is room again");

    for wrong in [json!(null), json!("x"), json!([1]), json!(["x"]), json!([null])] {
        let answer = socket.ask(json!({ "type": "watch_presence", "user_ids": wrong })).await;
        assert_eq!(answer["code"], "invalid_fields", "{answer}");
        socket.ping().await;
    }
}

async fn every_presence_frame_has_last_seen(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    ada.private_chat(&bob).await;
    let now = || serde_json::to_value(server.clock().now()).unwrap().as_str().unwrap().to_owned();
    let between = |frame: &Value, from: &str, to: &str| {
        let seen = frame["last_seen_at"].as_str().unwrap();
        assert!(from <= seen && seen <= to, "{from} {frame} {to}");
    };

    let mut a = Socket::connect(&ada).await;
    watch(&mut a, &[&bob]).await;
    assert!(expect(&mut a, &bob, false).await["last_seen_at"].is_null(), "bob was never here");

    let start = now();
    let b = Socket::connect(&bob).await;
    between(&expect(&mut a, &bob, true).await, &start, &now());

    server.advance(Duration::from_hours(1));
    let before = now();
    b.close().await;
    // The server closes its side a moment later. The linger time does not count.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let after = now();
    between(&expect(&mut a, &bob, false).await, &before, &after);

    server.advance(Duration::from_hours(1));
    watch(&mut a, &[&bob]).await;
    between(&expect(&mut a, &bob, false).await, &before, &after);
}

async fn last_seen_never_moves_back(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let store = server.store();
    let id = |user: &User| user.id.parse::<UserId>().unwrap();
    ada.private_chat(&bob).await;

    let at = Timestamp::from_ms;
    store.set_last_seen(&[(id(&ada), at(5)), (id(&bob), at(7))]).await.unwrap();
    store
        .set_last_seen(&[(id(&bob), at(6)), (id(&ada), at(8)), (UserId::default(), at(9))])
        .await
        .unwrap();
    store.set_last_seen(&[]).await.unwrap();

    let (a, b) = (id(&ada), id(&bob));
    let mut found =
        store.users_sharing_a_chat(&[(a, b), (b, a), (a, UserId::default())]).await.unwrap();
    found.sort_by_key(|it| it.last_seen_at);
    let found: Vec<_> = found.iter().map(|it| (it.watcher, it.watched, it.last_seen_at)).collect();
    assert_eq!(found, [(a, b, Some(at(7))), (b, a, Some(at(8)))]);
}

async fn a_session_that_ends_takes_its_user_offline(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    ada.private_chat(&bob).await;
    let mut a = Socket::connect(&ada).await;
    let mut b = Socket::connect(&bob).await;
    watch(&mut a, &[&bob]).await;
    expect(&mut a, &bob, true).await;

    bob.delete("/sessions/current").await.expect(204);
    assert_eq!(b.close_code().await, 4401);
    expect(&mut a, &bob, false).await;
}

async fn every_watcher_of_a_user_gets_its_presence_and_no_other_connection_does(
    server: TestServer,
) {
    let (bob, eve) = (server.user().await, server.user().await);
    let mut sockets = Vec::new();
    let mut users = Vec::new();
    for _ in 0..5 {
        users.push(server.user().await);
    }

    let members: Vec<&User> = users.iter().chain([&eve]).collect();
    bob.group(&members).await;
    let mut e = Socket::connect(&eve).await;

    for user in &users {
        for _ in 0..2 {
            let mut socket = Socket::connect(user).await;
            watch(&mut socket, &[&bob]).await;
            expect(&mut socket, &bob, false).await;
            sockets.push(socket);
        }
    }

    for _ in 0..2 {
        let b = Socket::connect(&bob).await;
        for socket in &mut sockets {
            expect(socket, &bob, true).await;
        }
        b.close().await;
        for socket in &mut sockets {
            expect(socket, &bob, false).await;
        }
    }

    e.expect_silence().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_default_a_reconnect_within_a_second_sends_nothing_and_offline_comes_after_five() {
    let server =
        TestServer::with(Backend::Sqlite, |settings| settings.presence_linger_ms = None).await;
    let (ada, bob) = (server.user().await, server.user().await);
    ada.private_chat(&bob).await;

    let mut a = Socket::connect(&ada).await;
    let b = Socket::connect(&bob).await;
    watch(&mut a, &[&bob]).await;
    expect(&mut a, &bob, true).await;

    b.close().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let b = Socket::connect(&bob).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    a.expect_silence().await;

    let left = Instant::now();
    b.close().await;
    expect(&mut a, &bob, false).await;
    let after = left.elapsed();
    assert!((Duration::from_millis(4900)..Duration::from_secs(8)).contains(&after), "{after:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_client_is_shown_offline() {
    let server =
        TestServer::with(Backend::Sqlite, |settings| settings.heartbeat_interval_ms = Some(300))
            .await;
    let (ada, bob) = (server.user().await, server.user().await);
    ada.private_chat(&bob).await;
    let mut b = Socket::connect(&bob).await;
    let mut a = Socket::connect(&ada).await;
    watch(&mut a, &[&bob]).await;
    expect(&mut a, &bob, true).await;

    for _ in 0..5 {
        a.send(json!({ "type": "ping" })).await;
        a.expect("pong").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    assert_eq!(b.close_code().await, 4408);
    expect(&mut a, &bob, false).await;
    server.stop().await;
}
