//! Identity of a node's end of the overlay.
//!
//! Only the MAC is agreed between nodes. Which address stands for a VTEP as a next hop matters on one node alone.

use std::net::{IpAddr, Ipv4Addr};

use foldhash::HashSet;
use sha2::{Digest, Sha256};

use crate::mac::Mac;
use crate::name::NodeName;
use crate::prefix::RESERVED;

/// What a VTEP's MAC is made of. The same on every node of a domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Identity {
    /// Cluster and node name: the same after any change of address.
    #[default]
    NodeName,
    /// The node's IPv4 address, as Raven does; for domains where some nodes still run Raven.
    NodeIp,
}

impl Identity {
    /// The MAC of a node's VTEP. A node with an IPv6 underlay address has one of its name in either case, as Raven
    /// has none for it.
    #[must_use]
    pub fn mac(self, cluster: &str, node: &NodeName, underlay: IpAddr) -> Mac {
        match (self, underlay) {
            (Self::NodeIp, IpAddr::V4(address)) => {
                let [_, b, c, d] = address.octets();
                Mac([0xaa, 0x0f, 240, b, c, d])
            }
            _ => mac_of_name(cluster, node),
        }
    }

    /// The address that Raven gives the VTEP itself, with `/8`, where its identity is used.
    #[must_use]
    pub fn own_address(self, underlay: IpAddr) -> Option<Ipv4Addr> {
        match (self, underlay) {
            (Self::NodeIp, IpAddr::V4(address)) => Some(raven_address(address)),
            _ => None,
        }
    }
}

/// The IPv4 address that stands for a VTEP as a next hop: the one of 240.0.0.0/4 with the last 28 bits of its MAC, which with
/// Raven's identity is Raven's, or the next free one where `taken` has it; it is added there.
pub fn next_hop(mac: Mac, taken: &mut HashSet<Ipv4Addr>) -> Ipv4Addr {
    let [_, _, c, d, e, f] = mac.0;
    let last_of_range = !u32::from(RESERVED);
    let mut offset = u32::from_be_bytes([c, d, e, f]) & last_of_range;
    loop {
        let address = Ipv4Addr::from(u32::from(RESERVED) | offset);
        // The first and the last of 240/4 are a network's and the broadcast address.
        if offset != 0 && offset != last_of_range && taken.insert(address) {
            return address;
        }
        offset = (offset + 1) & last_of_range;
    }
}

fn raven_address(node: Ipv4Addr) -> Ipv4Addr {
    let [_, b, c, d] = node.octets();
    Ipv4Addr::new(240, b, c, d)
}

/// 46 bits of SHA-256 of cluster and node name, marked as locally administered and unicast (IEEE 802, 8.4).
fn mac_of_name(cluster: &str, node: &NodeName) -> Mac {
    let mut hash = Sha256::new();
    hash.update(cluster.as_bytes());
    hash.update([0]);
    hash.update(node.as_str().as_bytes());
    let digest: [u8; 32] = hash.finalize().into();
    let [a, b, c, d, e, f, ..] = digest;
    Mac([a & 0xfc | 0x02, b, c, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeName {
        name.parse().unwrap()
    }

    #[test]
    fn ravens_vector_is_kept() {
        let underlay = IpAddr::from([192, 168, 1, 4]);
        let mac = Identity::NodeIp.mac("kubernetes", &node("n"), underlay);
        assert_eq!(mac.to_string(), "aa:0f:f0:a8:01:04");
        assert_eq!(Identity::NodeIp.own_address(underlay).unwrap().to_string(), "240.168.1.4");
        let hop = next_hop(mac, &mut HashSet::default());
        assert_eq!(hop.to_string(), "240.168.1.4");
    }

    #[test]
    fn a_name_keeps_its_mac_whatever_its_address() {
        let mac = |cluster, name, last| {
            Identity::NodeName.mac(cluster, &node(name), IpAddr::from([192, 168, 1, last]))
        };
        assert_eq!(mac("kubernetes", "s1", 1), mac("kubernetes", "s1", 2));
        assert_ne!(mac("kubernetes", "s1", 1), mac("kubernetes", "s2", 1));
        assert_ne!(mac("kubernetes", "s1", 1), mac("other", "s1", 1));
        assert_eq!(mac("kubernetes", "s1", 1).0[0] & 3, 2, "locally administered, unicast");
    }

    #[test]
    fn what_raven_takes_for_one_address_is_two() {
        let mut taken = HashSet::default();
        let mut hop = |address: [u8; 4]| {
            let underlay = IpAddr::from(address);
            let mac = Identity::NodeIp.mac("kubernetes", &node("n"), underlay);
            next_hop(mac, &mut taken)
        };
        assert_ne!(hop([10, 0, 0, 5]), hop([192, 0, 0, 5]));
    }

    #[test]
    fn the_edges_of_the_range_are_no_next_hops() {
        let mac = Mac([2, 0, 0xff, 0xff, 0xff, 0xff]);
        let hop = next_hop(mac, &mut HashSet::default());
        assert_eq!(hop, Ipv4Addr::new(240, 0, 0, 1));
    }
}
