//! Malformed frames, too many frames, oversized frames: each is refused, and the server serves on.

use serde_json::{Value, json};
use starling::config::Switch;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use crate::support::{Backend, Socket, TestServer, User, everywhere};

everywhere!(
    malformed_frames_are_answered_with_an_error,
    an_error_echoes_the_id_if_it_is_readable,
    ten_bad_frames_in_a_row_close,
    a_good_frame_resets_the_count_of_bad_frames,
    refused_well_formed_frames_do_not_count_as_bad,
    ten_thousand_bad_frames_close_and_the_server_serves_on,
    the_largest_frame_is_accepted_and_a_larger_one_closes_with_1009,
    text_that_is_not_utf_8_closes_with_1007,
    control_characters_and_lone_surrogates_never_reach_a_chat,
    connections_dropped_without_a_close_give_back_their_slots,
);

fn refused(answer: &Value, code: &str) {
    assert_eq!((&answer["type"], &answer["code"]), (&json!("error"), &json!(code)), "{answer}");
}

async fn malformed_frames_are_answered_with_an_error(server: TestServer) {
    let ada = server.user().await;
    let chat = ada.group(&[]).await;
    let mut socket = Socket::live(&ada).await;
    let frames = [
        ("", "malformed_json"),
        ("hello", "malformed_json"),
        ("{", "malformed_json"),
        (r#"{"type":"ping"} {"type":"ping"}"#, "malformed_json"),
        ("\u{feff}{\"type\":\"ping\"}", "malformed_json"),
        ("[]", "invalid_fields"),
        (r#"[{"type":"ping"}]"#, "invalid_fields"),
        ("null", "invalid_fields"),
        ("1", "invalid_fields"),
        (r#""ping""#, "invalid_fields"),
        ("{}", "invalid_fields"),
        (r#"{"type":null}"#, "invalid_fields"),
        (r#"{"type":1}"#, "invalid_fields"),
        (r#"{"type":"dance"}"#, "unknown_frame"),
        (r#"{"type":""}"#, "unknown_frame"),
        (r#"{"type":"PING"}"#, "unknown_frame"),
        (r#"{"type":"ready"}"#, "unknown_frame"),
        (r#"{"type":"ping","colour":"red"}"#, "invalid_fields"),
        (r#"{"type":"ping","id":{}}"#, "invalid_fields"),
        (r#"{"type":"ping","id":1.5}"#, "invalid_fields"),
        (r#"{"type":"ping","id":99999999999999999999}"#, "invalid_fields"),
        (r#"{"type":"ping","type":"ping"}"#, "invalid_fields"),
        (r#"{"type":"read"}"#, "invalid_fields"),
        (r#"{"type":"read","chat_id":1,"message_id":"x"}"#, "invalid_fields"),
    ];

    for (frame, code) in frames {
        socket.send_raw(Message::text(frame)).await;
        refused(&socket.expect("error").await, code);
        // A good frame, so that there are never ten bad ones in a row.
        socket.ping().await;
    }

    for bytes in [Vec::new(), br#"{"type":"ping"}"#.to_vec()] {
        socket.send_raw(Message::binary(bytes)).await;
        refused(&socket.expect("error").await, "malformed_request");
    }

    let deep = format!(r#"{{"type":"ping","id":{}"#, "[".repeat(20_000));
    socket.send_raw(Message::text(deep)).await;
    refused(&socket.expect("error").await, "malformed_json");

    ada.say(&chat, "still here").await;
    socket.expect("new_message").await;
}

async fn an_error_echoes_the_id_if_it_is_readable(server: TestServer) {
    let ada = server.user().await;
    let mut socket = Socket::connect(&ada).await;
    for id in [json!("a"), json!(42)] {
        for frame in [
            json!({ "type": "dance", "id": id }),
            json!({ "type": "send_message", "id": id, "text": 1 }),
            json!({ "id": id }),
            json!({ "type": "ping", "id": id, "colour": 1 }),
        ] {
            socket.send(frame).await;
            assert_eq!(socket.expect("error").await["id"], id);
        }
        socket.ping().await;
    }

    socket.send(json!({ "type": "ping", "id": "x".repeat(65) })).await;
    let answer = socket.expect("error").await;
    assert_eq!((&answer["id"], &answer["errors"][0]["field"]), (&Value::Null, &json!("id")));
}

async fn ten_bad_frames_in_a_row_close(server: TestServer) {
    let ada = server.user().await;
    for bad in [
        Message::text("x"),
        Message::binary(vec![1]),
        Message::text(r#"{"type":"dance"}"#),
        Message::text("[]"),
    ] {
        let mut socket = Socket::live(&ada).await;
        for _ in 0..10 {
            socket.send_raw(bad.clone()).await;
        }
        for _ in 0..10 {
            socket.expect("error").await;
        }

        let next = socket.next_raw().await;
        let Some(Message::Close(Some(close))) = next else { panic!("{next:?}") };
        assert_eq!(u16::from(close.code), 4400);
    }
}

async fn a_good_frame_resets_the_count_of_bad_frames(server: TestServer) {
    let ada = server.user().await;
    let mut socket = Socket::live(&ada).await;
    for _ in 0..5 {
        for _ in 0..9 {
            socket.send_raw(Message::text("x")).await;
            socket.expect("error").await;
        }
        socket.ping().await;
    }
}

async fn refused_well_formed_frames_do_not_count_as_bad(server: TestServer) {
    let ada = server.user().await;
    let mut socket = Socket::live(&ada).await;
    let chat = "01890000-0000-7000-8000-000000000000";
    for _ in 0..15 {
        refused(
            &socket.ask(json!({ "type": "send_message", "chat_id": chat, "text": "x" })).await,
            "chat_not_found",
        );
        refused(&socket.ask(json!({ "type": "sync" })).await, "already_synced");
    }
}

async fn ten_thousand_bad_frames_close_and_the_server_serves_on(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    let mut b = Socket::live(&bob).await;

    for bad in [Message::text("x".repeat(1000)), Message::binary(vec![0; 1000])] {
        let mut socket = Socket::live(&ada).await;
        for _ in 0..10_000 {
            if !socket.try_send_raw(bad.clone()).await {
                break;
            }
        }
        assert_eq!(socket.close_code().await, 4400);
    }

    let mut a = Socket::live(&ada).await;
    a.ask(json!({ "type": "send_message", "chat_id": chat, "text": "fine" })).await;
    assert_eq!(b.expect("new_message").await["message"]["text"], "fine");
}

async fn the_largest_frame_is_accepted_and_a_larger_one_closes_with_1009(server: TestServer) {
    const MAX: usize = 64 * 1024;
    let ada = server.user().await;
    let chat = ada.group(&[]).await;
    let mut socket = Socket::live(&ada).await;

    // The longest text, each character escaped as a surrogate pair.
    let text = "\\ud83d\\ude00".repeat(4096);
    let longest = format!(r#"{{"type":"send_message","chat_id":"{chat}","text":"{text}"}}"#);
    socket.send_raw(Message::text(longest)).await;

    let kinds = [socket.next().await, socket.next().await]
        .map(|frame| frame["type"].as_str().unwrap().to_owned());
    assert!(
        kinds.contains(&"ack".to_owned()) && kinds.contains(&"new_message".to_owned()),
        "{kinds:?}"
    );

    let padded = |bytes: usize| format!(r#"{{"type":"ping"{}}}"#, " ".repeat(bytes - 15));
    assert_eq!(padded(MAX).len(), MAX);
    socket.send_raw(Message::text(padded(MAX))).await;
    socket.expect("pong").await;

    let fragment = |opcode, last| {
        Message::Frame(Frame::message(vec![b' '; MAX / 2 + 1], OpCode::Data(opcode), last))
    };
    let bigger = [
        vec![Message::text(padded(MAX + 1))],
        vec![Message::binary(vec![0; MAX + 1])],
        vec![Message::text(" ".repeat(4 * 1024 * 1024))],
        vec![fragment(Data::Text, false), fragment(Data::Continue, true)],
    ];

    for messages in bigger {
        let mut socket = Socket::live(&ada).await;
        for message in messages {
            socket.try_send_raw(message).await;
        }
        assert_eq!(socket.close_code().await, 1009);
    }

    socket.send(json!({ "type": "ping" })).await;
    socket.expect("pong").await;
}

async fn text_that_is_not_utf_8_closes_with_1007(server: TestServer) {
    let ada = server.user().await;
    let mut socket = Socket::live(&ada).await;
    let frame = Frame::message(b"{\"type\":\"\xff\"}".to_vec(), OpCode::Data(Data::Text), true);
    socket.send_raw(Message::Frame(frame)).await;
    assert_eq!(socket.close_code().await, 1007);
}

async fn control_characters_and_lone_surrogates_never_reach_a_chat(server: TestServer) {
    let ada = server.user().await;
    let chat = ada.group(&[]).await;
    let mut socket = Socket::connect(&ada).await;
    let mut try_text = async |text: &str, code: &str| {
        let frame = format!(r#"{{"type":"send_message","chat_id":"{chat}","text":"{text}"}}"#);
        socket.send_raw(Message::text(frame)).await;
        refused(&socket.expect("error").await, code);
    };

    try_text("a\\u0000b", "invalid_fields").await;
    try_text("a\0b", "malformed_json").await;
    try_text("a\nb", "malformed_json").await;
    for lone in ["\\ud800", "\\udc00", "\\ude00\\ud83d", "\\ud800\\ud800"] {
        try_text(lone, "malformed_json").await;
    }
    assert!(ada.texts(&chat, "").await.is_empty());

    let odd = "\u{202e}\u{200b}\u{1f469}\u{200d}\u{1f680} \u{7f}\t\r\n ﷽";
    let ack = socket.ask(json!({ "type": "send_message", "chat_id": chat, "text": odd })).await;
    assert_eq!(ack["message"]["text"], odd, "any other text is stored unchanged");
}

async fn connections_dropped_without_a_close_give_back_their_slots(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    for _ in 0..3 {
        let mut sockets = Vec::new();
        for _ in 0..20 {
            sockets.push(Socket::live(&bob).await);
        }
        // No close frame is sent. A user may have twenty connections at once.
        drop(sockets);
        ada.say(&chat, "is anybody there?").await;
        crate::support::eventually("the connection slots are free again", async || {
            let (mut socket, _) = Socket::open(Socket::authenticated(&bob)).await.unwrap();
            matches!(socket.next_raw().await, Some(Message::Text(_)))
        })
        .await;

        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

async fn limited(backend: Backend) -> (TestServer, User) {
    let server =
        TestServer::with(backend, |settings| settings.rate_limits = Some(Switch::On)).await;
    let ada = server.user().await;
    (server, ada)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_frames_are_refused_with_the_time_to_wait_and_a_flood_closes() {
    let (server, ada) = limited(Backend::Sqlite).await;
    let mut socket = Socket::connect(&ada).await;
    for number in 0..390 {
        socket.send(json!({ "type": "ping", "id": number })).await;
    }

    let mut refusals = 0;
    for number in 0..390 {
        let answer = socket.next().await;
        assert_eq!(answer["id"], number, "answers to pings keep their order");
        if answer["type"] == "error" {
            refused(&answer, "rate_limited");
            assert!((1..=1000).contains(&answer["retry_after_ms"].as_u64().unwrap()), "{answer}");
            refusals += 1;
        }
        assert!(number >= 300 || refusals == 0, "{answer}");
    }
    assert!((1..=90).contains(&refusals), "{refusals} were refused");

    server.advance(std::time::Duration::from_secs(10));
    socket.ping().await;

    for number in 0..5000 {
        if !socket
            .try_send_raw(Message::text(json!({ "type": "ping", "id": number }).to_string()))
            .await
        {
            break;
        }
    }

    assert_eq!(socket.close_code().await, 4429);
    Socket::connect(&ada).await.ping().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_sends_are_refused_and_not_stored() {
    for backend in [Backend::Sqlite, Backend::Postgres] {
        let (server, ada) = limited(backend).await;
        let chat = ada.group(&[]).await;
        let mut sockets = [Socket::connect(&ada).await, Socket::connect(&ada).await];

        let mut acked = 0;
        for number in 0..100 {
            let send =
                json!({ "type": "send_message", "chat_id": chat, "text": number.to_string() });
            let answer = sockets[number % 2].ask(send).await;
            if answer["type"] == "ack" {
                acked += 1;
            } else {
                refused(&answer, "rate_limited");
                assert!(answer["retry_after_ms"].as_u64().unwrap() > 0);
            }
        }

        assert!((60..100).contains(&acked), "the limit is the user's, not the socket's: {acked}");
        let chat = ada.get(&format!("/chats/{chat}")).await.expect(200);
        assert_eq!(chat["last_message_id"], acked);
        server.stop().await;
    }
}
