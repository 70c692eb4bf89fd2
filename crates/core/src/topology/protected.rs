//! What of a remote prefix a node steers, so that it does not cut itself off.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Local, Path, inside};
use crate::facts::Facts;
use crate::name::DomainName;
use crate::prefix::{Prefix, apart};
use crate::problem::Problem;
use crate::view::View;

/// Holes that members' addresses make in a remote prefix, at most. A prefix with more of them is the nodes' own network.
const MOST_HOLES: usize = 8;

/// What steering a remote prefix must not take from this node.
///
/// A prefix that is refused has neither twin nor element of `@remote`: its packets leave as they are. So only what a node
/// needs whole refuses one: its own underlay address, a default gateway, the API server, the network of its members. Any
/// other address costs at most itself, and the rest of the prefix is steered and locked: no slip elsewhere opens it. What was
/// steered within a prefix that is refused stays: a wrong length costs the domain nothing of what it had.
pub(super) struct Protected<'a> {
    /// What no prefix may hold. Sorted.
    never: Vec<(IpAddr, &'static str)>,
    /// Tunnel endpoints, and whose they are. Sorted.
    endpoints: Vec<(IpAddr, &'a DomainName)>,
    facts: &'a Facts,
    /// What was steered before.
    steered: Option<&'a BTreeSet<Prefix>>,
}

/// What of a remote prefix is steered.
pub(super) struct Fit {
    /// All of it, what is left of it, or what was steered of it before.
    pub(super) parts: Vec<Prefix>,
    /// Whether it is refused whole.
    pub(super) refused: bool,
    /// Why it is not all.
    pub(super) told: Vec<String>,
}

impl<'a> Protected<'a> {
    /// That of a node whose underlay address is `own`.
    pub(super) fn of(view: &'a View, own: Option<IpAddr>, local: &Local<'a>) -> Self {
        let own = own.into_iter().map(|address| (address, "this node's underlay address"));
        let servers = local.api_servers.iter().map(|address| (*address, "the API server"));
        let routers = local.facts.default_gateways.iter();
        let routers = routers.map(|address| (*address, "this node's default gateway"));
        let mut never: Vec<_> = own.chain(routers).chain(servers).collect();
        never.sort_unstable();
        let endpoints = view.domains.iter().flat_map(|(name, domain)| {
            domain.gateways.iter().filter_map(move |gateway| Some((gateway.address?, name)))
        });
        let mut endpoints: Vec<_> = endpoints.collect();
        endpoints.sort_unstable();
        Self { never, endpoints, facts: local.facts, steered: local.steered }
    }

    /// What is steered of a prefix of `domain`. `members`: underlay addresses of the node's own, sorted.
    pub(super) fn fit(&self, domain: &DomainName, prefix: Prefix, members: &[IpAddr]) -> Fit {
        let refused = |what| {
            let parts = self.steered_within(domain, &prefix, members);
            let then = match parts.as_slice() {
                [] => String::new(),
                [first] => format!("; {first}, which was steered before, stays"),
                [first, more @ ..] => {
                    format!("; {first} and {} more within it, which were steered before, stay", more.len())
                }
            };
            let told = vec![format!("holds {what}: steering it would cut the node off; refused{then}")];
            Fit { parts, refused: true, told }
        };
        if let Some((address, what)) = inside(&self.never, &prefix, |(address, _)| *address).first() {
            return refused(format!("{what} {address}"));
        }
        let members = inside(members, &prefix, |address| *address);
        if let [address, ..] = members
            && members.len() > MOST_HOLES
        {
            return refused(format!(
                "the underlay address {address} of a member, and {} more",
                members.len() - 1
            ));
        }
        let mut told = Vec::new();
        let mut holes: Vec<Prefix> = Vec::new();
        let mut spare = |hole: Prefix, what: Option<&str>| {
            told.extend(what.map(|what| format!("holds {what}: {hole} is not steered")));
            holes.push(hole);
        };
        for address in members {
            spare(Prefix::host(*address), Some("the underlay address of a member"));
        }
        for (address, by) in inside(&self.endpoints, &prefix, |(address, _)| *address) {
            // Of another domain's the view tells.
            let what = (*by == domain).then_some("the domain's own tunnel endpoint");
            spare(Prefix::host(*address), what);
        }
        // What comes to a local address is looked up as such before anything else. Of whole networks `shadowed` tells.
        let alone =
            |address: &&IpAddr| !self.facts.networks.keys().any(|network| network.contains(**address));
        if let Some(address) = self.facts.addresses.range(prefix.first()..=prefix.last()).find(alone) {
            told.push(format!("holds this node's address {address}: a pod of that address is not reached"));
        }
        Fit { parts: prefix.without(&holes), refused: false, told }
    }

    /// What was steered within a prefix before, and still may be.
    fn steered_within(&self, domain: &DomainName, prefix: &Prefix, members: &[IpAddr]) -> Vec<Prefix> {
        let Some(steered) = self.steered else { return Vec::new() };
        let within = steered.range(prefix..).take_while(|held| prefix.covers(held));
        let within = within.filter(|held| *held != prefix);
        // Those of the kernel and those of the last plan may lie in each other.
        apart(within.flat_map(|held| self.fit(domain, *held, members).parts).collect())
    }
}

/// The networks of a node's own links that steered prefixes, sorted, share addresses with. Some links have networks far
/// wider than what lives there, so those prefixes are not refused.
pub(super) fn shadowed(remotes: &[(Prefix, Path)], facts: &Facts) -> impl Iterator<Item = Problem> {
    facts.networks.iter().filter_map(|(network, link)| {
        let from = remotes.partition_point(|(prefix, _)| prefix.last() < network.first());
        let shared = remotes.get(from..)?.iter().take_while(|(prefix, _)| prefix.overlaps(network));
        let (first, _) = remotes.get(from)?;
        let more = match shared.count() {
            0 => return None,
            1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        let what = format!(
            "shares addresses with {first}{more} of other domains, which {} steered: hosts there are not reached by this link",
            if more.is_empty() { "is" } else { "are" }
        );
        Some(Problem::new(format!("network {network} of {link}"), what, "use pod CIDRs apart from the networks of the nodes"))
    })
}
