//! `GET /chats/{id}/changes`: how a client catches up after any absence.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::column;
use crate::support::{TestServer, User, everywhere};

everywhere!(
    every_kind_of_change_grows_rev_by_exactly_one,
    requests_that_change_nothing_durable_keep_the_rev,
    each_change_is_returned_only_after_an_older_rev,
    an_item_with_several_changes_is_returned_once,
    pages_of_any_size_give_the_same_state,
    a_client_at_any_rev_catches_up,
    the_first_hundred_members_are_on_one_page,
    a_member_who_joins_again_is_listed_as_a_member,
    a_rev_beyond_the_latest_gets_no_changes,
    a_new_member_may_read_all_changes,
    a_client_away_longer_than_the_tombstones_catches_up,
    a_bad_rev_is_refused,
);

/// A chat as a client sees it that reads only pages of changes.
#[derive(Debug, Default, Clone, PartialEq)]
struct Replica {
    rev: i64,
    messages: BTreeMap<i64, Value>,
    members: BTreeMap<String, Value>,
    name: Value,
}

impl Replica {
    /// Applies the next page. Returns whether it was the last one.
    async fn step(&mut self, user: &User, chat: &str, max: &str) -> bool {
        let page = user
            .get(&format!("/chats/{chat}/changes?after_rev={}{max}", self.rev))
            .await
            .expect(200);
        let revs: Vec<i64> =
            column(&page["messages"], "rev").iter().map(|rev| rev.as_i64().unwrap()).collect();
        assert!(revs.is_sorted(), "oldest change first: {revs:?}");
        assert!(revs.iter().all(|rev| *rev > self.rev), "no change twice");
        if page["members_forgotten"] == json!(true) {
            let listed = user.get(&format!("/chats/{chat}/members")).await.expect(200);
            self.members.clear();
            self.take_members(&listed["members"]);
        }

        for message in page["messages"].as_array().unwrap() {
            self.messages.insert(message["id"].as_i64().unwrap(), message.clone());
        }
        self.take_members(&page["members"]);
        for id in page["removed_member_ids"].as_array().unwrap() {
            self.members.remove(id.as_str().unwrap());
        }

        if page["chat"].is_object() {
            self.name = page["chat"]["name"].clone();
        }

        let rev = page["rev"].as_i64().unwrap();
        let complete = page["complete"].as_bool().unwrap();
        assert!(rev > self.rev || complete, "each page advances");
        self.rev = rev;
        complete
    }

    fn take_members(&mut self, members: &Value) {
        for member in members.as_array().unwrap() {
            self.members.insert(member["user"]["id"].as_str().unwrap().to_owned(), member.clone());
        }
    }

    /// Applies pages up to the last.
    async fn sync(&mut self, user: &User, chat: &str, max: &str) {
        for _ in 0..1000 {
            if self.step(user, chat, max).await {
                return;
            }
        }
        panic!("the changes never end");
    }

    /// The chat as the other endpoints show it.
    async fn truth(user: &User, chat: &str) -> Self {
        let seen = user.get(&format!("/chats/{chat}")).await.expect(200);
        let mut truth = Self {
            rev: seen["rev"].as_i64().unwrap(),
            name: seen["name"].clone(),
            ..Self::default()
        };
        let history = user.get(&format!("/chats/{chat}/messages?max=100")).await.expect(200);
        for message in history["messages"].as_array().unwrap() {
            truth.messages.insert(message["id"].as_i64().unwrap(), message.clone());
        }

        truth.take_members(
            &user.get(&format!("/chats/{chat}/members")).await.expect(200)["members"],
        );
        truth
    }
}

async fn rev(user: &User, chat: &str) -> i64 {
    user.get(&format!("/chats/{chat}")).await.expect(200)["rev"].as_i64().unwrap()
}

async fn every_kind_of_change_grows_rev_by_exactly_one(server: TestServer) {
    let (ada, bob, cid) = (server.user().await, server.user().await, server.user().await);
    let chat = ada.group(&[&bob]).await;
    let path = |rest: String| format!("/chats/{chat}{rest}");
    let mut expected = 1;
    let mut grown = async |what: &str| {
        expected += 1;
        assert_eq!(rev(&ada, &chat).await, expected, "{what}");
    };
    let sent = ada.say(&chat, "one").await;

    grown("a message").await;
    assert_eq!(sent["rev"], 2);

    let edited = ada.patch(&path("/messages/1".into()), json!({ "text": "two" })).await.expect(200);
    grown("an edit").await;
    assert_eq!(edited["rev"], 3);
    ada.delete(&path("/messages/1".into())).await.expect(204);
    grown("a removal").await;
    ada.patch(&path(String::new()), json!({ "name": "Ship" })).await.expect(200);
    grown("a name").await;
    ada.post(&path("/members".into()), json!({ "user_id": cid.id })).await.expect(201);
    grown("a member who joins").await;
    ada.patch(&path(format!("/members/{}", cid.id)), json!({ "role": "admin" })).await.expect(200);
    grown("a role").await;
    ada.delete(&path(format!("/members/{}", cid.id))).await.expect(204);
    grown("a member who is removed").await;
    bob.delete(&path("/members/me".into())).await.expect(204);
    grown("a member who leaves").await;
}

async fn requests_that_change_nothing_durable_keep_the_rev(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    let body = json!({ "text": "one", "client_id": "k" });
    let messages = format!("/chats/{chat}/messages");
    ada.post(&messages, body.clone()).await.expect(201);
    ada.post(&messages, body).await.expect(200);
    ada.post(&messages, json!({ "text": "two", "client_id": "k" })).await.expect(409);
    ada.post(&messages, json!({ "text": "two", "reply_to": 9 })).await.expect(404);
    bob.put(&format!("/chats/{chat}/read"), json!({ "message_id": 1 })).await.expect(204);
    bob.patch(&format!("{messages}/1"), json!({ "text": "x" })).await.expect(403);
    ada.delete(&format!("{messages}/2")).await.expect(404);
    bob.patch("/users/me", json!({ "name": "Bob" })).await.expect(200);
    bob.delete(&format!("/chats/{chat}")).await.expect(204);

    assert_eq!(ada.private_chat(&bob).await, chat);
    assert_eq!(rev(&ada, &chat).await, 2);
}

async fn each_change_is_returned_only_after_an_older_rev(server: TestServer) {
    let (ada, bob, cid) = (server.user().await, server.user().await, server.user().await);
    let chat = ada.group(&[&bob]).await;
    ada.say(&chat, "one").await; // 2
    ada.patch(&format!("/chats/{chat}"), json!({ "name": "Ship" })).await.expect(200); // 3
    let members = format!("/chats/{chat}/members");
    ada.post(&members, json!({ "user_id": cid.id })).await.expect(201); // 4
    bob.delete(&format!("{members}/me")).await.expect(204); // 5
    let page = async |after: i64| {
        ada.get(&format!("/chats/{chat}/changes?after_rev={after}")).await.expect(200)
    };

    let shape = |page: &Value| {
        let members = column(&json!(column(&page["members"], "user")), "id");
        (
            column(&page["messages"], "id"),
            members,
            page["removed_member_ids"].clone(),
            page["chat"]["name"].clone(),
        )
    };

    let (message, name) = (vec![json!(1)], json!("Ship"));
    let (cid_in, bob_out) = (vec![json!(cid.id)], json!([bob.id]));
    assert_eq!(shape(&page(1).await), (message, cid_in.clone(), bob_out.clone(), name.clone()));
    assert_eq!(shape(&page(2).await), (vec![], cid_in.clone(), bob_out.clone(), name));
    assert_eq!(shape(&page(3).await), (vec![], cid_in, bob_out.clone(), Value::Null));
    assert_eq!(shape(&page(4).await), (vec![], vec![], bob_out, Value::Null));
    assert_eq!(shape(&page(5).await), (vec![], vec![], json!([]), Value::Null));

    let all = page(0).await;
    assert_eq!((&all["rev"], &all["complete"]), (&json!(5), &json!(true)));
    assert_eq!(
        all["chat"],
        ada.get(&format!("/chats/{chat}")).await.expect(200),
        "as the caller sees it"
    );
}

async fn an_item_with_several_changes_is_returned_once(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.group(&[&bob]).await;
    for text in ["first", "second"] {
        ada.say(&chat, text).await;
    }

    for text in ["edited", "edited again"] {
        ada.patch(&format!("/chats/{chat}/messages/1"), json!({ "text": text })).await.expect(200);
    }

    for role in ["admin", "member", "admin"] {
        ada.patch(&format!("/chats/{chat}/members/{}", bob.id), json!({ "role": role }))
            .await
            .expect(200);
    }

    let page = bob.get(&format!("/chats/{chat}/changes?after_rev=1")).await.expect(200);
    assert_eq!(column(&page["messages"], "id"), [2, 1], "by the latest change, not by place");
    assert_eq!(column(&page["messages"], "text"), ["second", "edited again"]);
    assert_eq!(column(&page["members"], "role"), ["admin"]);
    assert_eq!(page["rev"], 8);
}

/// A chat with changes of every kind, and its state after each change.
async fn eventful(server: &TestServer) -> (User, String, Vec<Replica>) {
    let (ada, bob, cid) = (server.user().await, server.user().await, server.user().await);
    let chat = ada.group(&[&bob]).await;
    let path = format!("/chats/{chat}");
    let mut states = vec![Replica::truth(&ada, &chat).await];
    for number in 0..24 {
        match number % 8 {
            0 | 3 => drop(bob.say(&chat, &format!("m{number}")).await),
            1 => drop(
                ada.post(&format!("{path}/members"), json!({ "user_id": cid.id }))
                    .await
                    .expect(201),
            ),
            2 => drop(
                bob.patch(&format!("{path}/messages/1"), json!({ "text": format!("e{number}") }))
                    .await
                    .expect(200),
            ),
            4 => drop(ada.patch(&path, json!({ "name": format!("n{number}") })).await.expect(200)),
            5 => drop(ada.say(&chat, &format!("m{number}")).await),
            6 => drop(ada.delete(&format!("{path}/members/{}", cid.id)).await.expect(204)),
            _ => drop(
                bob.delete(&format!("{path}/messages/{}", number / 8 * 3 + 2)).await.expect(204),
            ),
        }
        states.push(Replica::truth(&ada, &chat).await);
    }
    (ada, chat, states)
}

async fn pages_of_any_size_give_the_same_state(server: TestServer) {
    let (ada, chat, states) = eventful(&server).await;
    let truth = states.last().unwrap();
    for max in ["", "&max=1", "&max=2", "&max=3", "&max=7", "&max=100"] {
        let mut replica = Replica::default();
        replica.sync(&ada, &chat, max).await;
        assert_eq!(replica, *truth, "{max}");
    }
}

async fn a_client_at_any_rev_catches_up(server: TestServer) {
    let (ada, chat, states) = eventful(&server).await;
    let truth = states.last().unwrap();
    for state in &states {
        for max in ["", "&max=2"] {
            let mut replica = state.clone();
            replica.sync(&ada, &chat, max).await;
            assert_eq!(replica.messages, truth.messages);
            assert_eq!(
                (replica.rev, &replica.name),
                (truth.rev, &truth.name),
                "from {}",
                state.rev
            );

            let roles = |replica: &Replica| -> Vec<(String, Value)> {
                replica
                    .members
                    .iter()
                    .map(|(id, member)| (id.clone(), member["role"].clone()))
                    .collect()
            };
            assert_eq!(roles(&replica), roles(truth), "from {}", state.rev);
        }
    }
}

async fn the_first_hundred_members_are_on_one_page(server: TestServer) {
    let ada = server.user().await;
    let mut users = Vec::new();
    for _ in 0..12 {
        users.push(server.user().await);
    }

    let chat = ada.channel(&users.iter().collect::<Vec<_>>()).await;
    ada.say(&chat, "one").await;

    let mut replica = Replica::default();
    replica.sync(&ada, &chat, "&max=1").await;
    assert_eq!(replica, Replica::truth(&ada, &chat).await);
    assert_eq!(replica.members.len(), 13);
}

async fn a_member_who_joins_again_is_listed_as_a_member(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.group(&[&bob]).await;
    let members = format!("/chats/{chat}/members");
    ada.delete(&format!("{members}/{}", bob.id)).await.expect(204);

    let after_leaving = ada.get(&format!("/chats/{chat}/changes?after_rev=1")).await.expect(200);
    assert_eq!(after_leaving["removed_member_ids"], json!([bob.id]));
    ada.post(&members, json!({ "user_id": bob.id, "role": "admin" })).await.expect(201);

    for rev in [0, 1, 2] {
        let page = ada.get(&format!("/chats/{chat}/changes?after_rev={rev}")).await.expect(200);
        assert_eq!(page["removed_member_ids"], json!([]));
        let back = page["members"]
            .as_array()
            .unwrap()
            .iter()
            .find(|it| it["user"]["id"] == json!(bob.id))
            .unwrap();
        assert_eq!(back["role"], "admin");
    }
}

async fn a_rev_beyond_the_latest_gets_no_changes(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.private_chat(&bob).await;
    ada.say(&chat, "one").await;
    for after in [2, 3, i64::MAX] {
        let page = ada.get(&format!("/chats/{chat}/changes?after_rev={after}")).await.expect(200);
        let nothing = json!({
            "messages": [], "members": [], "removed_member_ids": [], "rev": 2, "complete": true
        });
        assert_eq!(page, nothing);
    }
}

async fn a_new_member_may_read_all_changes(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let chat = ada.group(&[]).await;
    ada.say(&chat, "before").await;
    ada.post(&format!("/chats/{chat}/members"), json!({ "user_id": bob.id })).await.expect(201);
    let mut replica = Replica::default();
    replica.sync(&bob, &chat, "").await;
    assert_eq!(replica.messages[&1]["text"], "before");
    assert_eq!(replica.members.len(), 2);
}

async fn a_client_away_longer_than_the_tombstones_catches_up(server: TestServer) {
    let (ada, bob, cid) = (server.user().await, server.user().await, server.user().await);
    let chat = ada.group(&[&bob, &cid]).await;
    let before = Replica::truth(&ada, &chat).await;
    for number in 0..12 {
        ada.say(&chat, &format!("m{number}")).await;
    }

    bob.delete(&format!("/chats/{chat}/members/me")).await.expect(204);
    for number in 0..12 {
        ada.say(&chat, &format!("n{number}")).await;
    }
    server.advance(Duration::from_hours(31 * 24));
    server.cleanup().run_once().await.unwrap();

    let ada = super::granted(&ada, &super::log_in(&ada).await);
    let truth = Replica::truth(&ada, &chat).await;
    for max in ["", "&max=2", "&max=5"] {
        let (mut back, mut new) = (before.clone(), Replica::default());
        back.sync(&ada, &chat, max).await;
        new.sync(&ada, &chat, max).await;

        for replica in [back, new] {
            assert_eq!((replica.rev, &replica.messages), (truth.rev, &truth.messages), "{max}");
            assert_eq!(
                replica.members.keys().collect::<Vec<_>>(),
                truth.members.keys().collect::<Vec<_>>(),
                "{max}"
            );
        }
    }
}

async fn a_bad_rev_is_refused(server: TestServer) {
    let ada = server.user().await;
    let chat = ada.group(&[]).await;
    for bad in ["-1", "x", "", "1.5", "9223372036854775808"] {
        ada.get(&format!("/chats/{chat}/changes?after_rev={bad}"))
            .await
            .refused_fields(&["after_rev"]);
    }
}
