//! The violations of a run.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Most descriptions that are kept. Further violations are only counted.
const SENTENCES_MAX: usize = 20;

/// Collects violations from all tasks.
#[derive(Debug, Default)]
pub struct Verdict {
    count: AtomicU64,
    sentences: Mutex<Vec<String>>,
}

impl Verdict {
    /// Adds a violation in a chat at a rev.
    pub fn chat(&self, chat: &str, rev: u32, what: &str) {
        self.say(format!("chat {chat}: {what} (rev {rev})"));
    }

    /// Adds a violation.
    pub fn say(&self, sentence: String) {
        self.add(1, std::iter::once(sentence));
    }

    /// Adds several violations with examples.
    pub fn add(&self, count: u64, examples: impl IntoIterator<Item = String>) {
        self.count.fetch_add(count, Ordering::Relaxed);
        let mut sentences = self.sentences.lock();
        let room = SENTENCES_MAX.saturating_sub(sentences.len());
        sentences.extend(examples.into_iter().take(room));
    }

    /// Removes and returns the number of violations and the first descriptions.
    pub fn take(&self) -> (u64, Vec<String>) {
        (self.count.swap(0, Ordering::Relaxed), std::mem::take(&mut *self.sentences.lock()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn violations_name_the_chat_and_rev_and_all_are_counted() {
        let verdict = Verdict::default();
        for rev in 1..=30 {
            verdict.chat("c", rev, "it is missing");
        }
        let (count, sentences) = verdict.take();
        assert_eq!(
            (count, sentences.len(), sentences[0].as_str()),
            (30, SENTENCES_MAX, "chat c: it is missing (rev 1)")
        );
        verdict.add(7, ["one".to_owned(), "two".to_owned()]);
        assert_eq!(verdict.take(), (7, vec!["one".to_owned(), "two".to_owned()]));
    }
}
