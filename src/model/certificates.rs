//! Certificates for the connections to Postgres and Redis.

use std::fmt;
use std::path::PathBuf;

/// PEM files whose content was checked when they were read. `Debug` prints their paths only.
#[derive(Clone)]
pub struct Certificates {
    /// The authorities that are trusted to sign the certificate of Postgres or Redis.
    pub authority: Option<PemFile>,
    /// The certificate and the key by which this replica authenticates, where one is configured.
    pub client: Option<(PemFile, PemFile)>,
}

/// A file in PEM format.
#[derive(Clone)]
pub struct PemFile {
    /// The path that the configuration names.
    pub path: PathBuf,
    /// The content at start.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for PemFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.path, f)
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates")
            .field("authority", &self.authority)
            .field("client", &self.client)
            .finish()
    }
}
