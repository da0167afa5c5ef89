//! Logins and revocations.

use std::time::Duration;

use rand::RngExt;

use super::Work;
use crate::actor::Actor;
use crate::device::{Device, DeviceOptions};

/// Maximum time from the login to the revocation.
const USE_MS_MAX: u64 = 500;
/// Maximum time for which a revoked session is still used.
const TRY: Duration = Duration::from_secs(8);

/// Logs in, uses the new session over HTTP and on a socket, revokes it with the first session, and
/// keeps using it.
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

        let keep_using = work.wait(Duration::from_millis(rng.random_range(0..USE_MS_MAX))).await;
        // The checker needs an acknowledged revocation, so an unknown outcome is retried.
        while actor.revoke(rng.random_range(0..64), &session_id).await.is_unknown()
            && !work.is_over()
        {
            work.wait(Duration::from_millis(200)).await;
        }
        if keep_using {
            use_revoked(&work, &other, &device, &chat).await;
        }

        stop.cancel();
    }
}

async fn use_revoked(work: &Work, revoked: &Actor, device: &Device, chat: &str) {
    let began = tokio::time::Instant::now();
    for replica in 0.. {
        let succeeded = revoked.chat(replica, chat).await.is_ok();
        let text = work.unique("after the end");
        device.send(chat, &text, None).await;
        let is_over = !succeeded && device.status().ended.is_some() && replica > 3;
        if is_over || began.elapsed() > TRY || !work.wait(Duration::from_millis(100)).await {
            return;
        }
    }
}
