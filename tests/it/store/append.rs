//! Appending: the order of messages, ids without gaps, and one message for each `client_id`.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::join_all;
use starling::model::message::Draft;
use starling::model::{ChatId, ChatKind, Code, MessageId, Result, Rev, UserId};
use starling::store::Store;

use super::bench::{Bench, Fold, draft, keyed, new, on_both_stores, refused, repeated, word};

on_both_stores!(
    a_batch_stores_messages_of_many_chats_in_the_given_order,
    a_client_id_finds_its_message_after_an_edit_or_removal,
    a_client_id_twice_in_one_batch_stores_one_message,
    a_client_id_is_unique_per_sender_and_chat,
    a_refused_draft_does_not_hurt_the_others,
    a_batch_of_refused_drafts_changes_nothing,
    a_reply_names_an_existing_message,
    concurrent_appends_from_several_processes_leave_no_gap,
    concurrent_sends_of_one_client_id_by_many_processes_store_one_message,
    every_kind_of_change_at_once_gives_each_rev_to_exactly_one,
);

async fn a_batch_stores_messages_of_many_chats_in_the_given_order(bench: Arc<Bench>) {
    let users = bench.users(3).await;
    let mut chats = Vec::new();
    for _ in 0..4 {
        chats.push(bench.group(users[0], &users[1..]).await);
    }

    let drafts: Vec<Draft> = (0..60)
        .map(|n| draft(chats[n * 7 % 4], users[n * 5 % 3], &format!("number {n}")))
        .collect();
    let appended = bench.store.append(&drafts, bench.now()).await.unwrap();

    for (draft, sent) in drafts.iter().zip(&appended) {
        let message = new(sent);
        assert_eq!((message.chat_id, message.sender_id), (draft.chat_id, draft.sender_id));
        assert_eq!(message.body.as_ref(), Some(&draft.body));
        assert_eq!(message.rev.0, message.id.0 + 1, "the chat's first rev is 1");
    }

    for chat_id in chats {
        let texts: Vec<String> = bench
            .log(chat_id, users[0])
            .await
            .into_iter()
            .filter_map(|it| it.text().map(str::to_owned))
            .collect();
        let expected = drafts
            .iter()
            .filter(|draft| draft.chat_id == chat_id)
            .filter_map(|draft| draft.body.text().map(str::to_owned));
        assert_eq!(texts, expected.collect::<Vec<_>>());

        for user in &users {
            let chat = bench.store.chat(chat_id, *user).await.unwrap().unwrap();
            assert_eq!((chat.last_message_id.0, chat.rev.0), (15, 16));
            assert_eq!(chat.last_message.unwrap().text.as_ref(), texts.last());
            let own = bench.log(chat_id, *user).await.into_iter().rfind(|it| it.sender_id == *user);
            assert_eq!(
                chat.last_read_message_id,
                own.map(|it| it.id),
                "sending moves one's own marker"
            );
        }
    }
}

async fn a_client_id_finds_its_message_after_an_edit_or_removal(bench: Arc<Bench>) {
    let ada = bench.user().await;
    let chat = bench.group(ada, &[]).await;
    let send = async |text: &str| {
        bench.store.append(&[keyed(chat, ada, text, "k")], bench.now()).await.unwrap().remove(0)
    };
    let first = new(&send("hello").await).clone();
    assert_eq!(*repeated(&send("hello").await), first);
    refused(&send("other").await, Code::ClientIdReused);

    let (edited, _) =
        bench.store.edit_message(chat, first.id, ada, "edited", bench.now()).await.unwrap();
    assert_eq!(*repeated(&send("hello").await), edited, "the body first sent decides");
    refused(&send("edited").await, Code::ClientIdReused);

    let removed =
        bench.store.remove_message(chat, first.id, ada, bench.now()).await.unwrap().unwrap();
    assert_eq!(*repeated(&send("hello").await), removed);

    let reply = Draft { reply_to: Some(MessageId(1)), ..keyed(chat, ada, "hello", "k") };
    refused(&bench.store.append(&[reply], bench.now()).await.unwrap()[0], Code::ClientIdReused);
    assert_eq!(bench.log(chat, ada).await.len(), 1);
}

async fn a_client_id_twice_in_one_batch_stores_one_message(bench: Arc<Bench>) {
    let ada = bench.user().await;
    let chat = bench.group(ada, &[]).await;
    bench.store.append(&[keyed(chat, ada, "old", "old")], bench.now()).await.unwrap();

    let drafts = [
        keyed(chat, ada, "a", "k"),
        keyed(chat, ada, "a", "k"),
        keyed(chat, ada, "b", "k"),
        keyed(chat, ada, "old", "old"),
        keyed(chat, ada, "new", "old"),
        draft(chat, ada, "a"),
    ];
    let sent = bench.store.append(&drafts, bench.now()).await.unwrap();

    assert_eq!(new(&sent[0]), repeated(&sent[1]));
    refused(&sent[2], Code::ClientIdReused);
    assert_eq!(repeated(&sent[3]).id, MessageId(1));
    refused(&sent[4], Code::ClientIdReused);
    assert_eq!(new(&sent[5]).id, MessageId(3));
}

async fn a_client_id_is_unique_per_sender_and_chat(bench: Arc<Bench>) {
    let users = bench.users(2).await;
    let (one, two) =
        (bench.group(users[0], &users[1..]).await, bench.group(users[0], &users[1..]).await);
    let mut drafts: Vec<Draft> = Vec::new();
    for chat in [one, two] {
        drafts.extend(users.iter().map(|user| keyed(chat, *user, "same", "k")));
    }

    for sent in bench.store.append(&drafts, bench.now()).await.unwrap() {
        new(&sent);
    }
    for sent in bench.store.append(&drafts, bench.now()).await.unwrap() {
        repeated(&sent);
    }
}

async fn a_refused_draft_does_not_hurt_the_others(bench: Arc<Bench>) {
    let users = bench.users(4).await;
    let (ada, bob, eve, gone) = (users[0], users[1], users[2], users[3]);
    let group = bench.group(ada, &[bob, gone]).await;
    let channel = bench.shared(ChatKind::Channel, ada, &[bob]).await;
    let removed = bench.group(ada, &[bob]).await;
    bench.store.remove_chat(removed, ada, bench.now()).await.unwrap();
    bench.store.remove_member(group, ada, gone, bench.now()).await.unwrap();

    let unknown = ChatId::new(bench.now(), &mut rand::rng());
    let drafts = [
        draft(group, ada, "first"),
        draft(group, eve, "a stranger's"),
        draft(unknown, ada, "to nowhere"),
        draft(group, gone, "an ex-member's"),
        draft(removed, ada, "to a removed chat"),
        draft(channel, bob, "a reader's"),
        keyed(group, eve, "a stranger's with a key", "k"),
        draft(channel, ada, "an owner's"),
        Draft { reply_to: Some(MessageId(99)), ..draft(group, ada, "to no message") },
        draft(group, bob, "last"),
    ];
    let sent = bench.store.append(&drafts, bench.now()).await.unwrap();

    for stranger in [1, 2, 3, 4, 6] {
        refused(&sent[stranger], Code::ChatNotFound);
    }
    refused(&sent[5], Code::NotAllowed);
    refused(&sent[8], Code::MessageNotFound);
    assert_eq!(
        (new(&sent[0]).id, new(&sent[9]).id, new(&sent[7]).id),
        (MessageId(1), MessageId(2), MessageId(1))
    );
    assert_eq!(new(&sent[9]).rev, Rev(4), "creation, a removal, two messages");
}

async fn a_batch_of_refused_drafts_changes_nothing(bench: Arc<Bench>) {
    let (ada, eve) = (bench.user().await, bench.user().await);
    let chat = bench.group(ada, &[]).await;
    let before = bench.store.chat(chat, ada).await.unwrap().unwrap();
    let drafts =
        [draft(chat, eve, "no"), Draft { reply_to: Some(MessageId(1)), ..draft(chat, ada, "no") }];
    for sent in bench.store.append(&drafts, bench.now()).await.unwrap() {
        assert!(sent.is_err());
    }
    assert!(bench.store.append(&[], bench.now()).await.unwrap().is_empty());
    assert_eq!(bench.store.chat(chat, ada).await.unwrap().unwrap(), before);
}

async fn a_reply_names_an_existing_message(bench: Arc<Bench>) {
    let ada = bench.user().await;
    let (chat, other) = (bench.group(ada, &[]).await, bench.group(ada, &[]).await);
    for _ in 0..3 {
        bench.say(other, ada, "elsewhere").await;
    }

    let reply = |to: i64| Draft { reply_to: Some(MessageId(to)), ..draft(chat, ada, "reply") };
    let drafts = [
        reply(1),
        draft(chat, ada, "first"),
        reply(1),
        reply(2),
        reply(4),
        reply(0),
        reply(-1),
        reply(i64::MAX),
    ];
    let sent = bench.store.append(&drafts, bench.now()).await.unwrap();

    for bad in [0, 4, 5, 6, 7] {
        refused(&sent[bad], Code::MessageNotFound);
    }
    for (good, to) in [(2, 1), (3, 2)] {
        assert_eq!(new(&sent[good]).reply_to, Some(MessageId(to)));
    }

    let log = bench.log(chat, ada).await;
    assert_eq!(
        log.iter().map(|it| it.reply_to.map(|id| id.0)).collect::<Vec<_>>(),
        [None, Some(1), Some(2)]
    );
}

async fn stores(bench: &Bench, count: usize) -> Vec<Store> {
    let mut stores = vec![bench.store.clone()];
    while stores.len() < count {
        stores.push(bench.another_store().await);
    }
    stores
}

async fn concurrent_appends_from_several_processes_leave_no_gap(bench: Arc<Bench>) {
    const TASKS: usize = 64;
    const EACH: usize = 6;

    let users = bench.users(4).await;
    let mut chats = Vec::new();
    for _ in 0..8 {
        chats.push(bench.group(users[0], &users[1..]).await);
    }

    let hot = chats[0];
    let stores = stores(&bench, 4).await;
    let task = |number: usize| {
        let (bench, store, user) = (&bench, &stores[number % 4], users[number / 4 % 4]);
        // Half of the batches go to the hot chat only, half to all chats, each in its own order.
        let target =
            |n: usize| if number.is_multiple_of(2) { hot } else { chats[(number * 3 + n * 5) % 8] };
        let drafts: Vec<Draft> =
            (0..EACH).map(|n| draft(target(n), user, &format!("{number}-{n}"))).collect();
        async move {
            let sent = once_connected(async || store.append(&drafts, bench.now()).await).await;
            sent.iter().map(|sent| new(sent).clone()).collect::<Vec<_>>()
        }
    };

    let acknowledged: Vec<_> = join_all((0..TASKS).map(task)).await;
    for batch in &acknowledged {
        for pair in batch.windows(2).filter(|pair| pair[0].chat_id == pair[1].chat_id) {
            assert!(pair[0].id < pair[1].id, "a batch keeps its order");
        }
    }

    let mut count = 0;
    for chat in &chats {
        let log = bench.log(*chat, users[0]).await;
        let expected: Vec<(i64, i64)> =
            (1..=i64::try_from(log.len()).unwrap()).map(|id| (id, id + 1)).collect();
        assert_eq!(
            log.iter().map(|it| (it.id.0, it.rev.0)).collect::<Vec<_>>(),
            expected,
            "ids and revs have no gap"
        );

        for message in acknowledged.iter().flatten().filter(|it| it.chat_id == *chat) {
            assert_eq!(
                log[usize::try_from(message.id.0).unwrap() - 1],
                *message,
                "the message at the acknowledged id"
            );
        }
        count += log.len();
    }

    assert_eq!(count, TASKS * EACH);
}

async fn concurrent_sends_of_one_client_id_by_many_processes_store_one_message(bench: Arc<Bench>) {
    let ada = bench.user().await;
    let chat = bench.group(ada, &[]).await;
    let stores = stores(&bench, 4).await;
    for round in 0..8 {
        let key = format!("k{round}");
        let send = |number: usize| {
            let drafts = [
                draft(chat, ada, &word()),
                keyed(chat, ada, "once", &key),
                draft(chat, ada, &word()),
            ];
            let (bench, store) = (&bench, &stores[number % 4]);
            async move {
                store
                    .append(&drafts, bench.now())
                    .await
                    .unwrap()
                    .remove(1)
                    .unwrap()
                    .into_message()
                    .id
            }
        };

        let ids: BTreeSet<MessageId> = join_all((0..16).map(send)).await.into_iter().collect();
        assert_eq!(ids.len(), 1, "all answers for a key are equal");
    }

    let log = bench.log(chat, ada).await;
    assert_eq!(log.len(), 8 * (16 * 2 + 1));
    assert_eq!(log.iter().filter(|it| it.text() == Some("once")).count(), 8);
}

/// Repeats a unit of work that got no connection. On a busy machine, a hundred units of work may
/// wait too long.
async fn once_connected<T>(work: impl AsyncFn() -> Result<T>) -> T {
    loop {
        let error = match work().await {
            Ok(done) => return done,
            Err(error) => error,
        };
        let cause = error.source.as_deref().and_then(|source| source.downcast_ref());
        assert!(matches!(cause, Some(sqlx::Error::PoolTimedOut)), "{error:?}");
    }
}

/// Makes one change. Returns its revs.
async fn change(
    bench: &Bench,
    store: &Store,
    chat: ChatId,
    owner: UserId,
    guests: &[UserId],
    n: usize,
) -> Vec<Rev> {
    let guest = guests[n % guests.len()];
    match n % 6 {
        0 | 1 => {
            let drafts = [draft(chat, owner, "one"), keyed(chat, owner, "two", &format!("k{n}"))];
            let sent = store.append(&drafts, bench.now()).await.unwrap();
            sent.iter().map(|sent| new(sent).rev).collect()
        }
        2 => {
            let id = MessageId(i64::try_from(n % 5).unwrap() + 1);
            let edited = store.edit_message(chat, id, owner, &word(), bench.now()).await;
            edited.map(|(message, _)| message.rev).into_iter().collect()
        }
        3 => {
            let id = MessageId(i64::try_from(n % 20).unwrap() + 6);
            let removed = store.remove_message(chat, id, owner, bench.now()).await;
            removed.ok().flatten().map(|message| message.rev).into_iter().collect()
        }
        4 => {
            let added = store.add_member(&bench.adding(chat, owner, guest)).await;
            let rev = match added {
                Ok(event) => Ok(event.rev),
                Err(_) => store
                    .remove_member(chat, owner, guest, bench.now())
                    .await
                    .map(|event| event.rev),
            };
            rev.into_iter().collect()
        }
        _ => {
            let name = word();
            let renamed =
                once_connected(async || store.rename_chat(chat, owner, &name).await).await;
            renamed.map(|chat| chat.rev).into_iter().collect()
        }
    }
}

async fn every_kind_of_change_at_once_gives_each_rev_to_exactly_one(bench: Arc<Bench>) {
    let owner = bench.user().await;
    let guests = bench.users(3).await;
    let chat = bench.group(owner, &[]).await;
    for _ in 0..5 {
        bench.say(chat, owner, "to be edited").await;
    }

    let stores = stores(&bench, 3).await;
    let work = |n: usize| change(&bench, &stores[n % 3], chat, owner, &guests, n);
    let mut revs: Vec<i64> =
        join_all((0..120).map(work)).await.into_iter().flatten().map(|rev| rev.0).collect();
    revs.sort_unstable();

    let shown = bench.store.chat(chat, owner).await.unwrap().unwrap();
    assert_eq!(
        revs,
        (7..=shown.rev.0).collect::<Vec<_>>(),
        "after creation and five messages each rev once"
    );
    assert!(revs.len() > 90, "most changes went through: {}", revs.len());

    let mut fold = Fold::default();
    fold.follow(&bench.store, chat, 1000).await;
    assert_eq!(fold.rev, shown.rev);
    assert_eq!(fold.messages.into_values().collect::<Vec<_>>(), bench.log(chat, owner).await);
    assert_eq!(i64::try_from(fold.members.len()).unwrap(), shown.member_count);

    let members = bench.store.members(chat, owner, None, 100).await.unwrap();
    assert_eq!(fold.members.into_values().collect::<Vec<_>>(), members);
    assert_eq!(fold.name, shown.name);
}
