//! What travels on Redis, and its seal.
//!
//! Who can write to Redis can publish whatever they like, so everything a replica puts there carries a code that only
//! holders of the cluster's key can make (HMAC-SHA256, RFC 2104). The key is in the database, never in Redis. The code covers
//! the time at which the body was sealed. A copy that is replayed within [`BUS_EVENT_AGE_MAX`] is harmless: durable events
//! are known by their `rev`, and the rest repeats what was so a moment ago. An older copy is not delivered.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::ReplicaId;
use crate::model::limits::BUS_EVENT_AGE_MAX;
use crate::model::{Epoch, Event, Timestamp, Topic};

/// Bytes of a seal.
const SEAL_BYTES: usize = 32;

/// The key that the replicas of one community share.
#[derive(Clone)]
pub struct ClusterKey(pub [u8; 32]);

impl ClusterKey {
    fn code(&self, context: &str, body: &[u8]) -> Hmac<Sha256> {
        // A key shorter than the hash's block is filled up with zeros, says the standard.
        let mut block = [0; 64];
        block[..self.0.len()].copy_from_slice(&self.0);
        let mut code = Hmac::<Sha256>::new(&block.into());
        code.update(&(context.len() as u64).to_be_bytes());
        code.update(context.as_bytes());
        code.update(body);
        code
    }

    /// The body with its seal. What is sealed for one context does not open in another.
    pub fn seal(&self, context: &str, body: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::with_capacity(SEAL_BYTES + body.len());
        sealed.extend_from_slice(&self.code(context, body).finalize().into_bytes());
        sealed.extend_from_slice(body);
        sealed
    }

    /// A name for something that must not be readable in Redis: a login, an address.
    pub fn veil(&self, context: &str, secret: &str) -> String {
        let code = self.code(context, secret.as_bytes()).finalize().into_bytes();
        URL_SAFE_NO_PAD.encode(&code[..16])
    }

    /// The body, if its seal is true.
    pub fn open<'a>(&self, context: &str, sealed: &'a [u8]) -> Option<&'a [u8]> {
        let (seal, body) = sealed.split_at_checked(SEAL_BYTES)?;
        self.code(context, body).verify_slice(seal).ok()?;
        Some(body)
    }
}

/// What a replica tells the others.
#[derive(Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// Who tells it.
    pub from: ReplicaId,
    /// The epoch of the log when it was published; absent from a replica of the version before.
    #[serde(default)]
    pub epoch: Option<Epoch>,
    /// When it was sealed. Replicas of the version before did not say: to the others their events are stale, which costs a
    /// look at the store during a rollout and loses nothing.
    #[serde(default)]
    pub at: Timestamp,
    /// What.
    pub said: Said,
}

/// The kinds of news.
#[derive(Debug, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "the large one is nearly all of them")]
pub enum Said {
    /// This happened.
    Event(Event),
    /// Something happened that is too large to tell, or could not be told when it did: look for yourself.
    Look(Topic),
    /// To oneself: the way through Redis is open.
    Canary,
}

/// The context of what is published.
const PUBLISHED: &str = "published";

impl Envelope {
    /// Ready to publish.
    pub fn seal(&self, key: &ClusterKey) -> Vec<u8> {
        // Nothing in it can fail to be written: plain structs with string keys.
        key.seal(PUBLISHED, &serde_json::to_vec(self).unwrap_or_default())
    }

    /// Whether it is too old to be delivered at `now`, or from the future, which a wrong clock made.
    pub fn is_stale(&self, now: Timestamp) -> bool {
        now.distance(self.at) > BUS_EVENT_AGE_MAX
    }

    /// What a replica of this community published; `None` for anything else.
    pub fn open(key: &ClusterKey, sealed: &[u8]) -> Option<Self> {
        serde_json::from_slice(key.open(PUBLISHED, sealed)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::UserId;

    #[test]
    fn only_what_was_sealed_with_the_key_opens() {
        let key = ClusterKey([7; 32]);
        let at = Timestamp::from_ms(1_795_305_599_123);
        let said = Said::Look(Topic::User(UserId::default()));
        let envelope = Envelope { from: ReplicaId(1), at, epoch: None, said };
        let sealed = envelope.seal(&key);
        assert!(matches!(
            Envelope::open(&key, &sealed),
            Some(Envelope { from: ReplicaId(1), epoch: None, said: Said::Look(_), .. })
        ));
        assert!(Envelope::open(&ClusterKey([8; 32]), &sealed).is_none());
        for index in 0..sealed.len() {
            let mut forged = sealed.clone();
            forged[index] ^= 1;
            assert!(Envelope::open(&key, &forged).is_none(), "byte {index}");
        }
        assert!(Envelope::open(&key, b"{}").is_none());
        assert!(key.open("token a", &key.seal("token b", b"x")).is_none());
    }
    #[test]
    fn an_envelope_is_stale_a_minute_after_it_was_sealed_or_before_and_without_a_time() {
        let at = Timestamp::from_ms(1_795_305_599_123);
        let mut envelope = Envelope { from: ReplicaId(1), at, epoch: None, said: Said::Canary };
        let second = std::time::Duration::from_secs(1);
        for (now, stale) in [
            (at, false),
            (at.plus(BUS_EVENT_AGE_MAX), false),
            (at.plus(BUS_EVENT_AGE_MAX + second), true),
            (at.minus(BUS_EVENT_AGE_MAX + second), true),
        ] {
            assert_eq!(envelope.is_stale(now), stale, "{now}");
        }
        let of_the_version_before = br#"{"from":1,"said":"Canary"}"#;
        envelope = serde_json::from_slice(of_the_version_before).unwrap();
        assert!(envelope.is_stale(at));
    }
}
