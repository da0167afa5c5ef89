//! The directory of a large community: a page reads only its own rows, and all pages together list
//! each user once.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row, SqliteConnection};

use crate::store::explain::statements;
use crate::support::{TestServer, User, on_both_databases};

on_both_databases!(
    users_whose_login_begins_with_the_query_come_first_and_none_comes_twice,
    a_cursor_of_the_previous_version_works_and_a_forged_one_is_refused_or_harmless,
    a_page_of_a_hundred_thousand_users_reads_about_as_many_rows_as_it_has,
);

/// Follows the cursors to the end: all users, and the length of each page.
async fn walk(user: &User, query: &str, limit: usize) -> (Vec<Value>, Vec<usize>) {
    let (mut all, mut lengths, mut after) = (Vec::new(), Vec::new(), String::new());
    loop {
        let page =
            user.get(&format!("/users?query={query}&limit={limit}{after}")).await.expect(200);
        let users = page["users"].as_array().unwrap();
        assert!(users.len() <= limit);

        all.extend(users.iter().cloned());
        lengths.push(users.len());
        assert!(lengths.len() < 2000, "the pages end");

        match page["next_cursor"].as_str() {
            Some(cursor) => after = format!("&after={cursor}"),
            None => return (all, lengths),
        }
    }
}

fn logins(users: &[Value]) -> Vec<&str> {
    users.iter().map(|user| user["login"].as_str().unwrap()).collect()
}

async fn users_whose_login_begins_with_the_query_come_first_and_none_comes_twice(
    server: TestServer,
) {
    let accounts = &server.services().accounts;
    let people = [
        ("ann", "Ann"),
        ("anna", "Zora"),
        ("annb", "anna b"),
        ("bob", "Anna"),
        ("cid", "ANN"),
        ("dan", "Anna"),
        ("eve", "Eve Ann"),
        ("an", "Ann-Kathrin"),
    ];

    for (login, name) in people {
        accounts.make_user(login, name, false).await.unwrap();
    }
    let reader = server.user_named("reader").await;

    for limit in [1, 2, 3, 5, 100] {
        let (found, lengths) = walk(&reader, "Ann", limit).await;
        let found = logins(&found);
        // By login, then by name; of equal names, the older account first.
        assert_eq!(
            found,
            ["ann", "anna", "annb", "cid", "an", "bob", "dan"][..].to_vec(),
            "limit {limit}"
        );
        assert!(lengths.iter().all(|length| *length > 0), "no page is empty: {lengths:?}");
    }

    let (all, _) = walk(&reader, "", 3).await;
    assert_eq!(logins(&all), ["an", "ann", "anna", "annb", "bob", "cid", "dan", "eve", "reader"]);
}

async fn a_cursor_of_the_previous_version_works_and_a_forged_one_is_refused_or_harmless(
    server: TestServer,
) {
    use base64::Engine;
    let encode = |json: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json);
    for login in ["bea", "ben", "bob"] {
        server.user_named(login).await;
    }
    let reader = server.user_named("reader").await;

    // A cursor of the previous version.
    let page = reader
        .get(&format!("/users?query=be&after={}", encode(r#"{"l":"bea"}"#)))
        .await
        .expect(200);
    assert_eq!(logins(page["users"].as_array().unwrap()), ["ben"]);

    // A cursor before the range: the page starts with the range.
    let page =
        reader.get(&format!("/users?query=be&after={}", encode(r#"{"l":"a"}"#))).await.expect(200);
    assert_eq!(logins(page["users"].as_array().unwrap()), ["bea", "ben"]);

    let nil = "00000000-0000-0000-0000-000000000000";
    let from_before = encode(&format!(r#"{{"n":"a","u":"{nil}"}}"#));
    let page = reader.get(&format!("/users?query=be&after={from_before}")).await.expect(200);
    assert_eq!(
        logins(page["users"].as_array().unwrap()),
        Vec::<&str>::new(),
        "both were listed by their logins"
    );

    for forged in [
        r#"{"l":"a","u":"x"}"#.to_owned(),
        r#"{"n":"a"}"#.to_owned(),
        r#"{"l":"\u0000"}"#.to_owned(),
        format!(r#"{{"n":"\u0000","u":"{nil}"}}"#),
        "{}".to_owned(),
    ] {
        let path = format!("/users?query=be&after={}", encode(&forged));
        reader.get(&path).await.refused_fields(&["after"]);
    }
}

/// A hundred thousand users. The login of 89,000 begins with `common`, and so does the name of each
/// third user.
fn crowd(postgres: bool) -> String {
    let id = if postgres {
        "lpad(to_hex(i), 32, '0')::uuid"
    } else {
        "CAST(printf('%016d', i) AS BLOB)"
    };
    let name = "CASE WHEN i % 3 = 0 THEN 'common ' || (i % 500) ELSE 'rare ' || i END";

    format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
         INSERT INTO users (id, login, name, name_key, password_hash, created_at_ms)
         SELECT {id}, CASE WHEN i <= 89000 THEN 'common-' ELSE 'other-' END || i,
                {name}, {name}, '', i FROM n"
    )
}

/// The statements of the directory, from the source files.
fn of_directory() -> Vec<String> {
    let found: Vec<String> = statements()
        .into_iter()
        .filter(|sql| {
            sql.contains("FROM users")
                && (sql.contains("ORDER BY login") || sql.contains("ORDER BY name_key"))
        })
        .collect();

    assert_eq!(found.len(), 2, "{found:#?}");
    found
}

/// A statement with values for its parameters: a page of 100 users that begin with `common`.
fn filled(sql: &str, nil: &str) -> String {
    let by_login = sql.contains("ORDER BY login");
    let values: &[&str] = if by_login {
        &["'common-5'", "'common\u{10FFFF}'", "101"]
    } else {
        &["'common 3'", nil, "'common\u{10FFFF}'", "101"]
    };

    values
        .iter()
        .enumerate()
        .fold(sql.to_owned(), |sql, (index, value)| sql.replace(&format!("${}", index + 1), value))
}

async fn a_page_of_a_hundred_thousand_users_reads_about_as_many_rows_as_it_has(server: TestServer) {
    let reader = server.user_named("reader").await;
    if let Some(url) = server.database_url() {
        let mut db = PgConnection::connect(&url).await.unwrap();
        db.execute(AssertSqlSafe(crowd(true))).await.unwrap();
        db.execute("VACUUM ANALYZE users").await.unwrap();
        for sql in of_directory() {
            let sql = filled(&sql, "'00000000-0000-0000-0000-000000000000'::uuid");
            let plan = db
                .fetch_all(AssertSqlSafe(format!("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) {sql}")))
                .await;

            let plan: Vec<String> =
                plan.unwrap().iter().map(|row| row.get::<String, _>(0)).collect();
            let plan = plan.join("\n");
            assert!(plan.contains("Index Scan using"), "{plan}");
            assert!(!plan.contains("Sort") && !plan.contains("Filter"), "{plan}");
            assert!(plan.contains("rows=101"), "{plan}");
        }
    } else {
        let mut db = SqliteConnection::connect(server.dir().join("starling.db").to_str().unwrap())
            .await
            .unwrap();
        db.execute(AssertSqlSafe(crowd(false))).await.unwrap();

        for sql in of_directory() {
            let sql = filled(&sql, "x'00'");
            let plan =
                db.fetch_all(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"))).await.unwrap();
            let plan: Vec<String> = plan.iter().map(|row| row.get::<String, _>("detail")).collect();
            assert!(plan.len() == 1 && plan[0].starts_with("SEARCH users USING INDEX"), "{plan:?}");
        }
        db.close().await.unwrap();
    }

    let store = server.store();
    for (path, pages) in [("/users?query=common&limit=100", 3), ("/users?query=rare&limit=100", 3)]
    {
        let mut after = String::new();
        for _ in 0..pages {
            let before = store.statements();
            let page = reader.get(&format!("{path}{after}")).await.expect(200);
            assert_eq!(page["users"].as_array().map(Vec::len), Some(100));
            // At most three: the token, the end of one range, the start of the other.
            assert!(store.statements() - before <= 3, "{}", store.statements() - before);
            after = format!("&after={}", page["next_cursor"].as_str().unwrap());
        }
    }

    // All pages: 89,000 users by login, and of the others those whose name begins with `common`.
    let expected = 89_000 + (89_001..=100_000).filter(|i| i % 3 == 0).count();
    let start = std::time::Instant::now();
    let (all, lengths) = walk(&reader, "common", 100).await;
    let ids: BTreeSet<&str> = all.iter().map(|user| user["id"].as_str().unwrap()).collect();
    assert_eq!((all.len(), ids.len()), (expected, expected), "{} pages", lengths.len());
    assert!(start.elapsed() < Duration::from_mins(5), "{:?}", start.elapsed());
}
