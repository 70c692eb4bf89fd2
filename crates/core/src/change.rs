//! One typed kernel operation. The kernel shell carries it out, [`crate::fake`] plays it, and `Display` prints the
//! line of iproute2, wg or nft that does the same.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::key::{PresharedKey, PublicKey};
use crate::mac::Mac;
use crate::nft::Ruleset;
use crate::object::{
    ALIAS, Action, Address, DEFAULT_LENGTH, Device, Link, LinkKind, NexthopId, PROTOCOL, Route, RouteKey,
    Rule, Scope, Set, Sysctl, TWIN_METRIC, Table, Tunnel, Via, path_metric,
};
use crate::observed::Backend;
use crate::prefix::{Family, Prefix};
use crate::raven::Leftover;

/// One kernel operation. A put makes the object be as given, whether or not it was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Makes a link, which is not there.
    AddLink(Device, Link),
    /// Makes a link that is there be as given: address, MTU, alias, up; what a VXLAN device can change in place.
    SetLink(Device, Link),
    /// Removes a link, and with it everything on it.
    DeleteLink(Device),
    /// Sets a device's setting.
    PutSysctl(Device, Sysctl, i32),
    /// Gives a device an address.
    PutAddress(Address, Scope),
    /// Takes an address from a device.
    DeleteAddress(Address),
    /// Says behind which underlay address a hardware address is.
    PutFdb(Mac, IpAddr),
    /// Forgets a hardware address.
    DeleteFdb(Mac, IpAddr),
    /// Sets a permanent neighbour on the overlay.
    PutNeighbour(IpAddr, Mac),
    /// Removes a neighbour.
    DeleteNeighbour(IpAddr),
    /// Makes or moves a nexthop object.
    PutNexthop(NexthopId, IpAddr),
    /// Removes a nexthop object, and with it the routes that use it.
    DeleteNexthop(NexthopId),
    /// Makes or replaces a route.
    PutRoute(RouteKey, Route),
    /// Removes a route.
    DeleteRoute(RouteKey),
    /// Makes a rule.
    PutRule(Rule),
    /// Removes a rule.
    DeleteRule(Rule),
    /// Sets what differs of a WireGuard device.
    SetTunnel(Device, TunnelUpdate),
    /// Makes a peer, or sets what differs of it.
    SetPeer(Device, PublicKey, Box<PeerUpdate>),
    /// Removes a peer.
    DeletePeer(Device, PublicKey),
    /// Makes the nftables table anew, with all its elements, in one transaction.
    ReplaceTable(Box<Ruleset>, Vec<(Set, Prefix)>),
    /// Takes elements from sets and adds others, in one transaction.
    ChangeElements {
        /// To be taken away, first.
        delete: Vec<(Set, Prefix)>,
        /// To be added.
        add: Vec<(Set, Prefix)>,
    },
    /// Removes the nftables table.
    DeleteTable,
    /// Takes away what Raven left.
    TakeAway(Leftover),
}

/// What is to change of a WireGuard device; what is none stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelUpdate {
    /// Set the private key, whose public one this is.
    pub key: Option<PublicKey>,
    /// Listen on this port.
    pub port: Option<u16>,
    /// Mark the socket so.
    pub mark: Option<u32>,
}

impl From<Tunnel> for TunnelUpdate {
    fn from(tunnel: Tunnel) -> Self {
        Self { key: tunnel.key, port: Some(tunnel.port), mark: Some(tunnel.mark) }
    }
}

/// What is to change of a peer; what is none stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerUpdate {
    /// The peer is there already and its session must stay.
    pub exists: bool,
    /// The second key.
    pub preshared: Option<PresharedKey>,
    /// Where it is.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalives, zero for none.
    pub keepalive: Option<u16>,
    /// Allowed IPs.
    pub allowed: Option<AllowedUpdate>,
}

/// How a peer's allowed IPs change. A driver that can take none away by itself replaces them all where something is removed,
/// and only adds where nothing is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedUpdate {
    /// All of them, afterwards.
    pub all: Vec<Prefix>,
    /// The new ones among them.
    pub add: Vec<Prefix>,
    /// Those that are nobody's any more. What another peer gets it loses by that.
    pub remove: Vec<Prefix>,
}

impl Change {
    /// The part of the kernel that it speaks to.
    #[must_use]
    pub const fn backend(&self) -> Backend {
        match self {
            Self::SetTunnel(..) | Self::SetPeer(..) | Self::DeletePeer(..) => Backend::WireGuard,
            Self::ReplaceTable(..) | Self::ChangeElements { .. } | Self::DeleteTable => Backend::Nft,
            Self::TakeAway(leftover) => leftover.backend(),
            _ => Backend::Routes,
        }
    }

    /// The object's class and whether it is put or deleted, for counting.
    #[must_use]
    pub const fn label(&self) -> (&'static str, &'static str) {
        match self {
            Self::AddLink(..) => ("link", "add"),
            Self::SetLink(..) => ("link", "set"),
            Self::DeleteLink(..) => ("link", "delete"),
            Self::PutSysctl(..) => ("sysctl", "set"),
            Self::PutAddress(..) => ("address", "put"),
            Self::DeleteAddress(..) => ("address", "delete"),
            Self::PutFdb(..) => ("fdb", "put"),
            Self::DeleteFdb(..) => ("fdb", "delete"),
            Self::PutNeighbour(..) => ("neighbour", "put"),
            Self::DeleteNeighbour(..) => ("neighbour", "delete"),
            Self::PutNexthop(..) => ("nexthop", "put"),
            Self::DeleteNexthop(..) => ("nexthop", "delete"),
            Self::PutRoute(..) => ("route", "put"),
            Self::DeleteRoute(..) => ("route", "delete"),
            Self::PutRule(..) => ("rule", "put"),
            Self::DeleteRule(..) => ("rule", "delete"),
            Self::SetTunnel(..) => ("tunnel", "set"),
            Self::SetPeer(..) => ("peer", "put"),
            Self::DeletePeer(..) => ("peer", "delete"),
            Self::ReplaceTable(..) => ("nft_table", "put"),
            Self::DeleteTable => ("nft_table", "delete"),
            Self::ChangeElements { .. } => ("nft_elements", "put"),
            Self::TakeAway(leftover) => (leftover.class(), "delete"),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddLink(device, link) => add_link(out, *device, link),
            Self::SetLink(device, link) => set_link(out, *device, link),
            Self::DeleteLink(device) => write!(out, "ip link del {device}"),
            Self::PutSysctl(device, sysctl, value) => {
                write!(out, "sysctl -w {}={value}", sysctl.path(*device))
            }
            Self::PutAddress(address, scope) => {
                let Address { device, address, length } = address;
                let scope = match scope {
                    Scope::Global => "",
                    Scope::Link => " scope link",
                };
                let nodad = if address.is_ipv6() { " nodad" } else { "" };
                write!(out, "ip addr replace {address}/{length} dev {device}{scope}{nodad}")
            }
            Self::DeleteAddress(Address { device, address, length }) => {
                write!(out, "ip addr del {address}/{length} dev {device}")
            }
            Self::PutFdb(mac, to) => {
                write!(out, "bridge fdb replace {mac} dev {} dst {to} self permanent", Device::Overlay)
            }
            Self::DeleteFdb(mac, to) => {
                write!(out, "bridge fdb del {mac} dev {} dst {to} self", Device::Overlay)
            }
            Self::PutNeighbour(address, mac) => write!(
                out,
                "ip neigh replace {address} lladdr {mac} dev {} nud permanent protocol {PROTOCOL}",
                Device::Overlay
            ),
            Self::DeleteNeighbour(address) => write!(out, "ip neigh del {address} dev {}", Device::Overlay),
            Self::PutNexthop(id, gateway) => write!(
                out,
                "ip nexthop replace id {} via {gateway} dev {} onlink protocol {PROTOCOL}",
                id.0,
                Device::Overlay
            ),
            Self::DeleteNexthop(id) => write!(out, "ip nexthop del id {}", id.0),
            Self::PutRoute(key, route) => put_route(out, key, route),
            Self::DeleteRoute(RouteKey { table, prefix, metric }) => {
                write!(
                    out,
                    "ip{} route del {prefix} table {}{}",
                    six(prefix.family()),
                    table.number(),
                    Metric(prefix.family(), *metric)
                )
            }
            Self::PutRule(rule) => put_rule(out, "add", rule, PROTOCOL),
            Self::DeleteRule(rule) => put_rule(out, "del", rule, PROTOCOL),
            Self::SetTunnel(device, update) => set_tunnel(out, *device, update),
            Self::SetPeer(device, key, update) => set_peer(out, *device, key, update),
            Self::DeletePeer(device, key) => write!(out, "wg set {device} peer {key} remove"),
            Self::ReplaceTable(ruleset, elements) => ruleset.write(out, elements),
            Self::ChangeElements { delete, add } => {
                let mut between = "";
                for (verb, elements) in [("delete", delete), ("add", add)] {
                    for (set, group) in by_set(elements) {
                        write!(out, "{between}nft {verb} element inet {ALIAS} {set} {{ ")?;
                        write_elements(out, group)?;
                        out.write_str(" }")?;
                        between = "\n";
                    }
                }
                Ok(())
            }
            Self::DeleteTable => write!(out, "nft delete table inet {ALIAS}"),
            Self::TakeAway(leftover) => leftover.fmt(out),
        }
    }
}

/// `ip -6` where an address does not say the family.
const fn six(family: Family) -> &'static str {
    match family {
        Family::V4 => "",
        Family::V6 => " -6",
    }
}

/// A metric, where it is not the one that goes without saying.
struct Metric(Family, u32);

impl fmt::Display for Metric {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.1 == path_metric(self.0) { Ok(()) } else { write!(out, " metric {}", self.1) }
    }
}

fn add_link(out: &mut fmt::Formatter<'_>, device: Device, link: &Link) -> fmt::Result {
    match &link.kind {
        LinkKind::Vxlan(vxlan) => {
            write!(out, "ip link add {device}")?;
            if let Some(mac) = link.mac {
                write!(out, " address {mac}")?;
            }
            write!(out, " mtu {} type vxlan id {} dstport {}", link.mtu, vxlan.vni, vxlan.port)?;
            if let Some(local) = vxlan.local {
                write!(out, " local {local}")?;
            }
            write!(out, " {}learning ageing {}", if vxlan.learning { "" } else { "no" }, vxlan.ageing)?;
        }
        LinkKind::WireGuard => write!(out, "ip link add {device} mtu {} type wireguard", link.mtu)?,
        LinkKind::Tun => write!(out, "corax tunnel {device}")?,
        LinkKind::Other(kind) => write!(out, "ip link add {device} type {kind}")?,
    }
    out.write_str("\n")?;
    if matches!(link.kind, LinkKind::Tun) {
        return set_link(out, device, link);
    }
    write!(out, "ip link set {device} alias {ALIAS}{}", if link.up { " up" } else { "" })
}

fn set_link(out: &mut fmt::Formatter<'_>, device: Device, link: &Link) -> fmt::Result {
    if let LinkKind::Vxlan(vxlan) = &link.kind {
        let learning = if vxlan.learning { "" } else { "no" };
        writeln!(out, "ip link set {device} type vxlan {learning}learning ageing {}", vxlan.ageing)?;
    }
    write!(out, "ip link set {device}")?;
    if let Some(mac) = link.mac {
        write!(out, " address {mac}")?;
    }
    write!(out, " mtu {} alias {ALIAS}{}", link.mtu, if link.up { " up" } else { "" })
}

fn put_route(out: &mut fmt::Formatter<'_>, key: &RouteKey, route: &Route) -> fmt::Result {
    let RouteKey { table, prefix, metric } = key;
    write!(out, "ip{} route replace ", six(prefix.family()))?;
    match route.via {
        Via::Nexthop(id) => write!(out, "{prefix} nhid {}", id.0)?,
        Via::Device(device) => write!(out, "{prefix} dev {device}")?,
        Via::Unreachable | Via::Other => write!(out, "unreachable {prefix}")?,
    }
    write!(out, " table {}{}", table.number(), Metric(prefix.family(), *metric))?;
    if let Some(source) = route.source {
        write!(out, " src {source}")?;
    }
    write!(out, " protocol {PROTOCOL}")
}

/// The line of a rule, with its protocol number.
pub(crate) fn put_rule(out: &mut fmt::Formatter<'_>, verb: &str, rule: &Rule, protocol: u8) -> fmt::Result {
    write!(out, "ip{} rule {verb} priority {}", six(rule.family), rule.priority)?;
    if let Some(device) = rule.input {
        write!(out, " iif {device}")?;
    }
    if let Some(mark) = rule.mark {
        write!(out, " fwmark {mark:#x}")?;
    }
    if let Some(destination) = rule.destination {
        write!(out, " to {destination}")?;
    }
    match rule.action {
        Action::Lookup(table) => write!(out, " lookup {}", table.number())?,
        Action::Main => out.write_str(" lookup main")?,
        Action::MainWithoutDefault => write!(out, " lookup main suppress_prefixlength {DEFAULT_LENGTH}")?,
        Action::Unreachable => out.write_str(" unreachable")?,
    }
    write!(out, " protocol {protocol}")
}

fn set_tunnel(out: &mut fmt::Formatter<'_>, device: Device, update: &TunnelUpdate) -> fmt::Result {
    write!(out, "wg set {device}")?;
    if update.key.is_some() {
        out.write_str(" private-key (hidden)")?;
    }
    if let Some(port) = update.port {
        write!(out, " listen-port {port}")?;
    }
    if let Some(mark) = update.mark {
        write!(out, " fwmark {mark:#x}")?;
    }
    Ok(())
}

fn set_peer(
    out: &mut fmt::Formatter<'_>,
    device: Device,
    key: &PublicKey,
    update: &PeerUpdate,
) -> fmt::Result {
    write!(out, "wg set {device} peer {key}")?;
    if update.preshared.is_some() {
        out.write_str(" preshared-key (hidden)")?;
    }
    if let Some(endpoint) = update.endpoint {
        write!(out, " endpoint {endpoint}")?;
    }
    if let Some(keepalive) = update.keepalive {
        write!(out, " persistent-keepalive {keepalive}")?;
    }
    if let Some(allowed) = &update.allowed {
        let list: Vec<String> = allowed.all.iter().map(ToString::to_string).collect();
        write!(out, " allowed-ips {:?}", list.join(","))?;
    }
    Ok(())
}

/// Elements of sets, which are in order, set by set.
pub fn by_set(elements: &[(Set, Prefix)]) -> impl Iterator<Item = (Set, &[(Set, Prefix)])> {
    let groups = elements.chunk_by(|(left, _), (right, _)| left == right);
    groups.filter_map(|group| group.first().map(|(set, _)| (*set, group)))
}

/// Writes elements as nft reads them, comma between.
pub(crate) fn write_elements(out: &mut dyn fmt::Write, elements: &[(Set, Prefix)]) -> fmt::Result {
    let mut between = "";
    for (_, prefix) in elements {
        if prefix.is_host() {
            write!(out, "{between}{}", prefix.first())?;
        } else {
            write!(out, "{between}{prefix}")?;
        }
        between = ", ";
    }
    Ok(())
}

/// Whether a route is the twin that keeps a remote prefix from falling through to the main table.
#[must_use]
pub const fn is_twin(key: &RouteKey, route: &Route) -> bool {
    key.metric == TWIN_METRIC
        && matches!(key.table, Table::Remote | Table::Tunnel)
        && matches!(route.via, Via::Unreachable)
}

#[cfg(test)]
mod tests;
