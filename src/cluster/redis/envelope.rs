//! What travels on Redis, and its seal.
//!
//! Who can write to Redis can publish whatever they like, so everything a replica puts there carries a code that only
//! holders of the cluster's key can make (HMAC-SHA256, RFC 2104). The key is in the database, never in Redis. What is
//! replayed is harmless: durable events are known by their `rev`, and the rest only repeats what was so.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::ReplicaId;
use crate::model::{Epoch, Event, Topic};

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
        let said = Said::Look(Topic::User(UserId::default()));
        let envelope = Envelope { from: ReplicaId(1), epoch: None, said };
        let sealed = envelope.seal(&key);
        assert!(matches!(
            Envelope::open(&key, &sealed),
            Some(Envelope { from: ReplicaId(1), epoch: None, said: Said::Look(_) })
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
}
