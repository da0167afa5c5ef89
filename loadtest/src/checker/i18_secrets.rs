//! I18: planted secrets appear in no exposed text. The report names a secret by its number and does
//! not repeat it.

use super::facts::Facts;
use super::quick::HashMap;
use super::report::Sink;
use super::{Harm, Invariant, Location};

/// Secrets are indexed by their first bytes, so each text is scanned once for all secrets.
const HEAD_BYTES: usize = 8;

pub(super) fn check(facts: &Facts<'_>, sink: &mut Sink<'_>) {
    let mut by_head: HashMap<&[u8], Vec<usize>> = HashMap::default();
    let mut short: Vec<usize> = Vec::new();
    let secrets = facts.evidence.secrets;

    for (number, secret) in secrets.iter().enumerate() {
        match secret.as_bytes().get(..HEAD_BYTES) {
            Some(head) => by_head.entry(head).or_default().push(number),
            None if secret.is_empty() => {}
            None => short.push(number),
        }
    }

    for exposed in facts.evidence.exposed {
        let mut found: Vec<usize> =
            short.iter().copied().filter(|n| exposed.text.contains(&secrets[*n])).collect();
        let bytes = exposed.text.as_bytes();

        for (start, head) in bytes.windows(HEAD_BYTES).enumerate() {
            for number in by_head.get(head).into_iter().flatten() {
                if bytes[start..].starts_with(secrets[*number].as_bytes()) {
                    found.push(*number);
                }
            }
        }

        found.sort_unstable();
        found.dedup();

        for number in found {
            sink.add(Invariant::I18, Harm::Leaked, Location::default(), || {
                format!("secret number {number} of the list appears in {}", exposed.place)
            });
        }
    }
}
