//! `mix`: ordinary use. The README of this crate publishes the shares of the actions.

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

/// Mean pause between two actions of a user.
const PACE: Duration = Duration::from_millis(200);
/// Time limit for a device to reconnect.
const BACK: Duration = Duration::from_secs(10);
/// Messages of a page.
const PAGE: u32 = 50;

/// An action of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Page,
    List,
    ReadChat,
    Changes,
    Send,
    Repeat,
    Read,
    Watch,
    Edit,
    Remove,
    Reconnect,
}

/// Each action, its share of 100 actions, and its name in the table.
const DAY: &[(Action, u32, &str)] = &[
    (Action::Page, 36, "pages of history"),
    (Action::List, 15, "lists of chats"),
    (Action::Send, 14, "messages, half of them after typing"),
    (Action::ReadChat, 11, "reads of one chat"),
    (Action::Changes, 8, "reads of changes"),
    (Action::Read, 8, "read markers"),
    (Action::Watch, 2, "presence subscriptions"),
    (Action::Edit, 2, "edits"),
    (Action::Reconnect, 2, "reconnects"),
    (Action::Remove, 1, "removals"),
    (Action::Repeat, 1, "messages sent twice with one key"),
];

/// Maps a number from 0 to 99 to an action.
fn action(mut number: u32) -> Action {
    for (action, share, _) in DAY {
        if number < *share {
            return *action;
        }
        number -= share;
    }
    Action::Page
}

/// Counts of the actions, by their index in [`DAY`].
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
    measured.notes.push(shares(&done.each_ref().map(|count| count.load(Ordering::Relaxed))));
    Ok(measured)
}

/// Ids of all users that share a group with this user.
fn neighbours(users: &Users, user: usize) -> Vec<String> {
    let (half, actors) = (GROUP / 2, &users.community.actors);
    let first = user / half * half + actors.len() - half;
    let numbers = first..first + (half + GROUP).min(actors.len());
    numbers.map(|number| actors[number % actors.len()].account().user_id.clone()).collect()
}

/// Describes the shares of the executed actions.
fn shares(done: &[u64; DAY.len()]) -> String {
    let all: u64 = done.iter().sum();
    let share = |count: u64| 100.0 * ratio(real(count), real(all));
    let words =
        DAY.iter().zip(done).map(|((_, _, word), count)| format!("{:.1} % {word}", share(*count)));
    format!("of {} actions: {}", thousands(all), words.collect::<Vec<_>>().join(", "))
}

/// The actions of one user.
struct Day {
    device: Device,
    chats: Vec<String>,
    neighbours: Vec<String>,
    /// The last message of this user, for edits and removals.
    own: Option<(String, u32)>,
    done: Done,
}

impl Day {
    async fn live(mut self, work: Work) {
        let mut rng = work.rng();
        self.watch().await;
        while work.rest(&mut rng).await {
            let chosen = match action(rng.random_range(0..100)) {
                // A user without a message writes one first.
                Action::Edit | Action::Remove if self.own.is_none() => Action::Send,
                chosen => chosen,
            };
            self.count(chosen);
            self.act(&work, &mut rng, chosen).await;
        }
    }

    fn count(&self, action: Action) {
        if let Some(index) = DAY.iter().position(|(listed, ..)| *listed == action) {
            self.done[index].fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn act(&mut self, work: &Work, rng: &mut StdRng, action: Action) {
        let actor = self.device.actor().clone();
        let chat = self.chats[rng.random_range(0..self.chats.len())].clone();
        let replica = rng.random_range(0..64);

        match action {
            Action::Page => {
                let page = HistoryPage { max: PAGE, ..HistoryPage::default() };
                actor.read_history(replica, &chat, page).await;
            }
            Action::List => drop(actor.chats(replica).await),
            Action::ReadChat => drop(actor.chat(replica, &chat).await),
            Action::Changes => drop(actor.changes(replica, &chat, 0).await),
            Action::Send => {
                if rng.random_bool(0.5) {
                    self.device.typing(&chat).await;
                }
                let text = work.unique(&actor.account().login);
                if let Some(Some(message)) = self.device.send(&chat, &text, None).await.ok() {
                    self.own = Some((chat, message.id));
                }
            }
            Action::Repeat => {
                // A client does this when the answer was lost.
                let (text, key) =
                    (work.unique(&actor.account().login), format!("{:016x}", rng.random::<u64>()));
                for turn in 0..2 {
                    actor.send(replica + turn, &chat, &text, Some(&key)).await;
                }
            }
            Action::Read => {
                if let Some(seen) = actor.chat(replica, &chat).await.ok() {
                    self.device.mark_read(&chat, seen.last_message_id).await;
                }
            }
            Action::Watch => self.watch().await,
            Action::Edit => {
                if let Some((chat, id)) = &self.own {
                    actor.edit(replica, chat, *id, &work.unique(&actor.account().login)).await;
                }
            }
            Action::Remove => {
                if let Some((chat, id)) = self.own.take() {
                    self.device.remove(&chat, id).await;
                }
            }
            Action::Reconnect => self.reconnect(work).await,
        }
    }

    /// Subscribes to the presence of the neighbours.
    async fn watch(&self) {
        let ids: Vec<&str> = self.neighbours.iter().map(String::as_str).collect();
        self.device.watch_presence(&ids).await;
    }

    /// Cuts the connection and waits for the next one. Presence subscriptions end with a
    /// connection.
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
    fn the_readme_has_the_shares_of_the_actions() {
        let published = include_str!("../../../README.md");
        for (listed, share, words) in DAY {
            let numbers = (0..100).filter(|number| action(*number) == *listed).count();
            assert_eq!(numbers, *share as usize, "{words}");
            assert!(
                published.contains(&format!("| {words} | {share} |")),
                "{words} is not published"
            );
        }
    }

    #[test]
    fn executed_actions_are_reported_as_shares() {
        let mut done = [0; DAY.len()];
        (done[0], done[1]) = (1500, 500);
        let words = shares(&done);
        assert!(
            words.starts_with("of 2,000 actions: 75.0 % pages of history, 25.0 % lists"),
            "{words}"
        );
    }
}
