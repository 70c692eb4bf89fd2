use super::*;
use crate::api::Gateway;
use crate::sample::{demo, domain, key};
use crate::view::Settings;

fn of(gateways: &[Gateway], node: &str) -> Topology {
    with(gateways, node, &Facts::default(), |_| {})
}

fn with(gateways: &[Gateway], node: &str, facts: &Facts, change: impl FnOnce(&mut Local<'_>)) -> Topology {
    let view = View::build(gateways, &Settings::default(), None);
    let node = node.parse().unwrap();
    let mut local = Local::new(&node, facts);
    change(&mut local);
    Topology::of(&view, &local)
}

fn remote(topology: &Topology, prefix: &str) -> Option<Path> {
    let prefix = prefix.parse().unwrap();
    topology.remotes.iter().find(|(held, _)| *held == prefix).map(|(_, path)| *path)
}

fn names(vteps: &[Vtep]) -> Vec<&'static str> {
    let mac = |name: &str| Identity::NodeName.mac("kubernetes", &name.parse().unwrap(), [0, 0, 0, 0].into());
    let nodes = ["b1", "c1", "c2", "c3", "s1", "s2"];
    let name = |vtep: &Vtep| nodes.into_iter().find(|name| mac(name) == vtep.mac).unwrap();
    vteps.iter().map(name).collect()
}

#[test]
fn a_member_sends_by_its_gateway_and_a_gateway_by_its_tunnel() {
    let member = of(&demo(), "c2");
    assert_eq!((member.role, names(&member.vteps)), (Role::Member, vec!["c1"]));
    assert_eq!(remote(&member, "10.10.21.0/24"), Some(Path::Overlay));
    let gateway = of(&demo(), "c1");
    assert_eq!((gateway.role, names(&gateway.vteps)), (Role::Gateway, vec!["c2", "c3"]));
    assert_eq!(remote(&gateway, "10.10.21.0/24"), Some(Path::Tunnel));
    assert_eq!(gateway.problems, []);
}

#[test]
fn a_member_tells_of_no_path_where_its_gateway_has_none() {
    let mut gateways = demo();
    let box_ = gateways.iter_mut().find(|gateway| gateway.metadata.name == "box").unwrap();
    box_.status.as_mut().unwrap().active_endpoints.clear();
    for node in ["c1", "c2"] {
        let topology = of(&gateways, node);
        let path =
            |name: &str| topology.domains.iter().find(|domain| domain.name.as_str() == name).unwrap().path;
        assert_eq!(path("box"), Path::None, "{node}");
        assert_ne!(path("site"), Path::None, "{node}");
    }
}

#[test]
fn a_domain_that_shares_no_family_with_a_node_is_told_once() {
    let four = domain("four").node("f1", "10.0.0.1", &["10.1.0.0/24"]).node(
        "f2",
        "10.0.0.2",
        &["10.1.1.0/24", "fd00:1:1::/64"],
    );
    let six =
        domain("six").node("s1", "10.0.1.1", &["fd00:2::/64"]).node("s2", "10.0.1.2", &["fd00:2:1::/64"]);
    let gateways: [Gateway; 2] =
        [four.public("f1", "198.51.100.1").into(), six.public("s1", "198.51.100.2").into()];
    let told = |node| of(&gateways, node).problems.iter().map(ToString::to_string).collect::<Vec<_>>();
    let so = "nothing of it is reached from here (give nodes on both sides subnets of one family)";
    assert_eq!(told("f1"), [format!("Gateway six: has subnets of IPv6 alone, and this node of IPv4: {so}")]);
    assert_eq!(told("f2"), [] as [&str; 0]);
    // Of the other's nodes one has both.
    assert_eq!(told("s1"), [] as [&str; 0]);
}

#[test]
fn extra_cidrs_are_of_a_family_too() {
    let gateways = |here: &str, there: &str| -> [Gateway; 2] {
        let four = domain("four").node("f1", "10.0.0.1", &["10.1.0.0/24"]).public("f1", "198.51.100.1");
        let six = domain("six").node("s1", "10.0.1.1", &["fd00:2::/64"]).public("s1", "198.51.100.2");
        [four.extra(here).into(), six.extra(there).into()]
    };
    let told = |here, there, node| {
        let problems = of(&gateways(here, there), node).problems;
        problems.iter().filter(|problem| problem.what.contains("nothing of it is reached")).count()
    };
    assert_eq!([told("", "", "f1"), told("", "", "s1")], [1, 1]);
    assert_eq!([told("10.9.0.0/24", "", "f1"), told("10.9.0.0/24", "", "s1")], [1, 1]);
    // A gateway node answers for its domain's.
    assert_eq!([told("fd00:9::/64", "", "f1"), told("fd00:9::/64", "", "s1")], [0, 0]);
    assert_eq!([told("", "10.9.0.0/24", "f1"), told("", "10.9.0.0/24", "s1")], [0, 0]);
}

#[test]
fn in_mesh_a_member_speaks_to_all() {
    let member = with(&demo(), "c2", &Facts::default(), |local| local.mesh = true);
    assert_eq!(names(&member.vteps), ["c1", "c3"]);
}

#[test]
fn domains_behind_nats_reach_each_other_by_the_relay() {
    let site = of(&demo(), "s1");
    let [relay] = site.peers.as_slice() else { panic!("one peer: {:?}", site.peers) };
    assert_eq!(relay.domain.as_str(), "cloud");
    assert_eq!((relay.endpoint, relay.keepalive), (Some("203.0.113.1:4500".parse().unwrap()), KEEPALIVE));
    let allowed: Vec<String> = relay.allowed.iter().map(ToString::to_string).collect();
    assert!(allowed.contains(&"10.10.2.0/24".to_owned()) && allowed.contains(&"10.10.21.0/24".to_owned()));
    let cloud = of(&demo(), "c1");
    let peers: Vec<_> = cloud.peers.iter().map(|peer| (peer.domain.as_str(), peer.endpoint)).collect();
    assert_eq!(peers, [("box", None), ("site", None)], "who is behind a NAT speaks first");
}

#[test]
fn the_relay_is_the_last_public_gateway_by_node_name_on_every_node() {
    let mut gateways = demo();
    gateways
        .push(domain("a-hub").node("z9", "10.2.0.1", &["10.20.1.0/24"]).public("z9", "203.0.113.7").into());
    for node in ["s1", "b1"] {
        let topology = of(&gateways, node);
        let other = if node == "s1" { "10.10.21.0/24" } else { "10.10.11.0/24" };
        let by = topology.peers.iter().find(|peer| peer.allowed.contains(&other.parse().unwrap())).unwrap();
        assert_eq!(by.key, key("z9"), "{node}");
    }
}

#[test]
fn a_gateway_that_nobody_can_speak_to_relays_nothing() {
    let mut gateways = demo();
    gateways
        .push(domain("copy").node("z9", "10.2.0.1", &["10.20.1.0/24"]).public("z9", "203.0.113.1").into());
    let (before, after) = (of(&demo(), "s1"), of(&gateways, "s1"));
    assert_eq!(after.peers, before.peers);
    let relay = |topology: &Topology| {
        topology
            .domains
            .iter()
            .find(|domain| domain.name.as_str() == "box")
            .and_then(|box_| box_.relay.clone())
    };
    assert_eq!(relay(&after), relay(&before));
}

#[test]
fn gateways_behind_nats_that_can_talk_directly_do_if_asked() {
    let gateways = [
        domain("a")
            .node("a1", "192.168.1.1", &["10.1.0.0/24"])
            .mapped("a1", "Full cone NAT", "198.51.100.1", 40001)
            .into(),
        domain("b")
            .node("b1", "192.168.1.1", &["10.2.0.0/24"])
            .mapped("b1", "Symmetric NAT", "198.51.100.2", 40002)
            .into(),
    ];
    let direct = with(&gateways, "a1", &Facts::default(), |local| local.nat_traversal = true);
    assert_eq!(direct.peers[0].endpoint, Some("198.51.100.2:40002".parse().unwrap()));
    let refused = of(&gateways, "a1");
    assert_eq!(refused.peers, []);
    assert_eq!(
        remote(&refused, "10.2.0.0/24"),
        Some(Path::None),
        "known, so that it is unreachable and not plain"
    );
    assert!(
        refused.problems.iter().any(|problem| problem.what.contains("no other domain's gateway is public"))
    );
}

#[test]
fn a_domain_without_a_gateway_is_known_and_unreachable() {
    let mut gateways = demo();
    gateways[1].status.as_mut().unwrap().active_endpoints.clear();
    assert_eq!(remote(&of(&gateways, "c1"), "10.10.11.0/24"), Some(Path::None));
    assert_eq!(remote(&of(&gateways, "s2"), "10.10.1.0/24"), Some(Path::None));
}

fn parts(topology: &Topology, prefix: &str) -> Vec<Prefix> {
    let prefix: Prefix = prefix.parse().unwrap();
    topology.remotes.iter().map(|(part, _)| *part).filter(|part| prefix.covers(part)).collect()
}

#[track_caller]
fn told(topology: &Topology, object: &str, what: &str) {
    let mut problems = topology.problems.iter();
    let told = problems.any(|problem| problem.object.contains(object) && problem.what.contains(what));
    assert!(told, "{object}, {what}: {:?}", topology.problems);
}

#[test]
fn a_prefix_that_would_cut_the_node_off_is_refused_and_the_rest_goes_on() {
    const SERVERS: &[IpAddr] = &[IpAddr::V4(Ipv4Addr::new(172, 28, 0, 1))];
    let mut gateways = demo();
    gateways.push(
        domain("greedy")
            .node("g1", "10.5.0.1", &["10.0.0.0/24", "172.28.0.0/16", "172.29.0.0/24", "10.55.0.0/24"])
            .public("g1", "198.51.100.9")
            .into(),
    );
    let facts = Facts { default_gateways: [IpAddr::from([172, 29, 0, 1])].into(), ..Facts::default() };
    let topology = with(&gateways, "c2", &facts, |local| local.api_servers = SERVERS);
    assert_eq!(remote(&topology, "10.55.0.0/24"), Some(Path::Overlay));
    for (prefix, what) in [
        ("10.0.0.0/24", "this node's underlay address 10.0.0.2"),
        ("172.28.0.0/16", "the API server 172.28.0.1"),
        ("172.29.0.0/24", "this node's default gateway 172.29.0.1"),
    ] {
        assert_eq!(parts(&topology, prefix), [], "{prefix}");
        told(&topology, prefix, what);
    }
}

#[test]
fn what_was_steered_within_a_prefix_that_is_refused_stays() {
    let prefixes = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<BTreeSet<_>>();
    // 10.0.0.0/16 for what was 10.0.3.0/24 and 10.0.4.0/24: the cloud's nodes are in it.
    let site = domain("site").node("s1", "192.168.7.1", &["10.0.0.0/16"]).nat("s1").into();
    let view = View::build(&[demo().remove(0), site], &Settings::default(), None);
    let (node, facts) = ("c2".parse().unwrap(), Facts::default());
    let beside = |steered: &BTreeSet<Prefix>| {
        Topology::of(&view, &Local { steered: Some(steered), ..Local::new(&node, &facts) })
    };
    let topology = beside(&prefixes(&["10.0.3.0/24", "10.0.3.128/25", "10.0.4.0/24", "10.11.0.0/24"]));
    assert!(topology.refuses);
    let remotes: Vec<Prefix> = topology.remotes.iter().map(|(prefix, _)| *prefix).collect();
    assert_eq!(remotes, ["10.0.3.0/24", "10.0.4.0/24"].map(|text| text.parse().unwrap()));
    let then = "refused; 10.0.3.0/24 and 1 more within it, which were steered before, stay";
    told(&topology, "Gateway site, subnet 10.0.0.0/16", then);
    // What would cut the node off by itself does not.
    assert_eq!(beside(&prefixes(&["10.0.0.0/24", "10.0.0.0/16"])).remotes, []);
}

#[test]
fn an_address_that_lies_in_a_remote_prefix_costs_no_lock_of_the_rest() {
    let facts = Facts { addresses: [IpAddr::from([10, 10, 11, 200])].into(), ..Facts::default() };
    let topology = with(&demo(), "c2", &facts, |_| {});
    assert_eq!(remote(&topology, "10.10.11.0/24"), Some(Path::Overlay));
    told(&topology, "Gateway site, subnet 10.10.11.0/24", "this node's address 10.10.11.200");

    let mut gateways = demo();
    "10.10.11.5".clone_into(&mut gateways[0].status.as_mut().unwrap().nodes[2].private_ip);
    for node in ["c1", "c2"] {
        let topology = of(&gateways, node);
        let steered = parts(&topology, "10.10.11.0/24");
        assert_eq!(
            steered,
            "10.10.11.0/24".parse::<Prefix>().unwrap().without(&["10.10.11.5/32".parse().unwrap()])
        );
        told(&topology, "Gateway site, subnet 10.10.11.0/24", "of a member: 10.10.11.5/32 is not steered");
    }
}

#[test]
fn a_prefix_that_holds_many_members_is_the_nodes_own_network() {
    let mut many = domain("cloud").node("c0", "10.0.0.1", &["10.20.0.0/24"]);
    for number in 1..=9 {
        many = many.node(
            &format!("c{number}"),
            &format!("10.10.11.{number}"),
            &[&format!("10.20.{number}.0/24")],
        );
    }
    let gateways = [many.into(), demo().remove(1)];
    let topology = of(&gateways, "c0");
    assert_eq!(parts(&topology, "10.10.11.0/24"), []);
    told(
        &topology,
        "10.10.11.0/24",
        "10.10.11.1 of a member, and 8 more: steering it would cut the node off",
    );
}

#[test]
fn an_endpoint_is_spoken_to_although_a_prefix_that_came_later_holds_it() {
    let before = View::build(&demo(), &Settings::default(), None);
    let mut gateways = demo();
    gateways.push(domain("greedy").node("g1", "10.5.0.1", &["203.0.113.0/24"]).nat("g1").into());
    let view = View::build(&gateways, &Settings::default(), Some(&before));
    let (node, facts) = ("s1".parse().unwrap(), Facts::default());
    let topology = Topology::of(&view, &Local::new(&node, &facts));
    let endpoints: Vec<_> = topology.peers.iter().filter_map(|peer| peer.endpoint).collect();
    assert_eq!(endpoints, ["203.0.113.1:4500".parse().unwrap()]);
    let hole = "203.0.113.1/32".parse().unwrap();
    assert_eq!(
        parts(&topology, "203.0.113.0/24"),
        "203.0.113.0/24".parse::<Prefix>().unwrap().without(&[hole])
    );
}

#[test]
fn a_gateways_own_network_may_hold_its_own_endpoint() {
    let site =
        domain("lan").node("l1", "192.168.9.1", &["10.30.0.0/24"]).public("l1", "").extra("192.168.9.0/24");
    let gateways = [demo().remove(0), site.into()];
    let topology = of(&gateways, "c1");
    assert_eq!(topology.peers[0].endpoint, Some("192.168.9.1:4500".parse().unwrap()));
    assert_eq!(parts(&topology, "192.168.9.0/24").len(), 8);
    told(
        &topology,
        "Gateway lan, subnet 192.168.9.0/24",
        "own tunnel endpoint: 192.168.9.1/32 is not steered",
    );
}

#[test]
fn the_same_node_addresses_in_two_domains_are_no_conflict() {
    let topology = of(&demo(), "s2");
    assert_eq!(topology.problems, []);
    assert_eq!(topology.members, [IpAddr::from([192, 168, 1, 1])]);
}

#[test]
fn a_node_of_no_gateway_is_told_so() {
    let topology = of(&demo(), "stranger");
    assert_eq!(topology.role, Role::Outside);
    assert!(topology.problems[0].to_string().contains("node stranger: is a member of no Gateway"));
}

#[test]
fn a_network_of_a_link_that_steered_prefixes_share_is_told_once() {
    let networks = |list: &[&str]| Facts {
        networks: list.iter().map(|network| (network.parse().unwrap(), "eth0".to_owned())).collect(),
        ..Facts::default()
    };
    let told = |facts: &Facts| {
        let topology = with(&demo(), "c2", facts, |_| {});
        assert_eq!(remote(&topology, "10.10.21.0/24"), Some(Path::Overlay));
        topology
            .problems
            .into_iter()
            .map(|problem| format!("{}: {}", problem.object, problem.what))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        told(&networks(&["10.0.0.0/24", "10.10.2.0/24", "192.168.7.0/24", "fd01::/64"])),
        [""; 0],
        "its own, and others"
    );
    let one = told(&networks(&["10.10.21.128/25"]));
    assert_eq!(one.len(), 1);
    assert!(
        one[0].starts_with("network 10.10.21.128/25 of eth0: shares addresses with 10.10.21.0/24 of"),
        "{one:?}"
    );
    let all = told(&networks(&["10.0.0.0/8"]));
    assert_eq!(all.len(), 1);
    assert!(all[0].contains("10.10.11.0/24 and 2 more of other domains"), "{all:?}");
}

#[test]
fn an_endpoint_without_a_key_is_told_once() {
    let mut gateways = demo();
    gateways[1].status.as_mut().unwrap().active_endpoints[0].config.clear();
    let view = View::build(&gateways, &Settings::default(), None);
    let of_site = |problems: &[Problem]| {
        problems.iter().filter(|problem| problem.object.starts_with("Gateway site")).count()
    };
    let cloud = of(&gateways, "c1");
    assert_eq!((of_site(&view.problems), of_site(&cloud.problems)), (1, 0), "{:?}", cloud.problems);
    gateways[1].status.as_mut().unwrap().active_endpoints.clear();
    assert_eq!(of_site(&of(&gateways, "c1").problems), 1, "with none at all nobody else says so");
}

#[test]
fn no_other_member_has_ravens_address_of_the_nodes_own_vtep_as_its_next_hop() {
    // The MACs of `a` and `b` end alike, so `b` gets the next address, which would be that of `c`.
    let member = |name: &str, last, mac| Member {
        node: name.parse().unwrap(),
        underlay: IpAddr::from([10, 0, 0, last]),
        mac: Mac(mac),
        subnets: Subnets::new(),
    };
    let members = vec![
        member("a", 9, [2, 0, 0xf0, 0, 0, 4]),
        member("b", 4, [0xaa, 0x0f, 0xf0, 0, 0, 4]),
        member("c", 5, [0xaa, 0x0f, 0xf0, 0, 0, 5]),
    ];
    let site = Domain { members: members.into(), ..Domain::default() };
    let view = View { domains: [("site".parse().unwrap(), site)].into(), ..View::default() };
    let (node, facts) = ("c".parse().unwrap(), Facts::default());
    let topology =
        Topology::of(&view, &Local { identity: Identity::NodeIp, mesh: true, ..Local::new(&node, &facts) });
    let hops: Vec<String> = topology.vteps.iter().map(|vtep| vtep.next_hop.to_string()).collect();
    assert_eq!(topology.own_overlay, Some(Ipv4Addr::new(240, 0, 0, 5)));
    assert_eq!(hops, ["240.0.0.4", "240.0.0.6"]);
}

#[test]
fn an_underlay_of_ipv6_that_is_too_small_for_the_overlay_is_told_with_link_and_remedy() {
    let cluster = |pods: [&'static str; 2]| -> [Gateway; 1] {
        [domain("six").node("s1", "fd00:16::1", &pods[..1]).node("s2", "fd00:16::2", &pods[1..]).into()]
    };
    let told = |gateways: &[Gateway], mtu: u32| {
        let networks = [("fd00:16::/48", "dummy0"), ("fd00:16::/64", "eth0"), ("fd00:17::/96", "eth1")];
        let networks = networks.map(|(network, link)| (network.parse().unwrap(), link.to_owned())).into();
        let facts = Facts { underlay_mtu: mtu, networks, ..Facts::default() };
        let topology = with(gateways, "s1", &facts, |local| local.mesh = true);
        topology.problems.into_iter().filter(|problem| problem.object == "link eth0").collect::<Vec<_>>()
    };
    let both = cluster(["fd00:1::/64", "fd00:2::/64"]);
    let problems = told(&both, 1349);
    assert!(problems[0].what.contains("MTU of 1349"), "{problems:?}");
    assert!(problems[0].remedy.contains("ip link set eth0 mtu 1350"), "{problems:?}");
    assert_eq!(told(&both, 1350), []);
    // The overlay is as small as it must be.
    assert_eq!(told(&cluster(["10.1.0.0/24", "10.1.1.0/24"]), 1280), []);
}
