//! Members: joining, leaving, roles.

use serde_json::{Value, json};

use super::{NOBODY, column, indistinguishable, pages};
use crate::support::{Answer, TestServer, User, everywhere};

everywhere!(
    members_are_listed_page_by_page,
    a_member_is_added_and_sees_the_chat,
    invalid_members_are_refused,
    who_may_add_whom,
    who_may_change_whose_role,
    who_may_remove_whom,
    setting_the_same_role_is_no_change,
    a_removed_member_no_longer_sees_the_chat,
    the_last_owner_must_hand_over_before_leaving,
    the_last_member_who_leaves_removes_the_chat,
    of_two_owners_who_step_down_at_once_one_stays_owner,
    a_user_who_joins_again_is_a_plain_member_with_nothing_unread,
    nobody_leaves_a_private_or_self_chat,
    concurrent_additions_and_removals_keep_member_count_exact,
);

/// A group or channel with one owner, two admins and two plain members.
struct Crew {
    chat: String,
    owner: User,
    admins: [User; 2],
    members: [User; 2],
}

impl Crew {
    async fn of(server: &TestServer, kind: &str) -> Self {
        let owner = server.user().await;
        let admins = [server.user().await, server.user().await];
        let members = [server.user().await, server.user().await];
        let all = [&admins[0], &admins[1], &members[0], &members[1]];
        let chat =
            if kind == "group" { owner.group(&all).await } else { owner.channel(&all).await };
        for admin in &admins {
            let body = json!({ "role": "admin" });
            owner.patch(&format!("/chats/{chat}/members/{}", admin.id), body).await.expect(200);
        }
        Self { chat, owner, admins, members }
    }

    fn path(&self) -> String {
        format!("/chats/{}/members", self.chat)
    }

    fn path_of(&self, user: &User) -> String {
        format!("{}/{}", self.path(), user.id)
    }

    async fn add(&self, actor: &User, user: &User, role: &str) -> Answer {
        actor.post(&self.path(), json!({ "user_id": user.id, "role": role })).await
    }

    async fn set(&self, actor: &User, user: &User, role: &str) -> Answer {
        actor.patch(&self.path_of(user), json!({ "role": role })).await
    }

    async fn role_of(&self, user: &User) -> Value {
        user.get(&format!("/chats/{}", self.chat)).await.expect(200)["role"].clone()
    }
}

async fn members_are_listed_page_by_page(server: TestServer) {
    let crew = Crew::of(&server, "group").await;
    crew.owner.say(&crew.chat, "hello").await;

    let split = pages(&crew.members[0], &format!("{}?", crew.path()), "members", 2).await;
    assert_eq!(split.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);

    let all = json!(split.concat());
    assert_eq!(crew.owner.get(&crew.path()).await.expect(200)["members"], all);

    let of_owner =
        all.as_array().unwrap().iter().find(|it| it["user"]["id"] == json!(crew.owner.id)).unwrap();
    assert_eq!(
        of_owner["user"],
        json!({ "id": crew.owner.id, "login": crew.owner.login, "name": crew.owner.login })
    );
    assert_eq!(
        (&of_owner["role"], &of_owner["last_read_message_id"]),
        (&json!("owner"), &json!(1))
    );

    let mut roles: Vec<Value> = column(&all, "role");
    roles.sort_by_key(Value::to_string);
    assert_eq!(roles, ["admin", "admin", "member", "member", "owner"]);
}

async fn a_member_is_added_and_sees_the_chat(server: TestServer) {
    let (crew, newcomer) = (Crew::of(&server, "group").await, server.user().await);
    crew.owner.say(&crew.chat, "before").await;

    let member = crew.owner.post(&crew.path(), json!({ "user_id": newcomer.id })).await.expect(201);
    assert_eq!((&member["user"]["id"], &member["role"]), (&json!(newcomer.id), &json!("member")));

    let seen = newcomer.get(&format!("/chats/{}", crew.chat)).await.expect(200);
    assert_eq!((&seen["member_count"], &seen["unread_count"]), (&json!(6), &json!(0)));
    assert_eq!(newcomer.get("/chats").await.expect(200)["chats"], json!([seen]));
    assert_eq!(newcomer.texts(&crew.chat, "").await, ["before"]);
    newcomer.say(&crew.chat, "after").await;

    let admin = server.user().await;
    assert_eq!(crew.add(&crew.owner, &admin, "admin").await.expect(201)["role"], "admin");
}

async fn invalid_members_are_refused(server: TestServer) {
    let crew = Crew::of(&server, "group").await;
    let owner = &crew.owner;
    let rev = owner.get(&format!("/chats/{}", crew.chat)).await.expect(200)["rev"].clone();
    for user in [&crew.members[0], &crew.admins[0], owner] {
        crew.add(owner, user, "member").await.refused(409, "already_member");
    }

    owner.post(&crew.path(), json!({ "user_id": NOBODY })).await.refused(404, "user_not_found");
    owner.post(&crew.path(), json!({ "user_id": "nonsense" })).await.refused_fields(&["user_id"]);
    owner.post(&crew.path(), json!({ "user_id": "me" })).await.refused_fields(&["user_id"]);
    owner.post(&crew.path(), json!({})).await.refused_fields(&["user_id"]);

    let user = server.user().await;
    crew.add(owner, &user, "king").await.refused_fields(&["role"]);
    crew.set(owner, &crew.members[0], "king").await.refused_fields(&["role"]);
    owner.patch(&crew.path_of(&crew.members[0]), json!({})).await.refused_fields(&["role"]);
    crew.set(owner, &user, "admin").await.refused(404, "member_not_found");
    owner.delete(&crew.path_of(&user)).await.refused(404, "member_not_found");
    owner.delete(&format!("{}/nonsense", crew.path())).await.refused(404, "member_not_found");
    user.delete_with("/users/me", json!({ "password": user.password })).await.expect(204);
    crew.add(owner, &user, "member").await.refused(404, "user_not_found");
    assert_eq!(owner.get(&format!("/chats/{}", crew.chat)).await.expect(200)["rev"], rev);
}

async fn who_may_add_whom(server: TestServer) {
    for kind in ["group", "channel"] {
        let crew = Crew::of(&server, kind).await;
        for (actor, role, allowed) in [
            (&crew.members[0], "member", false),
            (&crew.members[0], "owner", false),
            (&crew.admins[0], "member", true),
            (&crew.admins[0], "admin", false),
            (&crew.admins[0], "owner", false),
            (&crew.owner, "member", true),
            (&crew.owner, "admin", true),
            (&crew.owner, "owner", true),
        ] {
            let answer = crew.add(actor, &server.user().await, role).await;
            if allowed {
                assert_eq!(answer.expect(201)["role"], role);
            } else {
                answer.refused(403, "not_allowed");
            }
        }

        crew.members[0]
            .post(&crew.path(), json!({ "user_id": NOBODY }))
            .await
            .refused(403, "not_allowed");
    }
}

async fn who_may_change_whose_role(server: TestServer) {
    let crew = Crew::of(&server, "group").await;
    for actor in [&crew.members[0], &crew.admins[0]] {
        for target in [&crew.members[1], &crew.admins[1], &crew.owner, actor] {
            for role in ["owner", "admin", "member"] {
                crew.set(actor, target, role).await.refused(403, "not_allowed");
            }
        }
    }

    for role in ["admin", "owner", "member", "owner"] {
        assert_eq!(crew.set(&crew.owner, &crew.members[0], role).await.expect(200)["role"], role);
        assert_eq!(crew.role_of(&crew.members[0]).await, role);
    }

    assert_eq!(
        crew.set(&crew.members[0], &crew.owner, "member").await.expect(200)["role"],
        "member"
    );
    crew.set(&crew.owner, &crew.owner, "owner").await.refused(403, "not_allowed");
    crew.set(&crew.members[0], &crew.members[0], "member").await.refused(409, "last_owner");
}

async fn who_may_remove_whom(server: TestServer) {
    let crew = Crew::of(&server, "group").await;
    for target in [&crew.members[1], &crew.admins[0], &crew.owner] {
        crew.members[0].delete(&crew.path_of(target)).await.refused(403, "not_allowed");
    }
    for target in [&crew.admins[1], &crew.owner] {
        crew.admins[0].delete(&crew.path_of(target)).await.refused(403, "not_allowed");
    }

    crew.admins[0].delete(&crew.path_of(&crew.members[0])).await.expect(204);
    crew.admins[0].delete(&crew.path_of(&crew.admins[0])).await.expect(204);
    crew.owner.delete(&crew.path_of(&crew.admins[1])).await.expect(204);
    crew.members[1].delete(&format!("{}/me", crew.path())).await.expect(204);

    let left = crew.owner.get(&crew.path()).await.expect(200);
    assert_eq!(left["members"].as_array().unwrap().len(), 1);
    assert_eq!(
        crew.owner.get(&format!("/chats/{}", crew.chat)).await.expect(200)["member_count"],
        1
    );
}

async fn setting_the_same_role_is_no_change(server: TestServer) {
    let crew = Crew::of(&server, "group").await;
    let rev =
        async || crew.owner.get(&format!("/chats/{}", crew.chat)).await.expect(200)["rev"].clone();
    let before = rev().await;
    crew.set(&crew.owner, &crew.admins[0], "admin").await.expect(200);
    crew.set(&crew.owner, &crew.owner, "owner").await.expect(200);
    assert_eq!(rev().await, before);
}

async fn a_removed_member_no_longer_sees_the_chat(server: TestServer) {
    let crew = Crew::of(&server, "group").await;
    let gone = &crew.members[0];
    gone.say(&crew.chat, "mine").await;
    crew.admins[0].delete(&crew.path_of(gone)).await.expect(204);
    for path in ["", "/members", "/messages", "/messages/1", "/changes?after_rev=1"] {
        let answer = gone.get(&format!("/chats/{}{path}", crew.chat)).await;
        indistinguishable(&answer, &gone.get(&format!("/chats/{NOBODY}{path}")).await);
        answer.refused(404, "chat_not_found");
    }

    let messages = format!("/chats/{}/messages", crew.chat);
    gone.post(&messages, json!({ "text": "still here" })).await.refused(404, "chat_not_found");
    gone.patch(&format!("{messages}/1"), json!({ "text": "changed" }))
        .await
        .refused(404, "chat_not_found");
    gone.delete(&format!("{messages}/1")).await.refused(404, "chat_not_found");
    gone.delete(&format!("{}/me", crew.path())).await.refused(404, "chat_not_found");
    assert_eq!(gone.get("/chats").await.expect(200)["chats"], json!([]));
    assert_eq!(crew.owner.texts(&crew.chat, "").await, ["mine"]);
}

async fn the_last_owner_must_hand_over_before_leaving(server: TestServer) {
    let crew = Crew::of(&server, "channel").await;
    let me = format!("{}/me", crew.path());
    crew.owner.delete(&me).await.refused(409, "last_owner");
    crew.owner.delete(&crew.path_of(&crew.owner)).await.refused(409, "last_owner");
    crew.set(&crew.owner, &crew.owner, "admin").await.refused(409, "last_owner");
    crew.set(&crew.owner, &crew.members[0], "owner").await.expect(200);
    crew.owner.delete(&me).await.expect(204);
    assert_eq!(crew.role_of(&crew.members[0]).await, "owner");
    crew.members[0].delete(&format!("/chats/{}", crew.chat)).await.expect(204);
}

async fn the_last_member_who_leaves_removes_the_chat(server: TestServer) {
    let ada = server.user().await;
    let chat = ada.group(&[]).await;
    ada.delete(&format!("/chats/{chat}/members/me")).await.expect(204);
    ada.get(&format!("/chats/{chat}")).await.refused(404, "chat_not_found");
    assert_eq!(ada.get("/chats").await.expect(200)["chats"], json!([]));
}

async fn of_two_owners_who_step_down_at_once_one_stays_owner(server: TestServer) {
    for _ in 0..4 {
        let (ada, bob) = (server.user().await, server.user().await);
        let chat = ada.group(&[&bob]).await;
        let path = format!("/chats/{chat}/members");
        ada.patch(&format!("{path}/{}", bob.id), json!({ "role": "owner" })).await.expect(200);

        let (a, b) = (format!("{path}/{}", ada.id), format!("{path}/{}", bob.id));
        let (one, other) = tokio::join!(
            ada.patch(&a, json!({ "role": "member" })),
            bob.patch(&b, json!({ "role": "member" }))
        );
        let mut statuses = [one.status, other.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 409]);

        let roles = column(&ada.get(&path).await.expect(200)["members"], "role");
        assert_eq!(roles.iter().filter(|role| **role == json!("owner")).count(), 1);
    }
}

async fn a_user_who_joins_again_is_a_plain_member_with_nothing_unread(server: TestServer) {
    let crew = Crew::of(&server, "group").await;
    let admin = &crew.admins[0];
    admin.delete(&format!("{}/me", crew.path())).await.expect(204);
    crew.owner.say(&crew.chat, "while you were away").await;

    let member = crew.add(&crew.owner, admin, "member").await.expect(201);
    assert_eq!((&member["role"], &member["last_read_message_id"]), (&json!("member"), &json!(1)));
    assert_eq!(crew.role_of(admin).await, "member");
    assert_eq!(admin.get("/chats").await.expect(200)["chats"][0]["unread_count"], 0);
    assert_eq!(admin.texts(&crew.chat, "").await, ["while you were away"]);

    let list = crew.owner.get(&crew.path()).await.expect(200);
    assert_eq!(list["members"].as_array().unwrap().len(), 5, "once, not twice");
    assert_eq!(
        crew.owner.get(&format!("/chats/{}", crew.chat)).await.expect(200)["member_count"],
        5
    );
    crew.add(&crew.owner, admin, "member").await.refused(409, "already_member");
}

async fn nobody_leaves_a_private_or_self_chat(server: TestServer) {
    let (ada, bob) = (server.user().await, server.user().await);
    let own = crate::support::id(&ada.post("/chats", json!({ "kind": "self" })).await.expect(201));
    for chat in [ada.private_chat(&bob).await, own] {
        let path = format!("/chats/{chat}/members");
        ada.delete(&format!("{path}/me")).await.refused(409, "wrong_chat_kind");
        ada.delete(&format!("{path}/{}", bob.id)).await.refused(409, "wrong_chat_kind");
        ada.patch(&format!("{path}/{}", ada.id), json!({ "role": "owner" }))
            .await
            .refused(409, "wrong_chat_kind");
        let cid = server.user().await;
        ada.post(&path, json!({ "user_id": cid.id })).await.refused(409, "wrong_chat_kind");
        ada.get(&format!("/chats/{chat}")).await.expect(200);
    }
}

async fn concurrent_additions_and_removals_keep_member_count_exact(server: TestServer) {
    let (ada, mut users) = (server.user().await, Vec::new());
    for _ in 0..8 {
        users.push(server.user().await);
    }

    let chat = ada.group(&[]).await;
    let path = format!("/chats/{chat}/members");
    let adding =
        users.iter().chain(&users).map(|user| ada.post(&path, json!({ "user_id": user.id })));
    let answers = futures_util::future::join_all(adding).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 8, "each once");

    let seen = ada.get(&format!("/chats/{chat}")).await.expect(200);
    assert_eq!((&seen["member_count"], &seen["rev"]), (&json!(9), &json!(9)));

    let leaving: Vec<String> = users.iter().map(|user| format!("{path}/{}", user.id)).collect();
    let answers =
        futures_util::future::join_all(leaving.iter().chain(&leaving).map(|path| ada.delete(path)))
            .await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 204).count(), 8, "each once");

    let seen = ada.get(&format!("/chats/{chat}")).await.expect(200);
    assert_eq!((&seen["member_count"], &seen["rev"]), (&json!(1), &json!(17)));
}
