//! The seal on bus messages and on cached sessions.
//!
//! Anyone with write access to Redis can publish and store anything. So these carry a code that
//! only holders of the cluster's key can make (HMAC-SHA256, RFC 2104). The key is in the database,
//! never in Redis. The sealed bytes include the time, so that a copy can be replayed only for a
//! bounded time.
//!
//! A copy of a bus message that is replayed within
//! [`BUS_EVENT_AGE_MAX`](crate::model::limits::BUS_EVENT_AGE_MAX) is harmless: durable events are
//! deduplicated by their `rev`, and the others repeat a state of at most a minute ago. An older
//! copy is not delivered.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The context in which bus messages are sealed.
pub(super) const BUS_CONTEXT: &str = "published";

/// Size of a seal: an HMAC-SHA256.
const SEAL_BYTES: usize = 32;

/// The key that the replicas of one deployment share.
#[derive(Clone)]
pub struct ClusterKey(pub [u8; 32]);

impl ClusterKey {
    /// The code of a body. The length of the context keeps context and body apart.
    fn code(&self, context: &str, body: &[u8]) -> Hmac<Sha256> {
        // RFC 2104: a key shorter than the hash's block is padded with zeros.
        let mut block = [0; 64];
        block[..self.0.len()].copy_from_slice(&self.0);

        let mut code = Hmac::<Sha256>::new(&block.into());
        code.update(&(context.len() as u64).to_be_bytes());
        code.update(context.as_bytes());
        code.update(body);
        code
    }

    /// Prefixes the body with its seal. Bytes sealed in one context do not open in another.
    pub fn seal(&self, context: &str, body: &[u8]) -> Vec<u8> {
        self.seal_with(context, |sealed| sealed.extend_from_slice(body))
    }

    /// As [`seal`](Self::seal), for a body that `write` appends to the given buffer, which saves a
    /// copy of the body.
    pub fn seal_with(&self, context: &str, write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut sealed = vec![0; SEAL_BYTES];
        write(&mut sealed);

        let code = self.code(context, &sealed[SEAL_BYTES..]).finalize().into_bytes();
        sealed[..SEAL_BYTES].copy_from_slice(&code);
        sealed
    }

    /// Returns the body; `None` if the seal is wrong.
    pub fn open<'a>(&self, context: &str, sealed: &'a [u8]) -> Option<&'a [u8]> {
        let (seal, body) = sealed.split_at_checked(SEAL_BYTES)?;
        self.code(context, body).verify_slice(seal).ok()?;
        Some(body)
    }

    /// A stable name for a value that must not be readable in Redis, such as a login or an address.
    pub fn pseudonym(&self, context: &str, secret: &str) -> String {
        let code = self.code(context, secret.as_bytes()).finalize().into_bytes();
        URL_SAFE_NO_PAD.encode(&code[..16])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bytes_sealed_with_the_key_open() {
        let key = ClusterKey([7; 32]);
        let sealed = key.seal("bus", b"a message");
        assert_eq!(key.open("bus", &sealed), Some(&b"a message"[..]));
        assert_eq!(sealed, key.seal_with("bus", |body| body.extend_from_slice(b"a message")));

        assert!(ClusterKey([8; 32]).open("bus", &sealed).is_none());
        for index in 0..sealed.len() {
            let mut forged = sealed.clone();
            forged[index] ^= 1;
            assert!(key.open("bus", &forged).is_none(), "byte {index}");
        }
        assert!(key.open("bus", b"{}").is_none());
        assert!(key.open("token a", &key.seal("token b", b"x")).is_none());
    }
}
