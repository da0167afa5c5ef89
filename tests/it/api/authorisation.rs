//! Permissions: every documented operation, called in every role. The test fails if an operation
//! has no row.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::Method;
use serde_json::{Value, json};

use super::service::operations;
use crate::support::{Answer, TestServer, User, everywhere};

everywhere!(
    every_operation_has_a_row_in_a_table_and_every_row_an_operation,
    without_a_token_only_open_operations_are_answered,
    in_a_group_each_role_gets_the_status_in_the_table,
    in_a_channel_each_role_gets_the_status_in_the_table,
    in_a_private_chat_each_role_gets_the_status_in_the_table,
    a_removed_group_is_404_for_every_role,
);

/// The roles that a caller may have in a chat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// A client without a token.
    Stranger,
    /// A user who never was a member.
    Other,
    /// A former member.
    Ex,
    Member,
    Admin,
    Owner,
}

pub const EVERYONE: [Who; 6] =
    [Who::Stranger, Who::Other, Who::Ex, Who::Member, Who::Admin, Who::Owner];

/// An operation on a chat and its statuses: for members, admins and owners of a group, for the
/// same of a channel, and for members of a private chat. Strangers always get 401; other users and
/// former members always get 404.
type Row = (&'static str, &'static str, Ask, [u16; 3], [u16; 3], u16);

/// The body and the target of a request.
#[derive(Clone, Copy, Debug)]
enum Ask {
    /// Without a body.
    Plain,
    /// Rename the chat.
    Name,
    /// Add a new member with this role.
    Add(&'static str),
    /// Give a plain member this role.
    Role(&'static str),
    /// Send a message.
    Text,
    /// Move the read marker.
    Read,
    /// The caller's own message, with this text.
    Own(&'static str),
    /// Another member's message, with this text.
    Others(&'static str),
    /// A removed message, with this text.
    Removed(&'static str),
    /// The caller leaves.
    Leave,
}

const CHAT: &str = "/chats/{chat_id}";
const MEMBERS: &str = "/chats/{chat_id}/members";
const MEMBER: &str = "/chats/{chat_id}/members/{user_id}";
const MESSAGES: &str = "/chats/{chat_id}/messages";
const MESSAGE: &str = "/chats/{chat_id}/messages/{message_id}";

/// The operations on a chat.
const TABLE: &[Row] = &[
    ("GET", CHAT, Ask::Plain, [200, 200, 200], [200, 200, 200], 200),
    ("PATCH", CHAT, Ask::Name, [403, 200, 200], [403, 200, 200], 409),
    ("DELETE", CHAT, Ask::Plain, [403, 403, 204], [403, 403, 204], 204),
    ("GET", MEMBERS, Ask::Plain, [200, 200, 200], [200, 200, 200], 200),
    ("POST", MEMBERS, Ask::Add("member"), [403, 201, 201], [403, 201, 201], 409),
    ("POST", MEMBERS, Ask::Add("admin"), [403, 403, 201], [403, 403, 201], 409),
    ("POST", MEMBERS, Ask::Add("owner"), [403, 403, 201], [403, 403, 201], 409),
    ("PATCH", MEMBER, Ask::Role("admin"), [403, 403, 200], [403, 403, 200], 409),
    ("PATCH", MEMBER, Ask::Role("owner"), [403, 403, 200], [403, 403, 200], 409),
    ("DELETE", MEMBER, Ask::Plain, [403, 204, 204], [403, 204, 204], 409),
    ("DELETE", MEMBER, Ask::Leave, [204, 204, 409], [204, 204, 409], 409),
    ("GET", MESSAGES, Ask::Plain, [200, 200, 200], [200, 200, 200], 200),
    ("POST", MESSAGES, Ask::Text, [201, 201, 201], [403, 201, 201], 201),
    ("GET", MESSAGE, Ask::Own(""), [200, 200, 200], [200, 200, 200], 200),
    ("GET", MESSAGE, Ask::Others(""), [200, 200, 200], [200, 200, 200], 200),
    ("GET", MESSAGE, Ask::Removed(""), [200, 200, 200], [200, 200, 200], 200),
    ("PATCH", MESSAGE, Ask::Own("edited"), [200, 200, 200], [403, 200, 200], 200),
    ("PATCH", MESSAGE, Ask::Others("edited"), [403, 403, 403], [403, 403, 403], 403),
    ("PATCH", MESSAGE, Ask::Removed("edited"), [403, 403, 403], [403, 403, 403], 403),
    ("DELETE", MESSAGE, Ask::Own(""), [204, 204, 204], [204, 204, 204], 204),
    ("DELETE", MESSAGE, Ask::Others(""), [403, 204, 204], [403, 204, 204], 403),
    ("DELETE", MESSAGE, Ask::Removed(""), [403, 204, 204], [403, 204, 204], 403),
    ("GET", "/chats/{chat_id}/changes", Ask::Plain, [200, 200, 200], [200, 200, 200], 200),
    ("PUT", "/chats/{chat_id}/read", Ask::Read, [204, 204, 204], [204, 204, 204], 204),
];

/// Operations that need a token but no chat. The tests of each resource check who may use them.
const OWN: &[(&str, &str)] = &[
    ("GET", "/chats"),
    ("POST", "/chats"),
    ("GET", "/invites"),
    ("POST", "/invites"),
    ("DELETE", "/invites/{code}"),
    ("GET", "/sessions"),
    ("DELETE", "/sessions"),
    ("GET", "/sessions/current"),
    ("DELETE", "/sessions/current"),
    ("DELETE", "/sessions/{id}"),
    ("GET", "/users"),
    ("GET", "/users/me"),
    ("PATCH", "/users/me"),
    ("DELETE", "/users/me"),
    ("GET", "/users/{id}"),
];

/// Operations that need no token. A WebSocket client may authenticate by its first frame.
const OPEN: &[(&str, &str)] = &[
    ("GET", "/invites/{code}"),
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("GET", "/ws"),
    ("POST", "/sessions"),
    ("POST", "/sessions/refresh"),
    ("POST", "/users"),
];

async fn every_operation_has_a_row_in_a_table_and_every_row_an_operation(_server: TestServer) {
    let rows = TABLE
        .iter()
        .map(|row| (row.0, row.1))
        .chain(OWN.iter().copied())
        .chain(OPEN.iter().copied());
    let rows: BTreeSet<(String, String)> =
        rows.map(|(method, path)| (method.to_owned(), path.to_owned())).collect();
    let documented: BTreeSet<(String, String)> =
        operations().into_iter().map(|(method, path)| (method.to_string(), path)).collect();
    let without_row: Vec<_> = documented.difference(&rows).collect();

    assert!(without_row.is_empty(), "give each a row: {without_row:?}");
    let without_route: Vec<_> = rows.difference(&documented).collect();
    assert!(without_route.is_empty(), "rows without an operation: {without_route:?}");
}

async fn without_a_token_only_open_operations_are_answered(server: TestServer) {
    let stranger = server.stranger();
    for (method, template) in operations() {
        let open = OPEN.contains(&(method.as_str(), template.as_str()));
        let path = template.replace(['{', '}'], "");

        // The server checks the token before the body: a stranger must not learn whether a body is
        // valid.
        for body in ["", "{}", "{"] {
            let request =
                stranger.request(method.clone(), &path).header("content-type", "application/json");
            let answer = stranger.send(request.body(body)).await;
            if open {
                assert_ne!(answer.body["code"], "not_authenticated", "{method} {template}");
            } else {
                assert_eq!(answer.status, 401, "{method} {template}: {}", answer.body);
                assert_eq!(answer.body["code"], "not_authenticated");
                assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            }
        }
    }
}

/// A chat with a user of each role. Each user who ever was a member has sent a message.
pub struct Scene {
    pub chat: String,
    pub owner: User,
    admin: User,
    member: User,
    ex: User,
    other: User,
    pub stranger: User,
    /// The plain member whom the operations target.
    pub victim: User,
    /// Not in the chat.
    newcomer: User,
    /// The message that each user sent, by user id.
    pub said: BTreeMap<String, i64>,
    pub removed: i64,
}

/// Makes scenes with the same users, since creating users is slow.
pub struct Stage {
    people: Vec<User>,
    stranger: User,
}

impl Stage {
    pub async fn of(server: &TestServer) -> Self {
        let mut people = Vec::new();
        for _ in 0..7 {
            people.push(server.user().await);
        }
        Self { people, stranger: server.stranger() }
    }

    pub async fn scene(&self, kind: &str) -> Scene {
        let [owner, admin, member, ex, other, victim, newcomer] =
            <[User; 7]>::try_from(self.people.clone()).unwrap();
        let all = [&admin, &member, &ex, &victim];
        let chat = match kind {
            "group" => owner.group(&all).await,
            "channel" => owner.channel(&all).await,
            _ => panic!("no scene for {kind}"),
        };

        let mut scene = Scene {
            chat,
            owner,
            admin,
            member,
            ex,
            other,
            stranger: self.stranger.clone(),
            victim,
            newcomer,
            said: BTreeMap::new(),
            removed: 0,
        };

        // Only admins write in a channel, so each user is an admin until the message is sent.
        for user in [&scene.owner, &scene.admin, &scene.member, &scene.ex, &scene.victim] {
            if user.id != scene.owner.id {
                scene.set_role(user, "admin").await;
            }
            let message = user.say(&scene.chat, "mine").await["id"].as_i64().unwrap();
            scene.said.insert(user.id.clone(), message);
        }

        let removed = scene.victim.say(&scene.chat, "gone").await["id"].as_i64().unwrap();
        scene.victim.delete(&scene.path(&format!("/messages/{removed}"))).await.expect(204);
        scene.removed = removed;
        for user in [&scene.member, &scene.victim] {
            scene.set_role(user, "member").await;
        }

        scene.owner.delete(&scene.path(&format!("/members/{}", scene.ex.id))).await.expect(204);
        scene
    }
}

impl Scene {
    pub fn path(&self, rest: &str) -> String {
        format!("/chats/{}{rest}", self.chat)
    }

    /// Replaces the chat by a private chat of these two users, each of whom has sent a message.
    pub async fn turn_private(&mut self, member: User, victim: User) {
        (self.member, self.victim) = (member, victim);
        self.chat = self.member.private_chat(&self.victim).await;
        for (number, user) in (1..).zip([&self.member, &self.victim]) {
            user.say(&self.chat, "mine").await;
            self.said.insert(user.id.clone(), number);
        }
        self.victim.say(&self.chat, "gone").await;
        self.victim.delete(&self.path("/messages/3")).await.expect(204);
        self.removed = 3;
    }

    async fn set_role(&self, user: &User, role: &str) {
        let path = self.path(&format!("/members/{}", user.id));
        self.owner.patch(&path, json!({ "role": role })).await.expect(200);
    }

    pub fn who(&self, who: Who) -> &User {
        match who {
            Who::Stranger => &self.stranger,
            Who::Other => &self.other,
            Who::Ex => &self.ex,
            Who::Member => &self.member,
            Who::Admin => &self.admin,
            Who::Owner => &self.owner,
        }
    }

    async fn ask(&self, user: &User, row: &Row) -> Answer {
        let others = self.said[&self.victim.id];
        let (message, body) = match row.2 {
            Ask::Plain | Ask::Leave => (others, Value::Null),
            Ask::Name => (others, json!({ "name": "Ship" })),
            Ask::Add(role) => (others, json!({ "user_id": self.newcomer.id, "role": role })),
            Ask::Role(role) => (others, json!({ "role": role })),
            Ask::Text => (others, json!({ "text": "hello" })),
            Ask::Read => (others, json!({ "message_id": 1 })),
            Ask::Own(text) => (self.said.get(&user.id).copied().unwrap_or(1), text_body(text)),
            Ask::Others(text) => (others, text_body(text)),
            Ask::Removed(text) => (self.removed, text_body(text)),
        };
        let target = if matches!(row.2, Ask::Leave) { "me" } else { &self.victim.id };
        let path = row.1.replace("{chat_id}", &self.chat).replace("{user_id}", target);
        let path = path.replace("{message_id}", &message.to_string());

        assert!(!path.contains('{'), "a parameter that the test does not fill in: {path}");
        let request = user.request(row.0.parse::<Method>().unwrap(), &path);
        user.send(if body.is_null() { request } else { request.json(&body) }).await
    }
}

fn text_body(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { json!({ "text": text }) }
}

/// Fails unless the answer has this status, and the error code that belongs to it.
#[track_caller]
fn assert_answer(answer: &Answer, expected: u16, what: &str) {
    assert_eq!(answer.status, expected, "{what}: {}", answer.body);
    let code = answer.body["code"].as_str();
    match expected {
        401 => assert_eq!(code, Some("not_authenticated"), "{what}"),
        403 => assert_eq!(code, Some("not_allowed"), "{what}"),
        404 => assert_eq!(code, Some("chat_not_found"), "{what}"),
        _ => {}
    }
}

/// Makes every request of the table in chats of one kind. A request that changes something gets a
/// scene of its own.
async fn play(server: &TestServer, kind: &str, column: impl Fn(&Row) -> [u16; 3]) {
    let stage = Stage::of(server).await;
    let scene = stage.scene(kind).await;
    for row in TABLE {
        for who in EVERYONE {
            let expected = match who {
                Who::Stranger => 401,
                Who::Other | Who::Ex => 404,
                Who::Member => column(row)[0],
                Who::Admin => column(row)[1],
                Who::Owner => column(row)[2],
            };
            let what = format!("{kind}: {who:?} {} {} {:?}", row.0, row.1, row.2);

            // A refused request must change nothing, so all refused requests share one scene.
            let rev = scene.owner.get(&scene.path("")).await.expect(200)["rev"].clone();
            if expected >= 400 || row.0 == "GET" {
                assert_answer(&scene.ask(scene.who(who), row).await, expected, &what);
                assert_eq!(
                    scene.owner.get(&scene.path("")).await.expect(200)["rev"],
                    rev,
                    "{what}: changed something"
                );
            } else {
                let own = stage.scene(kind).await;
                assert_answer(&own.ask(own.who(who), row).await, expected, &what);
                own.owner.delete(&own.path("")).await;
            }
        }
    }
}

async fn in_a_group_each_role_gets_the_status_in_the_table(server: TestServer) {
    play(&server, "group", |row| row.3).await;
}

async fn in_a_channel_each_role_gets_the_status_in_the_table(server: TestServer) {
    play(&server, "channel", |row| row.4).await;
}

async fn in_a_private_chat_each_role_gets_the_status_in_the_table(server: TestServer) {
    // The group only provides the users.
    let mut scene = Stage::of(&server).await.scene("group").await;
    for row in TABLE {
        scene.turn_private(server.user().await, server.user().await).await;
        for (user, expected) in
            [(&scene.stranger, 401), (&scene.other, 404), (&scene.member, row.5)]
        {
            let what = format!("private: {} {} {:?}", row.0, row.1, row.2);
            assert_answer(&scene.ask(user, row).await, expected, &what);
        }
    }
}

async fn a_removed_group_is_404_for_every_role(server: TestServer) {
    let scene = Stage::of(&server).await.scene("group").await;
    scene.owner.delete(&scene.path("")).await.expect(204);
    for row in TABLE {
        for who in EVERYONE {
            let expected = if who == Who::Stranger { 401 } else { 404 };
            let what = format!("removed: {who:?} {} {} {:?}", row.0, row.1, row.2);
            assert_answer(&scene.ask(scene.who(who), row).await, expected, &what);
        }
    }
}
