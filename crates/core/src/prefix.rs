//! Address prefixes whose host bits are zero.

use std::cmp::Ordering;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl fmt::Display for Family {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl Family {
    /// Both families, in the order in which they are programmed.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Length of an address, in bits.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// A network: an address with its host bits zero, and a length in bits. IPv4 sorts before IPv6, then by address, then
/// the shorter (wider) prefix first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix(IpNetwork);

/// By family, first address and length, so that a prefix stands right before those that it covers. Compared as numbers:
/// sorting ten thousand of them is most of a plan's time.
impl Ord for Prefix {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.0, other.0) {
            (IpNetwork::V4(left), IpNetwork::V4(right)) => {
                (left.ip().to_bits(), left.prefix()).cmp(&(right.ip().to_bits(), right.prefix()))
            }
            (IpNetwork::V6(left), IpNetwork::V6(right)) => {
                (left.ip().to_bits(), left.prefix()).cmp(&(right.ip().to_bits(), right.prefix()))
            }
            (IpNetwork::V4(_), IpNetwork::V6(_)) => Ordering::Less,
            (IpNetwork::V6(_), IpNetwork::V4(_)) => Ordering::Greater,
        }
    }
}

impl PartialOrd for Prefix {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Why a text is no prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// The text is empty.
    #[error("an empty CIDR")]
    Empty,
    /// The text is not of the form `address/length`.
    #[error("malformed CIDR {0:?}, expected ADDRESS/LENGTH, like 10.96.0.0/12 or fd00:96::/112")]
    Malformed(String),
}

/// A number that never falls where the address rises: all of an IPv4 address, the first half of an IPv6 address.
#[must_use]
pub fn rank(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => 1 << 63 | u64::try_from(address.to_bits() >> 65).unwrap_or_default(),
    }
}

/// An address as a number.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

impl Prefix {
    /// The prefix of `length` bits that holds `address`; a length above the family's is taken as the family's.
    #[must_use]
    pub fn new(address: IpAddr, length: u8) -> Self {
        let length = length.min(Family::of(address).bits());
        let network = IpNetwork::new(address, length).expect("the length fits the family");
        let first = network.network();
        Self(IpNetwork::new(first, length).expect("the length fits the family"))
    }

    /// The first of all prefixes in order.
    #[must_use]
    pub fn least() -> Self {
        Self::new(IpAddr::from([0, 0, 0, 0]), 0)
    }

    /// The prefix of one address.
    #[must_use]
    pub fn host(address: IpAddr) -> Self {
        Self(IpNetwork::from(address))
    }

    /// The address family.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.0.ip())
    }

    /// Length in bits.
    #[must_use]
    pub fn length(&self) -> u8 {
        self.0.prefix()
    }

    /// The first address, host bits zero.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.0.ip()
    }

    /// The last address, host bits one.
    #[must_use]
    pub fn last(&self) -> IpAddr {
        self.0.broadcast()
    }

    /// Whether this is a single address.
    #[must_use]
    pub fn is_host(&self) -> bool {
        self.length() == self.family().bits()
    }

    /// Whether `address` is inside.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(address)
    }

    /// Whether all of `other` is inside.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.length() <= other.length() && self.contains(other.first())
    }

    /// Whether the two share an address.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// The prefix that is made of exactly this one and `other`, if there is one.
    #[must_use]
    pub fn joined(&self, other: &Self) -> Option<Self> {
        let length = self.length().checked_sub(1)?;
        let apart = bits(self.first()) ^ bits(other.first());
        let halves = self.0.prefix() == other.0.prefix()
            && self.family() == other.family()
            && apart == 1 << (self.family().bits() - self.length());
        let first = self.first().min(other.first());
        halves.then(|| Self(IpNetwork::new(first, length).expect("a shorter length fits the family")))
    }

    /// What is left of it without `holes`, in order: with one hole, as many prefixes as that is longer, at most.
    #[must_use]
    pub fn without(self, holes: &[Self]) -> Vec<Self> {
        let mut left = Vec::new();
        self.split_off(holes, &mut left);
        left
    }

    fn split_off(self, holes: &[Self], left: &mut Vec<Self>) {
        if holes.iter().any(|hole| hole.covers(&self)) {
            return;
        }
        if !holes.iter().any(|hole| hole.overlaps(&self)) {
            left.push(self);
            return;
        }
        for half in [self.first(), self.last()] {
            Self::new(half, self.length() + 1).split_off(holes, left);
        }
    }

    /// The address that a node holds of its own pod prefix, the source of what its processes send: the first of IPv4,
    /// as flannel does; the last of IPv6, whose first is the subnet-router anycast address (RFC 4291, 2.6.1).
    #[must_use]
    pub fn pod_side(&self) -> IpAddr {
        match self.family() {
            Family::V4 => self.first(),
            Family::V6 => self.last(),
        }
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    /// Parses `address/length`, or an address alone for a prefix of one; host bits are cleared.
    fn from_str(text: &str) -> Result<Self, PrefixError> {
        Self::parse(text).map(|(prefix, _)| prefix)
    }
}

impl Prefix {
    /// The same, and the address as it stands there, host bits and all.
    ///
    /// # Errors
    /// What is no prefix.
    pub fn parse(text: &str) -> Result<(Self, IpAddr), PrefixError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(PrefixError::Empty);
        }
        let malformed = || PrefixError::Malformed(text.to_owned());
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| malformed())?;
        let most = Family::of(address).bits();
        let length = match length {
            // `u8::from_str` takes "+8"; a CIDR does not.
            Some(length) if length.bytes().all(|byte| byte.is_ascii_digit()) => {
                length.parse().ok().filter(|length| *length <= most).ok_or_else(malformed)?
            }
            Some(_) => return Err(malformed()),
            None => most,
        };
        Ok((Self::new(address, length), address))
    }
}

impl TryFrom<String> for Prefix {
    type Error = PrefixError;

    fn try_from(text: String) -> Result<Self, PrefixError> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.first(), self.length())
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{self}")
    }
}

/// Prefixes sorted, and without those that lie in others.
#[must_use]
pub fn apart(mut prefixes: Vec<Prefix>) -> Vec<Prefix> {
    // Stable, which is quick where most are in order already. Sorted, a prefix that covers others stands right before them.
    prefixes.sort();
    prefixes.dedup_by(|next, kept| kept.covers(next));
    prefixes
}

/// Prefixes of which none overlaps another, with what each stands for.
#[derive(Clone, Debug, Default)]
pub struct DisjointPrefixes<T>(std::collections::BTreeMap<Prefix, T>);

impl<T> DisjointPrefixes<T> {
    /// No prefix.
    #[must_use]
    pub const fn new() -> Self {
        Self(std::collections::BTreeMap::new())
    }

    /// The first already held, by address, that shares one with `prefix`.
    ///
    /// As the held ones are disjoint, only the neighbours in order can: the one before may cover it, the one after be
    /// covered.
    #[must_use]
    pub fn overlapping(&self, prefix: &Prefix) -> Option<(&Prefix, &T)> {
        let before = self.0.range(..=prefix).next_back();
        let after = self.0.range(prefix..).next();
        before.into_iter().chain(after).find(|(held, _)| held.overlaps(prefix))
    }

    /// Adds `prefix`, or gives back the one that it overlaps.
    ///
    /// # Errors
    /// The prefix already held, and what it stands for.
    pub fn insert(&mut self, prefix: Prefix, value: T) -> Result<(), (Prefix, &T)> {
        if self.overlapping(&prefix).is_some() {
            let (held, value) = self.overlapping(&prefix).expect("just found");
            return Err((*held, value));
        }
        self.0.insert(prefix, value);
        Ok(())
    }

    /// What the prefix that holds `address` stands for.
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> Option<(&Prefix, &T)> {
        let host = Prefix::host(address);
        self.0.range(..=host).next_back().filter(|(held, _)| held.contains(address))
    }
}

/// The first address of the IPv4 range that is reserved for future use, 240.0.0.0/4 (RFC 1112, 4): the room of Raven's
/// overlay addresses.
pub const RESERVED: Ipv4Addr = Ipv4Addr::new(240, 0, 0, 0);

/// Whether an address is one that a host may have and others may reach it by.
#[must_use]
pub fn is_host_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            !address.is_unspecified()
                && !address.is_loopback()
                && !address.is_multicast()
                && address.octets()[0] != 0
                && address < RESERVED
        }
        IpAddr::V6(address) => {
            address != Ipv6Addr::UNSPECIFIED
                && !address.is_loopback()
                && !address.is_multicast()
                && !address.is_unicast_link_local()
        }
    }
}

#[cfg(test)]
mod tests;
