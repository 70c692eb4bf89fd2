//! What kube-proxy programs, in both of its forms, as recorded from it (fixtures/kube-proxy).

use std::net::IpAddr;

use crate::lab::Node;

/// ClusterIP of the Service.
pub const SERVICE: &str = "10.96.7.7";

/// Its NodePort.
pub const NODE_PORT: u16 = 30777;

/// One of kube-proxy's modes.
#[derive(Clone, Copy, Debug)]
pub enum Mode {
    /// iptables.
    Iptables,
    /// nftables.
    Nftables,
}

/// Programs a Service with one endpoint on a node.
pub fn proxy(mode: Mode, node: &Node, endpoint: IpAddr) {
    let rules = match mode {
        Mode::Iptables => include_str!("fixtures/kube-proxy/iptables.rules"),
        Mode::Nftables => include_str!("fixtures/kube-proxy/nftables.rules"),
    };
    let rules = rules
        .replace("@SERVICE@", SERVICE)
        .replace("@POD@", &endpoint.to_string())
        .replace("@NODE@", &node.address.to_string())
        .replace("@CLUSTER@", "10.100.0.0/14");
    match mode {
        Mode::Iptables => drop(node.space.feed(&["iptables-restore", "--noflush"], &rules)),
        Mode::Nftables => node.space.nft(&rules),
    }
}
