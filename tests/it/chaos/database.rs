//! The parts of the final log that only the database has: the rev and `client_id` with which each
//! message was sent, and the revs at which each member joined and left.

use std::collections::HashMap;

use sqlx::{Connection, PgConnection};
use starling_loadtest::checker::{FinalChat, FinalLog, FinalMember};
use starling_loadtest::history::{Digest, History};
use uuid::Uuid;

/// Completes the log that the replicas returned.
pub async fn complete(log: &mut FinalLog, history: &History, url: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    for chat in &mut log.chats {
        complete_chat(chat, history, &mut connection).await;
    }
}

async fn complete_chat(chat: &mut FinalChat, history: &History, connection: &mut PgConnection) {
    let id: Uuid = history.word(chat.chat).parse().unwrap();
    let messages: Vec<(i64, i64, Option<String>)> =
        sqlx::query_as("SELECT id, sent_rev, client_id FROM messages WHERE chat_id = $1")
            .bind(id)
            .fetch_all(&mut *connection)
            .await
            .unwrap();

    let messages: HashMap<u32, (u32, Digest)> = messages
        .into_iter()
        .map(|(id, sent_rev, key)| {
            (number(id), (number(sent_rev), key.map_or(Digest::NONE, |key| Digest::of(&key))))
        })
        .collect();
    assert_eq!(messages.len(), chat.messages.len(), "the replicas show what the database holds");
    for message in &mut chat.messages {
        (message.sent_rev, message.client_id) = messages[&message.seen.id];
    }

    let members: Vec<(Uuid, i64, i64, Option<i64>, i64)> = sqlx::query_as(
        "SELECT user_id, joined_rev, rev, left_rev, last_read_message_id FROM members
         WHERE chat_id = $1",
    )
    .bind(id)
    .fetch_all(&mut *connection)
    .await
    .unwrap();

    let member =
        |(user_id, joined_rev, rev, left_rev, last_read): (Uuid, i64, i64, Option<i64>, i64)| {
            FinalMember {
                user: history.name(&user_id.to_string()),
                joined_rev: number(joined_rev),
                rev: number(rev),
                left_rev: left_rev.map(number),
                last_read_message_id: number(last_read),
            }
        };

    chat.members = members.into_iter().map(member).collect();
    let renamed: i64 = sqlx::query_scalar("SELECT renamed_rev FROM chats WHERE id = $1")
        .bind(id)
        .fetch_one(connection)
        .await
        .unwrap();
    chat.renamed_rev = number(renamed);
}

fn number(value: i64) -> u32 {
    value.try_into().unwrap()
}
