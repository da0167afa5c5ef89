//! Query plans: no statement of the store scans a large table.
//!
//! The test extracts the statements from the sources, so new statements are checked too.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row, SqliteConnection};
use starling::store::for_sqlite;
use starling_tidy::lexer::Lexed;

use super::bench::{Bench, on_both_stores};

on_both_stores!(no_statement_scans_messages_members_or_sessions);

/// The tables that grow without bound.
const LARGE: &[&str] = &["messages", "members", "sessions", "refresh_tokens"];
/// Words of statements that only Postgres accepts.
const POSTGRES_ONLY: &[&str] = &["UNNEST", "ANY(", "FOR NO KEY UPDATE", "pg_", "::"];
/// Words of statements that only SQLite accepts.
const SQLITE_ONLY: &[&str] = &["json_each", "unhex", "sqlite_"];

/// Every SQL statement in `src/store`. The column list of a macro is put before its rest.
pub fn statements() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["src/store", "src/store/engine"]
        .map(|folder| std::fs::read_dir(root.join(folder)).unwrap());
    let files = folders
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file());
    let sources: Vec<String> = files.map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let mut found: BTreeSet<String> = BTreeSet::new();
    let bases: Vec<(String, String)> =
        sources.iter().flat_map(|source| macro_bases(source)).collect();

    for source in &sources {
        for (before, literal) in literals(source) {
            let called = bases.iter().find(|(name, _)| before.ends_with(&format!("{name}!(")));
            match called {
                Some((_, base)) => found.insert(format!("{base}{literal}")),
                None if is_statement(&literal) => found.insert(literal),
                None => false,
            };
        }
    }

    // The beginning in a macro is no complete statement.
    found.into_iter().filter(|sql| !bases.iter().any(|(_, base)| base == sql)).collect()
}

/// The string literals of a source, each with the code before it.
fn literals(source: &str) -> Vec<(String, String)> {
    let lexed = Lexed::new(source);
    let mut pieces = lexed.code.split("\"\"");
    let mut literals = lexed.literals.iter();
    let mut all = Vec::new();
    while let (Some(before), Some(literal)) = (pieces.next(), literals.next()) {
        all.push((before.trim_end().to_owned(), unescaped(literal)));
    }
    all
}

/// The macros that begin a statement, each with this beginning.
fn macro_bases(source: &str) -> Vec<(String, String)> {
    let defined = |(before, literal): (String, String)| {
        let (_, definition) = before.rsplit_once("macro_rules! ")?;
        let name = definition.split_whitespace().next()?.to_owned();
        is_statement(&literal).then_some((name, literal))
    };
    literals(source).into_iter().filter_map(defined).collect()
}

fn unescaped(literal: &str) -> String {
    let mut text = String::new();
    let mut rest = literal;
    while let Some((before, after)) = rest.split_once('\\') {
        text.push_str(before);
        rest = if after.starts_with('\n') { after.trim_start() } else { after };
    }
    text + rest
}

fn is_statement(literal: &str) -> bool {
    ["SELECT ", "INSERT ", "UPDATE ", "DELETE ", "WITH "]
        .iter()
        .any(|word| literal.trim_start().starts_with(word))
}

fn touches_a_large_table(sql: &str) -> bool {
    sql.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| LARGE.contains(&word))
}

/// An SQL expression for the id of row `n`.
fn id_of(postgres: bool, n: &str) -> String {
    if postgres {
        format!("lpad(to_hex({n}), 32, '0')::uuid")
    } else {
        format!("CAST(printf('%016d', {n}) AS BLOB)")
    }
}

/// An SQL expression for the token hash of row `n`.
fn hash_of(postgres: bool, n: &str) -> String {
    if postgres {
        format!("decode(md5(({n})::text), 'hex')")
    } else {
        format!("CAST(printf('%032d', {n}) AS BLOB)")
    }
}

/// Inserts thousands of rows into each large table, so that the planner prefers indexes.
fn seed(postgres: bool) -> String {
    let id = |n: &str| id_of(postgres, n);
    let hash = |n: &str| hash_of(postgres, n);
    let series = |count: u32| {
        format!("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})")
    };
    let mut sql = String::new();
    let mut insert = |into: &str, count: u32, select: String, rest: &str| {
        let series = series(count);
        // Both dialects accept WITH before INSERT.
        let _ = writeln!(sql, "{series} INSERT INTO {into} SELECT {select} FROM n {rest};");
    };

    insert(
        "users (id, login, name, name_key, password_hash, created_at_ms)",
        2000,
        format!("{}, 'u' || i, 'u' || i, 'u' || i, '', i", id("i")),
        "",
    );
    insert(
        "chats (id, kind, self_user, pair_low, pair_high, created_at_ms, activity_at_ms, rev, \
         renamed_rev, member_count, last_message_id)",
        500,
        format!(
            "{}, CASE i % 3 WHEN 0 THEN 'self' WHEN 1 THEN 'private' ELSE 'group' END, \
             CASE WHEN i % 3 = 0 THEN {} END, CASE WHEN i % 3 = 1 THEN {} END, \
             CASE WHEN i % 3 = 1 THEN {} END, i, i, 100, 1, 40, 60",
            id("i"),
            id("i"),
            id("i"),
            id("i + 1")
        ),
        "",
    );
    insert(
        "members (chat_id, user_id, role, joined_at_ms, joined_rev, rev, left_rev, left_at_ms, \
         last_read_message_id)",
        20_000,
        format!(
            "{}, {}, CASE WHEN i <= 500 THEN 'owner' ELSE 'member' END, 1, 1, i % 90, \
             CASE WHEN i % 20 = 0 THEN 50 END, CASE WHEN i % 20 = 0 THEN i END, 0",
            id("i % 500 + 1"),
            id("(i / 500 + i) % 2000 + 1")
        ),
        "WHERE true ON CONFLICT DO NOTHING",
    );
    insert(
        "messages (chat_id, id, rev, sent_rev, sender_id, kind, text, client_id, sent_at_ms)",
        30_000,
        format!(
            "{}, i / 500 + 1, i / 500 + 2, i / 500 + 2, {}, 'text', 'x', 'k' || i, i",
            id("i % 500 + 1"),
            id("i % 2000 + 1")
        ),
        "",
    );
    insert(
        "sessions (id, user_id, token_hash, created_at_ms, last_seen_at_ms, token_expires_at_ms, \
         expires_at_ms)",
        10_000,
        format!("{}, {}, {}, i, i, i, i", id("i"), id("i % 2000 + 1"), hash("i")),
        "",
    );
    insert(
        "refresh_tokens (hash, session_id, spent_at_ms)",
        20_000,
        format!("{}, {}, CASE WHEN i % 2 = 0 THEN i END", hash("i + 1000000"), id("i % 10000 + 1")),
        "",
    );
    sql.push_str(if postgres { "VACUUM ANALYZE" } else { "ANALYZE" });
    sql
}

async fn no_statement_scans_messages_members_or_sessions(bench: Arc<Bench>) {
    let statements: Vec<String> =
        statements().into_iter().filter(|sql| touches_a_large_table(sql)).collect();
    assert!(statements.len() > 45, "the statements were not found: {}", statements.len());
    let url = bench.url();
    let scans = if url.starts_with("sqlite") {
        on_sqlite_file(&url, &statements).await
    } else {
        on_postgres_database(&url, &statements).await
    };
    assert!(scans.is_empty(), "\n{}", scans.join("\n\n"));
}

async fn on_sqlite_file(url: &str, statements: &[String]) -> Vec<String> {
    let mut db = SqliteConnection::connect(url).await.unwrap();
    db.execute(AssertSqlSafe(seed(false))).await.unwrap();

    let mut explained = 0;
    let mut scans = Vec::new();
    let statements: Vec<String> = statements.iter().map(|sql| for_sqlite(sql)).collect();
    for sql in statements.iter().filter(|sql| !POSTGRES_ONLY.iter().any(|word| sql.contains(word)))
    {
        let plan = db.fetch_all(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"))).await;
        let plan = plan.unwrap_or_else(|error| panic!("{error}: {sql}"));
        let plan: Vec<String> = plan.iter().map(|row| row.get::<String, _>("detail")).collect();

        // A virtual table is a parameter that holds a list.
        let scans_a_table = |step: &String| {
            step.starts_with("SCAN ")
                && step != "SCAN CONSTANT ROW"
                && !step.contains(" VIRTUAL TABLE ")
        };

        if plan.iter().any(scans_a_table) {
            scans.push(format!("{sql}\n{}", plan.join("\n")));
        }
        explained += 1;
    }

    assert!(explained > 40, "{explained}");

    // A statement without an index shows that the test can fail.
    let plan =
        db.fetch_all("EXPLAIN QUERY PLAN SELECT id FROM messages WHERE text = $1").await.unwrap();
    assert!(plan[0].get::<String, _>("detail").starts_with("SCAN "));
    scans
}

/// Postgres's plan for a statement with plausible values. The planner sees the values.
async fn postgres_plan(db: &mut PgConnection, sql: &str) -> String {
    db.execute(AssertSqlSafe(format!("PREPARE it AS {sql}")))
        .await
        .unwrap_or_else(|error| panic!("{error}: {sql}"));

    let types: Vec<String> = sqlx::query_scalar(
        "SELECT unnest(parameter_types)::text FROM pg_prepared_statements WHERE name = 'it'",
    )
    .fetch_all(&mut *db)
    .await
    .unwrap();
    let values: Vec<String> =
        types.iter().enumerate().map(|(index, kind)| value(sql, index + 1, kind)).collect();
    let arguments =
        if values.is_empty() { String::new() } else { format!("({})", values.join(", ")) };
    let plan = db.fetch_all(AssertSqlSafe(format!("EXPLAIN EXECUTE it{arguments}"))).await;
    let plan = plan.unwrap_or_else(|error| panic!("{error}: {sql} {arguments}"));

    db.execute("DEALLOCATE it").await.unwrap();
    plan.iter().map(|row| row.get::<String, _>(0)).collect::<Vec<_>>().join("\n")
}

/// A value of this type for `$number`: for a `LIMIT` the size of a page, else an existing value.
fn value(sql: &str, number: usize, kind: &str) -> String {
    let placeholder = format!("${number}");
    let after = |word: &str| {
        sql.match_indices(&format!("{word} {placeholder}"))
            .any(|(at, found)| !sql[at + found.len()..].starts_with(|c: char| c.is_ascii_digit()))
    };
    let uuid = "'00000000-0000-0000-0000-000000000032'";

    match kind {
        "uuid" => format!("{uuid}::uuid"),
        "uuid[]" => format!("ARRAY[{uuid}, '00000000-0000-0000-0000-000000000033']::uuid[]"),
        "bytea" => "'\\x00'::bytea".to_owned(),
        "text" => "'k50'".to_owned(),
        "bigint" | "integer" if after("LIMIT") => "100".to_owned(),
        "bigint" | "integer" if after("OFFSET") => "9".to_owned(),
        "bigint" | "integer" => "50".to_owned(),
        "boolean" => "true".to_owned(),
        "text[]" => "ARRAY['k50', 'k51']".to_owned(),
        "bigint[]" => "ARRAY[50, 51]::bigint[]".to_owned(),
        "bytea[]" => "ARRAY[NULL, NULL]::bytea[]".to_owned(),
        other => panic!("a value of type {other} is needed for {placeholder} in {sql}"),
    }
}

async fn on_postgres_database(url: &str, statements: &[String]) -> Vec<String> {
    let mut db = PgConnection::connect(url).await.unwrap();
    for statement in seed(true).split(";\n") {
        db.execute(AssertSqlSafe(statement.to_owned()))
            .await
            .unwrap_or_else(|error| panic!("{error}: {statement}"));
    }

    db.execute("SET plan_cache_mode = force_custom_plan").await.unwrap();
    let scanned =
        |plan: &str| LARGE.iter().any(|table| plan.contains(&format!("Seq Scan on {table}")));
    let mut scans = Vec::new();
    for sql in statements.iter().filter(|sql| !SQLITE_ONLY.iter().any(|word| sql.contains(word))) {
        let plan = postgres_plan(&mut db, sql).await;
        if scanned(&plan) {
            scans.push(format!("{sql}\n{plan}"));
        }
    }

    // A statement without an index shows that the test can fail.
    assert!(scanned(&postgres_plan(&mut db, "SELECT id FROM messages WHERE text = $1").await));
    scans
}
