//! Which domains' gateways talk directly, which by a relay, and which not at all. Every node comes to the same answer.

use std::net::SocketAddr;

use super::{KEEPALIVE, usable};
use crate::key::PublicKey;
use crate::name::DomainName;
use crate::view::{GatewayNode, View};

/// How this node's domain and another reach each other.
#[derive(Clone, Copy, Debug)]
pub(super) enum Link<'a> {
    /// By a tunnel of their own.
    Direct {
        /// Where the other is, where it can be spoken to first.
        endpoint: Option<SocketAddr>,
        /// Seconds between keepalives.
        keepalive: u16,
    },
    /// By a relay's tunnel.
    Relayed { by: &'a DomainName, gateway: &'a GatewayNode, key: PublicKey },
    /// Not.
    Down(Why),
}

/// What two domains that cannot reach each other lack.
#[derive(Clone, Copy, Debug)]
pub(super) enum Why {
    GatewayHere,
    GatewayThere,
    Relay,
    Address,
}

impl<'a> Link<'a> {
    pub(super) const fn is_up(&self) -> bool {
        !matches!(self, Self::Down(_))
    }

    pub(super) const fn relay(&self) -> Option<&'a DomainName> {
        match self {
            Self::Relayed { by, .. } => Some(by),
            _ => None,
        }
    }
}

/// The links of one domain.
pub(super) struct Links<'a> {
    view: &'a View,
    own: Option<&'a GatewayNode>,
    relay: Option<(&'a DomainName, &'a GatewayNode, PublicKey)>,
    nat_traversal: bool,
}

impl<'a> Links<'a> {
    pub(super) fn of(view: &'a View, name: &DomainName, nat_traversal: bool) -> Self {
        let own = view.domains.get(name).and_then(|domain| domain.gateway());
        Self { view, own, relay: relay(view), nat_traversal }
    }

    /// How another domain is reached.
    pub(super) fn to(&self, other: &DomainName) -> Link<'a> {
        let Some(own) = self.own else { return Link::Down(Why::GatewayHere) };
        let Some((gateway, _)) = self.view.domains.get(other).and_then(usable) else {
            return Link::Down(Why::GatewayThere);
        };
        let keepalive = if own.under_nat { KEEPALIVE } else { 0 };
        match (own.under_nat, gateway.under_nat) {
            (_, false) => match gateway.socket() {
                Some(socket) => Link::Direct { endpoint: Some(socket), keepalive },
                None => Link::Down(Why::Address),
            },
            // It speaks first, and where from is learned then.
            (false, true) => Link::Direct { endpoint: None, keepalive },
            (true, true) if self.traverses(own, gateway) => {
                Link::Direct { endpoint: gateway.socket(), keepalive }
            }
            (true, true) => match self.relay {
                Some((by, gateway, key)) => Link::Relayed { by, gateway, key },
                None => Link::Down(Why::Relay),
            },
        }
    }

    /// Whether the view has said what is wrong with a domain's endpoint.
    pub(super) fn tells_of(&self, other: &DomainName) -> bool {
        self.view.tells_of_endpoint(other)
    }

    /// Why a link is down, and what to do.
    pub(super) fn explain(&self, why: Why) -> (&'static str, &'static str) {
        match why {
            Why::GatewayHere => ("is not reached: this domain has no active tunnel endpoint", "add one"),
            Why::GatewayThere => (
                "is not reached: it has no active tunnel endpoint with a public key",
                "add one, and set its config.publicKey to what `corax key` prints on that node",
            ),
            Why::Relay => (
                "is not reached: both gateways are behind NATs, and no other domain's gateway is public to relay",
                "give one domain an endpoint with underNAT: false",
            ),
            Why::Address => ("is not reached: its gateway has no address", "set publicIP"),
        }
    }

    /// Whether two gateways behind NATs talk directly; both sides see the same.
    fn traverses(&self, own: &GatewayNode, other: &GatewayNode) -> bool {
        self.nat_traversal
            && own.address.is_some()
            && other.address.is_some()
            && own.nat_type.traverses(other.nat_type)
    }
}

/// The relay of the cluster: of the usable gateways that are not behind a NAT, and that can be spoken to first, the last by
/// node name, as Raven has it.
fn relay(view: &View) -> Option<(&DomainName, &GatewayNode, PublicKey)> {
    view.domains
        .iter()
        .filter_map(|(name, domain)| usable(domain).map(|(gateway, key)| (name, gateway, key)))
        .filter(|(_, gateway, _)| !gateway.under_nat && gateway.socket().is_some())
        .max_by(|(_, left, _), (_, right, _)| left.node.cmp(&right.node))
}
