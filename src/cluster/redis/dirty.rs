//! Dirty topics: topics to compare with the store, in bounded memory.

use std::collections::HashSet;

use crate::cluster::Arrival;
use crate::metrics;
use crate::model::Topic;

/// A set of topics that may have a missed event. Above its bound it becomes [`Topic::Everyone`],
/// which stands for all topics: comparing too much is slow, comparing too little loses events.
#[derive(Debug)]
pub struct DirtyTopics {
    topics: HashSet<Topic>,
    max: usize,
    /// The label of the set in the metric of overflows.
    name: &'static str,
}

impl DirtyTopics {
    /// An empty set for at most `max` topics.
    pub fn new(name: &'static str, max: usize) -> Self {
        Self { topics: HashSet::new(), max, name }
    }

    pub fn add(&mut self, topic: Topic) {
        if self.topics.contains(&Topic::Everyone) {
            return;
        }

        self.topics.insert(topic);
        let overflows = self.topics.len() > self.max;
        if overflows {
            metrics::bus_dirty_topics_overflowed(self.name);
        }
        if overflows || topic == Topic::Everyone {
            self.topics = HashSet::from([Topic::Everyone]);
        }
    }

    pub fn remove(&mut self, topic: Topic) {
        self.topics.remove(&topic);
    }

    /// The topics, in no order.
    pub fn iter(&self) -> impl Iterator<Item = Topic> {
        self.topics.iter().copied()
    }

    /// Empties the set. Returns the resync for the hub; `None` if the set was empty.
    pub fn take(&mut self) -> Option<Arrival> {
        let topics: Vec<Topic> = std::mem::take(&mut self.topics).into_iter().collect();
        (!topics.is_empty()).then(|| Arrival::resync(topics))
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::model::ChatId;

    fn chat(number: u128) -> Topic {
        Topic::Chat(ChatId(Uuid::from_u128(number)))
    }

    #[test]
    fn topics_above_the_bound_become_a_resync_of_all_topics() {
        let mut dirty = DirtyTopics::new("test", 2);
        assert!(dirty.take().is_none());

        for topic in [chat(1), chat(2), chat(1)] {
            dirty.add(topic);
        }
        assert!(matches!(dirty.take(), Some(Arrival::Resync(topics)) if topics.len() == 2));
        assert!(dirty.take().is_none());

        for topic in [chat(1), chat(2), chat(3), chat(4)] {
            dirty.add(topic);
        }
        assert_eq!(dirty.iter().collect::<Vec<_>>(), [Topic::Everyone]);
        assert!(matches!(dirty.take(), Some(Arrival::ResyncAll)));

        dirty.add(chat(1));
        dirty.add(Topic::Everyone);
        assert_eq!(dirty.iter().collect::<Vec<_>>(), [Topic::Everyone]);
        dirty.remove(Topic::Everyone);
        assert!(dirty.take().is_none());
    }
}
