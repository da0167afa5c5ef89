//! `inbox`: reads of chat lists and of history, in seeded chats. A client makes these requests when
//! it starts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::Method;
use starling_loadtest::wire::{ChatList, MessageList};
use tokio::task::JoinSet;

use super::Measured;
use super::seed::{Seeded, fill};
use crate::tool::arith::real;
use crate::tool::meter::Meter;
use crate::tool::stage::{Figure, FloorKind, Stage};
use crate::tool::watch::Watch;

/// Concurrent readers.
pub(in crate::tool) const READERS: usize = 8;
/// Messages of a page.
pub(in crate::tool) const PAGE: u32 = 50;

pub(super) async fn run(stage: &Stage) -> Result<Measured, String> {
    let (chats, seeded) = fill(stage).await?;
    let chats = Arc::new(chats);
    let warm_up = Duration::from_secs(stage.load.warm_up);
    let (lists, pages) = (Meter::new("lists", warm_up)?, Meter::new("pages", warm_up)?);

    let watch = Watch::begin(&stage.processes, vec![lists.clone(), pages.clone()]);

    let until = Instant::now() + warm_up + Duration::from_secs(stage.load.seconds);
    let mut readers = JoinSet::new();
    for number in 0..READERS {
        let reader = Reader {
            number,
            until,
            chats: chats.clone(),
            lists: lists.clone(),
            pages: pages.clone(),
        };
        readers.spawn(reader.run(stage.clone()));
    }

    let mut errors = seeded.errors;
    for read in readers.join_all().await {
        errors += read?;
    }
    lists.stop();
    pages.stop();
    let spent = watch.finish();

    let mut figures = Vec::new();
    for (word, meter) in [("list of chats", &lists), ("page of history", &pages)] {
        let summary = meter.summary();
        figures.push(Figure::rate(word, summary.rate, "/s").over(FloorKind::Reads));
        let latency =
            |quantile: &str, us| Figure::cost(format!("{word}, {quantile}"), real(us) / 1e3, "ms");
        figures.push(latency("p50", summary.p50_us).over(FloorKind::ReadP50));
        figures.push(latency("p99", summary.p99_us).over(FloorKind::ReadP99));
    }

    let (lists, pages) = (lists.summary(), pages.summary());
    let proven = format!(
        "{} lists and {} pages were complete and in order",
        lists.count_with_warm_up, pages.count_with_warm_up
    );

    Ok(Measured {
        figures,
        meters: vec![lists, pages],
        spent,
        errors,
        proven,
        ..Measured::default()
    })
}

struct Reader {
    number: usize,
    until: Instant,
    chats: Arc<Vec<Seeded>>,
    lists: Arc<Meter>,
    pages: Arc<Meter>,
}

impl Reader {
    /// Reads until the end of the run. Returns how many requests failed.
    async fn run(self, stage: Stage) -> Result<u64, String> {
        let mut errors = 0;
        let turns = self.chats.iter().cycle().skip(self.number * self.chats.len() / READERS);
        for (turn, Seeded { owner, chat_id, messages }) in turns.enumerate() {
            if Instant::now() >= self.until {
                break;
            }

            let begun = Instant::now();
            match stage.request::<ChatList>(turn, *owner, Method::GET, "/chats", None).await {
                Ok(list) => {
                    self.lists.record(begun.elapsed());
                    if !list.chats.iter().any(|chat| chat.id == *chat_id)
                        && list.next_cursor.is_none()
                    {
                        stage.verdict.chat(chat_id, 1, "is missing from its member's list");
                    }
                }
                Err(_) => errors += 1,
            }

            let begun = Instant::now();
            let path = format!("/chats/{chat_id}/messages?max={PAGE}");
            match stage.request::<MessageList>(turn + 1, *owner, Method::GET, &path, None).await {
                Ok(page) => {
                    self.pages.record(begun.elapsed());
                    judge(&stage, chat_id, *messages, &page);
                }
                Err(_) => errors += 1,
            }
        }
        Ok(errors)
    }
}

/// Checks the newest page. No one writes any longer, so it must be full and without a gap.
fn judge(stage: &Stage, chat_id: &str, messages: u32, page: &MessageList) {
    let ids: Vec<u32> = page.messages.iter().map(|message| message.id).collect();
    if let Some(two) = ids.windows(2).find(|two| two[1] != two[0] + 1) {
        stage.verdict.chat(
            chat_id,
            two[0] + 1,
            &format!("the page goes from message {} to {}", two[0], two[1]),
        );
    }
    if ids.last().copied().unwrap_or(0) < messages || ids.len() < messages.min(PAGE) as usize {
        stage.verdict.chat(chat_id, messages, &format!("the newest page ends early: {ids:?}"));
    }
}
