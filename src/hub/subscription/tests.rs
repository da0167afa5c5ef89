use uuid::Uuid;

use super::*;
use crate::cluster::memory::MemoryBus;
use crate::hub::connection::TakeOutcome;
use crate::model::{Message, MessageBody, MessageKind, SessionId, Timestamp};

const CHAT: ChatId = ChatId(Uuid::from_u128(1));

fn message(rev: i64, text: &str) -> Message {
    Message {
        chat_id: CHAT,
        id: MessageId(1),
        rev: Rev(rev),
        sender_id: UserId(Uuid::from_u128(2)),
        kind: MessageKind::Text,
        body: Some(MessageBody::Text(text.to_owned())),
        reply_to: None,
        client_id: None,
        sent_at: Timestamp::from_ms(0),
        edited_at: None,
        removed_at: None,
    }
}

fn kinds(connection: &Connection) -> Vec<String> {
    let mut frames = Vec::new();
    assert!(matches!(connection.take(&mut frames, usize::MAX), TakeOutcome::Open));
    let kind = |frame: &bytes::Bytes| {
        serde_json::from_slice::<serde_json::Value>(frame).unwrap()["type"].clone()
    };
    frames.iter().map(|frame| kind(frame).as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_message_delivered_while_the_store_was_read_is_healed_as_edited() {
    let registry = Registry::new(std::sync::Arc::new(MemoryBus::new().0));
    let connection = Connection::new(1, UserId(Uuid::from_u128(3)), SessionId::default(), 0);
    let mut subscription = ChatSubscription::delivered_up_to(Rev(1), 1000);
    assert!(connection.hold());
    subscription.follow_ahead(CHAT, &connection);
    subscription.settle(CHAT, &connection, Some(Rev(1).into()));
    connection.go_live(&HashMap::from([(CHAT, Rev(1))]));

    // The store is read from rev 1 on. Before it answers with the edited message, the event of the
    // original message arrives.
    let sent =
        ChatEvent { chat_id: CHAT, rev: Rev(2), change: Change::MessageSent(message(2, "hello")) };
    assert_eq!(subscription.accept(sent, &registry), Accepted::Settled);
    assert_eq!(kinds(&connection), ["new_message"]);

    let items = vec![(Rev(3), Change::MessageSent(message(3, "goodbye")))];
    subscription.catch_up(
        CHAT,
        items,
        &HashMap::from([(MessageId(1), Rev(2))]),
        MembershipSize::default(),
        Rev(3),
        &registry,
    );
    assert_eq!(kinds(&connection), ["message_edited"]);
    assert_eq!(subscription.rev(), Rev(3));
}

#[test]
fn a_message_that_no_follower_has_is_healed_as_new_even_if_edited() {
    let registry = Registry::new(std::sync::Arc::new(MemoryBus::new().0));
    let connection = Connection::new(1, UserId(Uuid::from_u128(3)), SessionId::default(), 0);
    let mut subscription = ChatSubscription::delivered_up_to(Rev(1), 1000);
    assert!(connection.hold());
    subscription.follow_ahead(CHAT, &connection);
    subscription.settle(CHAT, &connection, Some(Rev(1).into()));
    connection.go_live(&HashMap::from([(CHAT, Rev(1))]));

    let items = vec![(Rev(3), Change::MessageSent(message(3, "goodbye")))];
    subscription.catch_up(
        CHAT,
        items,
        &HashMap::from([(MessageId(1), Rev(2))]),
        MembershipSize::default(),
        Rev(3),
        &registry,
    );
    assert_eq!(kinds(&connection), ["new_message"]);
}
