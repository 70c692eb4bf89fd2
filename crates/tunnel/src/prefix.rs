//! Address prefixes and the table that finds the peer of an address: the longest prefix that holds it.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A prefix, host bits zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// Clears the host bits; none where `length` exceeds the address.
    pub(crate) fn new(address: IpAddr, length: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(v4) if length <= 32 => IpAddr::V4(Ipv4Addr::from_bits(
                v4.to_bits() & u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0),
            )),
            IpAddr::V6(v6) if length <= 128 => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask(length))),
            _ => return None,
        };
        Some(Self { address, length })
    }

    pub(crate) fn address(self) -> IpAddr {
        self.address
    }

    pub(crate) fn length(self) -> u8 {
        self.length
    }

    /// `address/length`; a bare address stands for itself alone.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address.parse().ok()?, length.parse().ok()?),
            None => {
                let address: IpAddr = text.parse().ok()?;
                (address, if address.is_ipv4() { 32 } else { 128 })
            }
        };
        Self::new(address, length)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// Longest-prefix table: one hash map a prefix length that occurs, longest first.
///
/// Clusters use a handful of lengths, so a look-up is a handful of probes whatever the number of peers.
#[derive(Debug)]
pub(crate) struct PrefixMap<T> {
    v4: Vec<(u8, HashMap<u128, T>)>,
    v6: Vec<(u8, HashMap<u128, T>)>,
}

impl<T> Default for PrefixMap<T> {
    fn default() -> Self {
        Self { v4: Vec::new(), v6: Vec::new() }
    }
}

impl<T> PrefixMap<T> {
    /// Returns what `prefix` stood for before.
    pub(crate) fn insert(&mut self, prefix: Prefix, value: T) -> Option<T> {
        let (lengths, bits, length) = self.side(prefix);
        let at = match lengths.binary_search_by(|(have, _)| length.cmp(have)) {
            Ok(at) => at,
            Err(at) => {
                lengths.insert(at, (length, HashMap::new()));
                at
            }
        };
        lengths[at].1.insert(bits, value)
    }

    pub(crate) fn remove(&mut self, prefix: Prefix) -> Option<T> {
        let (lengths, bits, length) = self.side(prefix);
        let at = lengths.iter().position(|(have, _)| *have == length)?;
        let value = lengths[at].1.remove(&bits);
        if lengths[at].1.is_empty() {
            lengths.remove(at);
        }
        value
    }

    /// The value of the longest prefix that holds `address`.
    pub(crate) fn longest(&self, address: IpAddr) -> Option<&T> {
        let (lengths, bits) = match address {
            IpAddr::V4(v4) => (&self.v4, u128::from(v4.to_bits()) << 96),
            IpAddr::V6(v6) => (&self.v6, v6.to_bits()),
        };
        lengths.iter().find_map(|(length, map)| map.get(&(bits & mask(*length))))
    }

    #[allow(clippy::type_complexity)] // a borrowed pair of this very struct
    fn side(&mut self, prefix: Prefix) -> (&mut Vec<(u8, HashMap<u128, T>)>, u128, u8) {
        match prefix.address {
            IpAddr::V4(v4) => (&mut self.v4, u128::from(v4.to_bits()) << 96, prefix.length),
            IpAddr::V6(v6) => (&mut self.v6, v6.to_bits(), prefix.length),
        }
    }
}

/// The first `length` bits set.
fn mask(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

#[cfg(test)]
mod tests;
