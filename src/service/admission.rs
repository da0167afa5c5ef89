//! What clients without a login may hold: places counted by address, given back once the client is known.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::permits::UserPermit;
use crate::model::address::{Network, Prefix};
use crate::model::limits::{ADDRESS_SHARES_48, ADDRESS_SHARES_56};

/// Counts what addresses hold before they authenticate: connections, and behind a trusted proxy requests and sockets.
#[derive(Debug)]
pub struct Admission {
    per_address_max: usize,
    held: Mutex<HashMap<Network, usize>>,
}

/// A place of an address, given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    admission: Arc<Admission>,
    ip: IpAddr,
}

/// A place that several may give back, and the first of them does. Empty for peers that are not counted.
#[derive(Clone, Debug, Default)]
pub struct SharedPlace(Arc<Mutex<Option<Place>>>);

impl Admission {
    /// Lets an address hold `per_address_max` places, and the IPv6 networks around it a few times as many.
    pub fn new(per_address_max: usize) -> Arc<Self> {
        Arc::new(Self { per_address_max, held: Mutex::default() })
    }

    /// Takes a place for an address.
    ///
    /// # Errors
    /// The name of the bound that is reached.
    pub fn enter(self: &Arc<Self>, ip: IpAddr) -> Result<Place, &'static str> {
        let mut held = self.held.lock();
        for network in Network::all(ip) {
            let (bound, max) = self.bound(network);
            if held.get(&network).is_some_and(|count| *count >= max) {
                return Err(bound);
            }
        }
        for network in Network::all(ip) {
            *held.entry(network).or_default() += 1;
        }
        Ok(Place { admission: self.clone(), ip })
    }

    /// The name and the size of a network's bound.
    fn bound(&self, network: Network) -> (&'static str, usize) {
        match network {
            Network::V4(_) | Network::V6(_, Prefix::Bits64) => ("connections_per_address", self.per_address_max),
            Network::V6(_, Prefix::Bits56) => {
                ("connections_per_address_56", self.per_address_max.saturating_mul(ADDRESS_SHARES_56))
            }
            Network::V6(_, Prefix::Bits48) => {
                ("connections_per_address_48", self.per_address_max.saturating_mul(ADDRESS_SHARES_48))
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.admission.held.lock();
        for network in Network::all(self.ip) {
            if let Some(count) = held.get_mut(&network) {
                *count -= 1;
                if *count == 0 {
                    held.remove(&network);
                }
            }
        }
    }
}

impl SharedPlace {
    /// Shares a place.
    pub fn new(place: Option<Place>) -> Self {
        Self(Arc::new(Mutex::new(place)))
    }

    /// Gives the place back, unless it was given back before.
    pub fn give_back(&self) {
        self.0.lock().take();
    }
}

/// What one request holds, from its head until its answer is taken and the work behind it has ended; or a socket until
/// its client is known. It is shared by those parts, and given back by the last of them.
#[derive(Debug, Default)]
pub struct Visit {
    /// The place of the connection, which stays when the request ends.
    connection: SharedPlace,
    /// The place of this request, behind a trusted proxy.
    own: Mutex<Option<Place>>,
    permit: Mutex<Option<UserPermit>>,
    /// How long it waited for its permit.
    waited: Mutex<Duration>,
}

impl Visit {
    /// The visit of a request on a connection that holds this place.
    pub fn new(connection: SharedPlace) -> Arc<Self> {
        Arc::new(Self { connection, ..Self::default() })
    }

    /// Keeps a place for the client behind a proxy.
    pub fn keep_place(&self, place: Place) {
        *self.own.lock() = Some(place);
    }

    /// Keeps one of the user's permits, or none, after it waited for one.
    pub fn keep_permit(&self, permit: Option<UserPermit>, waited: Duration) {
        *self.permit.lock() = permit;
        *self.waited.lock() = waited;
    }

    /// How long it waited for its permit: that is part of the time in which a request is answered.
    pub fn waited(&self) -> Duration {
        *self.waited.lock()
    }

    /// The client is known: its address has its places back.
    pub fn authenticated(&self) {
        self.connection.give_back();
        self.own.lock().take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_has_its_places_and_gets_them_back() {
        let admission = Admission::new(2);
        let places = [admission.enter(ip("192.0.2.1")).unwrap(), admission.enter(ip("::ffff:192.0.2.1")).unwrap()];
        assert_eq!(admission.enter(ip("192.0.2.1")).unwrap_err(), "connections_per_address");
        assert!(admission.enter(ip("192.0.2.2")).is_ok());
        drop(places);
        assert!(admission.enter(ip("192.0.2.1")).is_ok());
        assert!(admission.held.lock().is_empty(), "nothing is kept of addresses without places");
    }

    #[test]
    fn wider_networks_have_a_few_times_as_many() {
        let admission = Admission::new(1);
        let enter = |address: &str| admission.enter(ip(address));
        let mut places = vec![enter("2001:db8:0:0::1").unwrap(), enter("2001:db8:0:1::1").unwrap()];
        assert_eq!(enter("2001:db8:0:0::2").unwrap_err(), "connections_per_address");
        assert_eq!(enter("2001:db8:0:2::1").unwrap_err(), "connections_per_address_56");
        places.extend([enter("2001:db8:0:100::1").unwrap(), enter("2001:db8:0:200::1").unwrap()]);
        assert_eq!(enter("2001:db8:0:300::1").unwrap_err(), "connections_per_address_48");
        assert!(enter("2001:db8:1::1").is_ok());
    }

    #[test]
    fn a_client_that_is_known_gives_back_the_places_of_its_connection_and_of_its_request() {
        let admission = Admission::new(1);
        let connection = SharedPlace::new(admission.enter(ip("192.0.2.1")).ok());
        let visit = Visit::new(connection.clone());
        visit.keep_place(admission.enter(ip("192.0.2.2")).unwrap());
        visit.authenticated();
        assert!(admission.held.lock().is_empty());
        connection.give_back();
    }
}
