//! A hash map with a fast hasher for small integer keys. The checker generates the keys itself, so
//! an attacker cannot choose keys that collide. The standard hasher would take half of the
//! checker's time.

use std::hash::{BuildHasherDefault, Hasher};

pub(super) type HashMap<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<Quick>>;

/// A hasher that multiplies to 128 bits and combines both halves.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Quick(u64);

impl Quick {
    fn add(&mut self, word: u64) {
        let product =
            u128::from(self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        #[expect(clippy::cast_possible_truncation, reason = "both halves are used")]
        let folded = (product as u64) ^ ((product >> 64) as u64);
        self.0 = folded.rotate_left(23);
    }
}

impl Hasher for Quick {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_le_bytes(word) ^ chunk.len() as u64);
        }
    }

    fn write_u32(&mut self, word: u32) {
        self.add(u64::from(word) | 1 << 40);
    }

    fn write_u64(&mut self, word: u64) {
        self.add(word);
    }

    fn write_usize(&mut self, word: usize) {
        self.add(word as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, BuildHasherDefault};

    use super::Quick;
    use crate::history::Name;

    #[test]
    fn neighbours_are_spread_over_a_table() {
        let hasher = BuildHasherDefault::<Quick>::default();
        let mut buckets = vec![0; 1 << 12];

        for chat in 0..10 {
            for rev in 0..10_000_u32 {
                buckets
                    [usize::try_from(hasher.hash_one((Name(chat), rev)) % (1 << 12)).unwrap()] += 1;
            }
        }

        // The average is 24.
        assert!(buckets.iter().all(|count| *count < 60), "{:?}", buckets.iter().max());

        let high = |rev: u32| hasher.hash_one((Name(1), rev)) >> 57;
        assert!((0..1000).map(high).collect::<std::collections::HashSet<_>>().len() > 100);
    }
}
