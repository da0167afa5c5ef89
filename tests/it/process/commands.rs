//! The operator's commands.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::harness::Home;
use crate::support::{Backend, Database};

#[tokio::test]
async fn invite_prints_only_a_code_also_while_the_server_runs() {
    for backend in [Backend::Sqlite, Backend::Postgres] {
        let home = Home::of(backend).await;
        let before = home.run(&["invite"]).await.fine();
        let server = home.serve().await;
        let during = home.run(&["invite", "--uses", "2", "--expires-in-s", "60"]).await.fine();

        for code in [&before, &during] {
            let code = code.strip_suffix('\n').expect("one line");
            assert!(
                code.len() >= 20
                    && code.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c)),
                "{code}"
            );
        }

        server.register(before.trim(), "ada").await.expect(201);
        server.register(before.trim(), "eve").await.refused(404, "invite_not_found");
        for login in ["bob", "cyd"] {
            server.register(during.trim(), login).await.expect(201);
        }

        server.register(during.trim(), "eve").await.refused(404, "invite_not_found");
        server.stop().await;
        home.database.remove().await;
    }
}

fn keys(line: &Value) -> BTreeSet<&str> {
    line.as_object().unwrap().keys().map(String::as_str).collect()
}

#[tokio::test]
async fn accounts_are_printed_as_one_json_object_per_line_in_order() {
    let home = Home::new();
    let out = home
        .run(&["user", "create", "--login", "load", "--count", "12", "--with-session"])
        .await
        .fine();
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let logins: Vec<String> =
        lines.iter().map(|line| line["login"].as_str().unwrap().to_owned()).collect();
    assert_eq!(logins, (1..=12).map(|number| format!("load{number}")).collect::<Vec<_>>());

    let server = home.serve().await;
    assert!(server.first_invite().is_none(), "there is an account");

    for line in &lines {
        assert_eq!(keys(line), BTreeSet::from(["user_id", "login", "password", "token"]));
        let user = server.stranger().with_token(line["token"].as_str().unwrap());
        let me = user.get("/users/me").await.expect(200);
        assert_eq!(
            (&me["id"], &me["login"], &me["name"]),
            (&line["user_id"], &line["login"], &line["login"])
        );
    }

    let login = json!({ "login": lines[11]["login"], "password": lines[11]["password"] });
    server.stranger().post("/sessions", login).await.expect(201);

    let passwords: BTreeSet<&str> =
        lines.iter().map(|line| line["password"].as_str().unwrap()).collect();
    assert_eq!(passwords.len(), 12, "each password is different");
    server.stop().await;
}

#[tokio::test]
async fn one_account_has_the_login_as_given_a_name_and_no_token_unless_asked() {
    let home = Home::of(Backend::Postgres).await;
    let out =
        home.run(&["user", "create", "--login", "Ada", "--name", "Ada Lovelace"]).await.fine();
    assert_eq!(out.lines().count(), 1);

    let ada: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(keys(&ada), BTreeSet::from(["user_id", "login", "password"]));
    assert_eq!(ada["login"], "ada", "logins are in lower case");

    let one = home.run(&["user", "create", "--login", "one", "--count", "1"]).await.fine();
    assert_eq!(serde_json::from_str::<Value>(&one).unwrap()["login"], "one1");

    let server = home.serve().await;
    let login = json!({ "login": "ada", "password": ada["password"] });
    let grant = server.stranger().post("/sessions", login).await.expect(201);
    assert_eq!(grant["user"]["name"], "Ada Lovelace");
    home.run(&["user", "create", "--login", "ADA"]).await.failed(1, &["starling: ", "taken"]);
    server.stop().await;
    home.database.remove().await;
}

#[tokio::test]
async fn doctor_reports_faults_and_nothing_on_a_healthy_system() {
    for backend in [Backend::Sqlite, Backend::Postgres] {
        let home = Home::of(backend).await;
        let out = home.run(&["doctor"]).await.fine();
        assert!(
            out.lines().all(|line| line.starts_with("ok") || line.starts_with("warn")),
            "{out}"
        );
        assert!(out.contains("the database answers"), "{out}");
        home.database.remove().await;
    }

    let blank = Home::on(Database::blank().await);
    let ill = blank.run(&["doctor"]).await;
    ill.failed(1, &["FAULT"]);
    assert!(ill.out.contains("FAULT") && ill.out.contains("`starling migrate`"), "{}", ill.out);
    blank.database.remove().await;

    let away = blank.run(&["doctor"]).await;
    away.failed(1, &["FAULT"]);
    assert!(away.out.contains("FAULT the database can't be opened"), "{}", away.out);

    let misconfigured = Home::new().with("REDIS_URL", "redis://localhost").run(&["doctor"]).await;
    misconfigured.failed(2, &["REDIS_URL"]);
}

#[tokio::test]
async fn the_doctor_warns_of_a_taken_port_and_lifted_limits() {
    let home = Home::new();
    let server = home.serve().await;
    let home = home.with("STARLING_LISTEN", &server.address().to_string());
    let out = home.run(&["doctor"]).await.fine();
    assert!(out.contains(&format!("warn  {} can't be listened on", server.address())), "{out}");
    assert!(out.contains("warn  rate limits are off"), "{out}");
    server.stop().await;
}

#[tokio::test]
async fn the_printed_documents_are_those_that_are_served() {
    let home = Home::new();
    let server = home.serve().await;
    for name in ["openapi", "asyncapi"] {
        let printed: Value = serde_json::from_str(&home.run(&[name]).await.fine()).unwrap();
        let offered = server.stranger().get(&format!("/{name}.json")).await.expect(200);
        assert!(printed == offered, "{name} differs");
        assert!(printed[name].as_str().unwrap().starts_with('3'), "the document's own version");
    }
    server.stop().await;
}

#[tokio::test]
async fn commands_that_print_need_no_configuration_that_works() {
    let home = Home::new().with("REDIS_URL", "redis://localhost");
    for command in ["openapi", "asyncapi", "config", "--version", "--help"] {
        assert!(!home.run(&[command]).await.fine().is_empty());
    }
}
