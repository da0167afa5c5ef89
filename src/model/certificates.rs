//! Certificates for the connections to what the server depends on.

use std::fmt;
use std::path::PathBuf;

/// Files in PEM format that were read and found to hold what they should. Printed by their names.
#[derive(Clone)]
pub struct Certificates {
    /// The authorities that may have signed the other side's certificate.
    pub authority: Option<PemFile>,
    /// This side's certificate and its key, where the other side asks for one.
    pub client: Option<(PemFile, PemFile)>,
}

/// A file in PEM format.
#[derive(Clone)]
pub struct PemFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it held at start.
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
