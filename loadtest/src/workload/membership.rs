//! Users who join and leave a chat.

use rand::RngExt;

use super::Work;
use crate::actor::Actor;

/// The owner adds these users to a chat and removes them. The users also leave, write and read.
pub async fn churn_membership(work: Work, owner: Actor, users: Vec<Actor>, chat: String) {
    let mut rng = work.rng();
    while work.rest(&mut rng).await {
        let user = &users[rng.random_range(0..users.len())];
        let user_id = &user.account().user_id;
        let replica = rng.random_range(0..64);

        match rng.random_range(0..8) {
            0..3 => drop(owner.add_member(replica, &chat, user_id).await),
            3 | 4 => drop(owner.remove_member(replica, &chat, user_id).await),
            5 => drop(user.remove_member(replica, &chat, user_id).await),
            6 => {
                let text = work.unique(&user.account().login);
                user.send(replica, &chat, &text, None).await;
            }
            _ => drop(user.changes(replica, &chat, 0).await),
        }
    }
}
