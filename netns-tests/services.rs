//! Services with an endpoint in another domain, with kube-proxy's rules and a masquerading CNI at both ends.

use std::net::{IpAddr, SocketAddr};

use crate::kube::{Mode, NODE_PORT, SERVICE, proxy};
use crate::lab::{Lab, Plan};
use crate::space::Space;
use crate::traffic::{PORT, fetch};

/// Every way to a pod of another domain, from every kind of client.
fn every_way(mode: Mode) {
    let mut lab = Lab::start(&[Plan::public("cloud", 2), Plan::nat("site", 2).mesh()]);
    lab.serve();
    let mut failures = Vec::new();
    // The endpoint is on a member, on a gateway; the client is as well.
    for (clients, endpoint) in
        [("cloud", "site-2"), ("cloud", "site-1"), ("site", "cloud-2"), ("site", "cloud-1")]
    {
        let backend = lab.node(endpoint).pod4();
        for node in lab.nodes() {
            node.space.sh("nft delete table ip kube-proxy 2>/dev/null; iptables -t nat -F; iptables -F; iptables -t nat -X; iptables -X; true");
            proxy(mode, node, backend);
        }
        for node in lab.nodes().iter().filter(|node| node.domain == clients) {
            let service = SocketAddr::new(SERVICE.parse().expect("an address"), 80);
            let port = SocketAddr::new(node.address, NODE_PORT);
            let pod = SocketAddr::new(backend, PORT);
            let router = lab.router(clients);
            let ways: [(&str, &Space, SocketAddr, IpAddr); 7] = [
                ("pod to pod", &node.pod, pod, node.pod4()),
                ("pod to ClusterIP", &node.pod, service, node.pod4()),
                ("pod to NodePort", &node.pod, port, node.pod4()),
                ("node to pod", &node.space, pod, node.side4()),
                ("node to ClusterIP", &node.space, service, node.side4()),
                ("node to NodePort", &node.space, port, node.side4()),
                ("outside to NodePort", router, port, node.side4()),
            ];
            for (way, from, to, source) in ways {
                match fetch(from, to, 20_000) {
                    Ok(seen) if seen == source => {}
                    Ok(seen) => {
                        failures.push(format!("{way} of {endpoint} at {}: seen as {seen}", node.name));
                    }
                    Err(why) => failures.push(format!("{way} of {endpoint} at {}: {why}", node.name)),
                }
            }
        }
    }
    assert!(failures.is_empty(), "{mode:?}:\n{}", failures.join("\n"));
}

#[test]
fn services_reach_other_domains_with_kube_proxy_in_iptables_mode() {
    every_way(Mode::Iptables);
}

#[test]
fn services_reach_other_domains_with_kube_proxy_in_nftables_mode() {
    every_way(Mode::Nftables);
}
