//! The Redis channels of topics.
//!
//! One channel for each topic would be simpler, but it does not scale. When a replica with a
//! million subscriptions disconnects, Redis removes them one by one and answers no other client
//! meanwhile. So topics share a bounded number of channels; `cargo bench --bench growth
//! subscriptions` measures the result. A replica also receives events of a chat that it does not
//! follow, if the chat shares a channel with a topic that it follows. The hub ignores those events.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::link::key;
use crate::model::Topic;

/// Number of channels that topics share. With fewer chats than a tenth of this, few share a
/// channel. A replica that is subscribed to all channels costs Redis about 30 MB, and resubscribes
/// in about a second.
pub const CHANNELS: u32 = 1 << 17;

/// The channel of a topic. Two topics may have the same channel. All replicas of a cluster must use
/// the same mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Events for every replica.
    Everyone,
    /// One of [`CHANNELS`].
    Shared(u32),
}

impl Channel {
    /// The channel that carries the events of a topic.
    pub fn of(topic: Topic) -> Self {
        match topic {
            Topic::Chat(id) => Self::shared(id.0, 0),
            Topic::User(id) => Self::shared(id.0, 1),
            Topic::Presence(id) => Self::shared(id.0, 2),
            Topic::Everyone => Self::Everyone,
        }
    }

    /// The last bits of an id are random. `kind` keeps the two topics of one user apart.
    fn shared(id: Uuid, kind: u32) -> Self {
        let [.., a, b, c, d] = *id.as_bytes();
        Self::Shared(u32::from_be_bytes([a, b, c, d]).wrapping_add(kind) % CHANNELS)
    }

    /// The name of the channel in Redis. All keys and channels of a deployment begin with `prefix`.
    pub fn name(self, prefix: &str) -> String {
        match self {
            Self::Everyone => key(prefix, "everyone", ""),
            Self::Shared(number) => key(prefix, "topics", &number.to_string()),
        }
    }
}

/// The topics, and so the channels, to which one connection to Redis is subscribed.
#[derive(Debug, Default)]
pub struct Subscribed {
    topics: HashSet<Topic>,
    /// The number of `topics` in each channel; never 0.
    channels: HashMap<Channel, usize>,
}

impl Subscribed {
    pub fn contains(&self, topic: &Topic) -> bool {
        self.topics.contains(topic)
    }

    /// Adds topics. Returns the channels to subscribe to.
    pub fn add(&mut self, topics: impl IntoIterator<Item = Topic>) -> Vec<Channel> {
        let mut new = Vec::new();
        for topic in topics {
            if !self.topics.insert(topic) {
                continue;
            }

            let channel = Channel::of(topic);
            let sharing = self.channels.entry(channel).or_insert_with(|| {
                new.push(channel);
                0
            });
            *sharing += 1;
        }
        new
    }

    /// Removes topics. Returns the channels to unsubscribe from.
    pub fn remove(&mut self, topics: impl IntoIterator<Item = Topic>) -> Vec<Channel> {
        let mut unused = Vec::new();
        for topic in topics {
            if !self.topics.remove(&topic) {
                continue;
            }

            let channel = Channel::of(topic);
            if let Entry::Occupied(mut sharing) = self.channels.entry(channel) {
                *sharing.get_mut() -= 1;
                if *sharing.get() == 0 {
                    sharing.remove();
                    unused.push(channel);
                }
            }
        }
        unused
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ChatId, UserId};

    /// A chat whose id ends with this number.
    fn chat(number: u128) -> Topic {
        Topic::Chat(ChatId(Uuid::from_u128(number)))
    }

    #[test]
    fn a_channel_is_unsubscribed_with_the_last_of_its_topics() {
        let (first, second, other) = (chat(7), chat(7 + u128::from(CHANNELS)), chat(8));
        assert_eq!(Channel::of(first), Channel::of(second));

        let mut subscribed = Subscribed::default();
        assert_eq!(
            subscribed.add([first, second, other, first]),
            [Channel::of(first), Channel::of(other)]
        );
        assert_eq!(subscribed.add([second]), []);

        assert_eq!(subscribed.remove([first, first]), []);
        assert!(subscribed.contains(&second) && !subscribed.contains(&first));
        assert_eq!(subscribed.remove([second]), [Channel::of(second)]);
        assert_eq!(subscribed.remove([second]), []);

        assert_eq!(subscribed.add([first]), [Channel::of(first)]);
    }

    #[test]
    fn the_topics_of_one_user_have_channels_of_their_own() {
        let user = UserId(Uuid::from_u128(u128::MAX));
        assert_ne!(Channel::of(Topic::User(user)), Channel::of(Topic::Presence(user)));
        assert_eq!(Channel::of(Topic::Everyone), Channel::Everyone);
    }

    #[test]
    fn channels_are_used_evenly() {
        let clock = crate::model::Clock::system();
        let mut subscribed = Subscribed::default();
        let topics = (0..CHANNELS).map(|_| Topic::Chat(ChatId::new(clock.now(), &mut rand::rng())));
        let used = subscribed.add(topics).len();

        // 63.2 % of the channels are expected, with a standard deviation of less than 0.1 %.
        let used_per_mille = used * 1000 / usize::try_from(CHANNELS).unwrap();
        assert!(
            (620..645).contains(&used_per_mille),
            "{used_per_mille} of 1,000 channels are used"
        );
    }
}
