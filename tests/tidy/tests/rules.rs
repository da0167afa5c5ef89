//! Each rule finds its violations, and nothing else.

use starling_tidy::circles::Directory;
use starling_tidy::edges::forbidden;
use starling_tidy::rules::{
    COLUMNS_MAX, LINES_MAX, crates_are_in_their_place, is_short, no_leftover_notes,
    no_unfinished_code, sql_is_in_store,
};

#[test]
fn circles_of_imports_are_found() {
    let circles = |files: &[(&str, &str)]| Directory { path: "service", files }.in_circles(true);
    let fine =
        [("mod", "mod a; mod b;"), ("a", "use super::b::B;"), ("b", "mod tests { use super::*; }")];
    assert_eq!(circles(&fine), Vec::<String>::new());
    assert_eq!(
        circles(&[("a", "use super::b::B;"), ("b", "use crate::service::a::A;")]),
        ["a", "b"]
    );
    assert_eq!(circles(&[("mod", "mod a;"), ("a", "use super::Service;")]), ["a", "mod"]);
    assert_eq!(
        circles(&[("a", "use super::{b, c::C};"), ("b", ""), ("c", "super::a::f()")]),
        ["a", "c"]
    );
    // The methods of a type may be spread over files.
    let spread = [("mod", "mod a; struct S(a::A);"), ("a", "use super::S;")];
    assert_eq!(circles(&spread), ["a", "mod"]);
    let lenient = Directory { path: "hub", files: &spread }.in_circles(false);
    assert_eq!(lenient, Vec::<String>::new());

    // An item that `mod` re-exports belongs to the module that defines it.
    let re_exported =
        [("mod", "mod a; mod b; pub use b::{B, C};"), ("a", "use super::C;"), ("b", "struct C;")];
    assert_eq!(circles(&re_exported), Vec::<String>::new());
    let back = [re_exported[0], re_exported[1], ("b", "use crate::service::a::A; struct C;")];
    assert_eq!(circles(&back), ["a", "b", "mod"]);
}

#[test]
fn imports_outside_of_the_table_are_found() {
    let breaks = |path, text| assert!(!forbidden(path, text).is_empty(), "{path}: {text}");
    breaks("src/model/chat.rs", "use crate::store::Store;");
    breaks("src/model/chat.rs", "use crate::metrics;");
    breaks("src/store/chats.rs", "use crate::cluster::Bus;");
    breaks("src/wire/bus.rs", "use crate::cluster::redis::ReplicaId;");
    breaks("src/wire/close.rs", "use crate::hub::CloseReason;");
    breaks("src/model/event.rs", "use crate::wire::ServerFrame;");
    breaks("src/store/chats.rs", "fn f() { crate::service::g() }");
    breaks("src/hub/mod.rs", "use crate::service::Service;");
    breaks("src/service/mod.rs", "use crate::{model::Error, hub::Hub};");
    breaks("src/api/mod.rs", "use crate::gateway;");
    breaks("src/gateway/mod.rs", "use crate::{\n    api::{self, Api},\n    model::Error,\n};");
    breaks("src/api/chats.rs", "use crate::config::Config;");
    breaks("src/api/chats.rs", "use crate::store::Store;");
    breaks("src/gateway/sync.rs", "use crate::{hub::Hub, store::Changes};");
    breaks("src/service/mod.rs", "use crate::telemetry;");
    breaks("src/api/chats.rs", "use crate::server::Server;");
    breaks("src/service/chats.rs", "use super::super::gateway;");
    breaks("src/metrics.rs", "use super::service::Service;");
    breaks("src/main.rs", "use starling::nonsense::Thing;");
    breaks("src/model/mod.rs", "pub use crate :: hub :: Hub;");
}

#[test]
fn imports_of_the_table_are_allowed() {
    let fine =
        |path, text| assert_eq!(forbidden(path, text), Vec::<String>::new(), "{path}: {text}");
    fine("src/cli.rs", "use crate::{config::Config, server::Server, store::Store};");
    fine("src/server.rs", "use crate::api::{self, Api}; use crate::listener;");
    fine(
        "src/api/chats.rs",
        "use super::extract::Body; use crate::service::Service; use crate::metrics;",
    );
    fine("src/service/mod.rs", "// use crate::gateway\nuse crate::store::Store;");
    fine("src/service/mod.rs", "const S: &str = \"crate::gateway::x\";");
    fine(
        "src/store/mod.rs",
        "macro_rules! m { () => { $crate::store::Db::Sqlite } } mod tests { use super::*; }",
    );
    fine("src/wire/bus.rs", "use crate::model::Event;");
    fine("src/cluster/redis/bus.rs", "use crate::wire::bus::BusHeader;");
    fine("src/lib.rs", "pub mod api;");
    fine("tests/it/store.rs", "use starling::api;");
}

#[test]
fn sql_outside_of_store_is_found() {
    let breaks = |path, text| assert!(!sql_is_in_store(path, text).is_empty(), "{path}: {text}");
    breaks("src/service/chats.rs", r#"const A: &str = "SELECT id FROM chats";"#);
    breaks("src/service/chats.rs", "const A: &str = \"\n  update chats\n  set rev = 1\";");
    breaks("src/api/chats.rs", r#"f("DELETE FROM chats")"#);
    breaks("src/hub/mod.rs", r#"f("INSERT INTO chats VALUES (1)")"#);
    breaks("src/hub/mod.rs", r#"f("SELECT 1")"#);

    let fine = |path, text| {
        assert_eq!(sql_is_in_store(path, text), Vec::<String>::new(), "{path}: {text}");
    };
    fine("src/store/chats.rs", r#"sqlx::query("SELECT id FROM chats")"#);
    fine("src/api/mod.rs", r#"f("DELETE", "select it", "an update")"#);
    fine("src/api/mod.rs", "/// SELECT id FROM chats\nfn f() {}");
}

#[test]
fn crates_out_of_their_place_are_found() {
    let breaks =
        |path, text| assert!(!crates_are_in_their_place(path, text).is_empty(), "{path}: {text}");
    breaks("src/hub/mod.rs", "use redis::Client;");
    breaks("src/cluster/memory.rs", "use bb8_redis::bb8::Pool;");
    breaks("src/service/mod.rs", "use axum::Router;");
    breaks("src/cli.rs", "fn f(r: axum::Router) {}");
    breaks("src/service/chats.rs", "sqlx::query(sql)");
    breaks("src/model/chat.rs", "#[derive(sqlx::Type)] struct A;");
    breaks("src/model/id.rs", "fn f(e: sqlx::Error) {}");

    let fine = |path, text| {
        assert_eq!(crates_are_in_their_place(path, text), Vec::<String>::new(), "{path}: {text}");
    };
    fine("src/cluster/redis/bus.rs", "use redis::Client;");
    fine("src/listener/mod.rs", "use axum::Router;");
    fine("src/model/id.rs", "#[derive(sqlx::Type)] struct A;");
    fine("src/gateway/mod.rs", "use axum::extract::ws::WebSocket; use crate::cluster::redis_free;");
    fine("src/server.rs", "use crate::cluster::redis::RedisBus;");
}

#[test]
fn unfinished_code_is_found() {
    let breaks = |text: &str| assert!(!no_unfinished_code("src/a.rs", text).is_empty(), "{text}");
    breaks("fn f() { todo!() }");
    breaks("fn f() { unimplemented!(\"later\") }");
    breaks("#[allow(dead_code)] fn f() {}");
    breaks("#![allow(unused)]");
    assert!(
        no_unfinished_code("src/a.rs", "// todo! is banned\nconst A: &str = \"todo!()\";")
            .is_empty()
    );

    let note = concat!("// TO", "DO: later");
    assert!(!no_leftover_notes("a.md", note).is_empty());
    assert!(!no_leftover_notes("a.sql", concat!("-- XX", "X")).is_empty());
    assert!(no_leftover_notes("a.sh", "mktemp a.XXXXXX; todo list").is_empty());
    assert!(!is_short("src/a.rs", &"\n".repeat(LINES_MAX + 1)).is_empty());
    assert!(is_short("src/a.rs", &"\n".repeat(LINES_MAX)).is_empty());
    assert!(!is_short("src/a.rs", &format!("// {}", "a".repeat(COLUMNS_MAX))).is_empty());
}
