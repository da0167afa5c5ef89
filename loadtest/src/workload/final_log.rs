//! Reads the final log from the replicas over HTTP. The API does not return the revs of members or
//! the keys of other users; a test that can read the database may add them.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::Method;
use serde::de::DeserializeOwned;

use crate::actor::Actor;
use crate::checker::{FinalChat, FinalLog, FinalMember, FinalMessage, FinalView};
use crate::client::Answer;
use crate::history::{Digest, Seen};
use crate::wire::{ChangeList, Chat, ChatList, MemberList, MessageList};

/// Maximum number of attempts of one request, a second apart.
const TRIES: usize = 20;
/// Maximum number of items of a page.
const PAGE_MAX: usize = 200;

/// Reads each user's list of chats and each chat's complete history, from every replica. The first
/// of `actors` who is a member reads the history. The requests are not recorded. No user may write
/// meanwhile.
///
/// # Errors
/// If a replica does not answer, or refuses.
pub async fn read_final_log(actors: &[Actor]) -> Result<FinalLog, String> {
    let mut log = FinalLog::default();
    let mut readers: BTreeMap<String, &Actor> = BTreeMap::new();

    for actor in actors {
        for replica in 0..actor.http().bases().len() {
            for chat in chats(actor, replica).await? {
                let has_other_reader =
                    readers.get(&chat.id).is_some_and(|reader| reader.user() != actor.user());
                let messages = if has_other_reader {
                    None
                } else {
                    Some(messages(actor, replica, &chat.id).await?)
                };

                let view = FinalView {
                    replica,
                    user: actor.user(),
                    chat: actor.history().chat_seen(&chat),
                    messages: None,
                };

                if let Some(messages) = messages {
                    if !readers.contains_key(&chat.id) {
                        log.chats.push(final_chat(actor, &chat, &messages).await?);
                        readers.insert(chat.id.clone(), actor);
                    }
                    let messages = Some(messages.into_iter().map(|message| message.seen).collect());
                    log.views.push(FinalView { messages, ..view });
                } else {
                    log.views.push(view);
                }
            }
        }
    }

    Ok(log)
}

async fn final_chat(
    actor: &Actor,
    chat: &Chat,
    messages: &[FinalMessage],
) -> Result<FinalChat, String> {
    let history = actor.history();
    let mut members: Vec<FinalMember> = Vec::new();
    let mut after: Option<String> = None;

    loop {
        let cursor = after.map(|cursor| format!("&after={cursor}")).unwrap_or_default();
        let page: MemberList =
            get(actor, 0, &format!("/chats/{}/members?limit={PAGE_MAX}{cursor}", chat.id)).await?;
        members.extend(page.members.iter().map(|member| FinalMember {
            user: history.name(&member.user.id),
            last_read_message_id: member.last_read_message_id,
            ..FinalMember::default()
        }));
        after = page.next_cursor;

        if after.is_none() {
            break;
        }
    }

    let mut rev = 0;
    loop {
        let page: ChangeList =
            get(actor, 0, &format!("/chats/{}/changes?after_rev={rev}", chat.id)).await?;
        rev = page.rev;
        members.extend(page.removed_member_ids.iter().map(|user_id| FinalMember {
            user: history.name(user_id),
            left_rev: Some(0),
            ..FinalMember::default()
        }));

        if page.complete {
            break;
        }
    }

    Ok(FinalChat {
        chat: history.name(&chat.id),
        rev,
        renamed_rev: 0,
        last_message_id: chat.last_message_id,
        member_count: chat.member_count,
        messages: messages.to_vec(),
        members,
    })
}

async fn chats(actor: &Actor, replica: usize) -> Result<Vec<Chat>, String> {
    let (mut chats, mut after): (Vec<Chat>, Option<String>) = (Vec::new(), None);
    loop {
        let cursor = after.map(|cursor| format!("&after={cursor}")).unwrap_or_default();
        let page: ChatList =
            get(actor, replica, &format!("/chats?limit={PAGE_MAX}{cursor}")).await?;
        chats.extend(page.chats);
        after = page.next_cursor;
        if after.is_none() {
            return Ok(chats);
        }
    }
}

async fn messages(
    actor: &Actor,
    replica: usize,
    chat_id: &str,
) -> Result<Vec<FinalMessage>, String> {
    let history = actor.history();
    let mut messages: Vec<FinalMessage> = Vec::new();

    loop {
        let after = messages.last().map_or(0, |message| message.seen.id);
        let path = format!("/chats/{chat_id}/messages?after={after}&max={PAGE_MAX}");
        let page: MessageList = get(actor, replica, &path).await?;

        if page.messages.is_empty() {
            return Ok(messages);
        }

        messages.extend(page.messages.iter().map(|message| {
            let seen: Seen = history.seen(message);
            let client_id = message.client_id.as_deref().map_or(Digest::NONE, Digest::of);
            FinalMessage { seen, sent_rev: 0, client_id }
        }));
    }
}

async fn get<T: DeserializeOwned>(actor: &Actor, replica: usize, path: &str) -> Result<T, String> {
    for _ in 0..TRIES {
        match actor.http().request(replica, &actor.account().token, Method::GET, path, None).await {
            Answer::Ok(value) => return Ok(value),
            Answer::Refused { status, code } => return Err(format!("{path}: {status} {code}")),
            Answer::Unknown => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
    Err(format!("{path}: no answer from replica {replica}"))
}
