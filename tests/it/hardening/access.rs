//! The statement that reads decides whether the caller may read: a removed member reads nothing
//! that came after the removal.
//!
//! A test locks the table that a read needs last, while the read is under way. A read that checked
//! the membership by an earlier statement would be past that check, and wait. Meanwhile the test
//! removes the caller and adds a row.

use crate::support::{
    Answer, Backend, TestServer, User, eventually, everywhere, execute, lock_waits,
};

everywhere!(a_former_member_and_a_stranger_read_nothing_and_a_member_reads_an_empty_page);

/// Reads while `table` is locked. The lock ends once the reader is removed and `news` is executed.
async fn read_across_a_removal(
    server: &TestServer,
    (owner, reader): (&User, &User),
    (chat, path): (&str, &str),
    (table, news): (&str, String),
) -> Answer {
    let (mut holder, mut other) = (server.postgres().await, server.postgres().await);
    execute(&mut holder, &format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")).await;

    let reading = reader.get(path);
    let removing = async {
        eventually("the read waits for the table", async || lock_waits(&mut other).await > 0).await;
        owner.delete(&format!("/chats/{chat}/members/{}", reader.id)).await.expect(204);
        execute(&mut holder, &news).await;
        execute(&mut holder, "COMMIT").await;
    };

    tokio::join!(reading, removing).0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_removed_while_a_read_is_under_way_reads_nothing_that_came_after() {
    let server = TestServer::start(Backend::Postgres).await;
    let (ada, bob) = (server.user().await, server.user().await);
    for round in 0..4 {
        let chat = ada.group(&[&bob]).await;
        ada.say(&chat, "for all").await;
        bob.get(&format!("/chats/{chat}")).await.expect(200);

        let path = match round {
            0 => format!("/chats/{chat}/messages"),
            1 => format!("/chats/{chat}/messages?after=0"),
            2 => format!("/chats/{chat}/messages/2"),
            _ => format!("/chats/{chat}/changes?after_rev=1"),
        };

        let news = format!(
            "INSERT INTO messages (chat_id, id, rev, sent_rev, sender_id, kind, text, sent_at_ms)
             VALUES ('{chat}', 2, 4, 4, '{}', 'text', 'secret', 1)",
            ada.id
        );

        let answer =
            read_across_a_removal(&server, (&ada, &bob), (&chat, &path), ("messages", news)).await;
        assert!(!answer.body.to_string().contains("secret"), "{path}: {}", answer.body);
        if round < 3 {
            answer.refused(404, "chat_not_found");
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_removed_while_the_members_are_read_reads_no_later_member() {
    let server = TestServer::start(Backend::Postgres).await;
    let (ada, bob, cid) = (server.user().await, server.user().await, server.user().await);
    for after in ["", "?limit=2"] {
        let chat = ada.group(&[&bob]).await;
        bob.get(&format!("/chats/{chat}")).await.expect(200);

        let news = format!(
            "INSERT INTO members
                 (chat_id, user_id, role, joined_at_ms, joined_rev, rev, last_read_message_id)
             VALUES ('{chat}', '{}', 'member', 1, 3, 3, 0)",
            cid.id
        );

        let path = format!("/chats/{chat}/members{after}");
        let answer =
            read_across_a_removal(&server, (&ada, &bob), (&chat, &path), ("users", news)).await;
        assert!(!answer.body.to_string().contains(&cid.id), "{}", answer.body);
        answer.refused(404, "chat_not_found");
    }
    server.stop().await;
}

async fn a_former_member_and_a_stranger_read_nothing_and_a_member_reads_an_empty_page(
    server: TestServer,
) {
    let (ada, bob, eve) = (server.user().await, server.user().await, server.user().await);
    let chat = ada.group(&[&bob]).await;
    let (messages, members) = (format!("/chats/{chat}/messages"), format!("/chats/{chat}/members"));
    let empty = bob.get(&messages).await.expect(200);
    assert_eq!(empty["messages"].as_array().map(Vec::len), Some(0), "nothing was sent yet");
    bob.get(&format!("{messages}/1")).await.refused(404, "message_not_found");

    ada.say(&chat, "hello").await;
    assert_eq!(bob.texts(&chat, "?after=1").await, Vec::<String>::new());
    assert_eq!(bob.texts(&chat, "?before=1").await, Vec::<String>::new());

    let all = bob.get(&members).await.expect(200);
    assert_eq!(all["members"].as_array().map(Vec::len), Some(2));
    let last = bob.get(&format!("{members}?limit=1")).await.expect(200);
    let cursor = last["next_cursor"].as_str().unwrap();
    ada.delete(&format!("/chats/{chat}/members/{}", bob.id)).await.expect(204);

    for reader in [&bob, &eve] {
        for path in [
            &messages,
            &format!("{messages}?after=0"),
            &format!("{messages}?after=1"),
            &format!("{messages}/1"),
        ] {
            reader.get(path).await.refused(404, "chat_not_found");
        }
        for path in [&members, &format!("{members}?limit=1&after={cursor}")] {
            reader.get(path).await.refused(404, "chat_not_found");
        }
        reader.get(&format!("/chats/{chat}/changes")).await.refused(404, "chat_not_found");
    }

    // No path leads to the history that a member removed for themselves.
    let pair = ada.private_chat(&bob).await;
    ada.say(&pair, "before").await;
    bob.delete(&format!("/chats/{pair}")).await.expect(204);
    ada.say(&pair, "after").await;
    assert_eq!(bob.texts(&pair, "").await, ["after"]);
    assert_eq!(bob.texts(&pair, "?after=0").await, ["after"]);
    bob.get(&format!("/chats/{pair}/messages/1")).await.refused(404, "message_not_found");
    assert_eq!(ada.texts(&pair, "").await, ["before", "after"]);
}
