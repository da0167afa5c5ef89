//! Connections that receive messages and check their order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use super::sender::{Deliveries, until_rev};
use crate::tool::light::{Heard, Light};
use crate::tool::meter::Meter;
use crate::tool::stage::Stage;

/// Time limit for the last messages to reach a listener.
const SETTLE: Duration = Duration::from_secs(15);
/// Largest accepted backlog of a slow consumer: 1 MiB in the server's outbox, the kernel's buffers
/// on both sides, and the frame that is being written.
const WAITING_BYTES_MAX: usize = 3 << 20;

/// A connection that receives the messages of one chat, or of none.
#[derive(Debug)]
pub struct Listener {
    pub light: Light,
    /// Id of the chat; empty for none.
    pub chat: String,
    /// How often the connection ended.
    pub errors: u64,
}

/// Running listeners.
#[derive(Debug)]
pub struct Listeners {
    tasks: JoinSet<Listener>,
    stop: CancellationToken,
}

impl Listeners {
    /// Starts a listener on each connection. Each delivery is recorded in `meter` and counted in
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

    /// Waits until each listener has received its chat up to `rev_of` the chat, then closes the
    /// connections. A listener that does not get there is a violation. Returns the number of
    /// listeners and of errors.
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
                        &format!("a member did not receive it; the chat is at {rev}"),
                    );
                }

                let waited = listener.light.waited_bytes();
                // Behind a balancer, more kernel buffers are involved.
                if direct && waited > WAITING_BYTES_MAX {
                    let what = format!(
                        "{waited} bytes waited for a member that read nothing; its connection \
                         should have been closed"
                    );
                    verdict.chat(&listener.chat, rev, &what);
                }

                let errors = listener.errors;
                listener.light.close().await;
                errors
            });
        }

        for failed in settling.join_all().await {
            count += 1;
            errors += failed;
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
            // A slow consumer only sends heartbeats. `finish` reads its backlog.
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
                frame = self.light.next() => match frame {
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
                        if self.light.reconnect().await.is_err() {
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
