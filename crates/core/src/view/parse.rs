//! One Gateway object by itself: its members, gateway nodes and prefixes, and what is wrong with them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::{Domain, GatewayNode, Member, Settings};
use crate::api::{
    ENABLE_L3, EXTRA_CIDRS, Endpoint, Gateway, GatewayStatus, NodeInfo, PROXY, PUBLIC_KEY, TUNNEL,
};
use crate::key::PublicKey;
use crate::mac::Mac;
use crate::name::{DomainName, NodeName};
use crate::nat::NatType;
use crate::object::TUNNEL_PORT;
use crate::prefix::{Prefix, is_host_address};
use crate::problem::Problem;

/// A member as its Gateway gives it, prefixes not yet compared with others'.
pub(super) struct Candidate {
    pub node: NodeName,
    pub underlay: IpAddr,
    pub mac: Mac,
    pub subnets: Vec<Prefix>,
    /// A prefix of it is malformed: what it had stays.
    pub torn: bool,
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
pub(super) fn pods(member: &Member) -> impl Iterator<Item = Prefix> {
    let own = Prefix::host(member.underlay);
    member.subnets.iter().copied().filter(move |prefix| *prefix != own)
}

/// Prefixes that are asked for, sorted.
pub(super) struct Asked {
    pub prefixes: Vec<Prefix>,
    /// One is malformed: what was had before stays.
    pub torn: bool,
}

/// A Gateway, parsed.
pub(super) struct Parsed<'a> {
    pub name: DomainName,
    /// The file that it came from; empty where there is none.
    pub file: &'a str,
    pub created: &'a str,
    pub members: Vec<Candidate>,
    pub gateways: Vec<GatewayNode>,
    pub extra: Asked,
}

/// Parses a Gateway. What is wrong costs itself, and leaves what was there `before`.
pub(super) fn parse<'a>(
    name: DomainName,
    (file, gateway): (&'a str, &'a Gateway),
    settings: &Settings,
    before: Option<&Domain>,
    problems: &mut Vec<Problem>,
) -> Parsed<'a> {
    // Without a node it is half written, cut, or just made anew.
    let status = gateway.status.as_ref().filter(|status| !status.nodes.is_empty());
    let object = format!("Gateway {name}");
    let created = &gateway.metadata.creation_timestamp;
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
        match Prefix::parse(text) {
            Ok((prefix, address)) => {
                if address != prefix.first() {
                    let what = format!("{} is taken for {prefix}: that is what its length says", text.trim());
                    problems.push(Problem::new(
                        object,
                        what,
                        "write it so, or with the length that is meant",
                    ));
                }
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
    for endpoint in active.iter().filter(|endpoint| endpoint.kind != PROXY) {
        let object = format!("{object}, endpoint {}", endpoint.node_name);
        let mut refuse = |what: String, remedy: &str| problems.push(Problem::new(&object, what, remedy));
        if endpoint.kind != TUNNEL {
            let what =
                format!("its type {:?} is neither tunnel nor proxy, the endpoint is left out", endpoint.kind);
            refuse(what, "correct its type in status.activeEndpoints");
            continue;
        }
        if endpoint.config.get(ENABLE_L3).is_some_and(|value| value == "false") {
            continue;
        }
        let member = members.iter().find(|member| member.node.as_str() == endpoint.node_name);
        let Some(member) = member else {
            refuse(
                "its node is no member of the domain, the endpoint is left out".to_owned(),
                "add it to status.nodes (where a controller fills that: label the node \
                 raven.openyurt.io/gateway=<gateway>), or name another",
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
        report(
            format!("{error}, taken as Undefined"),
            "use Full cone NAT, Restricted cone NAT, Port Restricted cone NAT, Symmetric NAT or Undefined",
        );
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
pub(super) fn then(held: Option<PublicKey>) -> String {
    match held {
        Some(key) => format!("its last, {key}, stays"),
        None => "no tunnel leads to it".to_owned(),
    }
}
