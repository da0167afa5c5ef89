use crate::model::user::UserBrief;
use crate::model::{
    Change, Chat, ChatEvent, ChatKind, LastMessage, Member, Message, MessageBody, MessageId,
    MessageKind, Rev, Role, SessionId,
};

use super::*;

fn uuid(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn chat_id() -> ChatId {
    ChatId(uuid(1))
}

fn user_id() -> UserId {
    UserId(uuid(2))
}

fn at(ms: i64) -> Timestamp {
    Timestamp::from_ms(ms)
}

fn header(kind: BusKind, topics: Vec<Topic>) -> BusHeader {
    BusHeader {
        version: VERSION,
        kind,
        from: 42,
        epoch: Some(Epoch(uuid(9))),
        sealed_at: at(1_795_305_599_123),
        topics,
    }
}

fn message() -> Message {
    Message {
        chat_id: chat_id(),
        id: MessageId(3),
        rev: Rev(4),
        sender_id: user_id(),
        kind: MessageKind::Text,
        body: Some(MessageBody::Text("żółw 🐢\n".to_owned())),
        reply_to: Some(MessageId(1)),
        client_id: Some("key".to_owned()),
        sent_at: at(5),
        edited_at: Some(at(6)),
        removed_at: Some(at(7)),
    }
}

fn user() -> UserBrief {
    UserBrief { id: user_id(), login: Some("ada".to_owned()), name: "Ada".to_owned() }
}

fn member() -> Member {
    Member { user: user(), role: Role::Admin, joined_at: at(8), last_read_message_id: MessageId(2) }
}

fn chat() -> Chat {
    let last_message = LastMessage {
        id: MessageId(3),
        sender_id: user_id(),
        text: Some("hi".to_owned()),
        sent_at: at(5),
        kind: MessageKind::Text,
    };
    Chat {
        id: chat_id(),
        kind: ChatKind::SelfChat,
        name: "Crew".to_owned(),
        created_at: at(1),
        rev: Rev(4),
        last_message_at: Some(at(5)),
        last_message_id: MessageId(3),
        last_message: Some(last_message),
        unread_count: Some(1),
        last_read_message_id: Some(MessageId(2)),
        role: Some(Role::Owner),
        member_count: 2,
        peer: Some(user()),
    }
}

/// Every kind of event, with every field set.
fn events() -> Vec<Event> {
    let (chat_id, user_id) = (chat_id(), user_id());
    let session_id = SessionId(uuid(3));
    let changes = vec![
        Change::Created(vec![(user_id, chat())]),
        Change::MessageSent(message()),
        Change::MessageEdited(message()),
        Change::MessageRemoved(message()),
        Change::MemberJoined(Box::new((member(), Some(chat())))),
        Change::MemberChanged(member()),
        Change::MemberLeft(user_id),
        Change::Renamed(chat()),
        Change::Removed,
    ];
    let durable =
        changes.into_iter().map(|change| Event::Chat(ChatEvent { chat_id, rev: Rev(4), change }));

    let others = [
        Event::Read { chat_id, user_id, message_id: MessageId(3), to_all: true },
        Event::Typing { chat_id, user_id },
        Event::ChatGone { chat_id, user_id },
        Event::ChatBack { chat_id, user_id },
        Event::SessionsEnded(vec![session_id]),
        Event::LoggedInAgain { session_id, logins: 2 },
        Event::Presence(user_id),
    ];
    durable.chain(others).collect()
}

fn written(event: &Event) -> Vec<u8> {
    let mut body = Vec::new();
    header(BusKind::Event, event.topics()).write_event(event, &mut body);
    body
}

#[test]
fn every_event_is_read_as_it_was_written() {
    for event in events() {
        let body = written(&event);
        let read = BusMessage::read(&body).unwrap();
        assert_eq!(read.header, header(BusKind::Event, event.topics()));
        assert_eq!(format!("{:?}", read.event().unwrap()), format!("{event:?}"));
    }
}

/// If this test fails, the protocol between replicas has changed: raise `VERSION`.
#[test]
fn version_1_is_written_byte_for_byte_as_in_v1_jsonl() {
    let all: String =
        events().iter().map(|event| String::from_utf8(written(event)).unwrap() + "\n").collect();
    assert_eq!(all, include_str!("v1.jsonl"));
}

#[test]
fn a_payload_of_another_version_or_with_an_unknown_field_is_not_read_and_its_topics_are() {
    let event = Event::Typing { chat_id: chat_id(), user_id: user_id() };
    let present = String::from_utf8(written(&event)).unwrap();
    for (from, to) in [
        (r#""version":1"#, r#""version":2"#),
        (r#""kind":"event""#, r#""kind":"poll""#),
        (r#""typing":{"#, r#""typing":{"speed":3,"#),
        (r#"{"typing""#, r#"{"dancing""#),
        ("\n{", "\n\u{1}"),
    ] {
        let next = present.replacen(from, to, 1);
        assert_ne!(next, present);
        let message = BusMessage::read(next.as_bytes()).unwrap();
        assert!(message.event().is_none(), "{next}");
        assert_eq!(message.header.topics, [Topic::Chat(chat_id())]);
    }
}

#[test]
fn a_header_with_more_fields_and_more_kinds_of_topic_is_read() {
    let body =
        r#"{"version":7,"kind":"resync","colour":"red","from":1,"epoch":null,"sealed_at_ms":5,
        "topics":["everyone","planet:3","user:00000000-0000-0000-0000-000000000002","chat:x"]}"#
            .replace('\n', "");
    let body = format!("{body}\n");
    let message = BusMessage::read(body.as_bytes()).unwrap();
    assert_eq!((message.header.version, message.header.kind), (7, BusKind::Resync));
    assert_eq!(message.header.topics, [Topic::Everyone, Topic::User(user_id())]);
}

#[test]
fn bytes_without_a_header_are_no_message() {
    for body in ["", "\n", "{}", "{}\n", r#"{"from":1,"said":"Canary"}"#, "a line\nof text"] {
        assert!(BusMessage::read(body.as_bytes()).is_none(), "{body}");
    }
}

#[test]
fn every_topic_has_a_name_of_its_own_that_is_read_back() {
    let topics = [
        Topic::Chat(chat_id()),
        Topic::User(user_id()),
        Topic::Presence(user_id()),
        Topic::Everyone,
    ];
    for topic in topics {
        assert_eq!(topic_named(&topic_name(&topic)), Some(topic));
    }
}

#[test]
fn a_message_is_stale_a_minute_after_it_was_sealed_and_a_minute_before() {
    let header = header(BusKind::Canary, Vec::new());
    let (at, second) = (header.sealed_at, std::time::Duration::from_secs(1));
    for (now, stale) in [
        (at, false),
        (at.plus(BUS_EVENT_AGE_MAX), false),
        (at.plus(BUS_EVENT_AGE_MAX + second), true),
        (at.minus(BUS_EVENT_AGE_MAX + second), true),
    ] {
        assert_eq!(header.is_stale(now), stale, "{now}");
    }
}
