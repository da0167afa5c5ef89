//! The changes of a chat: a client that follows them misses nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use starling::model::{Change, ChatId, Member, MessageId, Rev, Role, UserId};

use super::bench::{Bench, Fold, draft, on_both_stores, word};

on_both_stores!(
    pages_of_any_size_give_the_same_chat,
    a_follower_at_any_rev_catches_up,
    a_client_at_the_latest_rev_gets_an_empty_complete_page,
    a_removed_chat_has_no_changes,
    changes_read_during_writes_give_the_chat_at_that_rev,
);

/// A chat with a history of every kind of change, and its owner.
async fn eventful(bench: &Bench) -> (ChatId, UserId) {
    let users = bench.users(12).await;
    let (owner, guests) = (users[0], &users[1..]);
    let chat = bench.group(owner, &guests[..6]).await;
    for round in 0..10_i64 {
        let drafts: Vec<_> = (0..4).map(|n| draft(chat, owner, &format!("{round}-{n}"))).collect();
        bench.store.append(&drafts, bench.now()).await.unwrap();

        let id = MessageId(round * 2 + 1);
        bench.store.edit_message(chat, id, owner, &word(), bench.now()).await.unwrap();

        if round % 3 == 0 {
            bench
                .store
                .remove_message(chat, MessageId(round + 2), owner, bench.now())
                .await
                .unwrap();
            bench.store.rename_chat(chat, owner, &word()).await.unwrap();
        }

        if let Some(guest) = guests.get(6 + usize::try_from(round).unwrap()) {
            bench.add(chat, owner, *guest).await;
            bench.store.change_role(chat, owner, *guest, Role::Admin).await.unwrap();
        }

        if round % 4 == 1 {
            let leaver = guests[usize::try_from(round).unwrap() % 6];
            bench.store.remove_member(chat, owner, leaver, bench.now()).await.unwrap();
        }
    }

    // A former member joins again.
    bench.add(chat, owner, guests[1]).await;
    (chat, owner)
}

async fn matches_the_chat(bench: &Bench, fold: &Fold, chat: ChatId, viewer: UserId) {
    let shown = bench.store.chat(chat, viewer).await.unwrap().unwrap();
    assert_eq!((fold.rev, fold.name.as_str()), (shown.rev, shown.name.as_str()));
    assert_eq!(fold.messages.values().cloned().collect::<Vec<_>>(), bench.log(chat, viewer).await);
    let members = bench.store.members(chat, viewer, None, 100).await.unwrap();
    // Read markers move without a rev, so they are left out.
    let key = |member: &Member| (member.user.id, member.role, member.joined_at);
    assert_eq!(
        fold.members.values().map(key).collect::<Vec<_>>(),
        members.iter().map(key).collect::<Vec<_>>()
    );
}

async fn pages_of_any_size_give_the_same_chat(bench: Arc<Bench>) {
    let (chat, owner) = eventful(&bench).await;
    let page = bench.store.changes(chat, None, Rev(0), 1000).await.unwrap().unwrap();
    let to_a_newcomer = |change: &Change| {
        matches!(
            change,
            Change::MessageSent(_)
                | Change::MemberJoined(_)
                | Change::MemberLeft(_)
                | Change::Renamed(_)
        )
    };

    assert!(
        page.items.iter().all(|(_, change)| to_a_newcomer(change)),
        "every change is new after rev 0"
    );

    for max in [1, 2, 3, 7, 50, 1000] {
        let mut fold = Fold::default();
        fold.follow(&bench.store, chat, max).await;
        matches_the_chat(&bench, &fold, chat, owner).await;
    }
}

async fn a_follower_at_any_rev_catches_up(bench: Arc<Bench>) {
    // One follower stops after each page of one change. All go on after later changes.
    let (chat, owner) = eventful(&bench).await;
    let mut stopped = vec![Fold::default()];
    loop {
        let mut next = stopped.last().unwrap().clone();
        let page = bench.store.changes(chat, None, next.rev, 1).await.unwrap().unwrap();
        let complete = page.complete;
        next.take(page);
        stopped.push(next);
        if complete {
            break;
        }
    }

    assert!(stopped.len() > 30);
    for id in 1..=20 {
        let _ = bench.store.edit_message(chat, MessageId(id), owner, "later", bench.now()).await;
    }
    bench.say(chat, owner, "the end").await;
    for mut fold in stopped {
        fold.follow(&bench.store, chat, 5).await;
        matches_the_chat(&bench, &fold, chat, owner).await;
    }
}

async fn a_client_at_the_latest_rev_gets_an_empty_complete_page(bench: Arc<Bench>) {
    let (chat, owner) = eventful(&bench).await;
    let rev = bench.store.chat(chat, owner).await.unwrap().unwrap().rev;
    for after in [rev, Rev(rev.0 + 100), Rev(i64::MAX)] {
        let page = bench.store.changes(chat, Some(owner), after, 10).await.unwrap().unwrap();
        assert!(page.items.is_empty() && page.complete && !page.forgotten);
        assert_eq!(page.rev, rev);
    }
}

async fn a_removed_chat_has_no_changes(bench: Arc<Bench>) {
    let (chat, owner) = eventful(&bench).await;
    assert_eq!(bench.store.revs(&[chat]).await.unwrap().len(), 1);
    bench.store.remove_chat(chat, owner, bench.now()).await.unwrap();
    assert!(bench.store.changes(chat, Some(owner), Rev(0), 10).await.unwrap().is_none());
    assert!(bench.store.revs(&[chat]).await.unwrap().is_empty());
    assert!(bench.store.access(chat, owner).await.unwrap().is_none());
}

/// The message that each rev changed, from the answers to the writer.
type Journal = BTreeMap<Rev, MessageId>;

/// The rev that last changed each message, as of `rev`.
fn at(journal: &Journal, rev: Rev) -> BTreeMap<MessageId, Rev> {
    journal.range(..=rev).map(|(rev, id)| (*id, *rev)).collect()
}

async fn write(bench: &Bench, chat: ChatId, owner: UserId) -> Journal {
    let mut journal = Journal::new();
    for round in 0..120_i64 {
        let sent = bench.say(chat, owner, "new").await;
        journal.insert(sent.rev, sent.id);

        let old = MessageId(round % 40 + 1);
        if let Ok((edited, true)) =
            bench.store.edit_message(chat, old, owner, &word(), bench.now()).await
        {
            journal.insert(edited.rev, edited.id);
        }

        if round % 9 == 8
            && let Ok(Some(removed)) =
                bench.store.remove_message(chat, MessageId(round), owner, bench.now()).await
        {
            journal.insert(removed.rev, removed.id);
        }
    }
    journal
}

async fn changes_read_during_writes_give_the_chat_at_that_rev(bench: Arc<Bench>) {
    let owner = bench.user().await;
    let chat = bench.group(owner, &[]).await;
    let reader = bench.another_store().await;
    let done = AtomicBool::new(false);
    let writing = async {
        let journal = write(&bench, chat, owner).await;
        done.store(true, Ordering::Relaxed);
        journal
    };

    // One follower goes on, another starts anew each time. Their pages are too small for all
    // changes.
    let reading = async {
        let (mut seen, mut fold) = (Vec::new(), Fold::default());
        while !done.load(Ordering::Relaxed) {
            fold.follow(&reader, chat, 10).await;
            seen.push(fold.clone());
            let mut anew = Fold::default();
            anew.follow(&reader, chat, 20).await;
            seen.push(anew);
        }
        seen
    };

    let (journal, seen) = tokio::join!(writing, reading);
    assert!(seen.len() > 6, "the reader got to read: {}", seen.len());
    for fold in seen {
        let seen: BTreeMap<MessageId, Rev> =
            fold.messages.values().map(|it| (it.id, it.rev)).collect();
        assert_eq!(seen, at(&journal, fold.rev), "at rev {}", fold.rev);
    }
}
