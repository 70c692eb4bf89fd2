//! What the kernel has of ours.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::key::PublicKey;
use crate::mac::Mac;
use crate::object::{
    Address, Device, Link, NexthopId, Peer, Route, RouteKey, Rule, Scope, Set, Sysctl, Tunnel,
};
use crate::prefix::Prefix;
use crate::raven::Leftover;

/// A part of the kernel that is asked by itself and may fail to answer by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Backend {
    /// Links, addresses, neighbours, FDB, nexthops, routes, rules and their settings, over rtnetlink.
    Routes,
    /// The nftables table.
    Nft,
    /// WireGuard devices and peers.
    WireGuard,
}

impl fmt::Display for Backend {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Routes => "links and routes",
            Self::Nft => "the nftables table",
            Self::WireGuard => "WireGuard",
        })
    }
}

/// The nftables table as it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NftTable {
    /// There is none.
    #[default]
    Absent,
    /// It is as Corax made it, from the ruleset of this fingerprint.
    Intact(u64),
    /// There is one, but not as Corax left it.
    Altered,
}

/// A peer, with what the tunnel tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedPeer {
    /// Its settings. `endpoint` is where it was last heard, once it was.
    pub peer: Peer,
    /// The endpoint that was last set, or that this process found set and wanted first.
    pub configured: Option<SocketAddr>,
    /// Time since the last handshake, if there was one.
    pub handshake_age: Option<Duration>,
    /// Bytes received.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
}

/// A WireGuard device as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedTunnel {
    /// Its own settings.
    pub tunnel: Tunnel,
    /// Its peers.
    pub peers: BTreeMap<PublicKey, ObservedPeer>,
}

/// The kernel objects that Corax owns, as they are. A mirror of the kernel, never a memory of what was sent.
///
/// Holds only what is ours, but for links: a foreign one with a name of ours is here too, so that it can be refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Links with a name of ours.
    pub links: BTreeMap<Device, Link>,
    /// Their settings.
    pub sysctls: BTreeMap<(Device, Sysctl), i32>,
    /// Their addresses, IPv6 link-local ones included.
    pub addresses: BTreeMap<Address, Scope>,
    /// FDB of the overlay: behind which underlay address a hardware address is. All-zero entries are Raven's
    /// [`Leftover::Flood`].
    pub fdb: BTreeMap<Mac, IpAddr>,
    /// Permanent neighbours on the overlay.
    pub neighbours: BTreeMap<IpAddr, Mac>,
    /// Nexthop objects: the next hop's address on the overlay.
    pub nexthops: BTreeMap<NexthopId, IpAddr>,
    /// Routes in our tables.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Policy rules.
    pub rules: BTreeMap<Rule, ()>,
    /// WireGuard devices that answer.
    pub tunnels: BTreeMap<Device, ObservedTunnel>,
    /// The nftables table, without the elements of its sets.
    pub nft: NftTable,
    /// Elements of its sets.
    pub elements: BTreeMap<(Set, Prefix), ()>,
    /// What Raven left, in the order in which it is to be taken away.
    pub leftovers: BTreeSet<Leftover>,
    /// Who did not answer. Unknown deletes nothing, and writes nothing.
    pub unknown: BTreeSet<Backend>,
}

impl Observed {
    /// Whether a part of the kernel answered.
    #[must_use]
    pub fn knows(&self, backend: Backend) -> bool {
        !self.unknown.contains(&backend)
    }
}
