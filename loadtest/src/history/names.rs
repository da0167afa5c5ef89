//! Interned names and hashed texts, to keep the record small.

use std::collections::HashMap;

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

/// The index of a string in [`Names`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Name(pub u32);

impl Name {
    /// The index of the empty string, which stands for no name.
    pub const NONE: Self = Self(0);
}

/// Interned strings. The empty string has index 0.
#[derive(Debug)]
pub struct Names {
    table: RwLock<Table>,
}

#[derive(Debug, Default)]
struct Table {
    numbers: HashMap<Box<str>, u32>,
    words: Vec<Box<str>>,
}

impl Default for Names {
    fn default() -> Self {
        let names = Self { table: RwLock::default() };
        names.name("");
        names
    }
}

impl Names {
    /// Returns the index of a string. A new string is added.
    pub fn name(&self, word: &str) -> Name {
        if let Some(number) = self.table.read().numbers.get(word) {
            return Name(*number);
        }

        let mut table = self.table.write();
        if let Some(number) = table.numbers.get(word) {
            return Name(*number);
        }

        let number = u32::try_from(table.words.len()).unwrap_or(u32::MAX);
        table.words.push(word.into());
        table.numbers.insert(word.into(), number);

        Name(number)
    }

    /// Returns the string of an index; empty if the index is unknown.
    pub fn word(&self, name: Name) -> String {
        self.table.read().words.get(name.0 as usize).map(ToString::to_string).unwrap_or_default()
    }

    /// All strings, in the order of their indices.
    pub fn all(&self) -> Vec<Box<str>> {
        self.table.read().words.clone()
    }
}

/// A 64-bit hash of a text. Among a million different texts, the chance of a collision is less than
/// 1 in 10^7.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Digest(pub u64);

impl Digest {
    /// The value that stands for no text.
    pub const NONE: Self = Self(0);

    /// Hashes a text, in the same way in every version of this program: FNV-1a over words of 8
    /// bytes, then the finaliser of `SplitMix64`.
    pub fn of(text: &str) -> Self {
        const PRIME: u64 = 0x0000_0100_0000_01b3;
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325 ^ text.len() as u64;
        for chunk in text.as_bytes().chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            hash = mix(hash ^ u64::from_le_bytes(word)).wrapping_mul(PRIME);
        }
        Self(mix(hash).max(1))
    }
}

fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_name_keeps_its_index() {
        let names = Names::default();
        let (a, b) = (names.name("a"), names.name("b"));
        assert_ne!(a, b);
        assert_eq!(
            (names.name("a"), names.word(b), names.name("")),
            (a, "b".to_owned(), Name::NONE)
        );
    }

    #[test]
    fn texts_that_differ_a_little_have_different_digests() {
        let digests: HashSet<Digest> =
            (0..200_000).map(|number| Digest::of(&format!("message {number} of u7"))).collect();
        assert_eq!(digests.len(), 200_000);
        assert_eq!(Digest::of("stays"), Digest::of("stays"));
        assert_ne!(Digest::of(""), Digest::NONE);
    }
}
