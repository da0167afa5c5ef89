//! The configuration of the database and of Redis: their addresses and certificates.

use std::path::PathBuf;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::bounds::at_least_1;
use crate::cluster::redis::RedisAddress;
use crate::model::certificates::{Certificates, PemFile};
use crate::model::limits::PEM_BYTES_MAX;
use crate::store::StoreOptions;

/// The certificate files of one dependency, as the settings name them.
pub(super) struct Files {
    /// The prefix of the keys: `database` or `redis`.
    pub of: &'static str,
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

impl Files {
    /// Reads and checks the files, if any is named.
    ///
    /// # Errors
    /// A sentence that names the key and how to correct it.
    pub fn read(self) -> Result<Option<Certificates>, String> {
        let Self { of, ca, cert, key } = self;

        let client = match (cert, key) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some((
                pem(&format!("{of}_cert_file"), cert, "certificate", holds_certificates)?,
                pem(&format!("{of}_key_file"), key, "private key", holds_key)?,
            )),
            (Some(_), None) => {
                return Err(format!(
                    "{of}_cert_file is set without {of}_key_file: set both or neither"
                ));
            }
            (None, Some(_)) => {
                return Err(format!(
                    "{of}_key_file is set without {of}_cert_file: set both or neither"
                ));
            }
        };

        let ca = ca
            .map(|ca| pem(&format!("{of}_ca_file"), ca, "certificate", holds_certificates))
            .transpose()?;

        Ok((ca.is_some() || client.is_some()).then_some(Certificates { authority: ca, client }))
    }
}

/// The database that the settings name.
pub(super) fn store(
    url: Option<String>,
    connections_max: u32,
    data_dir: PathBuf,
    files: Files,
) -> Result<StoreOptions, String> {
    let certificates = files.read()?;

    match url {
        Some(url) if url.starts_with("postgres://") || url.starts_with("postgresql://") => {
            let connections_max = at_least_1("database_connections_max", connections_max)?;
            StoreOptions::postgres(url, connections_max, certificates.as_ref())
                .map_err(|error| format!("DATABASE_URL: {error}"))
        }
        Some(_) => Err("DATABASE_URL must begin with postgres://; \
                        unset it to use SQLite in the data directory"
            .to_owned()),
        None if certificates.is_some() => {
            Err("database_ca_file, database_cert_file and database_key_file are for Postgres: \
                 set DATABASE_URL, or unset them"
                .to_owned())
        }
        None => Ok(StoreOptions::Sqlite { dir: data_dir }),
    }
}

/// The address of Redis that the settings name, with its certificates.
pub(super) fn redis(
    url: Option<String>,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Result<Option<RedisAddress>, String> {
    let certificates = Files { of: "redis", ca, cert, key }.read()?;
    let Some(url) = url else {
        return match certificates {
            None => Ok(None),
            Some(_) => Err("redis_ca_file, redis_cert_file and redis_key_file are for Redis: \
                            set REDIS_URL, or unset them"
                .to_owned()),
        };
    };

    let address = url.parse::<RedisAddress>().map_err(|error| format!("REDIS_URL {error}"))?;
    match certificates {
        None => Ok(Some(address)),
        Some(certificates) => address
            .with_certificates(&certificates)
            .map(Some)
            .map_err(|error| format!("REDIS_URL {error}")),
    }
}

fn pem(key: &str, path: PathBuf, what: &str, holds: fn(&[u8]) -> bool) -> Result<PemFile, String> {
    let file = path.display();
    let size = std::fs::metadata(&path).map_or(0, |file| file.len());
    if size > PEM_BYTES_MAX {
        return Err(format!(
            "{key}: {file} has {size} bytes, {PEM_BYTES_MAX} at most: name a file in PEM format"
        ));
    }

    let bytes = std::fs::read(&path).map_err(|error| {
        format!("{key}: can't read {file} ({error}): name a file that the server can read")
    })?;
    if !holds(&bytes) {
        return Err(format!("{key}: {file} holds no {what} in PEM format: name a file that does"));
    }
    Ok(PemFile { path, bytes })
}

fn holds_certificates(pem: &[u8]) -> bool {
    let mut count = 0;
    CertificateDer::pem_slice_iter(pem).inspect(|_| count += 1).all(|read| read.is_ok())
        && count > 0
}

fn holds_key(pem: &[u8]) -> bool {
    PrivateKeyDer::from_pem_slice(pem).is_ok()
}
