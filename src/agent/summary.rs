//! From the loop's state to the report.

use std::collections::BTreeMap;

use corax_core::object::{Device, LinkKind, Route, RouteKey, Table, Via, path_metric};
use corax_core::observed::{Backend, NftTable, Observed, ObservedTunnel};
use corax_core::prefix::Prefix;
use corax_core::topology::{Path, RemoteDomain};
use corax_core::view::{Domain, View};

use super::node::Decision;
use super::report::{DeviceReport, DomainReport, DropReport, Report, TunnelReport};

/// Fills in what the decision and the mirror say.
pub(super) fn fill(report: &mut Report, decision: &Decision, observed: &Observed, view: Option<&View>) {
    let topology = &decision.topology;
    report.role = topology.role;
    report.domain.clone_from(&topology.domain);
    report.gateway.clone_from(&topology.gateway);
    report.mesh = topology.mesh;
    report.underlay = topology.underlay;
    report.vtep = topology.mac;
    report.prefixes = topology.own.iter().chain(&topology.extra).map(ToString::to_string).collect();
    let domains = topology.domains.iter().map(|remote| {
        let domain = view.and_then(|view| view.domains.get(&remote.name));
        let prefixes = || domain.into_iter().flat_map(Domain::prefixes);
        let path = standing(remote, prefixes(), decision, observed);
        DomainReport { remote: RemoteDomain { path, ..remote.clone() }, prefixes: prefixes().count() }
    });
    report.domains = domains.collect();
    report.devices = observed
        .links
        .iter()
        .map(|(device, link)| DeviceReport {
            name: device.to_string(),
            kind: kind(&link.kind).to_owned(),
            mtu: link.mtu,
            up: link.up,
        })
        .collect();
    report.tunnels = tunnels(decision, observed);
    report.objects = objects(observed);
}

/// The path to a domain as it stands in the kernel: what was decided, or none where it is not there, or does not move.
fn standing(
    remote: &RemoteDomain,
    mut prefixes: impl Iterator<Item = Prefix>,
    decision: &Decision,
    observed: &Observed,
) -> Path {
    let up = |device: &Device| observed.links.get(device).is_some_and(|link| link.owned && link.up);
    let carries = match remote.path {
        Path::None => false,
        Path::Overlay => up(&Device::Overlay),
        Path::Tunnel => {
            let by = remote.relay.as_ref().unwrap_or(&remote.name);
            let peer = decision.topology.peers.iter().find(|peer| &peer.domain == by);
            let speaks =
                |tunnel: &ObservedTunnel| peer.is_some_and(|peer| tunnel.peers.contains_key(&peer.key));
            let mut tunnels = observed.tunnels.iter().filter(|(device, _)| up(device));
            observed.knows(Backend::WireGuard) && tunnels.any(|(_, tunnel)| speaks(tunnel))
        }
    };
    let leads = |prefix: Prefix| {
        let key = RouteKey { table: Table::Remote, prefix, metric: path_metric(prefix.family()) };
        matches!(observed.routes.get(&key), Some(Route { via: Via::Device(_) | Via::Nexthop(_), .. }))
    };
    // Of a prefix with something in it that is not steered, the parts around that have the routes.
    let parts = |prefix: Prefix| {
        let from = decision.topology.remotes.partition_point(|(part, _)| *part < prefix);
        let after = decision.topology.remotes.get(from..).unwrap_or_default();
        after.iter().map(|(part, _)| *part).take_while(move |part| prefix.covers(part))
    };
    if carries && prefixes.any(|prefix| parts(prefix).any(leads)) { remote.path } else { Path::None }
}

/// Fills in what was dropped.
pub(super) fn drops(report: &mut Report, drops: Vec<(String, u64, u64)>) {
    report.drops =
        drops.into_iter().map(|(reason, packets, bytes)| DropReport { reason, packets, bytes }).collect();
}

fn kind(kind: &LinkKind) -> &str {
    match kind {
        LinkKind::Vxlan(_) => "vxlan",
        LinkKind::WireGuard => "wireguard",
        LinkKind::Tun => "tun",
        LinkKind::Other(kind) => kind,
    }
}

fn tunnels(decision: &Decision, observed: &Observed) -> Vec<TunnelReport> {
    let peers = decision.topology.peers.iter().map(|peer| {
        let seen =
            observed.tunnels.iter().find_map(|(device, tunnel)| Some((device, tunnel.peers.get(&peer.key)?)));
        let (device, seen) = seen.unzip();
        TunnelReport {
            device: device.unwrap_or(&Device::WireGuard(0)).to_string(),
            domain: peer.domain.clone(),
            node: peer.node.clone(),
            key: peer.key.to_string(),
            endpoint: seen.and_then(|seen| seen.peer.endpoint).map(|endpoint| endpoint.to_string()),
            handshake_age: seen.and_then(|seen| seen.handshake_age).map(|age| age.as_secs()),
            received: seen.map_or(0, |seen| seen.received),
            sent: seen.map_or(0, |seen| seen.sent),
        }
    });
    peers.collect()
}

fn objects(observed: &Observed) -> BTreeMap<String, usize> {
    let peers = observed.tunnels.values().map(|tunnel| tunnel.peers.len()).sum();
    let counts = [
        ("link", observed.links.len()),
        ("address", observed.addresses.len()),
        ("fdb", observed.fdb.len()),
        ("neighbour", observed.neighbours.len()),
        ("nexthop", observed.nexthops.len()),
        ("route", observed.routes.len()),
        ("rule", observed.rules.len()),
        ("peer", peers),
        ("nft_table", usize::from(observed.nft != NftTable::Absent)),
        ("nft_element", observed.elements.len()),
    ];
    counts.map(|(class, number)| (class.to_owned(), number)).into()
}
