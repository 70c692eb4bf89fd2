//! The members of a domain, in the orders in which a plan goes over them.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Deref;

use foldhash::{HashSet, HashSetExt as _};
use serde::{Deserialize, Serialize, Serializer};

use super::Member;
use crate::vtep::next_hop;

/// Members, sorted by name, and what each plan takes of all of them as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "Vec<Member>")]
pub struct Members {
    by_name: Vec<Member>,
    /// The IPv4 next hop of each.
    next_hops: Vec<Ipv4Addr>,
    /// Their places in order of their first prefixes.
    by_prefix: Vec<u32>,
    /// Their underlay addresses, sorted.
    addresses: Vec<IpAddr>,
}

impl From<Vec<Member>> for Members {
    fn from(mut by_name: Vec<Member>) -> Self {
        by_name.sort_by(|left, right| left.node.cmp(&right.node));
        let mut taken = HashSet::with_capacity(by_name.len());
        let next_hops = by_name.iter().map(|member| next_hop(member.mac, &mut taken)).collect();
        let mut by_prefix: Vec<_> =
            by_name.iter().map(|member| member.subnets.first().copied()).zip(0..).collect();
        by_prefix.sort_unstable();
        let mut addresses: Vec<IpAddr> = by_name.iter().map(|member| member.underlay).collect();
        addresses.sort_unstable();
        let by_prefix = by_prefix.into_iter().map(|(_, place)| place).collect();
        Self { by_name, next_hops, by_prefix, addresses }
    }
}

impl Serialize for Members {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.by_name.serialize(serializer)
    }
}

impl Deref for Members {
    type Target = [Member];

    fn deref(&self) -> &[Member] {
        &self.by_name
    }
}

impl<'a> IntoIterator for &'a Members {
    type Item = &'a Member;
    type IntoIter = std::slice::Iter<'a, Member>;

    fn into_iter(self) -> Self::IntoIter {
        self.by_name.iter()
    }
}

impl Members {
    /// In order of prefixes, each with the IPv4 address that stands for it as a next hop, which no two share.
    pub fn by_prefix(&self) -> impl Iterator<Item = (&Member, Ipv4Addr)> {
        self.by_prefix.iter().filter_map(|place| {
            let place = *place as usize;
            Some((self.by_name.get(place)?, *self.next_hops.get(place)?))
        })
    }

    /// Their underlay addresses, sorted.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }
}

#[cfg(test)]
mod tests;
