//! Connections that listen.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use super::sender::{Deliveries, until_rev};
use crate::tool::light::{Heard, Light};
use crate::tool::meter::Meter;
use crate::tool::stage::Stage;

/// How long the last messages may take to reach a listener.
const SETTLE: Duration = Duration::from_secs(15);
/// Bytes that may wait for a listener that reads nothing: 1 MiB in the server, what the kernels
/// keep on both sides, and the frames under way.
const WAITING_BYTES_MAX: usize = 3 << 20;

/// A connection that listens to one chat, or to none.
#[derive(Debug)]
pub struct Listener {
    /// Its connection.
    pub light: Light,
    /// The chat; empty for none.
    pub chat: String,
    /// Connections that ended meanwhile.
    pub errors: u64,
}

/// Listeners at work.
#[derive(Debug)]
pub struct Listeners {
    tasks: JoinSet<Listener>,
    stop: CancellationToken,
}

impl Listeners {
    /// Lets connections listen, each to its chat. Each delivery is measured, and told to
    /// `deliveries`.
    pub fn start(
        stage: &Stage,
        lights: Vec<(Light, String)>,
        meter: Option<&Arc<Meter>>,
        deliveries: Option<&Arc<Deliveries>>,
    ) -> Self {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for (light, chat) in lights {
            let listener = Listener { light, chat, errors: 0 };
            tasks.spawn(listener.run(
                stage.epoch,
                meter.cloned(),
                deliveries.cloned(),
                stop.clone(),
            ));
        }
        Self { tasks, stop }
    }

    /// Ends the listening, once each was told its chat up to the rev that `rev_of` knows; one that
    /// is not is a violation.
    pub async fn finish(self, stage: &Stage, rev_of: impl Fn(&str) -> u32) -> (u64, u64) {
        self.stop.cancel();
        let (mut count, mut errors) = (0, 0);
        let mut settling = JoinSet::new();
        for mut listener in self.tasks.join_all().await {
            let rev = rev_of(&listener.chat);
            let (verdict, direct) = (stage.verdict.clone(), stage.is_direct());
            settling.spawn(async move {
                if !until_rev(&mut listener.light, &listener.chat, rev, SETTLE).await {
                    let next = listener.light.rev(&listener.chat) + 1;
                    verdict.chat(
                        &listener.chat,
                        next,
                        &format!("a member was not told it; the chat is at {rev}"),
                    );
                }
                let waited = listener.light.waited_bytes();
                // A balancer's kernel keeps more.
                if direct && waited > WAITING_BYTES_MAX {
                    let what = format!(
                        "{waited} bytes waited for a member that read nothing, instead of its end"
                    );
                    verdict.chat(&listener.chat, rev, &what);
                }
                let errors = listener.errors;
                listener.light.close().await;
                errors
            });
        }
        for each in settling.join_all().await {
            count += 1;
            errors += each;
        }
        (count, errors)
    }
}

impl Listener {
    async fn run(
        mut self,
        epoch: Instant,
        meter: Option<Arc<Meter>>,
        deliveries: Option<Arc<Deliveries>>,
        stop: CancellationToken,
    ) -> Self {
        if self.light.is_slow() {
            // What came meanwhile is read when all of it has been sent.
            while !stop.is_cancelled() {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = sleep_until(self.light.ping_due()) => drop(self.light.ping().await),
                }
            }
            return self;
        }
        loop {
            let ping_due = self.light.ping_due();
            tokio::select! {
                () = stop.cancelled() => return self,
                heard = self.light.next() => match heard {
                    Heard::New { stamp_us: Some(stamp_us) } => {
                        if let Some(meter) = &meter {
                            let sent = epoch + Duration::from_micros(stamp_us);
                            meter.record(Instant::now().saturating_duration_since(sent));
                        }
                        if let Some(deliveries) = &deliveries {
                            deliveries.add();
                        }
                    }
                    Heard::Closed(_) => {
                        self.errors += 1;
                        if self.light.come_back().await.is_err() {
                            return self;
                        }
                    }
                    _ => {}
                },
                () = sleep_until(ping_due) => drop(self.light.ping().await),
            }
        }
    }
}
