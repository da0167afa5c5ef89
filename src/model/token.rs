//! Tokens and random codes. A token is shown once and stored only as a hash.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::Rng;
use sha2::{Digest, Sha256};

/// The first characters of each token, by which secret scanners recognise it.
const PREFIX: &str = "sl_";
/// Bounds the work of hashing a text that a client presents.
const TOKEN_BYTES_MAX: usize = 128;

/// A bearer or refresh token: 256 random bits. It is shown to its owner once and never logged, so
/// it has no `Debug`.
pub struct Token(String);

impl Token {
    /// A new random token.
    pub fn new(random: &mut impl Rng) -> Self {
        let mut bytes = [0; 32];
        random.fill_bytes(&mut bytes);
        Self(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// The text of the token, which the client sends with its requests.
    pub fn reveal(self) -> String {
        self.0
    }

    /// The hash that the server stores.
    pub fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.0.as_bytes()).into())
    }
}

/// SHA-256 of a token. A thief of the hash cannot find the token: it has 256 random bits, so no
/// slow hash is needed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash(pub [u8; 32]);

impl TokenHash {
    /// The hash of a token that a client presents. `None` if the text cannot be a token of this
    /// server.
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

/// 128 random bits in URL-safe characters, for invite codes and generated passwords.
pub fn random_code(random: &mut impl Rng) -> String {
    let mut bytes = [0; 16];
    random.fill_bytes(&mut bytes);
    URL_SAFE_NO_PAD.encode(bytes)
}
