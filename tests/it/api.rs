//! The HTTP API, one file for each resource.

pub mod authorisation;
mod bad_input;
mod bad_paths;
mod changes;
mod chats;
mod client_ids;
mod inbox;
mod invites;
mod members;
mod messages;
mod passwords;
mod rates;
mod service;
mod sessions;
mod users;

use serde_json::{Value, json};
use sqlx::{Connection, Executor};
use starling::config::{Config, Settings};
use starling::model::limits::PasswordCost;

use crate::support::{Answer, Backend, TestServer, User};

/// A password that is on no list of common passwords.
const PASSWORD: &str = "correct horse battery";
/// A well-formed id that no user, chat or session has.
const NOBODY: &str = "01890000-0000-7000-8000-000000000000";

/// Runs `test` on another server with changed settings, on the same kind of database.
async fn on_another<F: Future<Output = ()>>(
    server: &TestServer,
    change: impl FnOnce(&mut Settings),
    test: impl FnOnce(TestServer) -> F,
) {
    on_another_tuned(server, change, |_| {}, test).await;
}

/// Like [`on_another`], with passwords hashed at full cost.
async fn on_another_at_full_cost<F: Future<Output = ()>>(
    server: &TestServer,
    change: impl FnOnce(&mut Settings),
    test: impl FnOnce(TestServer) -> F,
) {
    on_another_tuned(server, change, |config| config.password_cost = PasswordCost::default(), test)
        .await;
}

/// Like [`on_another`], with changes to the configuration that no setting makes.
async fn on_another_tuned<F: Future<Output = ()>>(
    server: &TestServer,
    change: impl FnOnce(&mut Settings),
    tune: impl FnOnce(&mut Config),
    test: impl FnOnce(TestServer) -> F,
) {
    let backend = if server.database_url().is_some() { Backend::Postgres } else { Backend::Sqlite };
    let other = TestServer::tuned(backend, change, tune).await;
    test(other.clone()).await;
    other.stop().await;
}

/// The body of a registration.
fn newcomer(invite: &str, login: &str) -> Value {
    json!({ "invite": invite, "login": login, "password": PASSWORD, "name": login })
}

/// Logs in and returns the grant.
async fn log_in(user: &User) -> Value {
    let credentials = json!({ "login": user.login, "password": user.password });
    server_of(user).post("/sessions", credentials).await.expect(201)
}

/// A client without a token, on the same server.
fn server_of(user: &User) -> User {
    user.with_token("")
}

/// The user with the tokens of a grant.
fn granted(user: &User, grant: &Value) -> User {
    user.with_token(grant["token"].as_str().unwrap())
}

/// The values under `key` in the entries of a list.
fn column(list: &Value, key: &str) -> Vec<Value> {
    list.as_array()
        .unwrap_or_else(|| panic!("no list: {list}"))
        .iter()
        .map(|entry| entry[key].clone())
        .collect()
}

/// Reads a list by its cursors from the first page to the last. Returns the entries of each page.
async fn pages(user: &User, path: &str, key: &str, limit: usize) -> Vec<Vec<Value>> {
    let mut pages = Vec::new();
    let mut after = String::new();
    loop {
        let page = user.get(&format!("{path}limit={limit}{after}")).await.expect(200);
        pages.push(page[key].as_array().unwrap().clone());
        assert!(pages.len() < 100, "the pages end");
        match page["next_cursor"].as_str() {
            Some(cursor) => after = format!("&after={cursor}"),
            None => return pages,
        }
    }
}

/// Fails unless both answers are equal, except for headers that differ on every request.
#[track_caller]
fn indistinguishable(one: &Answer, other: &Answer) {
    assert_eq!(one.status, other.status);
    assert_eq!(one.body, other.body);

    let names = |answer: &Answer| {
        let mut names: Vec<String> = answer.headers.keys().map(ToString::to_string).collect();
        names.sort();
        names
    };

    assert_eq!(names(one), names(other));
    for name in ["content-type", "content-length", "www-authenticate"] {
        assert_eq!(one.header(name), other.header(name), "{name}");
    }
}

/// All bytes of accounts and sessions that the database stores.
async fn stored_bytes(server: &TestServer) -> Vec<u8> {
    let Some(url) = server.database_url() else {
        let files = std::fs::read_dir(server.dir()).unwrap().map(|entry| entry.unwrap().path());
        return files
            .filter(|path| path.is_file())
            .flat_map(|path| std::fs::read(path).unwrap())
            .collect();
    };

    let mut connection = sqlx::PgConnection::connect(&url).await.unwrap();
    let mut bytes = Vec::new();
    for table in ["users", "sessions", "refresh_tokens", "invites"] {
        // By default Postgres prints BYTEA in hexadecimal; `escape` prints ASCII bytes unchanged.
        let sql = format!("SELECT string_agg(row::text, '') FROM {table} row");
        connection.execute("SET bytea_output = 'escape'").await.unwrap();
        let rows: Option<String> =
            sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&mut connection).await.unwrap();
        bytes.extend(rows.unwrap_or_default().into_bytes());
    }

    connection.close().await.unwrap();
    bytes
}
