//! Which users may send which frames: every documented frame, for every relation to a chat. A frame
//! without a row in a table fails the test.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use starling::wire::ClientFrame;

use crate::api::authorisation::{EVERYONE, Scene, Stage, Who};
use crate::support::{Socket, TestServer, everywhere};

everywhere!(
    every_frame_has_a_row_in_a_table_and_every_row_a_frame,
    before_authentication_no_frame_is_answered,
    in_a_group_the_table_decides_which_frames_succeed,
    in_a_channel_the_table_decides_which_frames_succeed,
    in_a_private_chat_the_table_decides_which_frames_succeed,
    in_a_removed_group_no_frame_succeeds,
);

/// The object of a frame.
#[derive(Clone, Copy, Debug)]
enum About {
    Chat,
    /// A message of the frame's sender.
    Own,
    /// A message of another member.
    Others,
    /// A removed message.
    Removed,
}

/// The result of a frame: accepted, or refused with this code.
type Outcome = Result<(), &'static str>;

const DONE: Outcome = Ok(());
const NOT_ALLOWED: Outcome = Err("not_allowed");

/// A frame and its object; the results for members, admins and owners of a group; the same for a
/// channel; the result for a member of a private chat. Others always get `chat_not_found`.
type Row = (&'static str, About, [Outcome; 3], [Outcome; 3], Outcome);

const TABLE: &[Row] = &[
    ("send_message", About::Chat, [DONE, DONE, DONE], [NOT_ALLOWED, DONE, DONE], DONE),
    ("typing", About::Chat, [DONE, DONE, DONE], [NOT_ALLOWED, DONE, DONE], DONE),
    ("read", About::Others, [DONE, DONE, DONE], [DONE, DONE, DONE], DONE),
    ("edit_message", About::Own, [DONE, DONE, DONE], [NOT_ALLOWED, DONE, DONE], DONE),
    ("edit_message", About::Others, [NOT_ALLOWED; 3], [NOT_ALLOWED; 3], NOT_ALLOWED),
    ("edit_message", About::Removed, [NOT_ALLOWED; 3], [NOT_ALLOWED; 3], NOT_ALLOWED),
    ("remove_message", About::Own, [DONE, DONE, DONE], [DONE, DONE, DONE], DONE),
    (
        "remove_message",
        About::Others,
        [NOT_ALLOWED, DONE, DONE],
        [NOT_ALLOWED, DONE, DONE],
        NOT_ALLOWED,
    ),
    (
        "remove_message",
        About::Removed,
        [NOT_ALLOWED, DONE, DONE],
        [NOT_ALLOWED, DONE, DONE],
        NOT_ALLOWED,
    ),
];

/// Frames about the caller or about users. Each has tests of its own for what it reveals.
const OWN: &[&str] = &["authenticate", "ping", "sync", "watch_presence"];

fn frame(scene: &Scene, who: Who, row: &Row) -> Value {
    let others = scene.said[&scene.victim.id];
    let message = match row.1 {
        About::Chat | About::Others => others,
        About::Own => scene.said.get(&scene.who(who).id).copied().unwrap_or(1),
        About::Removed => scene.removed,
    };

    let mut frame = json!({ "type": row.0, "chat_id": scene.chat });
    if row.0 != "send_message" && row.0 != "typing" {
        frame["message_id"] = json!(message);
    }
    if row.0 == "send_message" || row.0 == "edit_message" {
        frame["text"] = json!("sent by frame");
    }

    frame
}

fn code(answer: &Value) -> String {
    answer["code"].as_str().unwrap_or_default().to_owned()
}

/// The result of a frame. A successful `typing` has no answer, so a ping follows it.
async fn ask(socket: &mut Socket, frame: Value) -> Result<(), String> {
    if frame["type"] != "typing" {
        let answer = socket.ask(frame).await;
        return if answer["type"] == "ack" { Ok(()) } else { Err(code(&answer)) };
    }

    socket.send(frame).await;
    // The server handles `typing` beside the next frame, whose answer may come first.
    tokio::time::sleep(Duration::from_millis(100)).await;
    socket.send(json!({ "type": "ping" })).await;
    let before = socket.until("pong").await;
    before.iter().find(|frame| frame["type"] == "error").map_or(Ok(()), |error| Err(code(error)))
}

async fn every_frame_has_a_row_in_a_table_and_every_row_a_frame(_server: TestServer) {
    let rows: BTreeSet<&str> = TABLE.iter().map(|row| row.0).chain(OWN.iter().copied()).collect();
    let known: BTreeSet<&str> = ClientFrame::TYPES.iter().copied().collect();
    assert_eq!(rows, known, "give each frame a row");
}

async fn before_authentication_no_frame_is_answered(server: TestServer) {
    let scene = Stage::of(&server).await.scene("group").await;
    for row in TABLE {
        let (mut socket, _) = Socket::open(Socket::request(&scene.stranger)).await.unwrap();
        socket.send(frame(&scene, Who::Owner, row)).await;
        assert_eq!(socket.close_code().await, 4401, "{row:?}");
    }

    for kind in OWN.iter().filter(|kind| **kind != "authenticate") {
        let (mut socket, _) = Socket::open(Socket::request(&scene.stranger)).await.unwrap();
        socket.send(json!({ "type": kind, "user_ids": [] })).await;
        assert_eq!(socket.close_code().await, 4401, "{kind}");
    }
}

/// Tests the whole table in chats of one kind. Each accepted frame gets a scene of its own.
async fn check_table(server: &TestServer, kind: &str, column: impl Fn(&Row) -> [Outcome; 3]) {
    let stage = Stage::of(server).await;
    let scene = stage.scene(kind).await;

    for who in EVERYONE.into_iter().filter(|who| *who != Who::Stranger) {
        let mut socket = Socket::live(scene.who(who)).await;
        for row in TABLE {
            let expected = match who {
                Who::Stranger | Who::Other | Who::Ex => Err("chat_not_found"),
                Who::Member => column(row)[0],
                Who::Admin => column(row)[1],
                Who::Owner => column(row)[2],
            };

            let what = format!("{kind}: {who:?} {row:?}");
            let rev = scene.owner.get(&scene.path("")).await.expect(200)["rev"].clone();

            if let Err(code) = expected {
                assert_eq!(
                    ask(&mut socket, frame(&scene, who, row)).await,
                    Err(code.to_owned()),
                    "{what}"
                );
                assert_eq!(
                    scene.owner.get(&scene.path("")).await.expect(200)["rev"],
                    rev,
                    "{what}: changed something"
                );
            } else {
                let own = stage.scene(kind).await;
                assert_eq!(ask(&mut socket, frame(&own, who, row)).await, Ok(()), "{what}");
                own.owner.delete(&own.path("")).await.expect(204);
            }
        }
    }
}

async fn in_a_group_the_table_decides_which_frames_succeed(server: TestServer) {
    check_table(&server, "group", |row| row.2).await;
}

async fn in_a_channel_the_table_decides_which_frames_succeed(server: TestServer) {
    check_table(&server, "channel", |row| row.3).await;
}

async fn in_a_private_chat_the_table_decides_which_frames_succeed(server: TestServer) {
    // The group provides the users.
    let mut scene = Stage::of(&server).await.scene("group").await;

    for row in TABLE {
        scene.turn_private(server.user().await, server.user().await).await;
        for (who, expected) in [(Who::Other, Err("chat_not_found")), (Who::Member, row.4)] {
            let mut socket = Socket::live(scene.who(who)).await;
            let answer = ask(&mut socket, frame(&scene, who, row)).await;
            assert_eq!(answer, expected.map_err(str::to_owned), "private: {who:?} {row:?}");
        }
    }
}

async fn in_a_removed_group_no_frame_succeeds(server: TestServer) {
    let scene = Stage::of(&server).await.scene("group").await;
    scene.owner.delete(&scene.path("")).await.expect(204);
    for who in EVERYONE.into_iter().filter(|who| *who != Who::Stranger) {
        let mut socket = Socket::live(scene.who(who)).await;
        for row in TABLE {
            let answer = ask(&mut socket, frame(&scene, who, row)).await;
            assert_eq!(answer, Err("chat_not_found".to_owned()), "removed: {who:?} {row:?}");
        }
    }
}
