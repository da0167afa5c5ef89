//! `mix`: a day of ordinary use, in proportions that the README of this crate publishes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use starling_loadtest::actor::HistoryPage;
use starling_loadtest::device::Device;
use starling_loadtest::workload::Work;

use super::Measured;
use super::recorded::{GROUP, groups_of, in_groups, is_back, warm_up};
use super::users::{Users, work};
use crate::tool::arith::{ratio, real, thousands};
use crate::tool::stage::Stage;
use crate::tool::watch::Watch;

/// Between two things that a user does, on average.
const PACE: Duration = Duration::from_millis(200);
/// How long a user waits to be back after a reconnect.
const BACK: Duration = Duration::from_secs(10);
/// Messages of a page.
const PAGE: u32 = 50;

/// A thing that a user does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Page,
    List,
    Look,
    Changes,
    Send,
    Repeat,
    Read,
    Watch,
    Edit,
    Remove,
    Reconnect,
}

/// How often each is done, of 100 things, and what it is called.
const DAY: &[(Deed, u32, &str)] = &[
    (Deed::Page, 36, "pages of history"),
    (Deed::List, 15, "lists of chats"),
    (Deed::Send, 14, "messages, half of them after typing"),
    (Deed::Look, 11, "looks at one chat"),
    (Deed::Changes, 8, "reads of changes"),
    (Deed::Read, 8, "read markers"),
    (Deed::Watch, 2, "questions who is online"),
    (Deed::Edit, 2, "edits"),
    (Deed::Reconnect, 2, "reconnects"),
    (Deed::Remove, 1, "removals"),
    (Deed::Repeat, 1, "messages sent twice with one key"),
];

/// The deed that a number from 0 to 99 stands for.
fn deed(mut number: u32) -> Deed {
    for (deed, share, _) in DAY {
        if number < *share {
            return *deed;
        }
        number -= share;
    }
    Deed::Page
}

/// What was done, by its place in [`DAY`].
type Done = Arc<[AtomicU64; DAY.len()]>;

pub(super) async fn run(stage: &Stage) -> Result<Measured, String> {
    let users = in_groups(stage).await?;
    let (work, done) = (work(stage, PACE), Done::default());
    for (number, device) in users.devices.iter().enumerate() {
        let day = Day {
            device: device.clone(),
            chats: groups_of(&users, number),
            neighbours: neighbours(&users, number),
            own: None,
            done: done.clone(),
        };
        work.spawn(day.live(work.clone()));
    }
    let watch = Watch::begin(&stage.processes, Vec::new());
    let from_us = warm_up(stage, &users).await;
    tokio::time::sleep(Duration::from_secs(stage.load.seconds)).await;
    work.finish().await;
    let mut measured = users.finish(stage, watch, from_us).await?;
    measured.notes.push(told(&done.each_ref().map(|count| count.load(Ordering::Relaxed))));
    Ok(measured)
}

/// The ids of all who share a group with a user.
fn neighbours(users: &Users, user: usize) -> Vec<String> {
    let (half, actors) = (GROUP / 2, &users.community.actors);
    let first = user / half * half + actors.len() - half;
    let numbers = first..first + (half + GROUP).min(actors.len());
    numbers.map(|number| actors[number % actors.len()].account().user_id.clone()).collect()
}

fn told(done: &[u64; DAY.len()]) -> String {
    let all: u64 = done.iter().sum();
    let share = |count: u64| 100.0 * ratio(real(count), real(all));
    let words =
        DAY.iter().zip(done).map(|((_, _, word), count)| format!("{:.1} % {word}", share(*count)));
    format!("of {} things that users did: {}", thousands(all), words.collect::<Vec<_>>().join(", "))
}

/// A user's day.
struct Day {
    device: Device,
    chats: Vec<String>,
    neighbours: Vec<String>,
    /// The last message of one's own, to be changed.
    own: Option<(String, u32)>,
    done: Done,
}

impl Day {
    async fn live(mut self, work: Work) {
        let mut rng = work.rng();
        self.watch().await;
        while work.rest(&mut rng).await {
            let chosen = match deed(rng.random_range(0..100)) {
                // Who has written nothing yet writes first.
                Deed::Edit | Deed::Remove if self.own.is_none() => Deed::Send,
                chosen => chosen,
            };
            self.count(chosen);
            self.act(&work, &mut rng, chosen).await;
        }
    }

    fn count(&self, deed: Deed) {
        if let Some(place) = DAY.iter().position(|(listed, ..)| *listed == deed) {
            self.done[place].fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn act(&mut self, work: &Work, rng: &mut StdRng, deed: Deed) {
        let actor = self.device.actor().clone();
        let chat = self.chats[rng.random_range(0..self.chats.len())].clone();
        let replica = rng.random_range(0..64);
        match deed {
            Deed::Page => {
                let page = HistoryPage { max: PAGE, ..HistoryPage::default() };
                actor.read_history(replica, &chat, page).await;
            }
            Deed::List => drop(actor.chats(replica).await),
            Deed::Look => drop(actor.chat(replica, &chat).await),
            Deed::Changes => drop(actor.changes(replica, &chat, 0).await),
            Deed::Send => {
                if rng.random_bool(0.5) {
                    self.device.typing(&chat).await;
                }
                let text = work.unique(&actor.account().login);
                if let Some(Some(message)) = self.device.send(&chat, &text, None).await.ok() {
                    self.own = Some((chat, message.id));
                }
            }
            Deed::Repeat => {
                // As a client does that did not hear the answer.
                let (text, key) =
                    (work.unique(&actor.account().login), format!("{:016x}", rng.random::<u64>()));
                for turn in 0..2 {
                    actor.send(replica + turn, &chat, &text, Some(&key)).await;
                }
            }
            Deed::Read => {
                if let Some(seen) = actor.chat(replica, &chat).await.ok() {
                    self.device.mark_read(&chat, seen.last_message_id).await;
                }
            }
            Deed::Watch => self.watch().await,
            Deed::Edit => {
                if let Some((chat, id)) = &self.own {
                    actor.edit(replica, chat, *id, &work.unique(&actor.account().login)).await;
                }
            }
            Deed::Remove => {
                if let Some((chat, id)) = self.own.take() {
                    self.device.remove(&chat, id).await;
                }
            }
            Deed::Reconnect => self.reconnect(work).await,
        }
    }

    /// Asks who of the neighbours is online, and to be told when that changes.
    async fn watch(&self) {
        let ids: Vec<&str> = self.neighbours.iter().map(String::as_str).collect();
        self.device.watch_presence(&ids).await;
    }

    /// Each connection has to ask anew.
    async fn reconnect(&self, work: &Work) {
        let (before, began) = (self.device.status().connections, tokio::time::Instant::now());
        self.device.cut().await;
        while !is_back(&self.device, before) && began.elapsed() < BACK {
            if !work.wait(Duration::from_millis(20)).await {
                return;
            }
        }
        self.watch().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proportions_are_of_a_hundred_and_are_those_that_are_published() {
        let published = include_str!("../../../README.md");
        for (listed, share, words) in DAY {
            let numbers = (0..100).filter(|number| deed(*number) == *listed).count();
            assert_eq!(numbers, *share as usize, "{words}");
            assert!(
                published.contains(&format!("| {words} | {share} |")),
                "{words} is not published"
            );
        }
    }

    #[test]
    fn what_was_done_is_told_in_shares_of_it() {
        let mut done = [0; DAY.len()];
        (done[0], done[1]) = (1500, 500);
        let told = told(&done);
        assert!(
            told.starts_with(
                "of 2,000 things that users did: 75.0 % pages of history, 25.0 % lists"
            ),
            "{told}"
        );
    }
}
