//! From Gateway objects to the view: each is parsed, and what several claim goes to one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::claims::{Claims, Taken, subnet_object};
use super::parse::{Parsed, parse, pods, then};
use super::{Domain, GatewayNode, Member, Settings, View};
use crate::api::Gateway;
use crate::name::{DomainName, NodeName};
use crate::prefix::Prefix;
use crate::problem::Problem;

/// The view of Gateways, each with the name of its file.
pub(super) fn build<'a>(
    gateways: impl Iterator<Item = (&'a str, &'a Gateway)>,
    settings: &Settings,
    previous: Option<&View>,
) -> View {
    let mut problems = Vec::new();
    let mut given: BTreeMap<DomainName, Vec<(&str, &Gateway)>> = BTreeMap::new();
    for (file, gateway) in gateways {
        let object = format!("Gateway {}", gateway.metadata.name);
        let name: DomainName = match gateway.metadata.name.parse() {
            Ok(name) => name,
            Err(error) => {
                problems.push(Problem::new(object, error.to_string(), "correct metadata.name"));
                continue;
            }
        };
        given.entry(name).or_default().push((file, gateway));
    }
    let mut parsed: BTreeMap<DomainName, Parsed<'_>> = BTreeMap::new();
    for (name, given) in given {
        let before = previous.and_then(|view| view.domains.get(&name));
        let (gateway, told) = of_several(&given, before);
        let object = || format!("Gateway {name}");
        problems.extend(told.into_iter().map(|what| Problem::new(object(), what, "remove one")));
        parsed.insert(name.clone(), parse(name.clone(), gateway, settings, before, &mut problems));
    }
    one_domain_a_node(&mut parsed, previous, &mut problems);
    let (mut domains, taken) = assemble(parsed.into_values().collect(), settings, previous, &mut problems);
    endpoints_apart(&mut domains, &taken, previous, &mut problems);
    distinct_gateways(&mut domains, previous, &mut problems);
    problems.sort();
    problems.dedup();
    View { domains, problems }
}

/// Of Gateways of one name that of the file that had it before, else the first; and what is told of each other.
fn of_several<'a>(
    given: &[(&'a str, &'a Gateway)],
    before: Option<&Domain>,
) -> ((&'a str, &'a Gateway), Vec<String>) {
    let had = |(file, _): &(&str, _)| before.is_some_and(|before| *before.file == **file);
    let at = given.iter().position(had).unwrap_or(0);
    let (used, gateway) = given[at];
    let others = given.iter().enumerate().filter(|(other, _)| *other != at);
    let told = others.map(|(_, (file, _))| match (used, *file) {
        ("", _) | (_, "") => "given twice: the first is used".to_owned(),
        (used, file) if used == file => format!("given twice in {file}: the first is used"),
        (used, file) if at == 0 => format!("given twice, in {used} and in {file}: the first is used"),
        (used, file) => {
            format!("given twice, in {file} and in {used}: that of {used} is used, as it was before")
        }
    });
    ((used, gateway), told.collect())
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
    let mut claims = Claims::new(settings, problems);
    match previous {
        None => claims.newcomers(&parsed),
        Some(previous) => {
            for gateway in &parsed {
                claims.incumbents(gateway, previous);
            }
            for gateway in &parsed {
                claims.kept(gateway, previous);
            }
        }
    }
    let mut domains = BTreeMap::new();
    for gateway in parsed {
        let Parsed { name, file, members, gateways, extra, .. } = gateway;
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
        domains.insert(name, Domain { file: file.into(), members: kept.into(), gateways, extra });
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
