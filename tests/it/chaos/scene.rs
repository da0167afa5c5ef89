//! The workload during the faults: users send, edit, remove, join, leave, log in and out, read, and
//! lose connections.

use std::sync::Arc;
use std::time::Duration;

use starling_loadtest::actor::Actor;
use starling_loadtest::device::{Device, DeviceOptions};
use starling_loadtest::history::{Bounds, History};
use starling_loadtest::workload::{self, Community, Work};
use tokio_util::sync::CancellationToken;

use super::stage::Stage;

const USERS: usize = 24;
const WRITERS: usize = 16;
const PRIVATE_CHATS: usize = 30;
/// How long a client waits for an answer: longer than the server may take.
const REQUEST_MAX: Duration = Duration::from_secs(8);

/// The users, their chats and devices.
pub struct Scene {
    pub history: Arc<History>,
    pub community: Community,
    pub devices: Vec<Device>,
    pub secrets: Vec<String>,
    hot: String,
    churned: String,
    private: Vec<String>,
    /// The work of the devices, which go on when the writers have stopped.
    watching: Work,
    pub work: Work,
}

impl Scene {
    /// Creates the users and their chats, and connects the devices.
    pub async fn set(stage: &Stage, seed: u64, pace: Duration) -> Self {
        let lines = stage.make_users(USERS).await;
        let accounts = workload::accounts_of_json_lines(&lines).unwrap();
        let secrets = accounts
            .iter()
            .flat_map(|account| [account.token.clone(), account.password.clone()])
            .collect();
        let history = History::new(Bounds::default());
        let community =
            Community::gather(&stage.bases(), REQUEST_MAX, &history, accounts).await.unwrap();
        let writers: Vec<usize> = (0..WRITERS).collect();
        let hot = community.group(&writers).await.unwrap();
        let churned = community.group(&[0, 1, 2]).await.unwrap();

        let mut private = Vec::new();
        for number in 0..PRIVATE_CHATS {
            let peer = (number + 1 + number / WRITERS) % WRITERS;
            private.push(community.private(number % WRITERS, peer).await.unwrap());
        }

        let watching = Work::new(seed, Duration::ZERO, CancellationToken::new());
        let devices = workload::connect_all(
            &watching,
            &community.actors,
            DeviceOptions { seed, ..Default::default() },
        );
        assert!(
            workload::wait_until_live(&devices, Duration::from_secs(30)).await,
            "all devices connect"
        );

        let work = Work::new(seed, pace, CancellationToken::new());
        Self { history, community, devices, secrets, hot, churned, private, watching, work }
    }

    /// Starts the workload.
    pub fn begin(&self) {
        let (work, actors, devices) = (&self.work, &self.community.actors, &self.devices);
        let hot = || vec![self.hot.clone()];
        workload::hot_chat(work, &actors[..8], &self.hot);
        for device in &devices[8..12] {
            work.spawn(workload::write_on_socket(work.clone(), device.clone(), hot(), 4));
        }

        work.spawn(workload::retry(work.clone(), actors[12].clone(), hot()));
        work.spawn(workload::replay(work.at_pace(work.pace * 8), actors[13].clone(), hot()));

        let (editor, device) = (actors[14].clone(), Some(devices[14].clone()));
        work.spawn(workload::edit_and_remove(work.clone(), editor, device, self.hot.clone()));
        work.spawn(workload::edit_and_remove(
            work.clone(),
            actors[1].clone(),
            None,
            self.churned.clone(),
        ));

        for (number, actor) in actors[..8].iter().enumerate() {
            let own: Vec<String> =
                self.private.iter().skip(number).step_by(WRITERS).cloned().collect();
            work.spawn(workload::write(work.at_pace(work.pace * 2), actor.clone(), own.clone()));
            work.spawn(workload::page(
                work.at_pace(work.pace * 4),
                actor.clone(),
                [own, hot()].concat(),
            ));
            work.spawn(workload::mark_read(work.at_pace(work.pace * 4), actor.clone(), hot()));
        }

        let comers: Vec<Actor> = actors[WRITERS..].to_vec();
        let churn = work.at_pace(work.pace * 3);
        work.spawn(workload::churn_membership(
            churn,
            actors[0].clone(),
            comers,
            self.churned.clone(),
        ));

        let users: Vec<String> =
            actors.iter().map(|actor| actor.account().user_id.clone()).collect();
        for device in &devices[4..7] {
            work.spawn(watch(work.at_pace(Duration::from_secs(3)), device.clone(), users.clone()));
        }

        let slow = work.at_pace(Duration::from_millis(1500));
        work.spawn(workload::churn_sessions(slow.clone(), actors[15].clone(), self.hot.clone()));
        work.spawn(workload::cut_now_and_then(
            work.at_pace(Duration::from_millis(500)),
            devices.clone(),
        ));
        work.spawn(workload::stall_now_and_then(slow, devices[3].clone(), Duration::from_secs(4)));
        work.spawn(workload::type_now_and_then(
            work.at_pace(work.pace * 4),
            devices.clone(),
            self.hot.clone(),
        ));
    }

    /// Whether every replica accepts a message now.
    pub async fn is_well(&self, replicas: usize) -> bool {
        for replica in 0..replicas {
            let text = self.work.unique("is it well");
            if !self.community.actors[0].send(replica, &self.hot, &text, None).await.is_ok() {
                return false;
            }
        }
        true
    }

    /// Disconnects the devices.
    pub async fn hang_up(&self) {
        self.watching.finish().await;
    }
}

/// A device watches the presence of all users. It repeats the frame, since each connection needs
/// its own.
async fn watch(work: Work, device: Device, users: Vec<String>) {
    let mut rng = work.rng();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    while work.rest(&mut rng).await {
        device.watch_presence(&users).await;
    }
}
