//! Services with an endpoint in another domain, with kube-proxy's rules and a masquerading CNI at both ends.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::kube::{Mode, NODE_PORT, forget, proxy, service};
use crate::lab::{Lab, Node, Plan};
use crate::space::Space;
use crate::traffic::{Fetch, OneFlow, PORT, Server, fetch};

/// What of a node and its pod is of one family.
struct Addresses {
    /// The pod.
    pod: IpAddr,
    /// The node, on the underlay.
    node: IpAddr,
    /// The node, on its pods' side.
    side: IpAddr,
}

impl Addresses {
    const fn four(node: &Node) -> Self {
        Self { pod: node.pod4(), node: node.address, side: node.side4() }
    }

    /// The node's underlay address is one that [`with_ipv6`] gives it.
    fn six(node: &Node) -> Self {
        let IpAddr::V6(pod) = node.pod6() else { panic!("{} is of IPv6", node.pod6()) };
        let [a, b, network, number, ..] = pod.segments();
        Self {
            pod: pod.into(),
            node: Ipv6Addr::new(0xfd00, 0x16, network, 0, 0, 0, 0, 0x10 + number).into(),
            side: Ipv6Addr::new(a, b, network, number, 0xffff, 0xffff, 0xffff, 0xffff).into(),
        }
    }

    fn of(node: &Node, six: bool) -> Self {
        if six { Self::six(node) } else { Self::four(node) }
    }
}

/// Two domains whose nodes have an IPv6 address too.
fn with_ipv6() -> Lab {
    let mut lab = Lab::build(&[Plan::public("cloud", 2), Plan::nat("site", 2).mesh()]);
    for node in lab.nodes() {
        node.space.ip(&format!("address add {}/64 dev eth0 nodad", Addresses::six(node).node));
    }
    lab.declare();
    lab.write();
    lab.start_agents();
    lab.serve();
    lab.await_tunnels();
    lab
}

/// Every way to a pod of another domain, from every kind of client.
fn every_way(mode: Mode) {
    let lab = with_ipv6();
    let mut failures = Vec::new();
    // The endpoint is on a member, on a gateway; the client is as well.
    for (clients, endpoint, six) in
        [("cloud", "site-2"), ("cloud", "site-1"), ("site", "cloud-2"), ("site", "cloud-1")]
            .into_iter()
            .flat_map(|(clients, endpoint)| [false, true].map(|six| (clients, endpoint, six)))
    {
        let backend = Addresses::of(lab.node(endpoint), six).pod;
        for node in lab.nodes() {
            forget(node);
            proxy(mode, node, Addresses::of(node, six).node, backend);
        }
        for node in lab.nodes().iter().filter(|node| node.domain == clients) {
            let own = Addresses::of(node, six);
            let service = service(backend);
            let port = SocketAddr::new(own.node, NODE_PORT);
            let pod = SocketAddr::new(backend, PORT);
            let router = lab.router(clients);
            let ways: [(&str, &Space, SocketAddr, IpAddr); 7] = [
                ("pod to pod", &node.pod, pod, own.pod),
                ("pod to ClusterIP", &node.pod, service, own.pod),
                ("pod to NodePort", &node.pod, port, own.pod),
                ("node to pod", &node.space, pod, own.side),
                ("node to ClusterIP", &node.space, service, own.side),
                ("node to NodePort", &node.space, port, own.side),
                ("outside to NodePort", router, port, own.side),
            ];
            for (way, from, to, source) in ways {
                match fetch(from, to, 20_000) {
                    Ok(seen) if seen == source => {}
                    Ok(seen) => {
                        failures
                            .push(format!("{way} {backend} of {endpoint} at {}: seen as {seen}", node.name));
                    }
                    Err(why) => {
                        failures.push(format!("{way} {backend} of {endpoint} at {}: {why}", node.name));
                    }
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

/// By the node's address on its pods' side, which no CNI's MASQUERADE keeps a pod's address from.
#[test]
fn a_node_port_answers_pods_of_other_nodes_and_domains_by_the_way_they_came() {
    let mut lab = Lab::start(&[Plan::public("cloud", 2), Plan::nat("site", 2).mesh(), Plan::nat("box", 1)]);
    lab.serve();
    lab.await_tunnels();
    let mut failures = Vec::new();
    for (client, at, endpoint) in
        [("site-2", "site-1", "cloud-1"), ("box-1", "cloud-1", "site-1"), ("box-1", "site-1", "cloud-2")]
    {
        let (client, at) = (lab.node(client), lab.node(at));
        for six in [false, true] {
            let backend = Addresses::of(lab.node(endpoint), six).pod;
            let side = Addresses::of(at, six).side;
            forget(at);
            proxy(Mode::Iptables, at, side, backend);
            let seen = fetch(&client.pod, SocketAddr::new(side, NODE_PORT), 20_000);
            if seen.as_ref() != Ok(&side) {
                failures.push(format!("{} by {side} of {} to {backend}: {seen:?}", client.name, at.name));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A table that is made anew has what began without it forgotten, and nothing else.
#[test]
fn connections_that_are_right_go_on_when_our_table_is_made_anew() {
    let mut lab = Lab::start(&[Plan::public("cloud", 2), Plan::nat("site", 2).mesh()]);
    lab.serve();
    lab.await_tunnels();
    let [node, member, other] = ["site-1", "site-2", "cloud-1"].map(|name| lab.node(name));
    let _on_host = Server::start(&node.space);
    let own = Addresses::four(node);
    let port = SocketAddr::new(own.side, NODE_PORT);
    let mut failures = Vec::new();
    // A member, a remote pod, a pod of the node's own, a process of it.
    let backends = [member.pod4(), lab.node("cloud-2").pod4(), own.pod, own.node];
    for (backend, udp) in backends.into_iter().zip(7774..) {
        forget(node);
        proxy(Mode::Iptables, node, own.side, backend);
        let to = SocketAddr::new(backend, PORT);
        let service = service(backend);
        let mut ways = vec![
            ("node to backend", &node.space, to),
            ("node to ClusterIP", &node.space, service),
            ("node to NodePort", &node.space, port),
            ("remote pod to NodePort", &other.pod, port),
            ("member's pod to NodePort", &member.pod, port),
        ];
        // A pod that is its own Service's backend comes as its node.
        if backend != own.pod {
            ways.extend([
                ("pod to backend", &node.pod, to),
                ("pod to ClusterIP", &node.pod, service),
                ("pod to NodePort", &node.pod, port),
            ]);
        }
        let begun: Vec<_> = ways.into_iter().map(|(way, from, to)| (way, Fetch::begin(from, to))).collect();
        let wrong = lab.without_table("site-1", || {
            let wrong = OneFlow::start(node, other, udp, node);
            assert_eq!(wrong.source().expect("it is tracked"), own.side.to_string());
            wrong
        });
        wrong.await_source(own.pod);
        for (way, fetch) in begun {
            if let Err(why) = fetch.and_then(|fetch| fetch.finish(20_000)) {
                failures.push(format!("{way}, backend {backend}: {why}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
