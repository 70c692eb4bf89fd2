//! Who gets which prefix: who had it keeps it, else who comes first.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::parse::{Asked, Parsed, pods};
use super::{Settings, Subnets, View};
use crate::name::{DomainName, NodeName};
use crate::prefix::{DisjointPrefixes, Prefix, RESERVED};
use crate::problem::Problem;

/// What a problem of a member's prefix is about.
pub(super) fn subnet_object(domain: &DomainName, node: &NodeName, prefix: &Prefix) -> String {
    format!("Gateway {domain}, node {node}, subnet {prefix}")
}

/// Who has which prefix.
pub(super) type Taken = DisjointPrefixes<(DomainName, NodeName)>;

/// What is asked for and given.
pub(super) struct Claims<'a> {
    taken: Taken,
    /// What was asked for and is somebody else's, by who asked.
    refused: Vec<(DomainName, NodeName, Prefix)>,
    /// What no domain may have.
    special: Vec<Prefix>,
    settings: &'a Settings,
    problems: &'a mut Vec<Problem>,
}

/// What members ask for, and what the gateway node does beside.
fn asked<'p>(gateway: &'p Parsed<'_>) -> impl Iterator<Item = (&'p NodeName, Prefix)> {
    let active = gateway.gateways.first().map(|active| (&active.node, &gateway.extra.prefixes));
    let members = gateway.members.iter().map(|member| (&member.node, &member.subnets));
    members.chain(active).flat_map(|(node, prefixes)| prefixes.iter().map(move |prefix| (node, *prefix)))
}

/// Networks of no host's, or of each host's own.
const SPECIAL: [&str; 6] =
    ["127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "::1/128", "fe80::/10", "ff00::/8"];

impl<'a> Claims<'a> {
    pub(super) fn new(settings: &'a Settings, problems: &'a mut Vec<Problem>) -> Self {
        let special = SPECIAL.iter().map(|text| text.parse().expect("well-formed")).collect();
        Self { taken: DisjointPrefixes::new(), refused: Vec::new(), special, settings, problems }
    }

    /// Claims what a Gateway's members had before and still ask for.
    pub(super) fn incumbents(&mut self, gateway: &Parsed<'_>, previous: &View) {
        for (node, prefix) in asked(gateway) {
            if previous.holds(&gateway.name, node, &prefix) && self.unfit(&prefix).is_none() {
                let _ = self.taken.insert(prefix, (gateway.name.clone(), node.clone()));
            }
        }
    }

    /// Claims what is asked for where nobody had anything. Of Gateways of one age those prefixes last in which two or more
    /// others lie: one wrong length costs its own prefix, and not theirs.
    pub(super) fn newcomers(&mut self, gateways: &[Parsed<'_>]) {
        let mut asked: Vec<_> = gateways
            .iter()
            .flat_map(|gateway| asked(gateway).map(move |(node, prefix)| (gateway, node, prefix)))
            .collect();
        let all: BTreeMap<Prefix, &NodeName> =
            asked.iter().map(|(_, node, prefix)| (*prefix, *node)).collect();
        let is_wide = |(_, node, prefix): &(_, &NodeName, Prefix)| {
            let within = all.range(prefix..).skip(1).take_while(|(other, _)| prefix.covers(other));
            let mut others = within.filter(|(_, of)| *of != node);
            others.next().is_some_and(|(_, first)| others.any(|(_, other)| other != first))
        };
        // Stable, and Gateways are in the order of their age.
        asked.sort_by_cached_key(|asked| {
            let created = asked.0.created;
            (created.is_empty(), created.to_owned(), is_wide(asked))
        });
        for (gateway, node, prefix) in asked {
            if self.unfit(&prefix).is_none() {
                self.claim(&gateway.name, node, prefix);
            }
        }
    }

    /// Claims what members and the gateway node had before that do not get all they ask for now, before others may.
    pub(super) fn kept(&mut self, gateway: &Parsed<'_>, previous: &View) {
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
    pub(super) fn all(
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
    pub(super) fn report(self) -> Taken {
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
        if let Some(special) = self.special.iter().find(|special| special.overlaps(prefix)) {
            return Some((format!("overlaps {special}, refused"), "use a network for hosts"));
        }
        if let Some(service) = self.settings.service_cidrs.iter().find(|service| service.overlaps(prefix)) {
            return Some((format!("overlaps the Service CIDR {service}, refused"), "use another pod CIDR"));
        }
        let server = self.settings.api_servers.iter().find(|server| prefix.contains(**server));
        server.map(|server| (format!("holds the API server {server}, refused"), "use another pod CIDR"))
    }
}
