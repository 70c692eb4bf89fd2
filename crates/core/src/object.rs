//! Kernel objects that Corax owns, and the numbers by which it knows them again.
//!
//! Ownership is readable from the kernel itself: the interface alias, the protocol number of routes, rules, nexthops
//! and neighbours, the tables, the nexthop id range. A restart finds its objects; a foreign one is never touched.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use crate::key::{PresharedKey, PublicKey};
use crate::mac::Mac;
use crate::prefix::{Family, Prefix};

/// Protocol number (`rtm_protocol`, `FRA_PROTOCOL`, `NDA_PROTOCOL`, `nh_protocol`) of what Corax makes; unassigned in
/// `linux/rtnetlink.h` and iproute2's `rt_protos`.
pub const PROTOCOL: u8 = 90;

/// Interface alias of Corax's devices.
pub const ALIAS: &str = "corax";

/// Mark of what must go by the main table: the tunnels' own UDP sockets, and answers to clients outside who came by a
/// NodePort of this node. Its bits are nobody's who goes by single bits: kube-proxy and kubelet (0x4000 masquerades, 0x8000
/// drops), Calico and Tailscale (the upper 16), portmap (0x2000), Cilium (0x0f00), the VPC CNI (0x80), Raven (0x40).
pub const FWMARK: u32 = 0x1028;

const _: () = assert!(FWMARK & 0xffff_efc0 == 0, "a bit that others go by");

/// VXLAN network identifier (RFC 7348), Raven's.
pub const VNI: u32 = 200;

/// UDP port of VXLAN, Raven's.
pub const VXLAN_PORT: u16 = 4472;

/// Ageing of learned FDB entries in seconds, Raven's; nothing is learned.
pub const VXLAN_AGEING: u32 = 300;

/// UDP port of the tunnel where nothing else is said, Raven's.
pub const TUNNEL_PORT: u16 = 4500;

/// Metric of the `unreachable` twin of a remote prefix: the worst there is, so that any path is better.
pub const TWIN_METRIC: u32 = u32::MAX;

/// Metric of a path's own route, as the kernel shows it: IPv6 has no zero, it makes it 1024.
#[must_use]
pub const fn path_metric(family: Family) -> u32 {
    match family {
        Family::V4 => 0,
        Family::V6 => 1024,
    }
}

/// A device of Corax.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Device {
    /// The VXLAN device `raven0`.
    Overlay,
    /// A WireGuard device: `raven-wg0`, and `raven-wg1`… for standby paths.
    WireGuard(u8),
}

impl Device {
    /// The device of an interface name that is reserved for Corax.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        if name == "raven0" {
            return Some(Self::Overlay);
        }
        let number = name.strip_prefix("raven-wg")?;
        let parsed: u8 = number.parse().ok()?;
        // "raven-wg00" and "raven-wg+1" are somebody else's.
        (parsed.to_string() == number).then_some(Self::WireGuard(parsed))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlay => out.write_str("raven0"),
            Self::WireGuard(number) => write!(out, "raven-wg{number}"),
        }
    }
}

impl Serialize for Device {
    fn serialize<S: serde::Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

/// What kind of link a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A VXLAN device.
    Vxlan(Vxlan),
    /// WireGuard in the kernel.
    WireGuard,
    /// A TUN device of a `corax tunnel` process.
    Tun,
    /// Something else, by the kernel's word for it; only ever observed.
    Other(Box<str>),
}

/// Parameters of a VXLAN device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// Network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Whether it learns who sits where from what it receives.
    pub learning: bool,
    /// Seconds after which a learned entry is forgotten.
    pub ageing: u32,
    /// Family of the outer packets. One device has one.
    pub underlay: Family,
    /// Source of the outer packets; needed with IPv6, where it says the family.
    pub local: Option<IpAddr>,
}

/// A link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its kind and what belongs to it.
    pub kind: LinkKind,
    /// Hardware address; a tunnel has none.
    pub mac: Option<Mac>,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Carries our alias.
    pub owned: bool,
}

/// A setting of a device below `/proc/sys/net`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Sysctl {
    /// `ipv4/conf/DEV/rp_filter`; the kernel takes the larger of this and `all`.
    RpFilter,
    /// `ipv4/conf/DEV/forwarding`: packets that came in by it may be forwarded.
    Forwarding,
    /// `ipv4/conf/DEV/send_redirects`; or-ed with `all`.
    SendRedirects,
    /// `ipv4/conf/DEV/accept_redirects`.
    AcceptRedirects,
    /// `ipv6/conf/DEV/disable_ipv6`.
    DisableIpv6,
    /// `ipv6/conf/DEV/accept_ra`.
    AcceptRa,
}

impl Sysctl {
    /// Every setting that Corax keeps.
    pub const ALL: [Self; 6] = [
        Self::RpFilter,
        Self::Forwarding,
        Self::SendRedirects,
        Self::AcceptRedirects,
        Self::DisableIpv6,
        Self::AcceptRa,
    ];

    /// The path below `/proc/sys` for a device.
    #[must_use]
    pub fn path(self, device: Device) -> String {
        let (family, name) = match self {
            Self::RpFilter => ("ipv4", "rp_filter"),
            Self::Forwarding => ("ipv4", "forwarding"),
            Self::SendRedirects => ("ipv4", "send_redirects"),
            Self::AcceptRedirects => ("ipv4", "accept_redirects"),
            Self::DisableIpv6 => ("ipv6", "disable_ipv6"),
            Self::AcceptRa => ("ipv6", "accept_ra"),
        };
        format!("net/{family}/conf/{device}/{name}")
    }
}

/// An address of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// The device.
    pub device: Device,
    /// The address itself.
    pub address: IpAddr,
    /// Length of its network, in bits.
    pub length: u8,
}

/// How far an address is valid (`rtm_scope`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everywhere.
    Global,
    /// On its link only.
    Link,
}

/// Number of a nexthop object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NexthopId(pub u32);

impl NexthopId {
    /// The range of our own: 30 bits from here. Other users count up from 1 (the kernel, FRR) or from 2^31.
    pub const FIRST: u32 = 0x4000_0000;

    /// Whether an id is in our range.
    #[must_use]
    pub const fn is_ours(self) -> bool {
        self.0 >> 30 == 1
    }
}

/// A routing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// Addresses of the domain's other nodes, over the overlay: for packets out of a tunnel only, as VXLAN itself goes to
    /// them.
    Nodes,
    /// The domain's own prefixes, over the overlay.
    Domain,
    /// Every remote prefix: by tunnel, over the overlay, or unreachable.
    Remote,
    /// Remote prefixes by tunnel only, or unreachable: for packets out of the overlay.
    Tunnel,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Nodes, Self::Domain, Self::Remote, Self::Tunnel];

    /// The kernel's number.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Nodes => 9026,
            Self::Domain => 9027,
            Self::Remote => 9028,
            Self::Tunnel => 9029,
        }
    }

    /// The table of a number.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.number() == number)
    }
}

/// What tells a route from every other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteKey {
    /// Where it stands.
    pub table: Table,
    /// Where it leads.
    pub prefix: Prefix,
    /// Its metric; the lowest is used.
    pub metric: u32,
}

/// How a route leads on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Via {
    /// By a nexthop object.
    Nexthop(NexthopId),
    /// By a device.
    Device(Device),
    /// Nowhere: the sender is told.
    Unreachable,
    /// Something that Corax never makes; only ever observed.
    Other,
}

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// How it leads on.
    pub via: Via,
    /// Source of what this node itself sends by it.
    pub source: Option<IpAddr>,
}

/// Bits of the longest prefix that is taken for a default route or a piece of one: `0.0.0.0/0`, the halves that a VPN sets before it,
/// `2000::/3`. No pods are behind it; behind a longer one, wider than the node's own, there may be: a CNI's for the whole cluster.
pub const DEFAULT_LENGTH: u8 = 3;

/// What a policy rule does with the packets that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// Looks them up in a table of ours; the next rule is asked where that has no answer.
    Lookup(Table),
    /// Looks them up in the main table.
    Main,
    /// The same, but its default routes, and the pieces of one, are no answer ([`DEFAULT_LENGTH`]).
    MainWithoutDefault,
    /// Refuses them.
    Unreachable,
}

/// A policy rule. Equal fields are one rule to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rule {
    /// The lowest is asked first.
    pub priority: u32,
    /// Address family.
    pub family: Family,
    /// The device a packet came in by.
    pub input: Option<Device>,
    /// Its mark, all 32 bits.
    pub mark: Option<u32>,
    /// Its destination.
    pub destination: Option<Prefix>,
    /// What happens.
    pub action: Action,
}

/// A WireGuard device's own settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// UDP port it listens on.
    pub port: u16,
    /// Mark of its socket.
    pub mark: u32,
    /// Its public key; none before the private one is set.
    pub key: Option<PublicKey>,
}

/// A peer of a WireGuard device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The second key.
    pub preshared: PresharedKey,
    /// Where it is, where that is known before it speaks.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between packets that keep a NAT's mapping; zero for none.
    pub keepalive: u16,
    /// What it may send and is sent, sorted.
    pub allowed: Vec<Prefix>,
}

/// A set of the nftables table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SetRole {
    /// Underlay addresses that may send to the VXLAN port.
    Members,
    /// The node's own pods and extra-allowed networks.
    Own,
    /// Prefixes of other domains.
    Remote,
    /// What may come out of the overlay.
    Overlay,
}

/// A set of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Set {
    /// What it is for.
    pub role: SetRole,
    /// Family of its elements.
    pub family: Family,
}

impl Set {
    /// Every set.
    pub fn all() -> impl Iterator<Item = Self> {
        [SetRole::Members, SetRole::Own, SetRole::Remote, SetRole::Overlay]
            .into_iter()
            .flat_map(|role| Family::ALL.map(|family| Self { role, family }))
    }

    /// The set of a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::all().find(|set| set.to_string() == name)
    }

    /// Whether its elements are networks (an interval set) or single addresses (a hash set).
    #[must_use]
    pub const fn is_interval(self) -> bool {
        !matches!(self.role, SetRole::Members)
    }
}

impl fmt::Display for Set {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self.role {
            SetRole::Members => "members",
            SetRole::Own => "own",
            SetRole::Remote => "remote",
            SetRole::Overlay => "overlay",
        })?;
        out.write_str(match self.family {
            Family::V4 => "4",
            Family::V6 => "6",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_exact_names_are_our_devices() {
        assert_eq!(Device::from_name("raven0"), Some(Device::Overlay));
        assert_eq!(Device::from_name("raven-wg1"), Some(Device::WireGuard(1)));
        for foreign in ["raven1", "raven-wg", "raven-wg00", "raven-wg+1", "raven-wg256", "wg0"] {
            assert_eq!(Device::from_name(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn names_of_devices_and_sets_read_back() {
        for device in [Device::Overlay, Device::WireGuard(0), Device::WireGuard(255)] {
            assert_eq!(Device::from_name(&device.to_string()), Some(device));
        }
        for set in Set::all() {
            assert_eq!(Set::from_name(&set.to_string()), Some(set));
        }
    }
}
