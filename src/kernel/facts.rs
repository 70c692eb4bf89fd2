//! What the node says of itself: links, addresses, MTUs, what stands in the way.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use corax_core::facts::Facts;
use corax_core::name::NodeName;
use corax_core::object::{Device, FWMARK, Link, LinkKind};
use corax_core::prefix::{Family, Prefix, is_host_address};
use corax_core::problem::Problem;
use nix::errno::Errno;
use socket2::{Domain, SockAddr, Type};

use super::error::Failure;
use super::link;
use super::mirror::Mirror;
use super::probes::Probes;
use super::route::{self, Way};
use super::rule;
use super::socket::Socket;
use super::sysctl;

/// Priorities below this one are asked before, or amid, Corax's rules.
const FIRST_FREE_PRIORITY: u32 = 104;

/// A UDP port that the node speaks by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UdpPort {
    pub(crate) family: Family,
    pub(crate) number: u16,
    /// Others speak first.
    pub(crate) spoken_to: bool,
}

/// What facts are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FactsQuery {
    /// The node's own underlay address.
    pub(crate) underlay: Option<IpAddr>,
    /// Members that it speaks to, and theirs: one for each way that may have another source.
    pub(crate) members: Vec<(NodeName, IpAddr)>,
    /// Endpoints of its tunnels.
    pub(crate) endpoints: Vec<IpAddr>,
    /// UDP ports that it speaks by.
    pub(crate) ports: Vec<UdpPort>,
}

/// Facts from the mirror, from `/proc/sys`, and of the ways that the kernel would take.
pub(super) fn facts(ways: &mut Ways<'_>, mirror: &Mirror, probes: &Probes, query: &FactsQuery) -> Facts {
    let defaults: Vec<Way> = ANYWHERE.iter().filter_map(|address| ways.ask(*address, FWMARK)).collect();
    let mut facts = Facts {
        addresses: mirror.foreign_addresses().map(|held| held.address).collect(),
        default_gateways: defaults.iter().filter_map(|way| way.gateway).collect(),
        networks: networks(mirror),
        ..Facts::default()
    };
    let underlay = underlay_link(mirror, query.underlay, &defaults);
    let mtu_of = |link: u32| mirror.links.get(&link).map(|interface| interface.mtu);
    if let Some(mtu) = underlay.and_then(mtu_of) {
        facts.underlay_mtu = mtu;
    }
    let missing = query.underlay.filter(|address| !facts.addresses.contains(address));
    for endpoint in &query.endpoints {
        let Some(way) = ways.ask(*endpoint, FWMARK) else { continue };
        let mtu = way.mtu.into_iter().chain(way.link.and_then(mtu_of)).min();
        if let Some(mtu) = mtu.filter(|mtu| *mtu < facts.underlay_mtu || way.link != underlay) {
            facts.path_mtu.insert(*endpoint, mtu);
        }
    }
    facts.foreign_nexthops.clone_from(&mirror.foreign_nexthops);
    facts.foreign_links = foreign_links(&mirror.observed.links);
    facts.problems = probes.problems();
    facts.problems.extend(missing.map(|address| {
        let what = "is this node's privateIP in its Gateway, and no address of the node: the members of its domain send elsewhere, and take what it sends for a stranger's";
        Problem::new(format!("address {address}"), what, "correct the node's privateIP in the Gateway's status, or give the node that address")
    }));
    if missing.is_none() {
        facts.problems.extend(other_sources(ways, mirror, query));
    }
    facts.problems.extend(renamed(mirror));
    facts.problems.extend(forwarding());
    facts.problems.extend(mirror.foreign_rules.iter().filter_map(shadow));
    facts.problems.extend(mirror.hidden_rules.iter().map(|left| {
        let what =
            "is Raven's, and stays: the kernel would remove another rule of that priority and table first";
        Problem::new("a policy rule", what, format!("once that other rule is gone: {left}"))
    }));
    facts.problems.extend(mirror.foreign_routes.iter().map(|(key, protocol)| {
        let (table, prefix) = (key.table.number(), key.prefix);
        Problem::new(
            format!("route {prefix} in table {table}"),
            format!("stands in a table of Corax and has protocol {protocol}; it is left alone"),
            format!("ip route del {prefix} table {table}"),
        )
    }));
    facts
}

/// The kernel chooses where VXLAN over IPv4 comes from by the route, as it would the first of several addresses. Of each
/// address that is not the node's own, the first member who sees it is told.
fn other_sources(ways: &mut Ways<'_>, mirror: &Mirror, query: &FactsQuery) -> Vec<Problem> {
    let Some(own) = query.underlay.filter(IpAddr::is_ipv4) else { return Vec::new() };
    if let Some(Link { kind: LinkKind::Vxlan(vxlan), .. }) = mirror.observed.links.get(&Device::Overlay)
        && vxlan.local.is_some()
    {
        return Vec::new();
    }
    let mut seen_by = BTreeMap::new();
    for member in query.members.iter().filter(|(_, address)| address.is_ipv4()) {
        if let Some(source) = ways.ask(member.1, 0).and_then(|way| way.source) {
            seen_by.entry(source).or_insert(member);
        }
    }
    let only = seen_by.len() == 1;
    let others = seen_by.into_iter().filter(|(source, _)| *source != own);
    let problem = |(source, (node, address)): (IpAddr, &(NodeName, IpAddr))| {
        let what = format!(
            "is this node's privateIP in its Gateway, and what it sends to the member {node} ({address}) comes from {source}: \
             that one takes it for a stranger's"
        );
        let route = format!("give `src {own}` to the route that `ip route get {address}` goes by");
        let remedy = if only { format!("make {source} its privateIP, or {route}") } else { route };
        Problem::new(format!("address {own}"), what, remedy)
    };
    others.map(problem).collect()
}

/// Addresses for documentation: nothing but a default route leads there (RFC 5737, RFC 3849).
const ANYWHERE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

/// The link that holds the underlay address, or that the default route of its family leads to.
fn underlay_link(mirror: &Mirror, underlay: Option<IpAddr>, defaults: &[Way]) -> Option<u32> {
    let holder = mirror.foreign_addresses().find(|held| Some(held.address) == underlay);
    let family = underlay.map(Family::of);
    let mut defaults = defaults.iter().filter(|way| family.is_none_or(|family| family == way.family));
    holder.map(|held| held.index).or_else(|| defaults.find_map(|way| way.link))
}

/// The networks that links of others are in, without link-local ones, which are nobody else's.
pub(super) fn networks(mirror: &Mirror) -> BTreeMap<Prefix, String> {
    let name = |index| mirror.links.get(&index).map_or_else(String::new, |link| link.name.to_string());
    let held = mirror.foreign_addresses().filter(|held| is_host_address(held.address));
    let held = held.map(|held| (Prefix::new(held.address, held.length), name(held.index)));
    held.filter(|(prefix, _)| !prefix.is_host()).collect()
}

/// The ways that the kernel told of, by address and mark; none where there is none.
pub(super) type Known = BTreeMap<(IpAddr, u32), Option<Way>>;

/// Asks the kernel for ways. What it does not answer is as it was before.
pub(super) struct Ways<'a> {
    socket: &'a mut Socket,
    before: Known,
    pub(super) known: Known,
    /// Why one is not known.
    pub(super) failure: Option<Failure>,
}

impl<'a> Ways<'a> {
    pub(super) fn new(socket: &'a mut Socket, before: Known) -> Self {
        Self { socket, before, known: Known::new(), failure: None }
    }

    /// The way of packets with a mark, as a tunnel's own are.
    fn ask(&mut self, to: IpAddr, mark: u32) -> Option<Way> {
        let put = |writer: &mut _| route::put_way(writer, to, mark);
        let asked = self.socket.get(route::RTM_GETROUTE, &route::way_header(to), put, route::decode_way);
        let way = match asked {
            Ok(way) => way,
            Err(failure) if is_no_answer(failure.errno) => {
                self.failure.get_or_insert(failure);
                self.before.get(&(to, mark)).copied().flatten()
            }
            // No route, one that refuses, or no such family.
            Err(_) => None,
        };
        self.known.insert((to, mark), way);
        way
    }
}

/// Whether an error says nothing of what was asked for.
const fn is_no_answer(errno: Errno) -> bool {
    matches!(errno, Errno::ETIMEDOUT | Errno::ENOBUFS | Errno::ENOMEM | Errno::EINTR | Errno::EIO)
}

/// Links that have a name of ours and are neither ours nor to be taken over.
fn foreign_links(links: &BTreeMap<Device, Link>) -> BTreeMap<Device, String> {
    let foreign = links.iter().filter(|(device, link)| is_foreign(**device, link));
    foreign.map(|(device, link)| (*device, reason(*device, link))).collect()
}

/// Links of ours that somebody gave another name.
pub(super) fn renamed(mirror: &Mirror) -> impl Iterator<Item = Problem> {
    let marked = mirror.links.values().filter(|link| link.marked && Device::from_name(&link.name).is_none());
    marked.map(|link| {
        let what = "has the alias corax, as Corax's devices have, and none of their names: it stands in the way of the one that is to be";
        Problem::new(format!("link {}", link.name), what, format!("ip link del {}", link.name))
    })
}

/// Whether a link with a name of ours is somebody else's.
pub(super) fn is_foreign(device: Device, link: &Link) -> bool {
    let tunnel = || link.kind == LinkKind::Tun && answers(device);
    !link.owned && !link::is_taken_over(device, link) && !tunnel()
}

/// Whether a user-space WireGuard serves a device. One that accepts nobody is not waited for.
fn answers(device: Device) -> bool {
    let connect = || -> io::Result<()> {
        let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(format!("/var/run/wireguard/{device}.sock"))?)
    };
    connect().is_ok()
}

fn reason(device: Device, link: &Link) -> String {
    match &link.kind {
        LinkKind::Vxlan(vxlan) => format!(
            "{device} is a VXLAN device of somebody else (VNI {}, port {}, no alias corax)",
            vxlan.vni, vxlan.port
        ),
        LinkKind::WireGuard => format!("{device} is a WireGuard device of somebody else"),
        LinkKind::Tun => {
            format!("{device} is a TUN device without the alias corax whose WireGuard socket is silent")
        }
        LinkKind::Other(kind) => format!("{device} is a device of kind {kind} without the alias corax"),
    }
}

/// Forwarding of the whole node, without which a gateway forwards nothing.
fn forwarding() -> impl Iterator<Item = Problem> {
    let switches = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];
    switches.into_iter().filter(|path| sysctl::read_path(path) == Some(0)).map(|path| {
        let name = path.replace('/', ".");
        Problem::new(name.clone(), "is 0: this node forwards no packets", format!("sysctl -w {name}=1"))
    })
}

/// A rule of others that is asked before Corax's.
fn shadow(found: &rule::Found) -> Option<Problem> {
    let rule::Found::Foreign { family, priority, ours, text, .. } = found else { return None };
    let six = if *family == Family::V6 { " -6" } else { "" };
    let object = format!("rule {priority} ({})", text.trim());
    if *ours {
        let remedy = format!("ip{six} rule del priority {priority}");
        return Some(Problem::new(object, "has Corax's protocol number and is not one of its rules", remedy));
    }
    // Local addresses come first everywhere.
    let local = *priority == 0 && text.trim() == "from all lookup 255";
    (*priority < FIRST_FREE_PRIORITY && !local).then(|| {
        let what = "is asked before Corax's rules, and may lead packets for other domains elsewhere";
        let delete = format!("ip{six} rule del priority {priority} {}", text.trim());
        let remedy =
            format!("give it a priority of {FIRST_FREE_PRIORITY} or more: {delete}, then add it anew");
        Problem::new(object, what, remedy)
    })
}
