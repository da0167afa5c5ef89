//! Secrets: how they are made, shown once and stored as a hash only.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::Rng;
use sha2::{Digest, Sha256};

/// What a token looks like from outside; secret scanners find it by this.
const PREFIX: &str = "sl_";
/// Longest token worth hashing.
const TOKEN_BYTES_MAX: usize = 128;

/// A bearer or refresh token: 256 random bits. It is shown to its owner once and never logged, so
/// it has no `Debug`.
pub struct Token(String);

impl Token {
    /// A new one.
    pub fn new(random: &mut impl Rng) -> Self {
        let mut bytes = [0; 32];
        random.fill_bytes(&mut bytes);
        Self(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// The words that the client sends back.
    pub fn reveal(self) -> String {
        self.0
    }

    /// What the server keeps of it.
    pub fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.0.as_bytes()).into())
    }
}

/// SHA-256 of a token: enough to recognise it, useless to steal. A token has 256 random bits, so no
/// slow hash is needed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash(pub [u8; 32]);

impl TokenHash {
    /// The hash of what a client presents. `None` if it can't be a token of ours.
    pub fn of_presented(token: &str) -> Option<Self> {
        let plausible = token.starts_with(PREFIX) && token.len() <= TOKEN_BYTES_MAX;
        plausible.then(|| Self(Sha256::digest(token.as_bytes()).into()))
    }
}

impl TryFrom<Vec<u8>> for TokenHash {
    type Error = &'static str;

    fn try_from(bytes: Vec<u8>) -> Result<Self, Self::Error> {
        bytes.try_into().map(Self).map_err(|_| "a token's hash has 32 bytes")
    }
}

/// 128 random bits in URL-safe letters: an invite's code, a generated password.
pub fn random_code(random: &mut impl Rng) -> String {
    let mut bytes = [0; 16];
    random.fill_bytes(&mut bytes);
    URL_SAFE_NO_PAD.encode(bytes)
}
