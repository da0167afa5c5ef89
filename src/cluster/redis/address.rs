//! The address of Redis: one server, the master that Sentinels name, or a Redis Cluster.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bb8_redis::redis::io::tcp::TcpSettings;
use bb8_redis::redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion,
    TlsCertificates,
};

use crate::model::address::is_loopback;
use crate::model::certificates::Certificates;

/// How long sent bytes may stay unacknowledged before the kernel closes the connection.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(5);

/// The address of Redis. `Debug` and `Display` omit its password.
#[derive(Clone)]
pub enum RedisAddress {
    /// `redis://…`: one server.
    Single(Box<ConnectionInfo>),
    /// `redis+sentinel://host,host/master`: the master of this name, which the Sentinels locate.
    Sentinel {
        /// The Sentinels, with their own certificates.
        sentinels: Vec<ConnectionInfo>,
        /// The name by which the Sentinels list the master.
        master: String,
        /// The login and the database of the master. The host is not used.
        node: Box<ConnectionInfo>,
        /// The certificates for the connection to the master.
        certificates: Option<TlsCertificates>,
    },
    /// `redis+cluster://host,host`: some nodes of a Redis Cluster.
    Cluster {
        /// Nodes to connect to first; they name the others.
        nodes: Vec<ConnectionInfo>,
        /// The certificates for the connections to all nodes.
        certificates: Option<TlsCertificates>,
    },
}

impl RedisAddress {
    /// This address, with the certificates to present and to trust.
    ///
    /// # Errors
    /// A message for the operator, if the address has no TLS or a certificate can't be used.
    pub fn with_certificates(self, certificates: &Certificates) -> Result<Self, String> {
        let tls = TlsCertificates {
            client_tls: certificates.client.as_ref().map(|(cert, key)| ClientTlsConfig {
                client_cert: cert.bytes.clone(),
                client_key: key.bytes.clone(),
            }),
            root_cert: certificates.authority.as_ref().map(|authority| authority.bytes.clone()),
        };
        let with_tls = |info: ConnectionInfo| {
            if matches!(info.addr(), ConnectionAddr::TcpTls { insecure: false, .. }) {
                let client =
                    Client::build_with_tls(info, tls.clone()).map_err(|error| error.to_string())?;
                Ok(client.get_connection_info().clone())
            } else {
                Err("has no TLS to verify: begin it with rediss://, or unset the certificate files"
                    .to_owned())
            }
        };

        match self {
            Self::Single(info) => Ok(Self::Single(Box::new(with_tls(*info)?))),
            Self::Sentinel { sentinels, master, node, .. } => {
                let sentinels = sentinels.into_iter().map(with_tls).collect::<Result<_, _>>()?;
                Ok(Self::Sentinel { sentinels, master, node, certificates: Some(tls) })
            }
            Self::Cluster { nodes, .. } => {
                let nodes = nodes.into_iter().map(with_tls).collect::<Result<_, _>>()?;
                Ok(Self::Cluster { nodes, certificates: Some(tls) })
            }
        }
    }

    /// Whether traffic to Redis crosses a network without TLS, or with a certificate that is not
    /// verified.
    pub fn is_exposed(&self) -> bool {
        let exposed = |info: &ConnectionInfo| match info.addr() {
            ConnectionAddr::Tcp(host, _) => !is_loopback(host),
            ConnectionAddr::TcpTls { host, insecure, .. } => *insecure && !is_loopback(host),
            _ => false,
        };

        match self {
            Self::Single(info) => exposed(info),
            Self::Sentinel { sentinels: infos, .. } | Self::Cluster { nodes: infos, .. } => {
                infos.iter().any(exposed)
            }
        }
    }
}

impl FromStr for RedisAddress {
    type Err = String;

    /// Parses `redis://`, `redis+sentinel://` or `redis+cluster://`, each with `rediss` for TLS.
    fn from_str(url: &str) -> Result<Self, String> {
        let (scheme, rest) =
            url.split_once("://").ok_or("must begin with redis:// or rediss://")?;
        let (base, kind) = scheme.split_once('+').unwrap_or((scheme, ""));
        if base != "redis" && base != "rediss" {
            return Err("must begin with redis:// or rediss://".to_owned());
        }

        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) = authority
            .rsplit_once('@')
            .map_or((None, authority), |(login, hosts)| (Some(login), hosts));
        let hosts = hosts.split(',').map(str::trim).filter(|host| !host.is_empty());
        let node = |login: Option<&str>, host: &str, path: &str| {
            let login = login.map(|login| format!("{login}@")).unwrap_or_default();
            let info = format!("{base}://{login}{host}/{path}").into_connection_info();
            info.map(tuned).map_err(|error| error.to_string())
        };

        match kind {
            "" => Ok(Self::Single(Box::new(
                url.into_connection_info().map(tuned).map_err(|error| error.to_string())?,
            ))),
            "cluster" => {
                let nodes =
                    hosts.map(|host| node(login, host, "")).collect::<Result<Vec<_>, _>>()?;
                if nodes.is_empty() {
                    Err("names no node".to_owned())
                } else {
                    Ok(Self::Cluster { nodes, certificates: None })
                }
            }
            "sentinel" => {
                let (master, database) = path.split_once('/').unwrap_or((path, ""));
                let sentinels =
                    hosts.map(|host| node(None, host, "")).collect::<Result<Vec<_>, _>>()?;
                if master.is_empty() || sentinels.is_empty() {
                    return Err(
                        "must name Sentinels and the master: redis+sentinel://host:26379/master"
                            .to_owned(),
                    );
                }
                // The master's host is unknown here; any name lets its login and database be
                // parsed.
                let node = node(login, "master", database)?;
                Ok(Self::Sentinel {
                    sentinels,
                    master: master.to_owned(),
                    node: Box::new(node),
                    certificates: None,
                })
            }
            _ => Err(format!(
                "{scheme}:// is unknown: use redis://, redis+sentinel:// or redis+cluster://"
            )),
        }
    }
}

/// Sets RESP3, by which one connection carries both answers and published messages, and the bound
/// on unacknowledged bytes.
fn tuned(info: ConnectionInfo) -> ConnectionInfo {
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    let tcp = TcpSettings::default().set_nodelay(true).set_user_timeout(TCP_USER_TIMEOUT);
    info.set_redis_settings(settings).set_tcp_settings(tcp)
}

impl fmt::Display for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Single(node) => write!(f, "Redis at {}", node.addr()),
            Self::Sentinel { sentinels, master, .. } => {
                let sentinels: Vec<String> =
                    sentinels.iter().map(|node| node.addr().to_string()).collect();
                write!(f, "the Redis {master} that Sentinel at {} names", sentinels.join(", "))
            }
            Self::Cluster { nodes, .. } => {
                let nodes: Vec<String> = nodes.iter().map(|node| node.addr().to_string()).collect();
                write!(f, "the Redis Cluster at {}", nodes.join(", "))
            }
        }
    }
}

impl fmt::Debug for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_address_is_parsed_and_none_shows_its_password() {
        for (url, words) in [
            ("redis://:hush@10.0.0.1:6380/2", "10.0.0.1:6380"),
            ("rediss://me:hush@cache.example.org", "cache.example.org"),
            (
                "redis+sentinel://:hush@s1:26379,s2:26379/main/3",
                "main that Sentinel at s1:26379, s2:26379",
            ),
            ("redis+cluster://:hush@n1:7000,n2:7001", "Cluster at n1:7000, n2:7001"),
        ] {
            let shown = format!("{:?}", url.parse::<RedisAddress>().unwrap());
            assert!(shown.contains(words) && !shown.contains("hush"), "{shown}");
        }
    }

    #[test]
    fn an_invalid_address_is_refused_with_a_message() {
        for url in [
            "localhost:6379",
            "http://x",
            "redis+sentinel://s1:26379",
            "redis+cluster://",
            "redis+ring://a",
        ] {
            assert!(!url.parse::<RedisAddress>().unwrap_err().is_empty(), "{url}");
        }
    }
}
