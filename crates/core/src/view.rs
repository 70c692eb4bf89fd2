//! The immutable picture of the cluster: every domain with its members, their prefixes and its gateway nodes.
//!
//! Every node that reads the same Gateways comes to the same view. What is wrong in a Gateway costs its own part, and
//! is told as a [`Problem`].

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::api::Gateway;
use crate::key::PublicKey;
use crate::mac::Mac;
use crate::name::{DomainName, NodeName};
use crate::nat::NatType;
use crate::prefix::Prefix;
use crate::problem::Problem;
use crate::vtep::Identity;

mod build;
mod claims;
mod members;
mod parse;

pub use members::Members;

/// Pod prefixes of a node: one a family, as a rule, and held without a pointer, as a plan goes over all of them.
pub type Subnets = SmallVec<[Prefix; 2]>;

/// What a view depends on beside the Gateways. The same on every node of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Name of the cluster; part of every VTEP's identity.
    pub cluster: String,
    /// What VTEPs' MACs are made of.
    pub identity: Identity,
    /// Prefixes of Services; never a domain's.
    pub service_cidrs: Vec<Prefix>,
    /// Addresses of the API server; never inside a domain's prefix.
    pub api_servers: Vec<IpAddr>,
    /// Whether node addresses belong to a domain's prefixes (`--forward-node-ip`).
    pub forward_node_ip: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cluster: "kubernetes".to_owned(),
            identity: Identity::default(),
            service_cidrs: Vec::new(),
            api_servers: Vec::new(),
            forward_node_ip: false,
        }
    }
}

/// All domains, and what was left out of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Domains by name.
    pub domains: BTreeMap<DomainName, Domain>,
    /// What was wrong, in order of the Gateways' names.
    pub problems: Vec<Problem>,
}

/// One isolated network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domain {
    /// The file that its Gateway is in; empty where there is none.
    #[serde(default)]
    pub file: Box<str>,
    /// Its members.
    pub members: Members,
    /// Its active gateway nodes, the preferred one first.
    pub gateways: Vec<GatewayNode>,
    /// Prefixes beside the pods' that its gateway node answers for.
    pub extra: Vec<Prefix>,
}

/// A node of a domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The node's name.
    pub node: NodeName,
    /// Its address in the domain.
    pub underlay: IpAddr,
    /// Hardware address of its VTEP.
    pub mac: Mac,
    /// Its pods' prefixes, sorted; overlapping no other of the view.
    pub subnets: Subnets,
}

/// An active tunnel endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayNode {
    /// The node's name.
    pub node: NodeName,
    /// Address by which others reach it, if they can.
    pub address: Option<IpAddr>,
    /// The tunnel socket's UDP port, as seen from outside.
    pub port: u16,
    /// The port that the node itself should listen on, if the Gateway says.
    pub listen: Option<u16>,
    /// Whether it is behind a NAT.
    pub under_nat: bool,
    /// What kind of NAT.
    pub nat_type: NatType,
    /// Its public key; a tunnel to it needs one.
    pub key: Option<PublicKey>,
}

impl GatewayNode {
    /// Where its tunnel socket is, as seen from outside.
    #[must_use]
    pub fn socket(&self) -> Option<SocketAddr> {
        self.address.map(|address| SocketAddr::new(address, self.port))
    }

    /// Puts its socket elsewhere, or nowhere.
    fn put(&mut self, socket: Option<SocketAddr>) {
        self.address = socket.map(|socket| socket.ip());
        self.port = socket.map_or(self.port, |socket| socket.port());
    }
}

impl View {
    /// Builds the view of `gateways`, in any order.
    ///
    /// Where two domains claim one address, who held it in `previous` keeps it; else the older Gateway, else the first
    /// by name. A member whose new prefix is refused keeps its old ones.
    #[must_use]
    pub fn build(gateways: &[Gateway], settings: &Settings, previous: Option<&Self>) -> Self {
        Self::of_files([("", gateways)], settings, previous)
    }

    /// The same, of Gateways with the name of the file that each came from, to be told of them; empty where there is none.
    #[must_use]
    pub fn of_files<'a>(
        files: impl IntoIterator<Item = (&'a str, &'a [Gateway])>,
        settings: &Settings,
        previous: Option<&Self>,
    ) -> Self {
        let gateways = files.into_iter();
        let gateways =
            gateways.flat_map(|(file, gateways)| gateways.iter().map(move |gateway| (file, gateway)));
        build::build(gateways, settings, previous)
    }

    /// The domain and member of a node.
    #[must_use]
    pub fn member(&self, node: &NodeName) -> Option<(&DomainName, &Domain, &Member)> {
        self.domains.iter().find_map(|(name, domain)| Some((name, domain, domain.member(node)?)))
    }

    /// An active gateway node of a domain.
    fn gateway(&self, domain: &DomainName, node: &NodeName) -> Option<&GatewayNode> {
        self.domains.get(domain)?.gateways.iter().find(|gateway| gateway.node == *node)
    }

    /// Whether a problem is of a tunnel endpoint of a domain.
    #[must_use]
    pub fn tells_of_endpoint(&self, domain: &DomainName) -> bool {
        let endpoint = format!("Gateway {domain}, endpoint ");
        self.problems.iter().any(|problem| problem.object.starts_with(&endpoint))
    }

    /// Whether a member held a prefix.
    fn holds(&self, domain: &DomainName, node: &NodeName, prefix: &Prefix) -> bool {
        self.domains.get(domain).is_some_and(|domain| {
            domain.member(node).is_some_and(|member| member.subnets.contains(prefix))
                || domain.extra.contains(prefix)
        })
    }
}

impl Domain {
    /// A member by its name.
    #[must_use]
    pub fn member(&self, node: &NodeName) -> Option<&Member> {
        let found = self.members.binary_search_by(|member| member.node.cmp(node)).ok()?;
        self.members.get(found)
    }

    /// The gateway node that carries the domain's traffic.
    #[must_use]
    pub fn gateway(&self) -> Option<&GatewayNode> {
        self.gateways.first()
    }

    /// Every prefix of the domain: its members' and its gateway's extra ones.
    pub fn prefixes(&self) -> impl Iterator<Item = Prefix> {
        self.members
            .iter()
            .flat_map(|member| member.subnets.iter().copied())
            .chain(self.extra.iter().copied())
    }
}

#[cfg(test)]
pub(crate) mod tests;
