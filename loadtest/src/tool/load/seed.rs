//! `seed`: creates private chats between users with adjacent numbers, and fills them with messages.
//! Sends are pipelined for speed.

use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::Method;
use starling_loadtest::wire::Chat;

use super::speed::{REQUESTS_MAX, chat, drive, sender};
use super::{Measured, PEERS};
use crate::tool::arith::{ratio, real, real_len};
use crate::tool::stage::{Figure, Stage};

/// Chats that are filled concurrently, each over its own connection.
const CHATS_AT_ONCE: usize = 64;

pub(super) async fn run(stage: &Stage) -> Result<Measured, String> {
    let (chats, mut measured) = fill(stage).await?;
    let sends = measured.meters.first().ok_or("nothing was measured")?;
    measured.figures.insert(0, Figure::rate("messages seeded", sends.rate, "/s"));
    measured.figures.insert(1, Figure::rate("chats seeded", real_len(chats.len()), ""));
    Ok(measured)
}

/// A filled chat.
#[derive(Clone, Debug)]
pub(super) struct Seeded {
    /// Number of the account that wrote the messages.
    pub owner: usize,
    pub chat_id: String,
    /// Number of messages: fewer than requested if sends failed.
    pub messages: u32,
}

/// Creates the private chats and sends the messages that each of them lacks. The latencies returned
/// are those of the last group of chats.
pub(super) async fn fill(stage: &Stage) -> Result<(Vec<Seeded>, Measured), String> {
    let people = usize::from(stage.load.people);
    stage.need_accounts(people)?;
    let pairs =
        (0..people).flat_map(|owner| (1..=PEERS).map(move |step| (owner, (owner + step) % people)));
    let making = pairs.map(|(owner, peer)| async move {
        Ok((owner, chat(stage, owner, "private", &[peer]).await?))
    });
    let making: Vec<_> = making.collect();
    let made: Vec<(usize, Chat)> = stream::iter(making)
        .buffered(REQUESTS_MAX)
        .try_collect::<Vec<_>>()
        .await
        .map_err(|it: String| it)?;

    let mut all = Measured::default();
    let mut messages = 0;
    for some in made.chunks(CHATS_AT_ONCE) {
        let lights = stage.connect_all(some.iter().map(|(owner, _)| *owner)).await?;
        let with_users = lights.into_iter().zip(some.iter().map(|(owner, _)| *owner));
        let senders = with_users.zip(some.iter().map(|(_, chat)| chat.clone()));
        let senders: Vec<_> = senders.map(|(user, chat)| sender(stage, user, chat)).collect();
        let measured = drive(stage, senders, Vec::new(), None, Some(stage.load.messages))
            .await?
            .measured(Vec::new());
        messages += measured.meters.first().map_or(0, |meter| meter.count);
        let errors = all.errors + measured.errors;
        all = Measured { errors, ..measured };
    }

    let reading = made.into_iter().map(|(owner, Chat { id: chat_id, .. })| async move {
        let path = format!("/chats/{chat_id}");
        let chat: Chat = stage.request(0, owner, Method::GET, &path, None).await?;
        Ok::<_, String>(Seeded { owner, chat_id, messages: chat.last_message_id })
    });
    let reading: Vec<_> = reading.collect();
    let chats = stream::iter(reading).buffered(REQUESTS_MAX).try_collect().await?;

    all.proven = format!("{messages} messages were written and read back, each once and in order");
    all.figures = vec![Figure::cost(
        "errors",
        100.0 * ratio(real(all.errors), real(messages + all.errors)),
        "%",
    )];
    Ok((chats, all))
}
