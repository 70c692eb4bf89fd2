//! What the node itself says: links, addresses, MTUs, what its kernel can do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::object::{Device, NexthopId};
use crate::prefix::Prefix;
use crate::problem::Problem;

/// Facts of a node that the desired state depends on. What is not known has the value that harms least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// MTU of the link that holds the node's underlay address, or of the default route's; bytes.
    pub underlay_mtu: u32,
    /// MTU of the path to tunnel endpoints, where it is less or another link: route metric or learned path MTU.
    pub path_mtu: BTreeMap<IpAddr, u32>,
    /// Every address of the node that is not on a device of ours.
    pub addresses: BTreeSet<IpAddr>,
    /// Next hops of its default routes.
    pub default_gateways: BTreeSet<IpAddr>,
    /// Networks on its links that are not ours, hosts alone left out, and the name of each one's link.
    pub networks: BTreeMap<Prefix, String>,
    /// Nexthop ids in our range that somebody else uses.
    pub foreign_nexthops: BTreeSet<NexthopId>,
    /// Links that have a name of ours and are not ours, nor Raven's, with the reason.
    pub foreign_links: BTreeMap<Device, String>,
    /// What stands in the way on this node: shadowing rules, forwarding off, a kernel too old.
    pub problems: Vec<Problem>,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            underlay_mtu: 1500,
            path_mtu: BTreeMap::new(),
            addresses: BTreeSet::new(),
            default_gateways: BTreeSet::new(),
            networks: BTreeMap::new(),
            foreign_nexthops: BTreeSet::new(),
            foreign_links: BTreeMap::new(),
            problems: Vec::new(),
        }
    }
}
