//! The addresses a network may give out: host-local's ranges and range sets, with its rules.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

/// Why a range cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the message is the documentation
pub enum RangeError {
    #[error("no address ranges: give the ipam section a subnet or ranges")]
    NoRanges,
    #[error("network {0} is too small to allocate from")]
    TooSmall(IpNetwork),
    #[error("network {subnet} has host bits set: the network address is {network}")]
    HostBits { subnet: IpNetwork, network: IpAddr },
    #[error("{what} {address} is not in network {subnet}")]
    Outside { what: &'static str, address: IpAddr, subnet: IpNetwork },
    #[error("rangeStart {start} is behind rangeEnd {end}")]
    Backwards { start: IpAddr, end: IpAddr },
    #[error("a range set mixes IPv4 and IPv6: {0} and {1}")]
    MixedFamilies(IpNetwork, IpNetwork),
    #[error("ranges {0} and {1} overlap")]
    Overlap(String, String),
}

/// One run of addresses of one subnet, canonical: family, order and containment have been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    subnet: IpNetwork,
    start: u128,
    end: u128,
    gateway: IpAddr,
    exclude: Vec<IpNetwork>,
}

/// What a configuration says of a range; what it leaves out gets host-local's default.
#[derive(Debug, Clone)]
pub struct RangeSpec {
    /// The subnet, host bits zero.
    pub subnet: IpNetwork,
    /// First address to give out; by default the one behind the network address.
    pub start: Option<IpAddr>,
    /// Last address to give out; by default the last of the subnet but the broadcast address.
    pub end: Option<IpAddr>,
    /// The gateway; by default the address behind the network address. Never given out.
    pub gateway: Option<IpAddr>,
    /// Never given out. Prefixes of the other family are ignored.
    pub exclude: Vec<IpNetwork>,
}

impl Range {
    /// Checks a range and fills in what is missing, as host-local does.
    ///
    /// The first and the last address of the subnet are never given out, whatever start and end say: they are the
    /// network and broadcast address of IPv4, the subnet-router anycast of IPv6, and the nodes' own pod-side addresses.
    ///
    /// # Errors
    /// When no pod could use it.
    pub fn new(spec: RangeSpec) -> Result<Self, RangeError> {
        let RangeSpec { subnet, start, end, gateway, exclude } = spec;
        let bits = if subnet.is_ipv4() { 32 } else { 128 };
        if subnet.prefix() > bits - 2 {
            return Err(RangeError::TooSmall(subnet));
        }
        if subnet.ip() != subnet.network() {
            return Err(RangeError::HostBits { subnet, network: subnet.network() });
        }
        let (first, last) = bounds(subnet);
        let number = |what, address: Option<IpAddr>, default: u128| match address {
            None => Ok(default),
            Some(address) if subnet.contains(address) => Ok(to_number(address)),
            Some(address) => Err(RangeError::Outside { what, address, subnet }),
        };
        let start = number("rangeStart", start, first + 1)?;
        let end = number("rangeEnd", end, last - 1)?;
        if start > end {
            let address = |n| to_address(n, subnet.is_ipv4());
            return Err(RangeError::Backwards { start: address(start), end: address(end) });
        }
        let gateway = gateway.unwrap_or_else(|| to_address(first + 1, subnet.is_ipv4()));
        let exclude = exclude.into_iter().filter(|x| x.is_ipv4() == subnet.is_ipv4()).collect();
        Ok(Self { subnet, start: start.max(first + 1), end: end.min(last - 1), gateway, exclude })
    }

    /// The subnet.
    pub fn subnet(&self) -> IpNetwork {
        self.subnet
    }

    /// The gateway of the subnet.
    pub fn gateway(&self) -> IpAddr {
        self.gateway
    }

    /// Whether a pod may have this address.
    pub fn allows(&self, address: IpAddr) -> bool {
        let number = to_number(address);
        self.spans(address)
            && address != self.gateway
            && self.behind_exclusion(number).is_none()
            && number != 0
    }

    fn spans(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.subnet.is_ipv4() && (self.start..=self.end).contains(&to_number(address))
    }

    /// The address behind the excluded prefix that `number` is in.
    fn behind_exclusion(&self, number: u128) -> Option<u128> {
        let covering =
            self.exclude.iter().map(|&x| bounds(x)).find(|(low, high)| (*low..=*high).contains(&number));
        covering.map(|(_, high)| high.saturating_add(1))
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.subnet.is_ipv4() == other.subnet.is_ipv4() && self.start <= other.end && other.start <= self.end
    }

    /// Visits the addresses a pod may have, from number `from` to `to`, until `visit` says stop. True when stopped.
    fn walk(&self, from: u128, to: u128, visit: &mut dyn FnMut(IpAddr) -> bool) -> bool {
        let mut number = from.max(self.start);
        while number <= to.min(self.end) {
            if let Some(behind) = self.behind_exclusion(number) {
                number = behind;
                continue;
            }
            let address = to_address(number, self.subnet.is_ipv4());
            if address != self.gateway && visit(address) {
                return true;
            }
            number += 1;
        }
        false
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = |number| to_address(number, self.subnet.is_ipv4());
        write!(f, "{}-{}", address(self.start), address(self.end))
    }
}

/// Ranges of one family, out of which a pod gets one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

impl RangeSet {
    /// A set of at least one range, of one family, none overlapping another.
    ///
    /// # Errors
    /// When the set is empty, mixed or overlaps itself.
    pub fn new(ranges: Vec<Range>) -> Result<Self, RangeError> {
        let first = ranges.first().ok_or(RangeError::NoRanges)?;
        if let Some(other) = ranges.iter().find(|r| r.subnet.is_ipv4() != first.subnet.is_ipv4()) {
            return Err(RangeError::MixedFamilies(first.subnet, other.subnet));
        }
        for (at, one) in ranges.iter().enumerate() {
            if let Some(other) = ranges.iter().skip(at + 1).find(|other| one.overlaps(other)) {
                return Err(RangeError::Overlap(one.to_string(), other.to_string()));
            }
        }
        Ok(Self(ranges))
    }

    /// The range that may give this address to a pod.
    pub fn range_of(&self, address: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.allows(address))
    }

    /// Whether the address is between start and end of one of the ranges, gateway and excluded ones included.
    pub fn spans(&self, address: IpAddr) -> bool {
        self.0.iter().any(|range| range.spans(address))
    }

    /// Visits every address once, round robin: first those behind `after`, until `visit` says stop.
    pub(crate) fn walk(&self, after: Option<IpAddr>, visit: &mut dyn FnMut(IpAddr) -> bool) {
        let home = after.and_then(|a| Some((self.0.iter().position(|r| r.spans(a))?, to_number(a))));
        let (home, cut) = home.unwrap_or((0, 0));
        let (before, from) = self.0.split_at(home);
        let Some((own, behind)) = from.split_first() else { return };
        let _ = own.walk(cut.saturating_add(1), u128::MAX, visit)
            || behind.iter().chain(before).any(|range| range.walk(0, u128::MAX, visit))
            || own.walk(0, cut, visit);
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<_> = self.0.iter().map(Range::to_string).collect();
        f.write_str(&ranges.join(","))
    }
}

/// All range sets of a network; a pod gets one address of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranges(Vec<RangeSet>);

impl Ranges {
    /// At least one set, none overlapping another.
    ///
    /// # Errors
    /// When there is none, or two overlap.
    pub fn new(sets: Vec<RangeSet>) -> Result<Self, RangeError> {
        if sets.is_empty() {
            return Err(RangeError::NoRanges);
        }
        for (at, one) in sets.iter().enumerate() {
            let overlap = |other: &&RangeSet| one.0.iter().any(|a| other.0.iter().any(|b| a.overlaps(b)));
            if let Some(other) = sets.iter().skip(at + 1).find(overlap) {
                return Err(RangeError::Overlap(one.to_string(), other.to_string()));
            }
        }
        Ok(Self(sets))
    }

    /// The sets, in the configuration's order.
    pub fn sets(&self) -> &[RangeSet] {
        &self.0
    }
}

fn bounds(prefix: IpNetwork) -> (u128, u128) {
    (to_number(prefix.network()), to_number(prefix.broadcast()))
}

fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn to_address(number: u128, v4: bool) -> IpAddr {
    if v4 {
        IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(number).expect("numbers of an IPv4 range fit 32 bits")))
    } else {
        IpAddr::V6(Ipv6Addr::from_bits(number))
    }
}

#[cfg(test)]
mod tests;
