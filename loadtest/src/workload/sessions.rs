//! Logins and revocations.

use std::time::Duration;

use rand::RngExt;

use super::Work;
use crate::actor::Actor;
use crate::device::{Device, DeviceOptions};

/// How long a session is used before it is revoked, at most.
const USE_MS_MAX: u64 = 500;
/// How long a revoked session is still tried.
const TRY: Duration = Duration::from_secs(8);

/// Logs in, uses the session over HTTP and on a socket, revokes it with the first session, and goes
/// on trying it.
pub async fn churn_sessions(work: Work, actor: Actor, chat: String) {
    let mut rng = work.rng();
    while work.rest(&mut rng).await {
        let replica = rng.random_range(0..64);
        let Some(other) = actor.log_in(replica).await.ok() else { continue };
        let session_id = other.account().session_id.clone();
        let options =
            DeviceOptions { replica: replica + 1, seed: rng.random(), ..DeviceOptions::default() };
        let stop = work.shared.stop.child_token();
        let device = Device::start(other.clone(), options, work.tasks(), stop.clone());
        other.chat(replica + 2, &chat).await;
        let going = work.wait(Duration::from_millis(rng.random_range(0..USE_MS_MAX))).await;
        // Of an unknown outcome nothing follows; it is asked for again until it is known.
        while actor.revoke(rng.random_range(0..64), &session_id).await.is_unknown()
            && !work.is_over()
        {
            work.wait(Duration::from_millis(200)).await;
        }
        if going {
            try_for_a_while(&work, &other, &device, &chat).await;
        }
        stop.cancel();
    }
}

async fn try_for_a_while(work: &Work, revoked: &Actor, device: &Device, chat: &str) {
    let began = tokio::time::Instant::now();
    for replica in 0.. {
        let refused = revoked.chat(replica, chat).await.is_ok();
        let text = work.unique("after the end");
        device.send(chat, &text, None).await;
        let quiet = !refused && device.status().ended.is_some() && replica > 3;
        if quiet || began.elapsed() > TRY || !work.wait(Duration::from_millis(100)).await {
            return;
        }
    }
}
