//! What the node says of itself: links, addresses, MTUs, what stands in the way.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use corax_core::facts::Facts;
use corax_core::object::{Device, FWMARK, Link, LinkKind};
use corax_core::prefix::Family;
use corax_core::problem::Problem;
use socket2::{Domain, SockAddr, Type};

use super::link;
use super::mirror::Mirror;
use super::probes::Probes;
use super::route::{self, Way};
use super::rule;
use super::socket::Socket;
use super::sysctl;

/// Priorities below this one are asked before, or amid, Corax's rules.
const FIRST_FREE_PRIORITY: u32 = 104;

/// What facts are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FactsQuery {
    /// The node's own underlay address.
    pub(crate) underlay: Option<IpAddr>,
    /// Endpoints of its tunnels.
    pub(crate) endpoints: Vec<IpAddr>,
}

/// Facts from the mirror, from `/proc/sys`, and of the ways that the kernel would take.
pub(super) fn facts(socket: &mut Socket, mirror: &Mirror, probes: &Probes, query: &FactsQuery) -> Facts {
    let mut facts = Facts { kernel_wireguard: probes.wireguard, ..Facts::default() };
    facts.addresses = mirror.foreign_addresses().map(|(address, _)| address).collect();
    let underlay = underlay_link(socket, mirror, query.underlay);
    let mtu_of = |link: u32| mirror.links.get(&link).map(|interface| interface.mtu);
    if let Some(mtu) = underlay.and_then(mtu_of) {
        facts.underlay_mtu = mtu;
    }
    for endpoint in &query.endpoints {
        let Some(way) = way(socket, *endpoint) else { continue };
        let mtu = way.mtu.into_iter().chain(way.link.and_then(mtu_of)).min();
        if let Some(mtu) = mtu.filter(|mtu| *mtu < facts.underlay_mtu || way.link != underlay) {
            facts.path_mtu.insert(*endpoint, mtu);
        }
    }
    facts.foreign_nexthops.clone_from(&mirror.foreign_nexthops);
    facts.foreign_links = foreign_links(&mirror.observed.links);
    facts.problems = probes.problems();
    facts.problems.extend(forwarding());
    facts.problems.extend(mirror.foreign_rules.iter().filter_map(shadow));
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

/// The link that holds the underlay address, or that the default route leads to.
fn underlay_link(socket: &mut Socket, mirror: &Mirror, underlay: Option<IpAddr>) -> Option<u32> {
    let holder = mirror.foreign_addresses().find(|(address, _)| Some(*address) == underlay);
    if let Some((_, link)) = holder {
        return Some(link);
    }
    // Addresses for documentation: nothing but a default route leads there (RFC 5737, RFC 3849).
    let anywhere: [IpAddr; 2] =
        [Ipv4Addr::new(192, 0, 2, 1).into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()];
    let family = underlay.map(Family::of);
    let anywhere =
        anywhere.into_iter().filter(|address| family.is_none_or(|family| family == Family::of(*address)));
    anywhere.filter_map(|address| way(socket, address)?.link).next()
}

/// The way of a tunnel's own packets; none where there is none.
fn way(socket: &mut Socket, to: IpAddr) -> Option<Way> {
    let put = |writer: &mut _| route::put_way(writer, to, FWMARK);
    socket.get(route::RTM_GETROUTE, &route::way_header(to), put, route::decode_way).ok()?
}

/// Links that have a name of ours and are neither ours nor to be taken over.
fn foreign_links(links: &BTreeMap<Device, Link>) -> BTreeMap<Device, String> {
    let foreign = links.iter().filter(|(device, link)| is_foreign(**device, link));
    foreign.map(|(device, link)| (*device, reason(*device, link))).collect()
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
    let rule::Found::Foreign { family, priority, ours, text } = found else { return None };
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
