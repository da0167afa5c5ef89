//! Certificates by their files, and where a connection needs them.

use std::path::PathBuf;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::model::certificates::{Certificates, PemFile};
use crate::model::limits::PEM_BYTES_MAX;

/// The files that the settings name for one connection.
pub(super) struct Files {
    /// What the keys begin with: `database` or `redis`.
    pub of: &'static str,
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

impl Files {
    /// Reads the files, if any is named.
    ///
    /// # Errors
    /// A sentence that names the key and says what to do.
    pub fn read(self) -> Result<Option<Certificates>, String> {
        let Self { of, ca, cert, key } = self;
        let client = match (cert, key) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some((
                pem(&format!("{of}_cert_file"), cert, "certificate", holds_certificates)?,
                pem(&format!("{of}_key_file"), key, "private key", holds_key)?,
            )),
            (Some(_), None) => return Err(format!("{of}_cert_file is set without {of}_key_file: set both or neither")),
            (None, Some(_)) => return Err(format!("{of}_key_file is set without {of}_cert_file: set both or neither")),
        };
        let ca = ca.map(|ca| pem(&format!("{of}_ca_file"), ca, "certificate", holds_certificates)).transpose()?;
        Ok((ca.is_some() || client.is_some()).then_some(Certificates { authority: ca, client }))
    }
}

fn pem(key: &str, path: PathBuf, what: &str, holds: fn(&[u8]) -> bool) -> Result<PemFile, String> {
    let place = path.display();
    let size = std::fs::metadata(&path).map_or(0, |file| file.len());
    if size > PEM_BYTES_MAX {
        return Err(format!("{key}: {place} has {size} bytes, {PEM_BYTES_MAX} at most: name a file in PEM format"));
    }
    let bytes = std::fs::read(&path)
        .map_err(|error| format!("{key}: can't read {place} ({error}): name a file that the server may read"))?;
    if !holds(&bytes) {
        return Err(format!("{key}: {place} holds no {what} in PEM format: name a file that does"));
    }
    Ok(PemFile { path, bytes })
}

fn holds_certificates(pem: &[u8]) -> bool {
    let mut count = 0;
    CertificateDer::pem_slice_iter(pem).inspect(|_| count += 1).all(|read| read.is_ok()) && count > 0
}

fn holds_key(pem: &[u8]) -> bool {
    PrivateKeyDer::from_pem_slice(pem).is_ok()
}
