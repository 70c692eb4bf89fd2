//! The kernel objects that a node should have.

use std::net::IpAddr;

use crate::facts::Facts;
use crate::key::{PresharedKey, PublicKey};
use crate::mac::Mac;
use crate::nft::Ruleset;
use crate::object::{
    Action, Address, Device, FWMARK, Link, LinkKind, NexthopId, Peer, Route, RouteKey, Rule, Scope, Set,
    SetRole, Sysctl, TUNNEL_PORT, TWIN_METRIC, Table, Tunnel, VNI, VXLAN_AGEING, VXLAN_PORT, Via, Vxlan,
    path_metric,
};
use crate::prefix::{Family, Prefix, apart, rank};
use crate::sorted::{Sorted, by_rank};
use crate::topology::{Path, Role, Topology, Vtep};

mod ids;

use ids::Ids;

/// What the tunnel costs of a packet as Raven counts it, bytes: IPv6, UDP and WireGuard headers, padding.
pub const TUNNEL_OVERHEAD: u32 = 80;

/// The least MTU of a link that carries IPv6 (RFC 8200, 5).
pub const IPV6_MIN_MTU: u32 = 1280;

/// What VXLAN costs of a packet, bytes: outer IP, UDP, VXLAN and inner Ethernet headers (RFC 7348, 5).
#[must_use]
pub const fn vxlan_overhead(underlay: Family) -> u32 {
    match underlay {
        Family::V4 => 50,
        Family::V6 => 70,
    }
}

/// What the desired state depends on beside topology and facts.
#[derive(Clone, Debug)]
pub struct Options {
    /// The tunnel runs in user space.
    pub userspace: bool,
    /// UDP port of the tunnel's socket, where it is said on the node.
    pub listen: Option<u16>,
    /// The node's own public key.
    pub key: PublicKey,
    /// The cluster's preshared key.
    pub preshared: PresharedKey,
}

/// A WireGuard device that should be, with its peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredTunnel {
    /// Its own settings.
    pub tunnel: Tunnel,
    /// Its peers.
    pub peers: Sorted<PublicKey, Peer>,
}

/// The kernel objects that should be. What is not in it and is ours goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Links.
    pub links: Sorted<Device, Link>,
    /// Settings of devices.
    pub sysctls: Sorted<(Device, Sysctl), i32>,
    /// Addresses of devices.
    pub addresses: Sorted<Address, Scope>,
    /// FDB of the overlay.
    pub fdb: Sorted<Mac, IpAddr>,
    /// Permanent neighbours on the overlay.
    pub neighbours: Sorted<IpAddr, Mac>,
    /// Nexthop objects.
    pub nexthops: Sorted<NexthopId, IpAddr>,
    /// Routes.
    pub routes: Sorted<RouteKey, Route>,
    /// Policy rules.
    pub rules: Sorted<Rule, ()>,
    /// WireGuard devices.
    pub tunnels: Sorted<Device, DesiredTunnel>,
    /// The nftables table.
    pub ruleset: Option<Ruleset>,
    /// Elements of its sets.
    pub elements: Sorted<(Set, Prefix), ()>,
}

impl Desired {
    /// Nothing at all: what is left after an uninstall.
    #[must_use]
    pub fn nothing() -> Self {
        Self::default()
    }

    /// What a node in `topology` should have.
    #[must_use]
    pub fn of(topology: &Topology, facts: &Facts, options: &Options) -> Self {
        if topology.role == Role::Outside {
            return Self::nothing();
        }
        Builder::new(topology, facts, options).build()
    }
}

struct Builder<'a> {
    topology: &'a Topology,
    facts: &'a Facts,
    options: &'a Options,
    /// Devices of ours; the same in every role, but for names that somebody else has.
    devices: Vec<Device>,
    /// Whether each of them should be there.
    tunnel: bool,
    /// Families of any prefix of the cluster.
    families: Vec<Family>,
    /// The node's pod-side addresses.
    sources: Vec<IpAddr>,
    /// VTEPs in order of their next hops, and so of their MACs; none where there is no overlay to put them on.
    by_hop: Vec<&'a Vtep>,
    ids: Ids,
}

const TUNNEL: Device = Device::WireGuard(0);

impl<'a> Builder<'a> {
    fn new(topology: &'a Topology, facts: &'a Facts, options: &'a Options) -> Self {
        let devices: Vec<Device> = [Device::Overlay, TUNNEL]
            .into_iter()
            .filter(|device| !facts.foreign_links.contains_key(device))
            .collect();
        let prefixes = || {
            let domain = topology.vteps.iter().flat_map(|vtep| vtep.subnets.iter());
            topology.own.iter().chain(domain).chain(topology.remotes.iter().map(|(prefix, _)| prefix))
        };
        let families =
            Family::ALL.into_iter().filter(|family| prefixes().any(|prefix| prefix.family() == *family));
        let source = |family: Family| {
            let pods = topology.own.iter().find(|prefix| prefix.family() == family && !prefix.is_host());
            pods.map(Prefix::pod_side)
        };
        let vteps = if devices.contains(&Device::Overlay) { topology.vteps.as_slice() } else { &[] };
        Self {
            tunnel: topology.role == Role::Gateway && devices.contains(&TUNNEL),
            families: families.collect(),
            sources: Family::ALL.into_iter().filter_map(source).collect(),
            by_hop: by_rank(vteps, |vtep| u32::from(vtep.next_hop)).collect(),
            ids: Ids::beside(&facts.foreign_nexthops),
            topology,
            facts,
            options,
            devices,
        }
    }

    fn build(&self) -> Desired {
        Desired {
            links: self.links(),
            sysctls: self.sysctls(),
            addresses: self.addresses(),
            fdb: self.fdb(),
            neighbours: self.neighbours(),
            nexthops: self.nexthops(),
            routes: self.routes(),
            rules: self.rules(),
            tunnels: self.tunnels(),
            ruleset: Some(self.ruleset()),
            elements: self.elements(),
        }
    }

    fn overlay(&self) -> bool {
        self.devices.contains(&Device::Overlay)
    }

    fn present(&self) -> impl Iterator<Item = Device> {
        self.devices.iter().copied().filter(|device| *device == Device::Overlay || self.tunnel)
    }

    fn source(&self, family: Family) -> Option<IpAddr> {
        self.sources.iter().copied().find(|source| Family::of(*source) == family)
    }

    fn has(&self, family: Family) -> bool {
        self.families.contains(&family)
    }

    fn tunnel_mtu(&self) -> u32 {
        let paths = self.topology.peers.iter().filter_map(|peer| {
            let endpoint = peer.endpoint?;
            self.facts.path_mtu.get(&endpoint.ip()).copied()
        });
        let path = paths.chain([self.facts.underlay_mtu]).min().unwrap_or(self.facts.underlay_mtu);
        self.least(path.saturating_sub(TUNNEL_OVERHEAD))
    }

    /// As Raven derives it: the lesser of VXLAN's and the tunnel's.
    fn overlay_mtu(&self) -> u32 {
        let underlay = self.topology.underlay.map_or(Family::V4, Family::of);
        let vxlan = self.facts.underlay_mtu.saturating_sub(vxlan_overhead(underlay));
        self.least(vxlan).min(self.tunnel_mtu())
    }

    /// A device that carries IPv6 has at least its least MTU: the outer packets fragment instead.
    fn least(&self, mtu: u32) -> u32 {
        mtu.max(if self.has(Family::V6) { IPV6_MIN_MTU } else { 576 })
    }

    fn links(&self) -> Sorted<Device, Link> {
        let overlay = self.overlay().then(|| {
            let underlay = self.topology.underlay.unwrap_or(IpAddr::from([0, 0, 0, 0]));
            let vxlan = Vxlan {
                vni: VNI,
                port: VXLAN_PORT,
                learning: false,
                ageing: VXLAN_AGEING,
                underlay: Family::of(underlay),
                // IPv4 needs none, so that a node's address may change under a device that stays.
                local: underlay.is_ipv6().then_some(underlay),
            };
            let kind = LinkKind::Vxlan(vxlan);
            (
                Device::Overlay,
                Link { kind, mac: self.topology.mac, mtu: self.overlay_mtu(), up: true, owned: true },
            )
        });
        let tunnel = self.tunnel.then(|| {
            let kind = if self.options.userspace { LinkKind::Tun } else { LinkKind::WireGuard };
            (TUNNEL, Link { kind, mac: None, mtu: self.tunnel_mtu(), up: true, owned: true })
        });
        overlay.into_iter().chain(tunnel).collect()
    }

    fn sysctls(&self) -> Sorted<(Device, Sysctl), i32> {
        let wanted = |sysctl| match sysctl {
            Sysctl::RpFilter => Some(2),
            Sysctl::Forwarding => Some(1),
            Sysctl::SendRedirects | Sysctl::AcceptRedirects => Some(0),
            Sysctl::DisableIpv6 | Sysctl::AcceptRa => self.has(Family::V6).then_some(0),
        };
        let settings = self.present().flat_map(|device| {
            Sysctl::ALL.into_iter().filter_map(move |sysctl| Some(((device, sysctl), wanted(sysctl)?)))
        });
        settings.collect()
    }

    fn addresses(&self) -> Sorted<Address, Scope> {
        let mut addresses = Vec::new();
        for device in self.present() {
            for source in &self.sources {
                let length = Family::of(*source).bits();
                addresses.push((Address { device, address: *source, length }, Scope::Global));
            }
        }
        if self.overlay() {
            let device = Device::Overlay;
            if let Some(own) = self.topology.own_overlay {
                addresses.push((Address { device, address: IpAddr::V4(own), length: 8 }, Scope::Link));
            }
            if let Some(mac) = self.topology.mac.filter(|_| self.has(Family::V6)) {
                let address = IpAddr::V6(mac.link_local());
                addresses.push((Address { device, address, length: 64 }, Scope::Link));
            }
        }
        addresses.into()
    }

    fn fdb(&self) -> Sorted<Mac, IpAddr> {
        self.by_hop.iter().map(|vtep| (vtep.mac, vtep.underlay)).collect()
    }

    fn neighbours(&self) -> Sorted<IpAddr, Mac> {
        let mut neighbours = Vec::with_capacity(self.by_hop.len() * self.families.len());
        for family in self.families.iter().copied() {
            neighbours.extend(self.by_hop.iter().map(|vtep| (next_hop(vtep, family), vtep.mac)));
        }
        Sorted::ranked(neighbours, |address| rank(*address))
    }

    /// One for each path over the overlay that anything goes by.
    fn nexthops(&self) -> Sorted<NexthopId, IpAddr> {
        let mut nexthops = Vec::with_capacity((self.by_hop.len() + 1) * self.families.len());
        for family in self.families.iter().copied() {
            let gateway = self.gateway(family).map(|vtep| (self.ids.gateway(family), next_hop(vtep, family)));
            let members = self.by_hop.iter().filter(|vtep| {
                self.by_overlay() && vtep.subnets.iter().any(|prefix| prefix.family() == family)
            });
            nexthops.extend(gateway);
            nexthops.extend(members.map(|vtep| (self.ids.member(vtep, family), next_hop(vtep, family))));
        }
        nexthops.into()
    }

    /// By whom other domains' prefixes of a family are reached over the overlay.
    fn gateway(&self, family: Family) -> Option<&'a Vtep> {
        let wanted = self.overlay()
            && self.topology.role == Role::Member
            && self.topology.remotes.iter().any(|(prefix, _)| prefix.family() == family);
        self.topology.vteps.iter().find(|vtep| wanted && vtep.gateway)
    }

    /// Whether this node reaches the members' pods over the overlay.
    fn by_overlay(&self) -> bool {
        self.overlay() && (self.topology.mesh || self.topology.role == Role::Gateway)
    }

    fn routes(&self) -> Sorted<RouteKey, Route> {
        let sources = Family::ALL.map(|family| self.source(family));
        let topology = self.topology;
        let mut routes =
            Vec::with_capacity(topology.vteps.len() * self.families.len() + 4 * topology.remotes.len());
        let mut put = |table, prefix: Prefix, via| {
            let [four, six] = sources;
            let source = if prefix.family() == Family::V4 { four } else { six };
            let key = RouteKey { table, prefix, metric: path_metric(prefix.family()) };
            routes.push((key, Route { via, source }));
        };
        for vtep in topology.vteps.iter().filter(|_| self.by_overlay()) {
            let node = Prefix::host(vtep.underlay);
            for prefix in vtep.subnets.iter().copied() {
                let table = if prefix == node { Table::Nodes } else { Table::Domain };
                put(table, prefix, Via::Nexthop(self.ids.member(vtep, prefix.family())));
            }
        }
        let gateways = Family::ALL.map(|family| self.gateway(family).map(|_| self.ids.gateway(family)));
        for (prefix, path) in &topology.remotes {
            match path {
                Path::Overlay => {
                    let [four, six] = gateways;
                    if let Some(id) = if prefix.family() == Family::V4 { four } else { six } {
                        put(Table::Remote, *prefix, Via::Nexthop(id));
                    }
                }
                Path::Tunnel if self.tunnel => {
                    put(Table::Remote, *prefix, Via::Device(TUNNEL));
                    put(Table::Tunnel, *prefix, Via::Device(TUNNEL));
                }
                Path::Tunnel | Path::None => {}
            }
        }
        let twins = self.topology.remotes.iter().flat_map(|(prefix, _)| {
            [Table::Remote, Table::Tunnel].map(|table| {
                let key = RouteKey { table, prefix: *prefix, metric: TWIN_METRIC };
                (key, Route { via: Via::Unreachable, source: None })
            })
        });
        routes.extend(twins);
        routes.into()
    }

    /// Whether addresses of nodes are steered (`--forward-node-ip`).
    fn nodes(&self) -> bool {
        self.topology.underlay.is_some_and(|underlay| self.topology.own.contains(&Prefix::host(underlay)))
    }

    fn rules(&self) -> Sorted<Rule, ()> {
        let mut rules = Vec::new();
        for family in self.families.iter().copied() {
            let rule = |priority, action| Rule {
                priority,
                family,
                input: None,
                mark: None,
                destination: None,
                action,
            };
            rules.push(Rule { mark: Some(FWMARK), ..rule(99, Action::Main) });
            rules.push(rule(101, Action::Lookup(Table::Remote)));
            if self.topology.mesh {
                rules.push(rule(101, Action::Lookup(Table::Domain)));
            }
            for device in self.devices.iter().copied() {
                let input = Some(device);
                let first = if device == Device::Overlay { Table::Tunnel } else { Table::Domain };
                rules.push(Rule { input, ..rule(100, Action::Lookup(first)) });
                if device != Device::Overlay && self.nodes() {
                    rules.push(Rule { input, ..rule(100, Action::Lookup(Table::Nodes)) });
                }
                // A pod that is not there, or not yet, is nowhere; what an extra CIDR names may be beyond a router.
                let own = self.topology.own.iter().map(|prefix| (prefix, Action::MainWithoutDefault));
                let extra = self.topology.extra.iter().filter(|prefix| !self.topology.own.contains(prefix));
                let extra = extra.map(|prefix| (prefix, Action::Main));
                for (prefix, action) in own.chain(extra).filter(|(prefix, _)| prefix.family() == family) {
                    rules.push(Rule { input, destination: Some(*prefix), ..rule(102, action) });
                }
                rules.push(Rule { input, ..rule(103, Action::Unreachable) });
            }
        }
        rules.into_iter().map(|rule| (rule, ())).collect()
    }

    fn tunnels(&self) -> Sorted<Device, DesiredTunnel> {
        let tunnel = self.tunnel.then(|| {
            let port = self.options.listen.or(self.topology.listen).unwrap_or(TUNNEL_PORT);
            let tunnel = Tunnel { port, mark: FWMARK, key: Some(self.options.key) };
            // Its own key at another domain's gateway is a copied manifest; WireGuard takes no peer of that key.
            let others = self.topology.peers.iter().filter(|peer| peer.key != self.options.key);
            let peers = others.map(|peer| {
                let settings = Peer {
                    preshared: self.options.preshared.clone(),
                    endpoint: peer.endpoint,
                    keepalive: peer.keepalive,
                    allowed: peer.allowed.clone(),
                };
                (peer.key, settings)
            });
            let kept = self.topology.kept_peers.iter().filter(|(key, ..)| *key != self.options.key);
            let kept = kept.map(|(key, keepalive, allowed)| {
                let preshared = self.options.preshared.clone();
                let allowed = allowed.clone();
                (*key, Peer { preshared, endpoint: None, keepalive: *keepalive, allowed })
            });
            (TUNNEL, DesiredTunnel { tunnel, peers: peers.chain(kept).collect() })
        });
        tunnel.into_iter().collect()
    }

    fn ruleset(&self) -> Ruleset {
        let paths = [self.overlay_mtu()].into_iter().chain(self.tunnel.then(|| self.tunnel_mtu()));
        let mtu = paths.min().unwrap_or(IPV6_MIN_MTU);
        let less = |headers| u16::try_from(mtu.saturating_sub(headers)).unwrap_or(u16::MAX);
        Ruleset {
            devices: self.devices.clone(),
            mss4: less(40),
            mss6: less(60),
            mesh: self.topology.mesh,
            sources: self.sources.clone(),
        }
    }

    fn elements(&self) -> Sorted<(Set, Prefix), ()> {
        let mut own = IntervalElements::new(SetRole::Own);
        own.extend(self.topology.own.iter().chain(&self.topology.extra).copied());
        let mut remote = IntervalElements::new(SetRole::Remote);
        remote.extend(self.topology.remotes.iter().map(|(prefix, _)| *prefix));
        let mut overlay = IntervalElements::new(SetRole::Overlay);
        // Of a member without mesh these are its gateway's: the source of ICMP errors that the gateway sends.
        for vtep in &self.topology.vteps {
            overlay.extend(vtep.subnets.iter().copied());
        }
        if self.topology.role == Role::Member || self.topology.mesh {
            overlay.extend(self.topology.remotes.iter().map(|(prefix, _)| *prefix));
        }
        let mut elements = Vec::with_capacity(self.topology.members.len() + self.topology.remotes.len());
        elements.extend(self.topology.members.iter().map(|address| {
            let set = Set { role: SetRole::Members, family: Family::of(*address) };
            ((set, Prefix::host(*address)), ())
        }));
        for set in [own, remote, overlay] {
            elements.extend(set.into_elements());
        }
        elements.into()
    }
}

/// Elements of an interval set that cover the same addresses with the fewest prefixes. An interval set refuses one that
/// overlaps another, and pod CIDRs come in blocks: ten thousand of them are a few elements.
struct IntervalElements(Vec<Prefix>, SetRole);

impl IntervalElements {
    const fn new(role: SetRole) -> Self {
        Self(Vec::new(), role)
    }

    fn extend(&mut self, prefixes: impl Iterator<Item = Prefix>) {
        self.0.extend(prefixes);
    }

    fn into_elements(self) -> impl Iterator<Item = ((Set, Prefix), ())> {
        let Self(prefixes, role) = self;
        let element = move |prefix: Prefix| ((Set { role, family: prefix.family() }, prefix), ());
        aggregate(prefixes).into_iter().map(element)
    }
}

/// The fewest prefixes that cover exactly the addresses of the given ones.
fn aggregate(prefixes: Vec<Prefix>) -> Vec<Prefix> {
    let mut merged: Vec<Prefix> = Vec::new();
    for mut prefix in apart(prefixes) {
        while let Some(both) = merged.last().and_then(|last| last.joined(&prefix)) {
            merged.pop();
            prefix = both;
        }
        merged.push(prefix);
    }
    merged
}

/// The address that stands for a VTEP as a next hop of a family.
fn next_hop(vtep: &Vtep, family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(vtep.next_hop),
        Family::V6 => IpAddr::V6(vtep.mac.link_local()),
    }
}

#[cfg(test)]
mod tests;
