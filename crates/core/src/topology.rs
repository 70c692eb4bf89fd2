//! What the view means for one node: its role, its VTEPs, its tunnel peers, and by which path each prefix is reached.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::desired::{IPV6_MIN_MTU, vxlan_overhead};
use crate::facts::Facts;
use crate::kept::Kept;
use crate::key::PublicKey;
use crate::mac::Mac;
use crate::name::{DomainName, NodeName};
use crate::prefix::{Family, Prefix};
use crate::problem::Problem;
use crate::view::{Domain, GatewayNode, Member, Subnets, View};
use crate::vtep::Identity;

mod links;
mod protected;

use links::Links;
use protected::{Fit, Protected, shadowed};

/// Seconds between the packets by which a gateway behind a NAT keeps its mapping, Raven's.
pub const KEEPALIVE: u16 = 5;

/// What a node is to its domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It belongs to no domain.
    #[default]
    Outside,
    /// It sends by the domain's gateway node.
    Member,
    /// It carries the domain's traffic.
    Gateway,
}

/// What a node is told beside the view.
#[derive(Clone, Debug)]
pub struct Local<'a> {
    /// Its name.
    pub node: &'a NodeName,
    /// What VTEPs' MACs are made of.
    pub identity: Identity,
    /// Members reach each other's pods over the overlay too (`--mesh`).
    pub mesh: bool,
    /// Gateways behind NATs try each other directly (`--nat-traversal`).
    pub nat_traversal: bool,
    /// What it says itself: what a remote prefix may take from it depends on its addresses, networks and default gateways.
    pub facts: &'a Facts,
    /// Addresses of the API server, which no remote prefix may hold.
    pub api_servers: &'a [IpAddr],
    /// What stays although no domain has it, while the view is incomplete.
    pub kept: Option<&'a Kept>,
    /// Prefixes that were steered before: those within one that is refused stay.
    pub steered: Option<&'a BTreeSet<Prefix>>,
}

impl<'a> Local<'a> {
    /// A node that was told nothing more.
    #[must_use]
    pub const fn new(node: &'a NodeName, facts: &'a Facts) -> Self {
        Self {
            node,
            identity: Identity::NodeName,
            mesh: false,
            nat_traversal: false,
            facts,
            api_servers: &[],
            kept: None,
            steered: None,
        }
    }
}

/// Another member's end of the overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vtep {
    /// It is the domain's gateway node's.
    pub gateway: bool,
    /// Its hardware address on the overlay.
    pub mac: Mac,
    /// Its underlay address.
    pub underlay: IpAddr,
    /// The address that stands for it as a next hop of IPv4 on this node.
    pub next_hop: Ipv4Addr,
    /// Its pods' prefixes.
    pub subnets: Subnets,
}

/// How a remote prefix is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    /// Over the overlay to the domain's gateway node.
    Overlay,
    /// By the tunnel.
    Tunnel,
    /// Not at all, for now.
    None,
}

/// A tunnel peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelPeer {
    /// The domain behind it.
    pub domain: DomainName,
    /// Its gateway node.
    pub node: NodeName,
    /// Its public key.
    pub key: PublicKey,
    /// Where it is, where it can be spoken to first.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalives, zero for none.
    pub keepalive: u16,
    /// What it may send and is sent, sorted.
    pub allowed: Vec<Prefix>,
}

/// A remote domain as this node reaches it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteDomain {
    /// Its name.
    pub name: DomainName,
    /// By what path.
    pub path: Path,
    /// Its gateway node, if it has one.
    pub gateway: Option<NodeName>,
    /// The domain that relays, if one does; as this node's gateway sees it.
    pub relay: Option<DomainName>,
}

/// The view, as one node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// The node's role.
    pub role: Role,
    /// Its domain.
    pub domain: Option<DomainName>,
    /// The domain's gateway node.
    pub gateway: Option<NodeName>,
    /// Whether members reach each other over the overlay.
    pub mesh: bool,
    /// Its own underlay address.
    pub underlay: Option<IpAddr>,
    /// Hardware address of its own VTEP.
    pub mac: Option<Mac>,
    /// Address of its own VTEP, with Raven's identity.
    pub own_overlay: Option<Ipv4Addr>,
    /// Its own pods' prefixes.
    pub own: Vec<Prefix>,
    /// Beside them, what it answers for as the gateway node.
    pub extra: Vec<Prefix>,
    /// The other members that it speaks to over the overlay, sorted by prefixes.
    pub vteps: Vec<Vtep>,
    /// Underlay addresses of all other members, sorted.
    pub members: Vec<IpAddr>,
    /// What is steered of the prefixes of other domains, sorted, and how each part is reached.
    pub remotes: Vec<(Prefix, Path)>,
    /// The port that its Gateway wants its tunnel socket on.
    pub listen: Option<u16>,
    /// Its tunnel peers, sorted by domain.
    pub peers: Vec<TunnelPeer>,
    /// Peers that stay although no domain has them: key, keepalive, and allowed IPs, sorted.
    pub kept_peers: Vec<(PublicKey, u16, Vec<Prefix>)>,
    /// The other domains.
    pub domains: Vec<RemoteDomain>,
    /// Whether a prefix of another domain was refused whole.
    pub refuses: bool,
    /// What was wrong.
    pub problems: Vec<Problem>,
}

impl Topology {
    /// What `view` means for a node.
    #[must_use]
    pub fn of(view: &View, local: &Local<'_>) -> Self {
        let Some((name, domain, member)) = view.member(local.node) else {
            return Self::outside(local.node);
        };
        let mut topology = Self {
            domain: Some(name.clone()),
            mesh: local.mesh,
            underlay: Some(member.underlay),
            mac: Some(member.mac),
            own_overlay: local.identity.own_address(member.underlay),
            own: member.subnets.to_vec(),
            ..Self::default()
        };
        topology.place(domain, member, local);
        let links = Links::of(view, name, local.nat_traversal);
        topology.connect(view, name, domain, &links, local);
        topology.problems.extend(topology.narrow(local.facts));
        topology
    }

    /// The kernel does not cut VXLAN over IPv6, and the overlay carries IPv6, so that it is no smaller than any such device.
    fn narrow(&self, facts: &Facts) -> Option<Problem> {
        let own = self.underlay.filter(IpAddr::is_ipv6)?;
        let (mtu, least) = (facts.underlay_mtu, IPV6_MIN_MTU + vxlan_overhead(Family::V6));
        if self.vteps.is_empty() || mtu >= least {
            return None;
        }
        let here = self.own.iter().chain(self.vteps.iter().flat_map(|vtep| vtep.subnets.iter()));
        let mut prefixes = here.chain(self.remotes.iter().map(|(prefix, _)| prefix));
        if !prefixes.any(|prefix| prefix.family() == Family::V6) {
            return None;
        }
        let holders = facts.networks.iter().filter(|(network, _)| network.contains(own));
        let link = holders.max_by_key(|(network, _)| network.length()).map(|(_, link)| link.as_str());
        Some(Problem::new(
            link.map_or_else(|| format!("the link of {own}"), |link| format!("link {link}")),
            format!(
                "has an MTU of {mtu}, and the overlay, which goes over it by IPv6, needs {least}: packets of more than {} bytes do not \
                 reach the domain's other nodes",
                mtu.saturating_sub(vxlan_overhead(Family::V6))
            ),
            format!(
                "raise it to {least}, on all that is between the domain's nodes: ip link set {} mtu {least}",
                link.unwrap_or("DEVICE")
            ),
        ))
    }

    fn outside(node: &NodeName) -> Self {
        let problem = Problem::new(
            format!("node {node}"),
            "is a member of no Gateway: nothing is steered, and no lock keeps packets for other domains from leaving in \
             plaintext",
            "add it to status.nodes of a Gateway (where a controller fills that: label the node \
             raven.openyurt.io/gateway=<gateway>), or correct --node-name",
        );
        Self { problems: vec![problem], ..Self::default() }
    }

    /// Finds the node's role and the VTEPs that it needs.
    fn place(&mut self, domain: &Domain, member: &Member, local: &Local<'_>) {
        let active = domain.gateway();
        let gateway = active.and_then(|gateway| domain.member(&gateway.node));
        let is = |other: &Member, this: Option<&Member>| this.is_some_and(|this| std::ptr::eq(other, this));
        self.gateway = active.map(|gateway| gateway.node.clone());
        if active.is_some_and(|gateway| &gateway.node == local.node) {
            self.role = Role::Gateway;
            self.listen = active.and_then(|gateway| gateway.listen);
            self.extra.clone_from(&domain.extra);
        } else {
            self.role = Role::Member;
        }
        let all = self.role == Role::Gateway || self.mesh;
        let most = if all { domain.members.len() } else { 1 };
        self.vteps.reserve(most);
        self.members = domain.members.addresses().to_vec();
        if let Ok(own) = self.members.binary_search(&member.underlay) {
            self.members.remove(own);
        }
        let nodes = Nodes { all: &self.members, own: member.underlay };
        let by_prefix = || domain.members.by_prefix();
        let own_hop = || by_prefix().find_map(|(other, hop)| is(other, Some(member)).then_some(hop));
        // In the order of prefixes, so that routes and the guard's sets, made of them, are in order too.
        for (other, next_hop) in by_prefix().filter(|(other, _)| !is(other, Some(member))) {
            let gateway = is(other, gateway);
            if !all && !gateway {
                continue;
            }
            if other.underlay.is_ipv4() != member.underlay.is_ipv4() {
                self.problems.push(Problem::new(
                    format!("node {}", other.node),
                    format!(
                        "its address {} is of another family than this node's {}",
                        other.underlay, member.underlay
                    ),
                    "give all members of a domain a privateIP of one family",
                ));
                continue;
            }
            let mut subnets = Subnets::from_slice(&other.subnets);
            // In mesh its pods' prefixes are looked up for whatever the node sends, VXLAN itself included.
            subnets.retain(|prefix| {
                let held = nodes.inside(prefix).filter(|_| self.mesh && *prefix != Prefix::host(other.underlay));
                if let Some(address) = held {
                    let object = format!("node {}, subnet {prefix}", other.node);
                    let what = format!("holds the underlay address {address} of a member: VXLAN would go into itself; refused");
                    self.problems.push(Problem::new(object, what, "use pod CIDRs apart from the networks of the nodes"));
                }
                held.is_none()
            });
            // Raven's address for this node's own VTEP may be what stands for another, which has no need of this node's.
            let taken = Some(next_hop) == self.own_overlay;
            let next_hop = if taken { own_hop().unwrap_or(next_hop) } else { next_hop };
            self.vteps.push(Vtep { gateway, mac: other.mac, underlay: other.underlay, next_hop, subnets });
        }
    }

    /// Finds how each other domain is reached.
    fn connect(
        &mut self,
        view: &View,
        name: &DomainName,
        domain: &Domain,
        links: &Links<'_>,
        local: &Local<'_>,
    ) {
        if domain.gateways.is_empty() && view.domains.len() > 1 && !view.tells_of_endpoint(name) {
            self.problems.push(Problem::new(
                format!("Gateway {name}"),
                "has no active tunnel endpoint, so no other domain is reached",
                "add an endpoint of type tunnel, or wait for the election",
            ));
        }
        let protected = Protected::of(view, self.underlay, local);
        let reached = self.vteps.iter().any(|vtep| vtep.gateway);
        for (other_name, other) in view.domains.iter().filter(|(other, _)| *other != name) {
            let link = links.to(other_name);
            let path = match self.role {
                Role::Gateway if link.is_up() => Path::Tunnel,
                Role::Member if reached => Path::Overlay,
                _ => Path::None,
            };
            let mut allowed = Vec::new();
            for prefix in other.prefixes() {
                let Fit { parts, refused, told } = protected.fit(other_name, prefix, &self.members);
                self.refuses |= refused;
                allowed.extend(parts);
                let object = || format!("Gateway {other_name}, subnet {prefix}");
                let remedy = "use pod CIDRs apart from the networks of the nodes";
                self.problems.extend(told.into_iter().map(|what| Problem::new(object(), what, remedy)));
            }
            self.problems.extend(self.of_no_family(other_name, other));
            self.remotes.extend(allowed.iter().map(|prefix| (*prefix, path)));
            if self.role == Role::Gateway {
                self.add_peer(other_name, other, link, allowed, links);
            }
            self.domains.push(RemoteDomain {
                name: other_name.clone(),
                // A member's packets go to its gateway all the same, which has no way for them.
                path: if link.is_up() { path } else { Path::None },
                gateway: other.gateway().map(|gateway| gateway.node.clone()),
                relay: link.relay().cloned(),
            });
        }
        if let Some(kept) = local.kept {
            self.keep(view, name, kept, &protected);
        }
        self.remotes.sort_by_key(|(prefix, _)| *prefix);
        self.problems.extend(shadowed(&self.remotes, local.facts));
        for peer in &mut self.peers {
            peer.allowed.sort();
        }
        self.peers.sort_by(|left, right| left.domain.cmp(&right.domain));
    }

    /// Tells of a domain that shares no family with the node: a packet needs a source of its own family and of the node's
    /// prefixes, or the other end drops it.
    fn of_no_family(&self, name: &DomainName, domain: &Domain) -> Option<Problem> {
        let own = || self.own.iter().chain(&self.extra).copied();
        let (here, there) = (own().next()?.family(), domain.prefixes().next()?.family());
        let shared = Family::ALL.into_iter().any(|family| {
            let of = |prefix: Prefix| prefix.family() == family;
            own().any(of) && domain.prefixes().any(of)
        });
        let what = format!(
            "has subnets of {there} alone, and this node of {here}: nothing of it is reached from here"
        );
        let remedy = "give nodes on both sides subnets of one family";
        (!shared).then(|| Problem::new(format!("Gateway {name}"), what, remedy))
    }

    /// Adds what stays although no domain has it, by the path that it had.
    fn keep(&mut self, view: &View, name: &DomainName, kept: &Kept, protected: &Protected<'_>) {
        let known: BTreeSet<Prefix> = view.domains.values().flat_map(Domain::prefixes).collect();
        let unknown = kept.prefixes.difference(&known).flat_map(|prefix| {
            let holes: Vec<Prefix> = known.iter().filter(|other| other.overlaps(prefix)).copied().collect();
            prefix.without(&holes)
        });
        let parts: BTreeSet<Prefix> =
            unknown.flat_map(|prefix| protected.fit(name, prefix, &self.members).parts).collect();
        let mut by_tunnel: BTreeSet<Prefix> = BTreeSet::new();
        if self.role == Role::Gateway {
            for (key, (keepalive, allowed)) in &kept.peers {
                let carries = |part: &&Prefix| allowed.iter().any(|allowed| allowed.covers(part));
                let carried: Vec<Prefix> = parts.difference(&by_tunnel).filter(carries).copied().collect();
                if carried.is_empty() {
                    continue;
                }
                by_tunnel.extend(&carried);
                match self.peers.iter_mut().find(|peer| peer.key == *key) {
                    Some(peer) => peer.allowed.extend(carried),
                    None => self.kept_peers.push((*key, *keepalive, carried)),
                }
            }
        }
        let reached = self.vteps.iter().any(|vtep| vtep.gateway);
        self.remotes.extend(parts.into_iter().map(|part| match self.role {
            Role::Gateway if by_tunnel.contains(&part) => (part, Path::Tunnel),
            Role::Member if reached => (part, Path::Overlay),
            _ => (part, Path::None),
        }));
    }

    /// Adds what leads to a remote domain: a peer of its own, or more allowed IPs at the relay's.
    fn add_peer(
        &mut self,
        name: &DomainName,
        domain: &Domain,
        link: links::Link<'_>,
        allowed: Vec<Prefix>,
        links: &Links<'_>,
    ) {
        match link {
            links::Link::Direct { endpoint, keepalive } => {
                let Some((gateway, key)) = usable(domain) else { return };
                let peer = self.peer(name, gateway, key);
                peer.endpoint = endpoint;
                peer.keepalive = keepalive;
                peer.allowed.extend(allowed);
            }
            links::Link::Relayed { by, gateway, key } => {
                self.peer(by, gateway, key).allowed.extend(allowed);
            }
            links::Link::Down(why) => {
                // What is wrong with the domain's own endpoint is said by the view, or there is nobody to reach.
                let theirs = matches!(why, links::Why::GatewayThere | links::Why::Address);
                if theirs && (domain.members.is_empty() || links.tells_of(name)) {
                    return;
                }
                let (what, remedy) = links.explain(why);
                self.problems.push(Problem::new(format!("Gateway {name}"), what, remedy));
            }
        }
    }

    fn peer(&mut self, domain: &DomainName, gateway: &GatewayNode, key: PublicKey) -> &mut TunnelPeer {
        let at = match self.peers.iter().position(|peer| &peer.domain == domain) {
            Some(at) => at,
            None => {
                self.peers.push(TunnelPeer {
                    domain: domain.clone(),
                    node: gateway.node.clone(),
                    key,
                    endpoint: None,
                    keepalive: 0,
                    allowed: Vec::new(),
                });
                self.peers.len() - 1
            }
        };
        self.peers.get_mut(at).expect("just found or pushed")
    }
}

/// Underlay addresses of a domain: of the other members, sorted, and of the node itself.
struct Nodes<'a> {
    all: &'a [IpAddr],
    own: IpAddr,
}

impl Nodes<'_> {
    /// The first that a prefix holds.
    fn inside(&self, prefix: &Prefix) -> Option<IpAddr> {
        if prefix.contains(self.own) {
            return Some(self.own);
        }
        first_inside(self.all, prefix)
    }
}

/// The first of sorted addresses that a prefix holds.
fn first_inside(addresses: &[IpAddr], prefix: &Prefix) -> Option<IpAddr> {
    inside(addresses, prefix, |address| *address).first().copied()
}

/// Those of things sorted by address that a prefix holds.
fn inside<'a, T>(sorted: &'a [T], prefix: &Prefix, address: impl Fn(&T) -> IpAddr) -> &'a [T] {
    // Most pod CIDRs are far from all nodes.
    let (Some(first), Some(last)) = (sorted.first(), sorted.last()) else { return &[] };
    if prefix.last() < address(first) || prefix.first() > address(last) {
        return &[];
    }
    let from = sorted.partition_point(|thing| address(thing) < prefix.first());
    let to = sorted.partition_point(|thing| address(thing) <= prefix.last());
    sorted.get(from..to).unwrap_or_default()
}

/// The gateway node of a domain, if a tunnel can lead to it.
fn usable(domain: &Domain) -> Option<(&GatewayNode, PublicKey)> {
    let gateway = domain.gateway()?;
    Some((gateway, gateway.key?))
}

#[cfg(test)]
mod tests;
