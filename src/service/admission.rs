//! Admission of clients that have not authenticated. Each address has a number of connection slots.
//! A client's slots are free again once the client has authenticated.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::permits::UserPermit;
use crate::model::address::{Network, Prefix};
use crate::model::limits::{ADDRESS_SHARES_48, ADDRESS_SHARES_56};

/// Counts the slots of each address. A connection holds a slot until its client has authenticated.
/// Behind a trusted proxy, each request and each WebSocket holds a slot instead.
#[derive(Debug)]
pub struct Admission {
    per_address_max: usize,
    held: Mutex<HashMap<Network, usize>>,
}

/// A connection slot of an address, given back when dropped.
#[derive(Debug)]
pub struct AddressSlot {
    admission: Arc<Admission>,
    ip: IpAddr,
}

/// A slot with several owners, any of which can give it back. Empty for peers that are not counted.
#[derive(Clone, Debug, Default)]
pub struct SharedAddressSlot(Arc<Mutex<Option<AddressSlot>>>);

impl Admission {
    /// Allows each address `per_address_max` slots. An IPv6 /56 has [`ADDRESS_SHARES_56`] times as
    /// many, an IPv6 /48 [`ADDRESS_SHARES_48`] times as many.
    pub fn new(per_address_max: usize) -> Arc<Self> {
        Arc::new(Self { per_address_max, held: Mutex::default() })
    }

    /// Takes a slot of an address.
    ///
    /// # Errors
    /// The name of the bound that is reached.
    pub fn enter(self: &Arc<Self>, ip: IpAddr) -> Result<AddressSlot, &'static str> {
        let mut held = self.held.lock();

        // All bounds are checked before a count changes: a refused client counts nowhere.
        for network in Network::all(ip) {
            let (bound, max) = self.bound(network);
            if held.get(&network).is_some_and(|count| *count >= max) {
                return Err(bound);
            }
        }

        for network in Network::all(ip) {
            *held.entry(network).or_default() += 1;
        }
        Ok(AddressSlot { admission: self.clone(), ip })
    }

    /// The name and the size of a network's bound.
    fn bound(&self, network: Network) -> (&'static str, usize) {
        match network {
            Network::V4(_) | Network::V6(_, Prefix::Bits64) => {
                ("connections_per_address", self.per_address_max)
            }
            Network::V6(_, Prefix::Bits56) => (
                "connections_per_address_56",
                self.per_address_max.saturating_mul(ADDRESS_SHARES_56),
            ),
            Network::V6(_, Prefix::Bits48) => (
                "connections_per_address_48",
                self.per_address_max.saturating_mul(ADDRESS_SHARES_48),
            ),
        }
    }
}

impl Drop for AddressSlot {
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

impl SharedAddressSlot {
    pub fn new(slot: Option<AddressSlot>) -> Self {
        Self(Arc::new(Mutex::new(slot)))
    }

    /// Gives the slot back. A second call does nothing.
    pub fn give_back(&self) {
        self.0.lock().take();
    }
}

/// Holds the address slot and the user's permit of one request. The listener, the endpoint and the
/// endpoint's task share the guard; the last of them to drop it gives both back. So a request
/// counts until its client has taken the answer and its task has ended. A WebSocket holds a guard
/// until its client has authenticated.
#[derive(Debug, Default)]
pub struct RequestGuard {
    /// The slot of the connection, which outlives the request.
    connection: SharedAddressSlot,
    /// The slot of this request, if it came through a trusted proxy.
    own: Mutex<Option<AddressSlot>>,
    permit: Mutex<Option<UserPermit>>,
    /// How long the request waited for its permit.
    waited: Mutex<Duration>,
}

impl RequestGuard {
    /// A guard for a request on a connection that holds this slot.
    pub fn new(connection: SharedAddressSlot) -> Arc<Self> {
        Arc::new(Self { connection, ..Self::default() })
    }

    /// Keeps the slot of a client behind a trusted proxy.
    pub fn keep_slot(&self, slot: AddressSlot) {
        *self.own.lock() = Some(slot);
    }

    /// Keeps the user's permit, or `None` if the wait for a permit timed out.
    pub fn keep_permit(&self, permit: Option<UserPermit>, waited: Duration) {
        *self.permit.lock() = permit;
        *self.waited.lock() = waited;
    }

    /// How long the request waited for its permit. The wait is part of the request's deadline.
    pub fn waited(&self) -> Duration {
        *self.waited.lock()
    }

    /// Gives the address slots back, because the client has authenticated.
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
    fn an_address_has_its_slots_and_gets_them_back() {
        let admission = Admission::new(2);
        let slots = [
            admission.enter(ip("192.0.2.1")).unwrap(),
            admission.enter(ip("::ffff:192.0.2.1")).unwrap(),
        ];
        assert_eq!(admission.enter(ip("192.0.2.1")).unwrap_err(), "connections_per_address");
        assert!(admission.enter(ip("192.0.2.2")).is_ok());
        drop(slots);
        assert!(admission.enter(ip("192.0.2.1")).is_ok());
        assert!(admission.held.lock().is_empty(), "an address without slots costs no memory");
    }

    #[test]
    fn wider_networks_have_a_multiple_of_the_slots_of_an_address() {
        let admission = Admission::new(1);
        let enter = |address: &str| admission.enter(ip(address));
        let mut slots = vec![enter("2001:db8:0:0::1").unwrap(), enter("2001:db8:0:1::1").unwrap()];
        assert_eq!(enter("2001:db8:0:0::2").unwrap_err(), "connections_per_address");
        assert_eq!(enter("2001:db8:0:2::1").unwrap_err(), "connections_per_address_56");
        slots.extend([enter("2001:db8:0:100::1").unwrap(), enter("2001:db8:0:200::1").unwrap()]);
        assert_eq!(enter("2001:db8:0:300::1").unwrap_err(), "connections_per_address_48");
        assert!(enter("2001:db8:1::1").is_ok());
    }

    #[test]
    fn an_authenticated_client_gives_back_the_slots_of_its_connection_and_of_its_request() {
        let admission = Admission::new(1);
        let connection = SharedAddressSlot::new(admission.enter(ip("192.0.2.1")).ok());
        let guard = RequestGuard::new(connection.clone());
        guard.keep_slot(admission.enter(ip("192.0.2.2")).unwrap());
        guard.authenticated();
        assert!(admission.held.lock().is_empty());
        connection.give_back();
    }
}
