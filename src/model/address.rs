//! Networks that an address belongs to: what limits per address count by.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// Prefixes of IPv6 by which limits count, narrowest first. A provider gives a customer a /64 at least, many give a /56,
/// and an organisation gets a /48: one customer has 256 or 65,536 networks of the narrowest kind.
const IPV6_PREFIXES: [u8; 3] = [64, 56, 48];

/// A network: one address of IPv4, or a prefix of IPv6. Printed as `203.0.113.7/32` or `2001:db8:1:2::/64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// The narrowest network of an address: a /32 of IPv4, a /64 of IPv6. An address of IPv4 inside of IPv6 is one of IPv4.
    pub fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self { address: IpAddr::V4(ip), prefix: 32 },
            IpAddr::V6(ip) => Self::of_ipv6(ip, IPV6_PREFIXES[0]),
        }
    }

    /// All networks of an address, narrowest first: a /32 of IPv4; a /64, a /56 and a /48 of IPv6.
    pub fn all(ip: IpAddr) -> Vec<Self> {
        match ip.to_canonical() {
            IpAddr::V4(_) => vec![Self::of(ip)],
            IpAddr::V6(ip) => IPV6_PREFIXES.iter().map(|prefix| Self::of_ipv6(ip, *prefix)).collect(),
        }
    }

    /// Bits of its prefix.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    fn of_ipv6(ip: Ipv6Addr, prefix: u8) -> Self {
        let mask = u128::MAX << (128 - u32::from(prefix));
        Self { address: IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & mask)), prefix }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// Whether a host's name or address is this machine's own by all accounts: what is sent there crosses no network.
pub fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_loopback_interface_is_this_machine() {
        for (host, own) in [
            ("localhost", true),
            ("127.0.0.1", true),
            ("::1", true),
            ("[::1]", true),
            ("10.0.0.1", false),
            ("0.0.0.0", false),
            ("db.example.org", false),
            ("localhost.example.org", false),
        ] {
            assert_eq!(is_loopback(host), own, "{host}");
        }
    }

    fn all(ip: &str) -> Vec<String> {
        Network::all(ip.parse().unwrap()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_address_of_ipv6_belongs_to_three_networks_and_one_of_ipv4_to_itself() {
        assert_eq!(all("203.0.113.7"), ["203.0.113.7/32"]);
        assert_eq!(all("::ffff:203.0.113.7"), ["203.0.113.7/32"]);
        assert_eq!(all("2001:db8:1:2345:6789::1"), ["2001:db8:1:2345::/64", "2001:db8:1:2300::/56", "2001:db8:1::/48"]);
    }

    #[test]
    fn the_narrowest_network_comes_first() {
        for ip in ["203.0.113.7", "2001:db8:1:2345:6789::1", "::1"] {
            let ip = ip.parse().unwrap();
            assert_eq!(Network::all(ip)[0], Network::of(ip));
        }
    }

    #[test]
    fn neighbours_share_the_wider_networks_alone() {
        let (one, other) = (all("2001:db8:1:2301::1"), all("2001:db8:1:23ff::1"));
        assert!(one[0] != other[0] && one[1..] == other[1..]);
        let (one, other) = (all("2001:db8:1:2301::1"), all("2001:db8:1:9901::1"));
        assert!(one[..2] != other[..2] && one[2] == other[2]);
    }
}
