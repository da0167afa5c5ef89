//! Who may do what: every operation of the document times everyone who may come along. An operation
//! without a row fails.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::Method;
use serde_json::{Value, json};

use super::service::operations;
use crate::support::{Answer, TestServer, User, everywhere};

everywhere!(
    every_operation_has_a_row_in_a_table_and_every_row_an_operation,
    without_a_token_only_open_operations_are_answered,
    in_a_group_everyone_may_do_what_the_table_says_and_no_more,
    in_a_channel_everyone_may_do_what_the_table_says_and_no_more,
    in_a_private_chat_the_two_may_do_what_the_table_says_and_no_more,
    in_a_removed_group_nobody_may_do_anything,
);

/// Everyone who may come along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// Nobody known: no token.
    Stranger,
    /// A user who never was in the chat.
    Other,
    /// One who was.
    Ex,
    Member,
    Admin,
    Owner,
}

pub const EVERYONE: [Who; 6] =
    [Who::Stranger, Who::Other, Who::Ex, Who::Member, Who::Admin, Who::Owner];

/// A row: an operation on a chat, and what members, admins and owners of a group and of a channel
/// get. (Strangers get 401, others and ex-members 404, always.) The last: members of a private
/// chat.
type Row = (&'static str, &'static str, Ask, [u16; 3], [u16; 3], u16);

/// What exactly is asked for, where it matters.
#[derive(Clone, Copy, Debug)]
enum Ask {
    /// Without a body.
    Plain,
    /// A new name.
    Name,
    /// Somebody new with this role.
    Add(&'static str),
    /// The plain member who is there, made this.
    Role(&'static str),
    /// A message.
    Text,
    /// A read marker.
    Read,
    /// The message that the asker sent.
    Own(&'static str),
    /// The message that another member sent.
    Others(&'static str),
    /// A message that was removed.
    Removed(&'static str),
    /// The caller leaves.
    Leave,
}

const CHAT: &str = "/chats/{chat_id}";
const MEMBERS: &str = "/chats/{chat_id}/members";
const MEMBER: &str = "/chats/{chat_id}/members/{user_id}";
const MESSAGES: &str = "/chats/{chat_id}/messages";
const MESSAGE: &str = "/chats/{chat_id}/messages/{message_id}";

/// What each may do in a chat.
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

/// What needs a token but no chat: the caller's own things. Who may touch whose is tested with each
/// of them.
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

/// What needs no token. The WebSocket may authenticate by its first frame.
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
    assert!(without_route.is_empty(), "rows of nothing: {without_route:?}");
}

async fn without_a_token_only_open_operations_are_answered(server: TestServer) {
    let stranger = server.stranger();
    for (method, template) in operations() {
        let open = OPEN.contains(&(method.as_str(), template.as_str()));
        let path = template.replace(['{', '}'], "");
        // The token is asked for before the body is looked at, so that nobody learns what a body
        // would do.
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

/// A chat with one of each, in which everyone has said something while they could.
pub struct Scene {
    pub chat: String,
    pub owner: User,
    admin: User,
    member: User,
    ex: User,
    other: User,
    pub stranger: User,
    /// A plain member to whom things are done.
    pub victim: User,
    /// Not in the chat.
    newcomer: User,
    /// The message of each, by their id.
    pub said: BTreeMap<String, i64>,
    pub removed: i64,
}

/// Makes scenes with the same people: making people is slow.
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
        // In a channel only admins write: everyone is one for a moment.
        for user in [&scene.owner, &scene.admin, &scene.member, &scene.ex, &scene.victim] {
            if user.id != scene.owner.id {
                scene.set_role(user, "admin").await;
            }
            let said = user.say(&scene.chat, "mine").await["id"].as_i64().unwrap();
            scene.said.insert(user.id.clone(), said);
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

    /// Makes it the private chat of these two, in which both have said something. Nobody is an
    /// owner there.
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
        assert!(!path.contains('{'), "a parameter that the test does not know: {path}");
        let request = user.request(row.0.parse::<Method>().unwrap(), &path);
        user.send(if body.is_null() { request } else { request.json(&body) }).await
    }
}

fn text_body(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { json!({ "text": text }) }
}

/// Fails unless the answer has the status; and one that is refused says so in the right words.
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

/// Plays the whole table in chats of one kind, each square in a scene of its own where it changes
/// something.
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
            // What is refused must have changed nothing, so all that is refused happens in one
            // scene.
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

async fn in_a_group_everyone_may_do_what_the_table_says_and_no_more(server: TestServer) {
    play(&server, "group", |row| row.3).await;
}

async fn in_a_channel_everyone_may_do_what_the_table_says_and_no_more(server: TestServer) {
    play(&server, "channel", |row| row.4).await;
}

async fn in_a_private_chat_the_two_may_do_what_the_table_says_and_no_more(server: TestServer) {
    // The group is only where the people come from.
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

async fn in_a_removed_group_nobody_may_do_anything(server: TestServer) {
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
