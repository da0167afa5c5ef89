//! The clean-up job: it deletes expired rows in bounded batches, and no other rows.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};
use starling::model::limits::{JOB_BATCH, TOMBSTONE_LIFE};
use starling::model::{Change, ChatId, ChatKind, Rev, UserId};
use starling::store::DeletedRows;

use super::bench::{Bench, NO_HASH, draft, on_both_stores};

on_both_stores!(
    expired_sessions_and_invites_are_deleted_in_bounded_batches,
    a_removed_chat_is_deleted_in_bounded_batches_and_another_chat_stays,
    old_tombstones_are_deleted_and_clients_from_before_start_anew,
    tombstones_are_deleted_in_bounded_batches,
    deleting_tombstones_while_members_rejoin_deletes_no_member,
);

/// The number of a chat's rows in a table.
async fn rows(bench: &Bench, table: &str, chat_id: ChatId) -> i64 {
    let column = if table == "chats" { "id" } else { "chat_id" };
    let sql = AssertSqlSafe(format!("SELECT COUNT(*) FROM {table} WHERE {column} = $1"));
    let url = bench.url();
    if url.starts_with("sqlite") {
        let mut db = SqliteConnection::connect(&url).await.unwrap();
        sqlx::query_scalar(sql).bind(chat_id).fetch_one(&mut db).await.unwrap()
    } else {
        let mut db = PgConnection::connect(&url).await.unwrap();
        sqlx::query_scalar(sql).bind(chat_id).fetch_one(&mut db).await.unwrap()
    }
}

/// Sweeps until no row is due. Returns the rows that each round deleted.
async fn sweep_all(bench: &Bench) -> Vec<DeletedRows> {
    let mut rounds = Vec::new();
    loop {
        let swept = bench.store.delete_expired(bench.now()).await.unwrap();
        let more = swept.more;
        rounds.push(swept);
        if !more {
            return rounds;
        }
        assert!(rounds.len() < 100, "it ends");
    }
}

async fn expired_sessions_and_invites_are_deleted_in_bounded_batches(bench: Arc<Bench>) {
    let ada = bench.user().await;
    let due = usize::try_from(JOB_BATCH).unwrap() + 20;
    for _ in 0..due {
        bench.store.log_in(&bench.new_session(ada, 500_000), NO_HASH, None, 10_000).await.unwrap();
        bench.store.create_invite(&bench.new_invite(1, 500_000), None, 0).await.unwrap();
    }

    let live = bench.new_session(ada, 1_000_000);
    bench.store.log_in(&live, NO_HASH, None, 10_000).await.unwrap();

    let open = bench.new_invite(1, 1_000_000);
    bench.store.create_invite(&open, None, 0).await.unwrap();

    let early = sweep_all(&bench).await;
    assert!(
        early.iter().all(|swept| swept.sessions.is_empty() && swept.invites == 0),
        "nothing is due yet"
    );
    bench.clock.advance(Duration::from_mins(10));

    let rounds = sweep_all(&bench).await;
    let batch = usize::try_from(JOB_BATCH).unwrap();
    assert!(rounds.len() >= 2);
    for swept in &rounds {
        assert!(swept.sessions.len() <= batch && swept.invites <= JOB_BATCH.unsigned_abs());
    }

    let last = rounds.last().unwrap();
    assert!(!last.more && last.sessions.len() < batch);
    assert!(bench.store.resolve(live.tokens.token, bench.now()).await.unwrap().is_some());
    assert_eq!(bench.store.sessions(Bench::caller(&live), bench.now()).await.unwrap().len(), 1);
    assert!(bench.store.open_invite(&open.code, bench.now()).await.unwrap().is_some());
}

async fn a_removed_chat_is_deleted_in_bounded_batches_and_another_chat_stays(bench: Arc<Bench>) {
    let users = bench.users(3).await;
    let doomed = bench.shared(ChatKind::Channel, users[0], &users[1..]).await;
    let kept = bench.group(users[0], &users[1..]).await;
    for _ in 0..JOB_BATCH {
        let user = bench.user().await;
        bench.add(doomed, users[0], user).await;
    }

    for _ in 0..12 {
        let drafts: Vec<_> = (0..100).map(|n| draft(doomed, users[0], &n.to_string())).collect();
        bench.store.append(&drafts, bench.now()).await.unwrap();
    }

    bench.say(kept, users[0], "stays").await;
    bench.store.remove_chat(doomed, users[0], bench.now()).await.unwrap();
    assert_eq!(rows(&bench, "messages", doomed).await, 1200);

    let rounds = sweep_all(&bench).await;
    let due = 1200 + JOB_BATCH.unsigned_abs() + 3 + 1;
    assert_eq!(
        rounds.iter().map(|swept| swept.chat_rows).sum::<u64>(),
        due,
        "messages, members, the chat"
    );

    for swept in rounds {
        assert!(swept.chat_rows <= JOB_BATCH.unsigned_abs(), "{}", swept.chat_rows);
    }

    for table in ["messages", "members", "chats"] {
        assert_eq!(rows(&bench, table, doomed).await, 0, "{table}");
        assert!(rows(&bench, table, kept).await > 0, "{table}");
    }

    assert_eq!(bench.log(kept, users[1]).await.len(), 1);
}

/// The users whom the changes after a rev report as former members, and whether tombstones were
/// deleted since.
async fn left(bench: &Bench, chat: ChatId, after: Rev) -> (Vec<UserId>, bool) {
    let page = bench.store.changes(chat, None, after, 10_000).await.unwrap().unwrap();
    let of = |(_, change): (Rev, Change)| {
        if let Change::MemberLeft(user) = change { Some(user) } else { None }
    };
    (page.items.into_iter().filter_map(of).collect(), page.forgotten)
}

async fn old_tombstones_are_deleted_and_clients_from_before_start_anew(bench: Arc<Bench>) {
    let users = bench.users(4).await;
    let (owner, early, back, late) = (users[0], users[1], users[2], users[3]);
    let chat = bench.group(owner, &users[1..]).await;
    let gone = bench.store.remove_member(chat, owner, early, bench.now()).await.unwrap().rev;
    bench.store.remove_member(chat, owner, back, bench.now()).await.unwrap();
    bench.add(chat, owner, back).await;
    sweep_all(&bench).await;
    assert_eq!(
        left(&bench, chat, Rev(1)).await,
        (vec![early], false),
        "a tombstone is kept for long"
    );

    bench.clock.advance(TOMBSTONE_LIFE + Duration::from_mins(1));
    let recent = bench.store.remove_member(chat, owner, late, bench.now()).await.unwrap().rev;
    let swept: u64 = sweep_all(&bench).await.iter().map(|swept| swept.tombstones).sum();
    assert_eq!(swept, 1);
    assert_eq!(
        left(&bench, chat, Rev(1)).await,
        (vec![late], true),
        "a client from before must start anew"
    );
    assert_eq!(left(&bench, chat, Rev(gone.0 - 1)).await, (vec![late], true));
    assert_eq!(
        left(&bench, chat, gone).await,
        (vec![late], false),
        "a client that read the removal goes on"
    );
    assert_eq!(left(&bench, chat, recent).await, (Vec::new(), false));
    assert!(!left(&bench, chat, Rev(0)).await.1, "a client at rev 0 misses nothing");
    assert!(
        bench.store.access(chat, back).await.unwrap().is_some(),
        "a user who joined again is a member"
    );
    assert_eq!(bench.store.members(chat, owner, None, 10).await.unwrap().len(), 2);
}

async fn tombstones_are_deleted_in_bounded_batches(bench: Arc<Bench>) {
    let owner = bench.user().await;
    let chat = bench.shared(ChatKind::Channel, owner, &[]).await;
    let count = JOB_BATCH.unsigned_abs() + 30;
    for _ in 0..count {
        let user = bench.user().await;
        bench.add(chat, owner, user).await;
        bench.store.remove_member(chat, owner, user, bench.now()).await.unwrap();
    }

    bench.clock.advance(TOMBSTONE_LIFE + Duration::from_mins(1));
    let rounds = sweep_all(&bench).await;
    for swept in &rounds {
        assert!(swept.tombstones <= JOB_BATCH.unsigned_abs(), "{} at once", swept.tombstones);
    }

    assert_eq!(rounds.iter().map(|swept| swept.tombstones).sum::<u64>(), count);
    assert_eq!(rows(&bench, "members", chat).await, 1);

    let rev = bench.store.chat(chat, owner).await.unwrap().unwrap().rev;
    assert!(left(&bench, chat, Rev(rev.0 - 1)).await.1 && !left(&bench, chat, rev).await.1);
}

async fn deleting_tombstones_while_members_rejoin_deletes_no_member(bench: Arc<Bench>) {
    let owner = bench.user().await;
    let guests = bench.users(8).await;
    let chat = bench.group(owner, &guests).await;
    let sweeper = bench.another_store().await;

    for _ in 0..6 {
        for guest in &guests {
            bench.store.remove_member(chat, owner, *guest, bench.now()).await.unwrap();
        }
        bench.clock.advance(TOMBSTONE_LIFE + Duration::from_mins(1));

        let returning = async {
            for guest in &guests {
                bench.add(chat, owner, *guest).await;
            }
        };

        let sweeping = async {
            for _ in 0..8 {
                sweeper.delete_expired(bench.now()).await.unwrap();
            }
        };

        tokio::join!(returning, sweeping);
        assert_eq!(bench.store.members(chat, owner, None, 100).await.unwrap().len(), 9);
        assert_eq!(bench.store.chat(chat, owner).await.unwrap().unwrap().member_count, 9);
    }
}
