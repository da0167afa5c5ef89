//! Which users may add whom to a chat, and how many chats others may add a user to.

use futures_util::future::join_all;
use serde_json::{Value, json};
use starling::model::limits::CHATS_BY_OTHERS_MAX;
use starling::model::{ChatId, UserId};
use starling::store::{AddMember, Creation, NewChat, Store};

use crate::support::{Answer, Socket, TestServer, User, everywhere};

everywhere!(
    a_user_that_refuses_strangers_is_reached_only_by_acquaintances,
    the_refusal_of_strangers_is_shown_only_to_its_user,
    chats_by_others_are_bounded_and_counted_apart_from_a_users_own,
    all_chats_by_others_fit_in_one_sync,
    a_refusal_is_exact_under_concurrent_requests,
);

async fn open(user: &User, peer: &User) -> Answer {
    user.post("/chats", json!({ "kind": "private", "member_ids": [peer.id] })).await
}

async fn make_group(user: &User, members: &[&User]) -> Answer {
    let ids: Vec<&str> = members.iter().map(|member| member.id.as_str()).collect();
    user.post("/chats", json!({ "kind": "group", "name": "Crew", "member_ids": ids })).await
}

async fn add(user: &User, chat: &str, new: &User) -> Answer {
    user.post(&format!("/chats/{chat}/members"), json!({ "user_id": new.id })).await
}

async fn refuse_strangers(user: &User, refuse: bool) -> Value {
    user.patch("/users/me", json!({ "refuse_strangers": refuse })).await.expect(200)
}

async fn a_user_that_refuses_strangers_is_reached_only_by_acquaintances(server: TestServer) {
    let (ada, bob, eve) = (server.user().await, server.user().await, server.user().await);
    bob.group(&[&ada]).await;
    let of_eve = eve.group(&[]).await;
    refuse_strangers(&ada, true).await;

    let refused = open(&eve, &ada).await;
    refused.refused(403, "user_unreachable");
    let in_a_group = make_group(&eve, &[&ada]).await;
    in_a_group.refused(403, "user_unreachable");
    let added = add(&eve, &of_eve, &ada).await;
    added.refused(403, "user_unreachable");
    let among_others = make_group(&eve, &[&bob, &ada]).await;
    among_others.refused(403, "user_unreachable");
    for answer in [&in_a_group, &added, &among_others] {
        assert_eq!(answer.body, refused.body, "the answers are equal and name no user");
    }
    assert_eq!(
        ada.get("/chats").await.expect(200)["chats"].as_array().map(Vec::len),
        Some(1),
        "no chat was made"
    );

    // Bob shares a chat with Ada, so he reaches her. Ada reaches everybody.
    let private = open(&bob, &ada).await.expect(201);
    make_group(&bob, &[&ada]).await.expect(201);
    let of_bob = bob.group(&[]).await;
    add(&bob, &of_bob, &ada).await.expect(201);
    let to_eve = open(&ada, &eve).await.expect(201);

    // Now Eve shares a chat with Ada: the chat of the pair is found, and Eve may add her to others.
    assert_eq!(open(&eve, &ada).await.expect(200)["id"], to_eve["id"]);
    add(&eve, &of_eve, &ada).await.expect(201);

    // A removed chat does not count as shared.
    let cid = server.user().await;
    let with_cid = cid.group(&[]).await;
    open(&cid, &ada).await.refused(403, "user_unreachable");
    refuse_strangers(&ada, false).await;
    let common = make_group(&cid, &[&ada]).await.expect(201);
    refuse_strangers(&ada, true).await;
    cid.delete(&format!("/chats/{}", common["id"].as_str().unwrap())).await.expect(204);
    open(&cid, &ada).await.refused(403, "user_unreachable");
    add(&cid, &with_cid, &ada).await.refused(403, "user_unreachable");
    assert_eq!(open(&bob, &ada).await.expect(200)["id"], private["id"]);
}

async fn the_refusal_of_strangers_is_shown_only_to_its_user(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    assert_eq!(ada.get("/users/me").await.expect(200)["refuse_strangers"], false);
    assert_eq!(refuse_strangers(&ada, true).await["refuse_strangers"], true);
    assert_eq!(ada.get("/users/me").await.expect(200)["refuse_strangers"], true);
    let renamed = ada.patch("/users/me", json!({ "name": "Ada" })).await.expect(200);
    assert_eq!(renamed["refuse_strangers"], true, "another change keeps the setting");
    for value in [json!(1), json!("yes")] {
        ada.patch("/users/me", json!({ "refuse_strangers": value }))
            .await
            .refused_fields(&["refuse_strangers"]);
    }

    let shown = bob.get(&format!("/users/{}", ada.id)).await.expect(200);
    assert!(shown.get("refuse_strangers").is_none(), "{shown}");
    let listed = bob.get(&format!("/users?query={}", ada.login)).await.expect(200);
    assert!(!listed.to_string().contains("refuse_strangers"), "{listed}");
}

/// Creates chats without a client, since the tests need many.
struct Maker<'a> {
    server: &'a TestServer,
    store: &'a Store,
}

impl<'a> Maker<'a> {
    fn new(server: &'a TestServer) -> Self {
        Self { server, store: server.store() }
    }

    async fn open(&self, creator: &User, kind: Creation) -> Result<ChatId, String> {
        let now = self.server.clock().now();
        let id = ChatId::new(now, &mut rand::rng());
        let new = NewChat { id, kind, creator: user_id(creator), now, chats_max: 1000 };
        self.store
            .create_chat(&new)
            .await
            .map(|_| id)
            .map_err(|error| error.code.as_str().to_owned())
    }

    async fn group(&self, creator: &User, members: &[&User]) -> Result<ChatId, String> {
        let members = members.iter().map(|member| user_id(member)).collect();
        let kind = starling::model::ChatKind::Group;
        self.open(creator, Creation::Shared { kind, name: "Crew".to_owned(), members }).await
    }
}

fn user_id(user: &User) -> UserId {
    user.id.parse().unwrap()
}

async fn chats_by_others_are_bounded_and_counted_apart_from_a_users_own(server: TestServer) {
    let (ada, bob, cid) = (server.user().await, server.user().await, server.user().await);
    let maker = Maker::new(&server);
    let left = maker.group(&bob, &[&ada]).await.unwrap();
    for _ in 0..CHATS_BY_OTHERS_MAX - 2 {
        maker.group(&bob, &[&ada]).await.unwrap();
    }

    open(&cid, &ada).await.expect(201);
    let last = server.user().await;
    open(&last, &ada).await.refused(409, "chat_limit_reached");
    make_group(&cid, &[&ada]).await.refused(409, "chat_limit_reached");
    let of_cid = cid.group(&[]).await;
    add(&cid, &of_cid, &ada).await.refused(409, "chat_limit_reached");

    // The chats by others do not count for the bound of Ada's own chats.
    ada.group(&[&last]).await;
    assert_eq!(open(&ada, &last).await.status, 201);
    assert_eq!(open(&last, &ada).await.status, 200, "the existing chat is found");

    // When Ada leaves a chat, there is room for exactly one, however many requests come at once.
    ada.delete(&format!("/chats/{left}/members/me")).await.expect(204);
    let others = join_all((0..4).map(|_| server.user())).await;
    let rush = join_all(others.iter().map(|other| open(other, &ada))).await;
    let mut statuses: Vec<u16> = rush.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409, 409, 409], "the bound holds for requests at once");
}

async fn all_chats_by_others_fit_in_one_sync(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let maker = Maker::new(&server);
    while maker.group(&bob, &[&ada]).await.is_ok() {}

    // By default a user may have 1000 chats of their own. 200 also show that the frame stays far
    // below its bound.
    for _ in 0..200 {
        maker.group(&ada, &[]).await.unwrap();
    }

    let mut known = serde_json::Map::new();
    for (chat, rev) in maker.store.chat_heads(user_id(&ada)).await.unwrap() {
        known.insert(chat.to_string(), json!(rev.0));
    }
    assert_eq!(i64::try_from(known.len()).unwrap(), CHATS_BY_OTHERS_MAX + 200);

    let (_socket, frames) = Socket::resumed(&ada, Value::Object(known.clone())).await;
    assert_eq!(frames.len(), 1, "nothing was missed");
    assert_eq!(frames[0]["chats"].as_object().map(serde_json::Map::len), Some(known.len()));
}

async fn a_refusal_is_exact_under_concurrent_requests(server: TestServer) {
    for _ in 0..5 {
        let (ada, eve) = (server.user().await, server.user().await);
        let chat = eve.group(&[]).await;
        let (account, opened, added) =
            tokio::join!(refuse_strangers(&ada, true), open(&eve, &ada), add(&eve, &chat, &ada));
        assert_eq!(account["refuse_strangers"], true);

        // If one request came first, the other is an acquaintance's. If both are refused, no chat
        // is left.
        let done = [opened.status, added.status].iter().filter(|status| **status == 201).count();
        let chats = ada.get("/chats").await.expect(200)["chats"].as_array().unwrap().len();
        assert_eq!(chats, done, "{} {}", opened.body, added.body);
        if done == 0 {
            open(&eve, &ada).await.refused(403, "user_unreachable");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_at_the_total_bound_of_chats_is_not_added() {
    let server = TestServer::start(crate::support::Backend::Sqlite).await;
    let (ada, bob) = (server.user().await, server.user().await);
    let maker = Maker::new(&server);
    let chat = maker.group(&bob, &[]).await.unwrap();

    let add = AddMember {
        chat_id: chat,
        actor: user_id(&bob),
        user_id: user_id(&ada),
        role: starling::model::Role::Member,
        now: server.clock().now(),
        members_max: 20,
        chats_max: 1,
    };
    maker.store.add_member(&add).await.unwrap();

    let full = maker.group(&bob, &[]).await.unwrap();
    let refused = maker.store.add_member(&AddMember { chat_id: full, ..add }).await.unwrap_err();
    assert_eq!(refused.code.as_str(), "chat_limit_reached", "the user is at the total bound");
    server.stop().await;
}
