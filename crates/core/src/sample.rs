//! Clusters for tests and benchmarks, in words that read like the topology.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::api::{
    API_VERSION, EXTRA_CIDRS, Endpoint, Gateway, GatewaySpec, GatewayStatus, KIND, Metadata, NodeInfo,
    PUBLIC_KEY, TUNNEL,
};
use crate::key::PublicKey;

/// A domain being described.
#[derive(Clone, Debug)]
pub struct Domain(Gateway);

/// Begins a domain.
#[must_use]
pub fn domain(name: &str) -> Domain {
    Domain(Gateway {
        api_version: API_VERSION.to_owned(),
        kind: KIND.to_owned(),
        metadata: Metadata { name: name.to_owned(), ..Metadata::default() },
        spec: GatewaySpec::default(),
        status: Some(GatewayStatus::default()),
    })
}

/// The public key that a node has in a sample.
#[must_use]
pub fn key(node: &str) -> PublicKey {
    let mut key = [7; 32];
    for (byte, letter) in key.iter_mut().zip(node.bytes()) {
        *byte = letter;
    }
    PublicKey(key)
}

impl Domain {
    /// Adds a member.
    #[must_use]
    pub fn node(mut self, name: &str, address: &str, subnets: &[&str]) -> Self {
        let node = NodeInfo {
            node_name: name.to_owned(),
            private_ip: address.to_owned(),
            subnets: subnets.iter().map(|subnet| (*subnet).to_owned()).collect(),
        };
        self.status().nodes.push(node);
        self
    }

    /// Makes a member the gateway node, with a public address.
    #[must_use]
    pub fn public(self, node: &str, address: &str) -> Self {
        self.endpoint(Endpoint { public_ip: address.to_owned(), ..endpoint(node) })
    }

    /// Makes a member the gateway node, behind a NAT of which nothing is known.
    #[must_use]
    pub fn nat(self, node: &str) -> Self {
        self.endpoint(Endpoint { under_nat: true, ..endpoint(node) })
    }

    /// Makes a member the gateway node, behind a NAT of a known type and mapping.
    #[must_use]
    pub fn mapped(self, node: &str, nat_type: &str, address: &str, port: i64) -> Self {
        self.endpoint(Endpoint {
            under_nat: true,
            nat_type: nat_type.to_owned(),
            public_ip: address.to_owned(),
            public_port: Some(port),
            ..endpoint(node)
        })
    }

    /// Adds an active endpoint.
    #[must_use]
    pub fn endpoint(mut self, endpoint: Endpoint) -> Self {
        self.status().active_endpoints.push(endpoint);
        self
    }

    /// Sets the annotation with extra CIDRs.
    #[must_use]
    pub fn extra(mut self, list: &str) -> Self {
        self.0.metadata.annotations.insert(EXTRA_CIDRS.to_owned(), list.to_owned());
        self
    }

    /// Sets when it was made.
    #[must_use]
    pub fn created(mut self, at: &str) -> Self {
        self.0.metadata.creation_timestamp = at.to_owned();
        self
    }

    fn status(&mut self) -> &mut GatewayStatus {
        self.0.status.get_or_insert_default()
    }
}

impl From<Domain> for Gateway {
    fn from(domain: Domain) -> Self {
        domain.0
    }
}

/// An endpoint of type tunnel with a key.
#[must_use]
pub fn endpoint(node: &str) -> Endpoint {
    Endpoint {
        node_name: node.to_owned(),
        kind: TUNNEL.to_owned(),
        config: [(PUBLIC_KEY.to_owned(), STANDARD.encode(key(node).0))].into(),
        ..Endpoint::default()
    }
}

/// The three networks of the demo: a cloud with a public gateway, a site and a box behind NATs with the same addresses.
#[must_use]
pub fn demo() -> Vec<Gateway> {
    let cloud = domain("cloud")
        .node("c1", "10.0.0.1", &["10.10.1.0/24", "fd00:10:1::/64"])
        .node("c2", "10.0.0.2", &["10.10.2.0/24", "fd00:10:2::/64"])
        .node("c3", "10.0.0.3", &["10.10.3.0/24", "fd00:10:3::/64"])
        .public("c1", "203.0.113.1");
    let site = domain("site")
        .node("s1", "192.168.1.1", &["10.10.11.0/24", "fd00:10:11::/64"])
        .node("s2", "192.168.1.2", &["10.10.12.0/24", "fd00:10:12::/64"])
        .nat("s1");
    let single = domain("box").node("b1", "192.168.1.1", &["10.10.21.0/24", "fd00:10:21::/64"]).nat("b1");
    vec![cloud.into(), site.into(), single.into()]
}

/// A domain of many members, named `n0`…, each with a /24 of IPv4 (a /26 above 65,000) and, if asked, a /64 of IPv6;
/// `n0` is the gateway node. And a remote domain `hub` of one node.
#[must_use]
pub fn large(members: u32, dual: bool) -> Vec<Gateway> {
    let mut site = domain("site");
    for number in 0..members {
        let address = IpAddr::V4(Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 16, 0, 1)) + number));
        let pods = if members < 65_000 {
            format!("{}/24", Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + (number << 8)))
        } else {
            format!("{}/26", Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + (number << 6)))
        };
        let pods6 = Ipv6Addr::new(
            0xfd00,
            0x10,
            u16::try_from(number >> 16).unwrap_or(0),
            (number & 0xffff) as u16,
            0,
            0,
            0,
            0,
        );
        let pods6 = format!("{pods6}/64");
        let subnets: &[&str] = if dual { &[&pods, &pods6] } else { &[&pods] };
        site = site.node(&format!("n{number}"), &address.to_string(), subnets);
    }
    let hub = domain("hub").node("h0", "198.51.100.1", &["100.64.0.0/24"]).public("h0", "198.51.100.1");
    vec![site.nat("n0").into(), hub.into()]
}
