//! Large channels: the cost of a join does not grow with the members, and `member_count` stands for
//! each rev that a member does not get.

use serde_json::{Value, json};

use crate::support::{Backend, Socket, TestServer, User, everywhere_by, run_with};

/// Ordinary members of a channel with more members get counts in these tests.
const EVENTS_MAX: i64 = 3;

everywhere_by!(
    super::with_a_low_bound,
    members_of_a_large_channel_get_one_count_for_many_joins_and_its_leaders_get_each_join,
    a_count_comes_before_the_next_message_so_that_no_revision_is_missing,
    a_member_of_a_large_channel_that_was_away_gets_the_messages_and_a_count,
    a_member_that_becomes_an_admin_gets_the_events_from_then_on,
    up_to_the_bound_every_member_gets_every_join,
);

async fn with_a_low_bound<F: Future<Output = ()>>(
    backend: Backend,
    test: impl FnOnce(TestServer) -> F,
) {
    run_with(backend, |settings| settings.channel_events_members_max = Some(EVENTS_MAX), test)
        .await;
}

/// A channel with one member more than the bound: its owner, a reader, and others.
async fn large_channel(server: &TestServer) -> (User, User, String) {
    let (owner, reader) = (server.user().await, server.user().await);
    let chat = owner.channel(&[&reader]).await;
    for _ in 0..EVENTS_MAX - 1 {
        owner.add_member(&chat, &server.user().await).await;
    }
    (owner, reader, chat)
}

/// The frames of a socket up to one with this rev.
async fn up_to(socket: &mut Socket, rev: i64) -> Vec<Value> {
    let mut frames: Vec<Value> = Vec::new();
    while frames.last().is_none_or(|frame| frame["rev"] != rev) {
        frames.push(socket.next().await);
    }
    frames
}

#[track_caller]
fn kinds(frames: &[Value]) -> Vec<&str> {
    frames.iter().map(|frame| frame["type"].as_str().unwrap()).collect()
}

async fn members_of_a_large_channel_get_one_count_for_many_joins_and_its_leaders_get_each_join(
    server: TestServer,
) {
    let (owner, reader, chat) = large_channel(&server).await;
    let (mut of_owner, mut of_reader) = (Socket::live(&owner).await, Socket::live(&reader).await);
    let before = owner.get(&format!("/chats/{chat}")).await.expect(200);
    let (rev, members) =
        (before["rev"].as_i64().unwrap(), before["member_count"].as_i64().unwrap());

    for _ in 0..20 {
        owner.add_member(&chat, &server.user().await).await;
    }

    let events = up_to(&mut of_owner, rev + 20).await;
    assert_eq!(kinds(&events), ["member_joined"; 20]);
    // The number of counts depends on timing. Without them there would be twenty joins.
    let counts = up_to(&mut of_reader, rev + 20).await;
    assert!(
        counts.iter().all(|frame| frame["type"] == "member_count" && frame["chat_id"] == chat),
        "{counts:?}"
    );
    assert!(counts.len() < 20, "{}", counts.len());
    assert_eq!(counts.last().unwrap()["member_count"], members + 20);
}

async fn a_count_comes_before_the_next_message_so_that_no_revision_is_missing(server: TestServer) {
    let (owner, reader, chat) = large_channel(&server).await;
    let mut of_reader = Socket::live(&reader).await;
    let rev = owner.get(&format!("/chats/{chat}")).await.expect(200)["rev"].as_i64().unwrap();
    let newcomer = server.user().await;

    owner.add_member(&chat, &newcomer).await;
    newcomer.delete(&format!("/chats/{chat}/members/me")).await.expect(204);
    owner.say(&chat, "welcome").await;

    let frames = up_to(&mut of_reader, rev + 3).await;
    let (message, counts) = frames.split_last().unwrap();
    assert_eq!(message["type"], "new_message");
    assert!(kinds(counts).iter().all(|kind| *kind == "member_count"), "{counts:?}");
    assert_eq!(
        counts.last().unwrap()["rev"],
        rev + 2,
        "the count reaches to the message: {counts:?}"
    );
}

async fn a_member_of_a_large_channel_that_was_away_gets_the_messages_and_a_count(
    server: TestServer,
) {
    let (owner, reader, chat) = large_channel(&server).await;
    let known = owner.get(&format!("/chats/{chat}")).await.expect(200)["rev"].as_i64().unwrap();
    owner.say(&chat, "first").await;
    for _ in 0..5 {
        owner.add_member(&chat, &server.user().await).await;
    }

    let (_socket, missed) = Socket::resumed(&reader, json!({ chat.clone(): known })).await;
    let of_chat: Vec<Value> = missed.into_iter().filter(|frame| frame["chat_id"] == chat).collect();
    assert_eq!(kinds(&of_chat), ["new_message", "member_count"]);
    assert_eq!(
        (&of_chat[1]["rev"], &of_chat[1]["member_count"]),
        (&json!(known + 6), &json!(EVENTS_MAX + 6))
    );

    let (_socket, missed) = Socket::resumed(&owner, json!({ chat.clone(): known })).await;
    let joins = missed.iter().filter(|frame| frame["type"] == "member_joined").count();
    assert_eq!(joins, 5, "the owner gets each: {missed:?}");
}

async fn a_member_that_becomes_an_admin_gets_the_events_from_then_on(server: TestServer) {
    let (owner, reader, chat) = large_channel(&server).await;
    let mut of_reader = Socket::live(&reader).await;
    let rev = owner.get(&format!("/chats/{chat}")).await.expect(200)["rev"].as_i64().unwrap();

    owner.add_member(&chat, &server.user().await).await;
    let path = format!("/chats/{chat}/members/{}", reader.id);
    owner.patch(&path, json!({ "role": "admin" })).await.expect(200);
    owner.add_member(&chat, &server.user().await).await;

    let frames = up_to(&mut of_reader, rev + 3).await;
    let [counts @ .., changed, joined] = frames.as_slice() else { panic!("{frames:?}") };
    assert!(
        kinds(counts).iter().all(|kind| *kind == "member_count")
            && counts.last().unwrap()["rev"] == rev + 1
    );
    assert_eq!(
        (&changed["type"], &changed["member"]["role"]),
        (&json!("member_changed"), &json!("admin"))
    );
    assert_eq!((&joined["type"], &joined["rev"]), (&json!("member_joined"), &json!(rev + 3)));
}

async fn up_to_the_bound_every_member_gets_every_join(server: TestServer) {
    let (owner, reader) = (server.user().await, server.user().await);
    let chat = owner.channel(&[&reader]).await;
    let mut of_reader = Socket::live(&reader).await;
    owner.add_member(&chat, &server.user().await).await;
    assert_eq!(of_reader.next().await["type"], "member_joined");
}
