//! From Gateway objects to the view: parses, checks, and says what it left out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::{Domain, GatewayNode, Member, Settings, Subnets, View};
use crate::api::{ENABLE_L3, EXTRA_CIDRS, Endpoint, Gateway, GatewayStatus, NodeInfo, PUBLIC_KEY, TUNNEL};
use crate::key::PublicKey;
use crate::mac::Mac;
use crate::name::{DomainName, NodeName};
use crate::nat::NatType;
use crate::object::TUNNEL_PORT;
use crate::prefix::{DisjointPrefixes, Family, Prefix, RESERVED, is_host_address};
use crate::problem::Problem;

/// A member as its Gateway gives it, prefixes not yet compared with others'.
struct Candidate {
    node: NodeName,
    underlay: IpAddr,
    mac: Mac,
    subnets: Vec<Prefix>,
    /// A prefix of it is malformed: what it had stays.
    torn: bool,
}

impl Candidate {
    /// A member as `settings` have it, which are not in the Gateway and may have changed.
    fn new(node: NodeName, underlay: IpAddr, asked: Asked, settings: &Settings) -> Self {
        let Asked { prefixes: mut subnets, torn } = asked;
        let own = Prefix::host(underlay);
        if settings.forward_node_ip && !subnets.contains(&own) {
            subnets.push(own);
        }
        subnets.sort();
        let mac = settings.identity.mac(&settings.cluster, &node, underlay);
        Self { node, underlay, mac, subnets, torn }
    }

    /// A member as it was.
    fn kept(member: &Member, settings: &Settings) -> Self {
        let Member { node, underlay, .. } = member.clone();
        let prefixes = pods(member).collect();
        Self::new(node, underlay, Asked { prefixes, torn: false }, settings)
    }
}

/// Prefixes of a member's pods: without its own address, which is there by a setting.
fn pods(member: &Member) -> impl Iterator<Item = Prefix> {
    let own = Prefix::host(member.underlay);
    member.subnets.iter().copied().filter(move |prefix| *prefix != own)
}

/// Prefixes that are asked for, sorted.
struct Asked {
    prefixes: Vec<Prefix>,
    /// One is malformed: what was had before stays.
    torn: bool,
}

/// A Gateway, parsed.
struct Parsed<'a> {
    name: DomainName,
    file: &'a str,
    created: &'a str,
    members: Vec<Candidate>,
    gateways: Vec<GatewayNode>,
    extra: Asked,
}

pub(super) fn build(gateways: &[Gateway], settings: &Settings, previous: Option<&View>) -> View {
    let mut problems = Vec::new();
    let mut parsed: BTreeMap<DomainName, Parsed<'_>> = BTreeMap::new();
    for gateway in gateways {
        let object = format!("Gateway {}", gateway.metadata.name);
        let name: DomainName = match gateway.metadata.name.parse() {
            Ok(name) => name,
            Err(error) => {
                problems.push(Problem::new(object, error.to_string(), "correct metadata.name"));
                continue;
            }
        };
        if let Some(first) = parsed.get(&name) {
            let files = match (first.file, gateway.file.as_str()) {
                ("", _) | (_, "") => String::new(),
                (first, second) if first == second => format!(" in {first}"),
                (first, second) => format!(", in {first} and in {second}"),
            };
            let what = format!("given twice{files}: the first is used");
            problems.push(Problem::new(object, what, "remove one"));
            continue;
        }
        let before = previous.and_then(|view| view.domains.get(&name));
        parsed.insert(name.clone(), parse(name, gateway, settings, before, &mut problems));
    }
    one_domain_a_node(&mut parsed, previous, &mut problems);
    let (mut domains, taken) = assemble(parsed.into_values().collect(), settings, previous, &mut problems);
    endpoints_apart(&mut domains, &taken, previous, &mut problems);
    distinct_gateways(&mut domains, previous, &mut problems);
    problems.sort();
    problems.dedup();
    View { domains, problems }
}

fn parse<'a>(
    name: DomainName,
    gateway: &'a Gateway,
    settings: &Settings,
    before: Option<&Domain>,
    problems: &mut Vec<Problem>,
) -> Parsed<'a> {
    // Without a node it is half written, cut, or just made anew.
    let status = gateway.status.as_ref().filter(|status| !status.nodes.is_empty());
    let object = format!("Gateway {name}");
    let created = &gateway.metadata.creation_timestamp;
    let file = &gateway.file;
    let had = before.filter(|domain| !domain.members.is_empty());
    let empty = |status: &GatewayStatus| status.active_endpoints.is_empty();
    if status.is_none() && (had.is_some() || !gateway.status.as_ref().is_some_and(empty)) {
        let lacks = match &gateway.status {
            None => "has no status",
            Some(status) if empty(status) => "has no nodes",
            Some(_) => "has active endpoints and no nodes",
        };
        let so = if had.is_some() { "; its members stay" } else { ", so no members" };
        let remedy = "wait for the controller, or write status.nodes and status.activeEndpoints; delete the Gateway for it to go";
        problems.push(Problem::new(&object, format!("{lacks}{so}"), remedy));
    }
    if status.is_none()
        && let Some(before) = had
    {
        let members = before.members.iter().map(|member| Candidate::kept(member, settings)).collect();
        let Domain { gateways, extra, .. } = before.clone();
        return Parsed {
            name,
            file,
            created,
            members,
            gateways,
            extra: Asked { prefixes: extra, torn: false },
        };
    }
    let nodes = status.map(|status| status.nodes.as_slice()).unwrap_or_default();
    let members = parse_members(&object, nodes, settings, before, problems);
    let active = status.map(|status| status.active_endpoints.as_slice()).unwrap_or_default();
    let gateways = parse_gateways(&object, active, &members, before, problems);
    let extra = match gateway.metadata.annotations.get(EXTRA_CIDRS) {
        Some(list) => {
            parse_prefixes(&format!("{object}, annotation {EXTRA_CIDRS}"), list.split(','), problems)
        }
        None => Asked { prefixes: Vec::new(), torn: false },
    };
    Parsed { name, file, created, members, gateways, extra }
}

fn parse_members(
    object: &str,
    nodes: &[NodeInfo],
    settings: &Settings,
    before: Option<&Domain>,
    problems: &mut Vec<Problem>,
) -> Vec<Candidate> {
    let mut members: Vec<Candidate> = Vec::with_capacity(nodes.len());
    for info in nodes {
        let object = format!("{object}, node {}", info.node_name);
        let node: NodeName = match info.node_name.parse() {
            Ok(node) => node,
            Err(error) => {
                problems.push(Problem::new(
                    object,
                    format!("{error}, left out"),
                    "correct status.nodes[].nodeName",
                ));
                continue;
            }
        };
        let underlay = match info.private_ip.parse::<IpAddr>() {
            Ok(address) if is_host_address(address) => address,
            _ => {
                let held = before.and_then(|domain| domain.member(&node)).map(|member| member.underlay);
                let then = match held {
                    Some(address) => format!("its last, {address}, stays"),
                    None => "the node is left out".to_owned(),
                };
                let what = format!("privateIP {:?} is no address of a host, {then}", info.private_ip);
                problems.push(Problem::new(&object, what, "correct status.nodes[].privateIP"));
                let Some(address) = held else { continue };
                address
            }
        };
        if info.subnets.is_empty() {
            let what = "has no subnets; those that it had before stay";
            problems.push(Problem::new(&object, what, "give the node a podCIDR"));
        }
        let mut asked = parse_prefixes(&object, info.subnets.iter().map(String::as_str), problems);
        asked.torn |= info.subnets.is_empty();
        members.push(Candidate::new(node, underlay, asked, settings));
    }
    members.sort_by(|left, right| left.node.cmp(&right.node));
    unique_members(object, &mut members, before, problems);
    members
}

/// Leaves out who shares a name, an address or a MAC with one that had it before, else with one before it by name.
fn unique_members(
    object: &str,
    members: &mut Vec<Candidate>,
    before: Option<&Domain>,
    problems: &mut Vec<Problem>,
) {
    let mut last: Option<NodeName> = None;
    let mut addresses: BTreeMap<IpAddr, NodeName> = BTreeMap::new();
    let mut macs: BTreeMap<Mac, NodeName> = BTreeMap::new();
    let held = members.iter().filter_map(|member| Some((member, before?.member(&member.node)?)));
    for (member, held) in held.filter(|(member, held)| member.underlay == held.underlay) {
        addresses.insert(member.underlay, member.node.clone());
        if member.mac == held.mac {
            macs.insert(member.mac, member.node.clone());
        }
    }
    members.retain(|member| {
        let object = || format!("{object}, node {}", member.node);
        if last.as_ref() == Some(&member.node) {
            problems.push(Problem::new(
                object(),
                "given twice, the first is used",
                "remove one from status.nodes",
            ));
            return false;
        }
        last = Some(member.node.clone());
        if let Some(other) = addresses.get(&member.underlay).filter(|other| **other != member.node) {
            let what = format!("has the address {} of node {other}, and is left out", member.underlay);
            problems.push(Problem::new(object(), what, "give each node of a domain an address of its own"));
            return false;
        }
        if let Some(other) = macs.get(&member.mac).filter(|other| **other != member.node) {
            let what = format!("has the VTEP MAC {} of node {other}, and is left out", member.mac);
            problems.push(Problem::new(
                object(),
                what,
                "rename one of the nodes, or leave --vtep-identity=node-ip",
            ));
            return false;
        }
        addresses.insert(member.underlay, member.node.clone());
        macs.insert(member.mac, member.node.clone());
        true
    });
}

fn parse_prefixes<'a>(
    object: &str,
    texts: impl Iterator<Item = &'a str>,
    problems: &mut Vec<Problem>,
) -> Asked {
    let mut prefixes = BTreeSet::new();
    let mut torn = false;
    for text in texts {
        match text.parse::<Prefix>() {
            Ok(prefix) => {
                prefixes.insert(prefix);
            }
            Err(error) => {
                torn = true;
                let what = format!("{error}, left out");
                problems.push(Problem::new(
                    object,
                    what,
                    "correct it; the others, and those from before, are used",
                ));
            }
        }
    }
    Asked { prefixes: prefixes.into_iter().collect(), torn }
}

fn parse_gateways(
    object: &str,
    active: &[Endpoint],
    members: &[Candidate],
    before: Option<&Domain>,
    problems: &mut Vec<Problem>,
) -> Vec<GatewayNode> {
    let mut gateways: Vec<GatewayNode> = Vec::new();
    let mut taken: BTreeMap<SocketAddr, NodeName> = BTreeMap::new();
    for endpoint in active.iter().filter(|endpoint| endpoint.kind == TUNNEL) {
        let object = format!("{object}, endpoint {}", endpoint.node_name);
        let mut refuse = |what: String, remedy: &str| problems.push(Problem::new(&object, what, remedy));
        if endpoint.config.get(ENABLE_L3).is_some_and(|value| value == "false") {
            continue;
        }
        let member = members.iter().find(|member| member.node.as_str() == endpoint.node_name);
        let Some(member) = member else {
            refuse(
                "its node is no member of the domain, the endpoint is left out".to_owned(),
                "label the node raven.openyurt.io/gateway=<gateway>, or name another",
            );
            continue;
        };
        if gateways.iter().any(|other| other.node == member.node) {
            refuse("given twice, the first is used".to_owned(), "remove one from status.activeEndpoints");
            continue;
        }
        let held = before.and_then(|domain| domain.gateways.iter().find(|held| held.node == member.node));
        let gateway = match (parse_gateway(endpoint, member, held, &mut refuse), held) {
            (Ok(gateway), _) => gateway,
            (Err((what, remedy)), Some(held)) => {
                refuse(format!("{what}, it stays as it was"), remedy);
                held.clone()
            }
            (Err((what, remedy)), None) => {
                refuse(format!("{what}, the endpoint is left out"), remedy);
                continue;
            }
        };
        if let Some(socket) = gateway.socket()
            && let Some(other) = taken.insert(socket, gateway.node.clone())
        {
            refuse(
                format!("shares {socket} with endpoint {other}: packets for one reach the other"),
                "give each its own publicIP or publicPort",
            );
        }
        gateways.push(gateway);
    }
    gateways
}

fn parse_gateway(
    endpoint: &Endpoint,
    member: &Candidate,
    held: Option<&GatewayNode>,
    report: &mut impl FnMut(String, &str),
) -> Result<GatewayNode, (String, &'static str)> {
    let port = |value: Option<i64>, field| match value {
        None | Some(0) => Ok(None),
        Some(value) => u16::try_from(value)
            .map(Some)
            .map_err(|_| (format!("{field} {value} is no UDP port"), "use 1 to 65535")),
    };
    let listen = port(endpoint.port, "port")?;
    let mapped = port(endpoint.public_port, "publicPort")?;
    let address = match endpoint.public_ip.as_str() {
        "" if endpoint.under_nat => None,
        "" => Some(member.underlay),
        text => match text.parse::<IpAddr>() {
            Ok(address) if is_host_address(address) => Some(address),
            _ => {
                return Err((format!("publicIP {text:?} is no address of a host"), "correct publicIP"));
            }
        },
    };
    let nat_type = endpoint.nat_type.parse::<NatType>().unwrap_or_else(|error| {
        report(format!("{error}, taken as Undefined"), "use one of the five names of the Gateway resource");
        NatType::Undefined
    });
    let key = match endpoint.config.get(PUBLIC_KEY).map(|text| text.parse::<PublicKey>()) {
        Some(Ok(key)) => Some(key),
        other => {
            let what = match other {
                Some(Err(error)) => error.to_string(),
                _ => "has no config.publicKey".to_owned(),
            };
            let key = held.and_then(|held| held.key);
            report(format!("{what}; {}", then(key)), "set config.publicKey to what `corax key` prints there");
            key
        }
    };
    Ok(GatewayNode {
        node: member.node.clone(),
        address,
        port: mapped.or(listen).unwrap_or(TUNNEL_PORT),
        // Behind a NAT, `port` is the NAT's; the node's own is the default or its flag's.
        listen: if endpoint.under_nat { None } else { listen },
        under_nat: endpoint.under_nat,
        nat_type,
        key,
    })
}

/// What becomes of a gateway node whose key is no good, and that had this one before.
fn then(held: Option<PublicKey>) -> String {
    match held {
        Some(key) => format!("its last, {key}, stays"),
        None => "no tunnel leads to it".to_owned(),
    }
}

/// A node that two Gateways claim stays where it was, else goes to the first by name.
fn one_domain_a_node(
    parsed: &mut BTreeMap<DomainName, Parsed<'_>>,
    previous: Option<&View>,
    problems: &mut Vec<Problem>,
) {
    let mut homes: BTreeMap<NodeName, DomainName> = BTreeMap::new();
    let mut shared: BTreeSet<NodeName> = BTreeSet::new();
    for (name, gateway) in parsed.iter() {
        for member in &gateway.members {
            let incumbent = previous
                .and_then(|view| view.domains.get(name))
                .is_some_and(|domain| domain.member(&member.node).is_some());
            match homes.get(&member.node) {
                None => {
                    homes.insert(member.node.clone(), name.clone());
                }
                Some(_) => {
                    shared.insert(member.node.clone());
                    if incumbent {
                        homes.insert(member.node.clone(), name.clone());
                    }
                }
            }
        }
    }
    if shared.is_empty() {
        return;
    }
    let files: BTreeMap<DomainName, &str> =
        parsed.iter().map(|(name, gateway)| (name.clone(), gateway.file)).collect();
    let file = |name| files.get(name).filter(|file| !file.is_empty()).map(|file| format!(" ({file})"));
    for (name, gateway) in parsed.iter_mut() {
        gateway.members.retain(|member| {
            let home = homes.get(&member.node).expect("every member has a home");
            if home != name {
                let object = format!("Gateway {name}, node {}", member.node);
                let [there, here] = [home, name].map(|name| file(name).unwrap_or_default());
                let what = format!("is a member of Gateway {home}{there} too, and left out here{here}");
                problems.push(Problem::new(object, what, "let one Gateway have it"));
            }
            home == name
        });
        gateway.gateways.retain(|endpoint| homes.get(&endpoint.node) == Some(name));
    }
}

fn assemble(
    mut parsed: Vec<Parsed<'_>>,
    settings: &Settings,
    previous: Option<&View>,
    problems: &mut Vec<Problem>,
) -> (BTreeMap<DomainName, Domain>, Taken) {
    // The older Gateway first. One without a date, of a manifest, comes last, as it may be the newest.
    parsed.sort_by(|left, right| {
        let age =
            |parsed: &Parsed<'_>| (parsed.created.is_empty(), parsed.created.to_owned(), parsed.name.clone());
        age(left).cmp(&age(right))
    });
    let mut claims = Claims { taken: DisjointPrefixes::new(), refused: Vec::new(), settings, problems };
    if let Some(previous) = previous {
        for gateway in &parsed {
            claims.incumbents(gateway, previous);
        }
        for gateway in &parsed {
            claims.kept(gateway, previous);
        }
    }
    let mut domains = BTreeMap::new();
    for gateway in parsed {
        let Parsed { name, members, gateways, extra, .. } = gateway;
        let mut kept = Vec::with_capacity(members.len());
        for member in members {
            let before = previous.and_then(|view| view.domains.get(&name)?.member(&member.node));
            let before: Vec<Prefix> = before.into_iter().flat_map(pods).collect();
            let subnets = claims.all(&name, &member.node, (&member.subnets, member.torn), &before);
            kept.push(Member { node: member.node, underlay: member.underlay, mac: member.mac, subnets });
        }
        let extra = match gateways.first() {
            Some(active) => {
                let before = previous.and_then(|view| view.domains.get(&name));
                let before = before.map(|before| before.extra.as_slice()).unwrap_or_default();
                claims.all(&name, &active.node, (&extra.prefixes, extra.torn), before).into_vec()
            }
            None => Vec::new(),
        };
        domains.insert(name, Domain { members: kept, gateways, extra });
    }
    (domains, claims.report())
}

/// Takes the address off a gateway node that lies in a prefix of another domain: who spoke to it would speak to a pod. Who
/// had another one before keeps that. One that was there before the prefix stays, and every node leaves it out of what it
/// steers there.
fn endpoints_apart(
    domains: &mut BTreeMap<DomainName, Domain>,
    taken: &Taken,
    previous: Option<&View>,
    problems: &mut Vec<Problem>,
) {
    let nodes: BTreeSet<(DomainName, IpAddr)> = domains
        .iter()
        .flat_map(|(name, domain)| domain.members.iter().map(move |member| (name, member)))
        .filter(|(_, member)| member.subnets.contains(&Prefix::host(member.underlay)))
        .map(|(name, member)| (name.clone(), member.underlay))
        .collect();
    let pods_of = |name: &DomainName, address: IpAddr| {
        let (prefix, (by, at)) = taken.lookup(address)?;
        let node = *prefix == Prefix::host(address) && nodes.contains(&(by.clone(), address));
        (by != name && !node).then_some((prefix, by, at))
    };
    for (name, domain) in domains.iter_mut() {
        for gateway in &mut domain.gateways {
            let Some(address) = gateway.address else { continue };
            let Some((prefix, by, at)) = pods_of(name, address) else { continue };
            let endpoint = format!("endpoint {} of Gateway {name}", gateway.node);
            let last = previous.and_then(|view| view.gateway(name, &gateway.node)?.socket());
            if last.is_some_and(|last| last.ip() == address) {
                let what = format!(
                    "holds {address} of {endpoint}, which was there before: that address is not steered"
                );
                let remedy = "use pod CIDRs apart from all public addresses";
                problems.push(Problem::new(subnet_object(by, at, prefix), what, remedy));
                continue;
            }
            let last = last.filter(|last| pods_of(name, last.ip()).is_none());
            let object = format!("Gateway {name}, endpoint {}", gateway.node);
            let what =
                format!("publicIP {address} lies in {prefix} of node {at} of Gateway {by}{}", then_at(last));
            gateway.put(last);
            problems.push(Problem::new(object, what, "correct publicIP"));
        }
    }
}

/// What becomes of a gateway node whose socket is no good, and that had this one before.
fn then_at(held: Option<SocketAddr>) -> String {
    match held {
        Some(socket) => format!("; its last, {socket}, stays"),
        None => ", and is not spoken to".to_owned(),
    }
}

/// Takes key or address off a gateway node that shares it with another domain's: whoever had it keeps it, else the first.
/// Packets for one would reach the other. Who had another one before keeps that.
fn distinct_gateways(
    domains: &mut BTreeMap<DomainName, Domain>,
    previous: Option<&View>,
    problems: &mut Vec<Problem>,
) {
    distinct(
        domains,
        previous,
        |gateway| gateway.key,
        |gateway, object, (by, node), key| {
            gateway.key = key;
            let what = format!("has the publicKey of endpoint {node} of Gateway {by}; {}", then(key));
            problems.push(Problem::new(object, what, "set it to what `corax key` prints on that node"));
        },
    );
    distinct(domains, previous, GatewayNode::socket, |gateway, object, (by, node), socket| {
        gateway.put(socket);
        let what = format!("has the address and port of endpoint {node} of Gateway {by}{}", then_at(socket));
        problems.push(Problem::new(object, what, "give each its own publicIP or publicPort"));
    });
}

/// Sees to it that no two domains' gateway nodes have the same of something. `refuse` is told whose it is, and what the
/// node had before, if nobody has that either.
fn distinct<T: Copy + Ord>(
    domains: &mut BTreeMap<DomainName, Domain>,
    previous: Option<&View>,
    of: impl Fn(&GatewayNode) -> Option<T>,
    mut refuse: impl FnMut(&mut GatewayNode, String, &(DomainName, NodeName), Option<T>),
) {
    let held = |name: &DomainName, node: &NodeName| of(previous?.gateway(name, node)?);
    let mut taken: BTreeMap<T, (DomainName, NodeName)> = BTreeMap::new();
    for (name, domain) in domains.iter() {
        for gateway in &domain.gateways {
            if let Some(claim) = of(gateway).filter(|claim| held(name, &gateway.node) == Some(*claim)) {
                taken.entry(claim).or_insert_with(|| (name.clone(), gateway.node.clone()));
            }
        }
    }
    // Those who are refused what others had, and keep what they had, come before those who ask for that.
    let incumbents: BTreeSet<T> = taken.keys().copied().collect();
    for contested in [true, false] {
        for (name, domain) in domains.iter_mut() {
            for gateway in &mut domain.gateways {
                let Some(claim) = of(gateway).filter(|claim| incumbents.contains(claim) == contested) else {
                    continue;
                };
                let own = (name.clone(), gateway.node.clone());
                let by = taken.entry(claim).or_insert_with(|| own.clone()).clone();
                if by.0 == *name {
                    continue;
                }
                let last = held(name, &gateway.node)
                    .filter(|last| taken.entry(*last).or_insert_with(|| own.clone()).0 == *name);
                refuse(gateway, format!("Gateway {name}, endpoint {}", own.1), &by, last);
            }
        }
    }
}

fn subnet_object(domain: &DomainName, node: &NodeName, prefix: &Prefix) -> String {
    format!("Gateway {domain}, node {node}, subnet {prefix}")
}

/// Who has which prefix.
type Taken = DisjointPrefixes<(DomainName, NodeName)>;

/// What is asked for and given.
struct Claims<'a> {
    taken: Taken,
    /// What was asked for and is somebody else's, by who asked.
    refused: Vec<(DomainName, NodeName, Prefix)>,
    settings: &'a Settings,
    problems: &'a mut Vec<Problem>,
}

impl Claims<'_> {
    /// Claims what a Gateway's members had before and still ask for.
    fn incumbents(&mut self, gateway: &Parsed<'_>, previous: &View) {
        let active = gateway.gateways.first().map(|active| (&active.node, &gateway.extra.prefixes));
        let asked = gateway.members.iter().map(|member| (&member.node, &member.subnets)).chain(active);
        for (node, prefixes) in asked {
            for prefix in prefixes {
                if previous.holds(&gateway.name, node, prefix) && self.unfit(prefix).is_none() {
                    let _ = self.taken.insert(*prefix, (gateway.name.clone(), node.clone()));
                }
            }
        }
    }

    /// Claims what members and the gateway node had before that do not get all they ask for now, before others may.
    fn kept(&mut self, gateway: &Parsed<'_>, previous: &View) {
        let Some(before) = previous.domains.get(&gateway.name) else { return };
        for member in &gateway.members {
            let Some(old) = before.member(&member.node) else { continue };
            self.keep(
                &gateway.name,
                &member.node,
                (&member.subnets, member.torn),
                &pods(old).collect::<Vec<_>>(),
            );
        }
        if let Some(active) = gateway.gateways.first() {
            let Asked { prefixes, torn } = &gateway.extra;
            self.keep(&gateway.name, &active.node, (prefixes, *torn), &before.extra);
        }
    }

    fn keep(
        &mut self,
        domain: &DomainName,
        node: &NodeName,
        (asked, torn): (&[Prefix], bool),
        old: &[Prefix],
    ) {
        let others = |prefix| self.holder(prefix).is_some_and(|by| by != (domain, node));
        if torn || asked.iter().any(|prefix| others(prefix) || self.unfit(prefix).is_some()) {
            for prefix in
                old.iter().filter(|prefix| self.unfit(prefix).is_none()).copied().collect::<Vec<_>>()
            {
                self.claim(domain, node, prefix);
            }
        }
    }

    /// The prefixes that a node gets: those it asks for, and where one of them is malformed, unfit or another's, its old
    /// ones as well.
    fn all(
        &mut self,
        domain: &DomainName,
        node: &NodeName,
        (asked, torn): (&[Prefix], bool),
        old: &[Prefix],
    ) -> Subnets {
        let (mut got, refused) = self.list(domain, node, asked);
        if refused || torn {
            for prefix in old {
                if !got.contains(prefix) && self.unfit(prefix).is_none() && self.claim(domain, node, *prefix)
                {
                    got.push(*prefix);
                }
            }
            got.sort();
        }
        got
    }

    /// Claims each prefix; gives those that were free, and whether one was unfit or somebody else's.
    fn list(&mut self, domain: &DomainName, node: &NodeName, asked: &[Prefix]) -> (Subnets, bool) {
        let mut got = Subnets::new();
        let mut refused = false;
        for prefix in asked {
            if let Some((what, remedy)) = self.unfit(prefix) {
                self.problems.push(Problem::new(subnet_object(domain, node, prefix), what, remedy));
                refused = true;
            } else if self.claim(domain, node, *prefix) {
                got.push(*prefix);
            } else {
                self.refused.push((domain.clone(), node.clone(), *prefix));
                refused = true;
            }
        }
        (got, refused)
    }

    /// Says what was refused, once all is claimed: of several that overlap a prefix the first by address is named, not
    /// the first to come. Gives who has what.
    fn report(self) -> Taken {
        for (domain, node, prefix) in &self.refused {
            let (held, (by, at)) = self.taken.overlapping(prefix).expect("what is taken stays taken");
            let what =
                format!("overlaps {held} of node {at} of Gateway {by}, refused; what was before stays");
            let object = subnet_object(domain, node, prefix);
            self.problems.push(Problem::new(object, what, "give every node a pod CIDR of its own"));
        }
        self.taken
    }

    /// Who has a prefix, or part of it.
    fn holder(&self, prefix: &Prefix) -> Option<(&DomainName, &NodeName)> {
        self.taken.overlapping(prefix).map(|(_, (domain, node))| (domain, node))
    }

    /// Whether a member has a prefix now: it was free, or its own already.
    fn claim(&mut self, domain: &DomainName, node: &NodeName, prefix: Prefix) -> bool {
        match self.taken.insert(prefix, (domain.clone(), node.clone())) {
            Ok(()) => true,
            Err((held, (by, at))) => held == prefix && by == domain && at == node,
        }
    }

    /// Why no domain may have a prefix.
    fn unfit(&self, prefix: &Prefix) -> Option<(String, &'static str)> {
        let reserved = Prefix::new(IpAddr::V4(RESERVED), 4);
        if prefix.length() == 0 {
            return Some(("covers every address, refused".to_owned(), "name the pods' networks"));
        }
        if reserved.overlaps(prefix) {
            return Some((format!("lies in {reserved}, refused"), "use a network for hosts"));
        }
        let never = match prefix.family() {
            Family::V4 => ["127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4"].as_slice(),
            Family::V6 => ["::1/128", "fe80::/10", "ff00::/8"].as_slice(),
        };
        let never = never.iter().map(|text| text.parse::<Prefix>().expect("well-formed"));
        for special in never {
            if special.overlaps(prefix) {
                return Some((format!("overlaps {special}, refused"), "use a network for hosts"));
            }
        }
        if let Some(service) = self.settings.service_cidrs.iter().find(|service| service.overlaps(prefix)) {
            return Some((format!("overlaps the Service CIDR {service}, refused"), "use another pod CIDR"));
        }
        let server = self.settings.api_servers.iter().find(|server| prefix.contains(**server));
        server.map(|server| (format!("holds the API server {server}, refused"), "use another pod CIDR"))
    }
}
