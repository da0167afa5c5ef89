//! Networks of client addresses. Bounds count the network that one customer is given, not the
//! single address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A network that a bound counts: one IPv4 address, or an IPv6 prefix of 64, 56 or 48 bits.
///
/// An IPv4-mapped IPv6 address counts as the IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Network {
    /// One IPv4 address.
    V4(Ipv4Addr),
    /// An IPv6 prefix. The other bits are zero.
    V6(Ipv6Addr, Prefix),
}

/// The length of an IPv6 prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Prefix {
    /// One link: the network of a device or of a rented machine.
    Bits64,
    /// The network that a provider often gives a household.
    Bits56,
    /// The network that a provider gives a company.
    Bits48,
}

impl Prefix {
    /// The length in bits.
    pub const fn bits(self) -> u32 {
        match self {
            Self::Bits64 => 64,
            Self::Bits56 => 56,
            Self::Bits48 => 48,
        }
    }
}

impl Network {
    /// The number of leading bits that all addresses of the network share.
    pub const fn prefix(&self) -> u32 {
        match self {
            Self::V4(_) => 32,
            Self::V6(_, prefix) => prefix.bits(),
        }
    }

    /// The narrowest network of an address: the IPv4 address itself, or the /64.
    pub fn of(ip: IpAddr) -> Self {
        Self::within(ip, Prefix::Bits64)
    }

    /// The network of this prefix length that contains `ip`. For IPv4 it is always the address.
    pub fn within(ip: IpAddr, prefix: Prefix) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip),
            IpAddr::V6(ip) => {
                let mask = u128::MAX << (128 - prefix.bits());
                Self::V6(Ipv6Addr::from_bits(ip.to_bits() & mask), prefix)
            }
        }
    }

    /// All networks of an address that a bound counts, the narrowest first: one for IPv4, three for
    /// IPv6.
    pub fn all(ip: IpAddr) -> impl Iterator<Item = Self> {
        let prefixes: &[Prefix] = match ip.to_canonical() {
            IpAddr::V4(_) => &[Prefix::Bits64],
            IpAddr::V6(_) => &[Prefix::Bits64, Prefix::Bits56, Prefix::Bits48],
        };

        prefixes.iter().map(move |prefix| Self::within(ip, *prefix))
    }
}

/// `192.0.2.1`, or `2001:db8:0:1::/64` with its leading groups written out. Keys in Redis contain
/// this text.
impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(ip) => write!(f, "{ip}"),
            Self::V6(ip, prefix) => {
                // A /48 has three groups, the others four.
                let groups = if *prefix == Prefix::Bits48 { 3 } else { 4 };
                for group in &ip.segments()[..groups] {
                    write!(f, "{group:x}:")?;
                }
                write!(f, ":/{}", prefix.bits())
            }
        }
    }
}

/// Whether a host name or address certainly belongs to this machine, so that traffic to it crosses
/// no network.
pub fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(ip: &str) -> Vec<String> {
        Network::all(ip.parse().unwrap()).map(|network| network.to_string()).collect()
    }

    #[test]
    fn an_ipv4_address_is_one_network_however_it_is_written() {
        assert_eq!(all("192.0.2.1"), ["192.0.2.1"]);
        assert_eq!(all("::ffff:192.0.2.1"), ["192.0.2.1"]);
    }

    #[test]
    fn an_ipv6_address_belongs_to_a_64_a_56_and_a_48() {
        let expected = ["2001:db8:1:1234::/64", "2001:db8:1:1200::/56", "2001:db8:1::/48"];
        assert_eq!(all("2001:db8:1:1234:5:6:7:8"), expected);
        assert_eq!(Network::of("2001:db8:1:1234::1".parse().unwrap()).to_string(), expected[0]);
    }

    #[test]
    fn neighbours_share_the_wider_networks_and_networks_of_two_widths_are_never_equal() {
        let networks = |ip: &str| Network::all(ip.parse().unwrap()).collect::<Vec<_>>();
        let (one, other) = (networks("2001:db8:1:1200::1"), networks("2001:db8:1:12ff::1"));
        assert_ne!(one[0], other[0]);
        assert_eq!(one[1..], other[1..]);
        assert_ne!(one[0], one[1], "the same bits, another width");
    }

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
}
