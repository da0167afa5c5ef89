//! `loss`: a replica that holds many connections is killed. Measures how soon its clients are
//! connected to the other replicas and in sync.

use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use rand::RngExt;
use reqwest::Method;
use serde_json::{Value, json};
use starling_loadtest::wire::Message;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Measured;
use super::speed::{REQUESTS_MAX, chat};
use crate::tool::light::{Heard, Light};
use crate::tool::stage::{Figure, Stage};
use crate::tool::watch::Watch;

/// Connections of one user: half of the limit, because those to the dead replica count until its
/// lease ends.
pub(super) const CONNECTIONS_PER_USER: usize = 10;
/// Upper bound of the random pause before a client reconnects, as in clients with a back-off.
const JITTER: Duration = Duration::from_secs(2);
/// Time limit for a client to notice the loss.
const NOTICE: Duration = Duration::from_secs(20);
/// Time limit for a client to reconnect.
const BACK: Duration = Duration::from_mins(1);

/// A client of the killed replica, and the chat whose rev shows that it is in sync.
struct Client {
    light: Light,
    chat: String,
}

pub(super) async fn run(stage: &Stage) -> Result<Measured, String> {
    let site = stage.site.as_ref().ok_or("there is no replica to kill")?;
    let count = usize::from(stage.load.connections);
    let users = count.div_ceil(CONNECTIONS_PER_USER);
    stage.need_accounts(users + 1)?;

    let clients = gather(stage, count, users).await?;
    let watch = Watch::begin(&stage.processes, Vec::new());
    tokio::time::sleep(Duration::from_secs(stage.load.warm_up)).await;

    let replicas = site.replicas();
    let dead = site.kill_last();
    let killed = Instant::now();
    let survivors: Vec<usize> = (0..replicas.len()).filter(|number| *number != dead).collect();
    let others: Vec<String> = survivors.iter().map(|number| replicas[*number].clone()).collect();

    // The clients are in sync when they have received these messages.
    let revs = write(stage, &clients, &survivors).await?;
    let (back, missing) = all_back(stage, clients, &others, &revs, killed).await;
    let spent = watch.finish();
    site.start_again(dead).await?;

    let share =
        |percent: usize| back.get((back.len() * percent / 100).min(back.len().saturating_sub(1)));
    let figure = |word: &str, percent| {
        let name = format!(
            "after the loss of a replica with {count} sockets, {word} are back and in sync"
        );
        Figure::cost(name, share(percent).copied().unwrap_or_default().as_secs_f64(), "s")
    };

    let figures = vec![figure("half", 50), figure("99 %", 99), figure("all", 100)];
    let proven =
        format!("{} of {count} clients reconnected and received the missed messages", back.len());
    Ok(Measured { figures, spent, errors: missing, proven, ..Measured::default() })
}

/// Connects all clients to the replica that will be killed. Each pair of users shares a private
/// chat.
async fn gather(stage: &Stage, count: usize, users: usize) -> Result<Vec<Client>, String> {
    let making =
        (0..users).map(|user| async move { chat(stage, user, "private", &[user ^ 1]).await });
    let chats: Vec<_> =
        stream::iter(making.collect::<Vec<_>>()).buffered(REQUESTS_MAX).try_collect().await?;

    let base = stage.replicas().pop().ok_or("there is no replica")?;
    let connecting = (0..count).map(|number| {
        let user = number % users;
        let light =
            Light::connect(&base, &stage.accounts[user].token, false, stage.verdict.clone());
        let chat = chats[user].id.clone();
        async move { light.await.map(|light| Client { light, chat }) }
    });
    stream::iter(connecting.collect::<Vec<_>>()).buffered(REQUESTS_MAX).try_collect().await
}

/// Sends a message to each chat through the surviving replicas. Returns the rev of each message.
///
/// A request to the dead replica would be retried, and would delay the measurement.
async fn write(stage: &Stage, clients: &[Client], survivors: &[usize]) -> Result<Vec<u32>, String> {
    let users = clients.len().div_ceil(CONNECTIONS_PER_USER);
    let writing = clients.iter().take(users).enumerate().map(|(user, client)| async move {
        let path = format!("/chats/{}/messages", client.chat);
        let body: Value =
            json!({ "text": "while you were away", "client_id": format!("{}-{user}", stage.tag) });
        let replica = survivors[user % survivors.len()];
        stage
            .request::<Message>(replica, user, Method::POST, &path, Some(&body))
            .await
            .map(|message| message.rev)
    });
    stream::iter(writing.collect::<Vec<_>>()).buffered(REQUESTS_MAX).try_collect().await
}

/// Returns the times from the kill until each client was in sync, ascending, and the number of
/// clients that never were.
async fn all_back(
    stage: &Stage,
    clients: Vec<Client>,
    others: &[String],
    revs: &[u32],
    killed: Instant,
) -> (Vec<Duration>, u64) {
    let count = clients.len();
    let mut coming = JoinSet::new();
    for (number, mut client) in clients.into_iter().enumerate() {
        let (base, rev) = (others[number % others.len()].clone(), revs[number % revs.len()]);
        let (verdict, pause) =
            (stage.verdict.clone(), rand::rng().random_range(Duration::ZERO..JITTER));
        coming.spawn(async move {
            timeout(NOTICE, ended(&mut client.light)).await.ok()?;
            tokio::time::sleep(pause).await;
            timeout(BACK, client.light.reconnect_to(&base)).await.ok()?.ok()?;
            let took = killed.elapsed();
            if client.light.rev(&client.chat) < rev {
                verdict.chat(&client.chat, rev, "missing after the reconnect");
            }
            Some((took, client.light))
        });
    }

    // All connections stay open until the last client has reconnected.
    let back: Vec<(Duration, Light)> = coming.join_all().await.into_iter().flatten().collect();
    let mut took: Vec<Duration> = back.into_iter().map(|(took, _)| took).collect();
    took.sort_unstable();
    let missing = (count - took.len()) as u64;
    (took, missing)
}

/// Waits for the end of a connection.
async fn ended(light: &mut Light) {
    while !matches!(light.next().await, Heard::Closed(_)) {}
}
