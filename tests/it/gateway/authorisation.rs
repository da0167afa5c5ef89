//! Who may do what by frame: every frame of the document times everyone who may come along. A frame
//! without a row fails.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use starling::wire::ClientFrame;

use crate::api::authorisation::{EVERYONE, Scene, Stage, Who};
use crate::support::{Socket, TestServer, everywhere};

everywhere!(
    every_frame_has_a_row_in_a_table_and_every_row_a_frame,
    before_it_authenticates_nobody_is_answered_anything,
    in_a_group_everyone_may_do_by_frame_what_the_table_says_and_no_more,
    in_a_channel_everyone_may_do_by_frame_what_the_table_says_and_no_more,
    in_a_private_chat_the_two_may_do_by_frame_what_the_table_says_and_no_more,
    in_a_removed_group_nobody_may_do_anything_by_frame,
);

/// What the frame is about, where it matters.
#[derive(Clone, Copy, Debug)]
enum About {
    Chat,
    /// The message that the asker sent.
    Own,
    /// The message that another member sent.
    Others,
    /// A message that was removed.
    Removed,
}

/// What a frame comes to: done, or refused with this code.
type Outcome = Result<(), &'static str>;

const DONE: Outcome = Ok(());
const NOT_ALLOWED: Outcome = Err("not_allowed");

/// A row: a frame about a chat, and what members, admins and owners of a group and of a channel
/// get. Others and ex-members get `chat_not_found`, always. The last: members of a private chat.
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

/// Frames about the caller alone, or about users: what they tell of whom is tested with each of
/// them.
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
        frame["text"] = json!("said by frame");
    }
    frame
}

fn code(answer: &Value) -> String {
    answer["code"].as_str().unwrap_or_default().to_owned()
}

/// What the frame comes to. `typing` is not answered if all is well: the ping behind it is.
async fn ask(socket: &mut Socket, frame: Value) -> Result<(), String> {
    if frame["type"] != "typing" {
        let answer = socket.ask(frame).await;
        return if answer["type"] == "ack" { Ok(()) } else { Err(code(&answer)) };
    }
    socket.send(frame).await;
    // It is worked on beside the next frame, which may be answered first.
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

async fn before_it_authenticates_nobody_is_answered_anything(server: TestServer) {
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

/// Plays the whole table in chats of one kind, each square that changes something in a scene of its
/// own.
async fn play(server: &TestServer, kind: &str, column: impl Fn(&Row) -> [Outcome; 3]) {
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

async fn in_a_group_everyone_may_do_by_frame_what_the_table_says_and_no_more(server: TestServer) {
    play(&server, "group", |row| row.2).await;
}

async fn in_a_channel_everyone_may_do_by_frame_what_the_table_says_and_no_more(server: TestServer) {
    play(&server, "channel", |row| row.3).await;
}

async fn in_a_private_chat_the_two_may_do_by_frame_what_the_table_says_and_no_more(
    server: TestServer,
) {
    // The group is only where the people come from.
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

async fn in_a_removed_group_nobody_may_do_anything_by_frame(server: TestServer) {
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
