//! What kube-proxy programs, in both of its forms, as recorded from it (fixtures/kube-proxy).

use std::net::{IpAddr, SocketAddr};

use crate::lab::Node;

/// ClusterIPs of the Service.
const SERVICES: [&str; 2] = ["10.96.7.7", "fd00:10:96::7"];

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

/// The Service's ClusterIP and port of the family of an endpoint.
pub fn service(endpoint: IpAddr) -> SocketAddr {
    let [four, six] = SERVICES;
    let address = if endpoint.is_ipv4() { four } else { six };
    SocketAddr::new(address.parse().expect("an address"), 80)
}

/// Programs a Service with one endpoint on a node, which has this address of the endpoint's family.
pub fn proxy(mode: Mode, node: &Node, address: IpAddr, endpoint: IpAddr) {
    let rules = match mode {
        Mode::Iptables => include_str!("fixtures/kube-proxy/iptables.rules"),
        Mode::Nftables => include_str!("fixtures/kube-proxy/nftables.rules"),
    };
    let (rules, cluster) = if endpoint.is_ipv4() {
        (rules.to_owned(), "10.100.0.0/14")
    } else {
        (of_ipv6(rules, endpoint), "fd00:10::/47")
    };
    let rules = rules
        .replace("@SERVICE@", &service(endpoint).ip().to_string())
        .replace("@POD@", &endpoint.to_string())
        .replace("@NODE@", &address.to_string())
        .replace("@CLUSTER@", cluster);
    match mode {
        Mode::Iptables if endpoint.is_ipv4() => {
            drop(node.space.feed(&["iptables-restore", "--noflush"], &rules));
        }
        Mode::Iptables => drop(node.space.feed(&["ip6tables-restore", "--noflush"], &rules)),
        Mode::Nftables => node.space.nft(&rules),
    }
}

/// Takes away what [`proxy`] made.
pub fn forget(node: &Node) {
    node.space.sh("nft delete table ip kube-proxy 2>/dev/null; nft delete table ip6 kube-proxy 2>/dev/null
         for program in iptables ip6tables; do
             for words in '-t nat -F' '-F' '-t nat -X' '-X'; do $program $words; done
         done
         true");
}

/// The recorded rules for IPv6. kube-proxy makes both families' of the same text; but it names a chain after an endpoint,
/// with dots for colons, and has rules about 127.0.0.0/8 in IPv4 alone.
fn of_ipv6(rules: &str, endpoint: IpAddr) -> String {
    let rules = rules
        .replace("__@POD@/", &format!("__{}/", endpoint.to_string().replace(':', ".")))
        .replace("@POD@:", "[@POD@]:")
        .replace("table ip ", "table ip6 ")
        .replace("ip daddr", "ip6 daddr")
        .replace("ip saddr", "ip6 saddr")
        .replace("ipv4_addr", "ipv6_addr")
        .replace("@/32", "@/128");
    rules.lines().filter(|line| !line.contains("127.0.0.0/8")).map(|line| format!("{line}\n")).collect()
}
