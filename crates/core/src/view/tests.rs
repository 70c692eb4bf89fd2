use proptest::prelude::*;

use super::*;
use crate::api::{Endpoint, Gateway, GatewayStatus};
use crate::sample::{Domain as Described, demo, domain, endpoint, key};

fn build(gateways: &[Gateway]) -> View {
    View::build(gateways, &Settings::default(), None)
}

fn subnets(view: &View, domain: &str, node: &str) -> Vec<String> {
    let member = view.domains[&domain.parse::<DomainName>().unwrap()].member(&node.parse().unwrap()).cloned();
    member.map(|member| member.subnets.iter().map(ToString::to_string).collect()).unwrap_or_default()
}

fn told(view: &View, text: &str) -> bool {
    view.problems.iter().any(|problem| problem.to_string().contains(text))
}

#[test]
fn a_good_cluster_has_no_problems() {
    let view = build(&demo());
    assert_eq!(view.problems, []);
    assert_eq!(view.domains.len(), 3);
    assert_eq!(subnets(&view, "cloud", "c2"), ["10.10.2.0/24", "fd00:10:2::/64"]);
}

#[test]
fn one_malformed_or_empty_cidr_costs_that_entry_only() {
    let site = domain("site").node("s1", "192.168.1.1", &["10.10.1.0/24", "10.10.300.0/24", ""]).node(
        "s2",
        "192.168.1.2",
        &["10.10.2.0/24"],
    );
    let view = build(&[site.into()]);
    assert_eq!(subnets(&view, "site", "s1"), ["10.10.1.0/24"]);
    assert_eq!(subnets(&view, "site", "s2"), ["10.10.2.0/24"]);
    assert!(told(&view, "Gateway site, node s1: malformed CIDR \"10.10.300.0/24\""), "{:?}", view.problems);
    assert!(told(&view, "an empty CIDR"));
}

#[test]
fn a_status_with_an_endpoint_and_no_nodes_is_half_of_one_and_its_members_stay() {
    let before = build(&demo());
    let mut cut = demo();
    for gateway in &mut cut {
        gateway.status.as_mut().unwrap().nodes.clear();
    }
    let view = View::build(&cut, &Settings::default(), Some(&before));
    assert_eq!(view.domains, before.domains);
    assert!(told(&view, "Gateway cloud: has active endpoints and no nodes; its members stay"));
    // A status just made anew has neither.
    cut[0].status = Some(GatewayStatus::default());
    let view = View::build(&cut, &Settings::default(), Some(&before));
    assert_eq!(view.domains, before.domains);
    assert!(told(&view, "Gateway cloud: has no nodes; its members stay"), "{:?}", view.problems);
    assert_eq!(build(&[domain("new").into()]).problems, [], "one that never had any is in order");
    // A Gateway that is deleted goes.
    let gone = cut.remove(0).metadata.name.parse::<DomainName>().unwrap();
    assert!(!View::build(&cut, &Settings::default(), Some(&view)).domains.contains_key(&gone));
}

#[test]
fn a_member_without_subnets_keeps_what_it_had() {
    let before = build(&demo());
    let mut gateways = demo();
    gateways[1].status.as_mut().unwrap().nodes[0].subnets.clear();
    let view = View::build(&gateways, &Settings::default(), Some(&before));
    assert_eq!(view.domains, before.domains);
    assert!(told(&view, "Gateway site, node s1: has no subnets; those that it had before stay"));
}

#[test]
fn extra_cidrs_that_are_no_good_leave_those_from_before() {
    let site = |list| domain("site").node("s1", "192.168.1.1", &["10.10.1.0/24"]).nat("s1").extra(list);
    let other = domain("other").node("o1", "10.0.0.1", &["192.168.8.0/24"]);
    let before = build(&[site("192.168.9.0/24").into(), other.clone().into()]);
    for (bad, what) in [
        ("192.168.9.300/24", "malformed CIDR"),
        (
            "192.168.8.0/23",
            "subnet 192.168.8.0/23: overlaps 192.168.8.0/24 of node o1 of Gateway other, refused",
        ),
        ("0.0.0.0/0", "covers every address"),
    ] {
        let view =
            View::build(&[site(bad).into(), other.clone().into()], &Settings::default(), Some(&before));
        assert_eq!(view.domains, before.domains, "{bad}");
        assert!(told(&view, what), "{:?}", view.problems);
        // And nobody else gets them meanwhile.
        let thief = domain("a").node("a1", "10.0.0.9", &["192.168.9.0/24"]);
        let view = View::build(
            &[site(bad).into(), other.clone().into(), thief.into()],
            &Settings::default(),
            Some(&before),
        );
        assert_eq!(subnets(&view, "a", "a1"), Vec::<String>::new(), "{bad}");
    }
    let gone = domain("site").node("s1", "192.168.1.1", &["10.10.1.0/24"]).nat("s1");
    let view = View::build(&[gone.into(), other.into()], &Settings::default(), Some(&before));
    assert_eq!(view.domains[&"site".parse::<DomainName>().unwrap()].extra, [], "taken away, they go");
}

#[test]
fn members_that_stay_are_as_the_settings_of_now_have_them() {
    let settings = [
        Settings::default(),
        Settings { identity: Identity::NodeIp, forward_node_ip: true, ..Settings::default() },
        Settings { cluster: "other".to_owned(), ..Settings::default() },
    ];
    let mut cut = demo();
    for gateway in &mut cut {
        gateway.status = None;
    }
    for before in &settings {
        let before = View::build(&demo(), before, None);
        for now in &settings {
            let view = View::build(&cut, now, Some(&before));
            assert_eq!(view.domains, View::build(&demo(), now, None).domains, "{now:?}");
            let mut torn = demo();
            torn[1].status.as_mut().unwrap().nodes[0].subnets.push("10.300.0.0/24".to_owned());
            let view = View::build(&torn, now, Some(&before));
            assert_eq!(view.domains, View::build(&demo(), now, None).domains, "{now:?}");
        }
    }
}

#[test]
fn who_holds_a_key_keeps_it_whatever_else_is_edited() {
    let zed = Endpoint { public_ip: "203.0.113.3".to_owned(), ..endpoint("z1") };
    let with = |endpoint: &Endpoint| {
        domain("zed").node("z1", "192.168.1.1", &["10.3.1.0/24"]).endpoint(endpoint.clone()).into()
    };
    let copy = Endpoint { node_name: "x1".to_owned(), ..zed.clone() };
    let copy: Gateway = domain("copy").node("x1", "192.168.1.1", &["10.4.1.0/24"]).endpoint(copy).into();
    let before = View::build(&[copy.clone(), with(&zed)], &Settings::default(), Some(&build(&[with(&zed)])));
    for edited in [
        Endpoint { nat_type: "Full cone NAT".to_owned(), ..zed.clone() },
        Endpoint { under_nat: true, ..zed.clone() },
        Endpoint { public_ip: "203.0.113.5".to_owned(), ..zed.clone() },
    ] {
        let view = View::build(&[copy.clone(), with(&edited)], &Settings::default(), Some(&before));
        let gateway = |name: &str| view.domains[&name.parse::<DomainName>().unwrap()].gateways[0].clone();
        assert_eq!((gateway("zed").key, gateway("copy").key), (Some(key("z1")), None), "{edited:?}");
    }
}

#[test]
fn an_overlapping_domain_is_refused_and_the_others_go_on() {
    let before = build(&demo());
    let mut gateways = demo();
    let late = domain("a-late-one").node("l1", "10.9.0.1", &["10.10.0.0/16", "10.99.1.0/24"]);
    gateways.push(late.into());
    let view = View::build(&gateways, &Settings::default(), Some(&before));
    for (name, old) in &before.domains {
        assert_eq!(view.domains[name], *old);
    }
    assert_eq!(subnets(&view, "a-late-one", "l1"), ["10.99.1.0/24"]);
    assert!(
        told(&view, "Gateway a-late-one, node l1, subnet 10.10.0.0/16: overlaps 10.10."),
        "{:?}",
        view.problems
    );
}

#[test]
fn a_member_whose_new_prefix_is_anothers_keeps_its_old_one() {
    let before = build(&demo());
    let mut gateways = demo();
    gateways[1].status.as_mut().unwrap().nodes[0].subnets = vec!["10.10.1.0/24".to_owned()];
    let view = View::build(&gateways, &Settings::default(), Some(&before));
    assert_eq!(subnets(&view, "site", "s1"), ["10.10.11.0/24", "fd00:10:11::/64"]);
    assert_eq!(subnets(&view, "cloud", "c1"), ["10.10.1.0/24", "fd00:10:1::/64"]);
}

#[test]
fn without_a_past_the_older_gateway_keeps_the_prefix() {
    let old = domain("z").node("z1", "10.0.0.1", &["10.1.0.0/24"]).created("2024-01-01T00:00:00Z");
    let new = domain("a").node("a1", "10.0.0.1", &["10.1.0.0/24"]).created("2025-01-01T00:00:00Z");
    let view = build(&[new.into(), old.into()]);
    assert_eq!(subnets(&view, "z", "z1"), ["10.1.0.0/24"]);
    assert_eq!(subnets(&view, "a", "a1"), Vec::<String>::new());
}

#[test]
fn without_a_past_a_prefix_with_a_wrong_length_takes_none_that_lie_in_it() {
    let wide = || domain("box").node("b1", "192.168.0.1", &["10.30.1.0/8"]);
    let cloud =
        domain("cloud").node("c1", "10.0.0.1", &["10.10.1.0/24"]).node("c2", "10.0.0.2", &["10.10.2.0/24"]);
    let site = domain("site").node("s1", "192.168.1.1", &["10.20.1.0/24"]);
    let view = build(&[wide().into(), cloud.into(), site.into()]);
    for (name, node, prefix) in
        [("cloud", "c1", "10.10.1.0/24"), ("cloud", "c2", "10.10.2.0/24"), ("site", "s1", "10.20.1.0/24")]
    {
        assert_eq!(subnets(&view, name, node), [prefix]);
    }
    assert_eq!(subnets(&view, "box", "b1"), Vec::<String>::new());
    assert!(told(&view, "overlaps 10.10.1.0/24"), "{:?}", view.problems);
    assert!(told(&view, "10.30.1.0/8 is taken for 10.0.0.0/8"), "{:?}", view.problems);
    // Of two, either may be the wrong one: the first has it.
    let site = domain("site").node("s1", "192.168.1.1", &["10.20.1.0/24"]);
    let view = build(&[wide().into(), site.into()]);
    assert_eq!(subnets(&view, "box", "b1"), ["10.0.0.0/8"]);
}

#[test]
fn what_would_cut_everyone_off_is_refused() {
    let settings = Settings {
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
        api_servers: vec![IpAddr::from([10, 7, 0, 1])],
        ..Settings::default()
    };
    let bad = [
        "0.0.0.0/0",
        "::/0",
        "240.0.0.0/8",
        "10.100.0.0/24",
        "10.7.0.0/16",
        "127.1.0.0/16",
        "fe80::/64",
        "10.3.0.0/24",
    ];
    let view = View::build(&[domain("a").node("a1", "10.0.0.1", &bad).into()], &settings, None);
    assert_eq!(subnets(&view, "a", "a1"), ["10.3.0.0/24"]);
    for what in [
        "covers every address",
        "240.0.0.0/4",
        "the Service CIDR 10.96.0.0/12",
        "the API server 10.7.0.1",
        "127.0.0.0/8",
        "fe80::/10",
    ] {
        assert!(told(&view, what), "{what}: {:?}", view.problems);
    }
}

#[test]
fn endpoints_are_checked_each_by_itself() {
    let site = domain("site")
        .node("s1", "192.168.1.1", &["10.10.1.0/24"])
        .node("s2", "192.168.1.2", &["10.10.2.0/24"])
        .public("stranger", "203.0.113.9")
        .endpoint(Endpoint { port: Some(70000), ..endpoint("s1") })
        .endpoint(Endpoint { public_ip: "nowhere".to_owned(), ..endpoint("s1") })
        .endpoint(Endpoint { kind: "proxy".to_owned(), ..endpoint("s1") })
        .endpoint(Endpoint { kind: "tunel".to_owned(), ..endpoint("s1") })
        .public("s2", "203.0.113.2")
        .public("s2", "203.0.113.3");
    let view = build(&[site.into()]);
    let gateways = &view.domains[&"site".parse::<DomainName>().unwrap()].gateways;
    assert_eq!(gateways.iter().map(|gateway| gateway.node.as_str()).collect::<Vec<_>>(), ["s2"]);
    assert_eq!(gateways[0].socket(), Some("203.0.113.2:4500".parse().unwrap()));
    for what in [
        "endpoint stranger: its node is no member",
        "port 70000",
        "publicIP \"nowhere\"",
        "endpoint s2: given twice",
        "endpoint s1: its type \"tunel\" is neither tunnel nor proxy",
    ] {
        assert!(told(&view, what), "{what}: {:?}", view.problems);
    }
}

#[test]
fn a_wrong_key_costs_the_tunnel_to_it_and_is_told() {
    let wrong =
        Endpoint { config: [("publicKey".to_owned(), "c2VjcmV0".to_owned())].into(), ..endpoint("s1") };
    let view = build(&[domain("site").node("s1", "192.168.1.1", &["10.10.1.0/24"]).endpoint(wrong).into()]);
    assert_eq!(view.domains.values().next().unwrap().gateways[0].key, None);
    assert!(told(&view, "malformed WireGuard key"), "{:?}", view.problems);
}

#[test]
fn a_gateways_last_good_key_and_socket_stay_where_new_ones_are_no_good() {
    let with = |key: &str, ip: &str| Endpoint {
        config: [("publicKey".to_owned(), key.to_owned())].into(),
        public_ip: ip.to_owned(),
        ..endpoint("s1")
    };
    let site =
        |endpoint: Endpoint| domain("site").node("s1", "192.168.1.1", &["10.10.1.0/24"]).endpoint(endpoint);
    let other = domain("other").node("o1", "10.0.0.1", &["10.10.2.0/24"]).public("o1", "203.0.113.9");
    let good = Endpoint { public_ip: "203.0.113.1".to_owned(), ..endpoint("s1") };
    let before = build(&[site(good).into(), other.clone().into()]);
    let stolen = &endpoint("o1").config["publicKey"];
    let own = &endpoint("s1").config["publicKey"];
    for (bad, what) in [
        (with("c2VjcmV0", "203.0.113.1"), format!("; its last, {own}, stays")),
        (Endpoint { config: [].into(), ..with("", "203.0.113.1") }, format!("; its last, {own}, stays")),
        (with(stolen, "203.0.113.1"), format!("of endpoint o1 of Gateway other; its last, {own}, stays")),
        (with(own, "203.0.113.9"), "; its last, 203.0.113.1:4500, stays".to_owned()),
        (with(own, "nowhere"), "publicIP \"nowhere\" is no address of a host, it stays as it was".to_owned()),
        (Endpoint { port: Some(70_000), ..with(own, "") }, "port 70000 is no UDP port, it stays".to_owned()),
    ] {
        let view =
            View::build(&[site(bad).into(), other.clone().into()], &Settings::default(), Some(&before));
        assert_eq!(view.domains, before.domains, "{what}");
        assert!(told(&view, &what), "{what}: {:?}", view.problems);
    }
}

#[test]
fn a_key_that_is_kept_is_kept_from_others_too_and_keys_may_be_exchanged() {
    let with = |name: &str, node: &str, address: &str, key: &str| {
        let pods =
            format!("10.10.{}.0/24", address.len() + node.len() + usize::from(name.as_bytes()[0]) % 100);
        let config = endpoint(key).config;
        domain(name).node(node, address, &[&pods]).endpoint(Endpoint { config, ..endpoint(node) })
    };
    let before =
        build(&[with("b", "b1", "10.0.0.1", "one").into(), with("c", "c1", "10.0.0.22", "two").into()]);
    assert_eq!(before.problems, []);
    // b asks for c's, and a newcomer for b's.
    let thieves = [
        with("a", "a1", "10.0.0.3", "one").into(),
        with("b", "b1", "10.0.0.1", "two").into(),
        with("c", "c1", "10.0.0.22", "two").into(),
    ];
    let view = View::build(&thieves, &Settings::default(), Some(&before));
    let key =
        |view: &View, domain: &str| view.domains[&domain.parse::<DomainName>().unwrap()].gateways[0].key;
    for name in ["b", "c"] {
        assert_eq!(key(&view, name), key(&before, name), "{:?}", view.problems);
    }
    assert_eq!(key(&view, "a"), None);
    let exchanged = [with("b", "b1", "10.0.0.1", "two").into(), with("c", "c1", "10.0.0.22", "one").into()];
    let view = View::build(&exchanged, &Settings::default(), Some(&before));
    assert_eq!((key(&view, "b"), key(&view, "c")), (key(&before, "c"), key(&before, "b")));
    assert_eq!(view.problems, []);
}

#[test]
fn an_endpoint_in_another_domains_prefix_is_not_spoken_to() {
    let b = domain("b").node("b1", "192.168.1.1", &["10.3.1.0/24"]).nat("b1");
    let x = |ip: &str| domain("x").node("x1", "192.168.1.1", &["10.4.1.0/24"]).public("x1", ip);
    let address = |view: &View| view.domains[&"x".parse::<DomainName>().unwrap()].gateways[0].socket();
    let of = |gateways: &[&Described], before| {
        let gateways: Vec<Gateway> = gateways.iter().map(|domain| (*domain).clone().into()).collect();
        View::build(&gateways, &Settings::default(), before)
    };
    let what = "Gateway x, endpoint x1: publicIP 10.3.1.5 lies in 10.3.1.0/24 of node b1 of Gateway b";
    let fresh = of(&[&b, &x("10.3.1.5")], None);
    assert_eq!((address(&fresh), subnets(&fresh, "b", "b1")), (None, vec!["10.3.1.0/24".to_owned()]));
    assert!(told(&fresh, &format!("{what}, and is not spoken to")), "{:?}", fresh.problems);
    assert_eq!(of(&[&b, &x("10.3.1.5")], Some(&fresh)), fresh);
    // Who was well before keeps that.
    let before = of(&[&b, &x("203.0.113.9")], None);
    let edited = of(&[&b, &x("10.3.1.5")], Some(&before));
    assert_eq!(edited.domains, before.domains);
    assert!(told(&edited, &format!("{what}; its last, 203.0.113.9:4500, stays")), "{:?}", edited.problems);
    // And who was there before the prefix.
    let first = of(&[&x("10.3.1.5")], None);
    let joined = of(&[&b, &x("10.3.1.5")], Some(&first));
    assert_eq!(
        (address(&joined), subnets(&joined, "b", "b1")),
        (address(&first), vec!["10.3.1.0/24".to_owned()])
    );
    assert!(told(
        &joined,
        "Gateway b, node b1, subnet 10.3.1.0/24: holds 10.3.1.5 of endpoint x1 of Gateway x"
    ));
}

#[test]
fn a_node_of_two_gateways_stays_where_it_was() {
    let a = domain("a").node("n1", "10.0.0.1", &["10.1.0.0/24"]);
    let b = domain("b").node("n1", "10.0.0.1", &["10.1.0.0/24"]);
    let before = build(&[b.clone().into()]);
    let view = View::build(&[a.clone().into(), b.clone().into()], &Settings::default(), Some(&before));
    assert_eq!(view.member(&"n1".parse().unwrap()).unwrap().0.as_str(), "b");
    let fresh = build(&[b.into(), a.into()]);
    assert_eq!(fresh.member(&"n1".parse().unwrap()).unwrap().0.as_str(), "a");
    assert!(told(&fresh, "is a member of Gateway a too"));
}

#[test]
fn two_members_with_one_address_or_one_vtep_are_told_and_the_second_left_out() {
    let settings = Settings { identity: Identity::NodeIp, ..Settings::default() };
    let site = domain("site")
        .node("a", "10.0.0.5", &["10.1.1.0/24"])
        .node("b", "10.0.0.5", &["10.1.2.0/24"])
        .node("c", "192.0.0.5", &["10.1.3.0/24"]);
    let view = View::build(&[site.into()], &settings, None);
    let members: Vec<_> =
        view.domains.values().next().unwrap().members.iter().map(|member| member.node.as_str()).collect();
    assert_eq!(members, ["a"]);
    assert!(told(&view, "node b: has the address 10.0.0.5 of node a"));
    assert!(told(&view, "node c: has the VTEP MAC aa:0f:f0:00:00:05 of node a"), "{:?}", view.problems);
}

#[test]
fn extra_cidrs_belong_to_the_gateway_node() {
    let site =
        domain("site").node("s1", "192.168.1.1", &["10.10.1.0/24"]).nat("s1").extra("192.168.9.0/24, x");
    let view = build(&[site.into()]);
    let domain = view.domains.values().next().unwrap();
    assert_eq!(domain.extra, ["192.168.9.0/24".parse().unwrap()]);
    assert!(told(&view, "annotation raven.openyurt.io/extra-allowed-source-cidrs: malformed CIDR \"x\""));
}

/// Few names, addresses and prefixes, so that they clash.
pub(crate) fn small_gateways() -> impl Strategy<Value = Vec<Gateway>> {
    let subnet = (0u8..12, prop::sample::select(vec![23u8, 24, 25]), any::<bool>()).prop_map(
        |(third, length, six)| {
            if six { format!("fd00:{third}::/{}", length + 39) } else { format!("10.10.{third}.0/{length}") }
        },
    );
    let node = (0u8..6, 1u8..6, prop::collection::vec(subnet, 0..3));
    let one = (0u8..4, prop::collection::vec(node, 0..5), prop::option::of((0u8..6, any::<bool>())));
    prop::collection::vec(one, 0..5).prop_map(|domains| {
        let built = domains.into_iter().map(|(name, nodes, gateway)| {
            let mut built = domain(&format!("d{name}"));
            for (node, address, subnets) in nodes {
                let subnets: Vec<&str> = subnets.iter().map(String::as_str).collect();
                built = built.node(&format!("n{node}"), &format!("192.168.1.{address}"), &subnets);
            }
            if let Some((node, nat)) = gateway {
                let node = format!("n{node}");
                built = if nat {
                    built.nat(&node)
                } else {
                    let address =
                        if name == 3 { "10.10.4.9".to_owned() } else { format!("203.0.113.{}", name + 1) };
                    built.public(&node, &address)
                };
            }
            built.into()
        });
        built.collect()
    })
}

proptest! {
    #[test]
    fn no_two_prefixes_of_a_view_overlap_and_no_node_is_twice_in_it(gateways in small_gateways(), before in small_gateways()) {
        let before = build(&before);
        for previous in [None, Some(&before)] {
            let view = View::build(&gateways, &Settings::default(), previous);
            let mut held = crate::prefix::DisjointPrefixes::new();
            let mut nodes = std::collections::BTreeSet::new();
            for domain in view.domains.values() {
                for prefix in domain.prefixes() {
                    prop_assert!(held.insert(prefix, ()).is_ok(), "{} twice", prefix);
                }
                for member in &domain.members {
                    prop_assert!(nodes.insert(member.node.clone()));
                }
                for gateway in &domain.gateways {
                    prop_assert!(domain.member(&gateway.node).is_some());
                    let others = view.domains.values().filter(|other| *other != domain);
                    let held = others.flat_map(Domain::prefixes).any(|prefix| gateway.address.is_some_and(|address| prefix.contains(address)));
                    prop_assert!(!held || previous.is_some(), "{:?} is a pod's", gateway.address);
                }
            }
        }
    }

    #[test]
    fn the_order_of_the_gateways_does_not_matter(gateways in small_gateways().prop_shuffle(), turn in 0usize..5) {
        // Of two Gateways with one name the first is used: that is an order, and not of this test.
        let mut unique: Vec<Gateway> = Vec::new();
        for gateway in gateways {
            if unique.iter().all(|other| other.metadata.name != gateway.metadata.name) {
                unique.push(gateway);
            }
        }
        let view = build(&unique);
        let by = turn.min(unique.len());
        unique.rotate_left(by);
        prop_assert_eq!(&build(&unique), &view);
        for node in unique.iter_mut().flat_map(|gateway| &mut gateway.status.as_mut().unwrap().nodes) {
            let by = turn.min(node.subnets.len());
            node.subnets.rotate_left(by);
        }
        prop_assert_eq!(&build(&unique), &view, "of the subnets");
    }

    #[test]
    fn a_view_of_the_same_gateways_is_itself(gateways in small_gateways()) {
        let view = build(&gateways);
        let again = View::build(&gateways, &Settings::default(), Some(&view));
        prop_assert_eq!(again, view);
    }
}

#[test]
fn what_is_malformed_leaves_a_member_as_it_was() {
    let before = build(&demo());
    let mut gateways = demo();
    let status = gateways[1].status.as_mut().unwrap();
    "192.168.1.300".clone_into(&mut status.nodes[0].private_ip);
    "10.10.300.0/24".clone_into(&mut status.nodes[1].subnets[0]);
    gateways[2].status = None;
    let view = View::build(&gateways, &Settings::default(), Some(&before));
    assert_eq!(view.domains, before.domains);
    for what in ["its last, 192.168.1.1, stays", "malformed CIDR \"10.10.300.0/24\"", "its members stay"] {
        assert!(told(&view, what), "{what}: {:?}", view.problems);
    }
}

#[test]
fn an_address_stays_with_the_member_that_has_it() {
    let site = domain("site").node("b", "10.0.0.5", &["10.1.1.0/24"]);
    let before = build(&[site.clone().into()]);
    let view = View::build(
        &[site.node("a", "10.0.0.5", &["10.1.2.0/24"]).into()],
        &Settings::default(),
        Some(&before),
    );
    assert_eq!(view.domains, before.domains);
    assert!(told(&view, "node a: has the address 10.0.0.5 of node b"), "{:?}", view.problems);
}

#[test]
fn a_key_or_address_of_two_domains_stays_with_the_one_that_has_it() {
    let site = domain("site").node("s1", "192.168.1.1", &["10.1.1.0/24"]).public("s1", "203.0.113.1");
    let before = build(&[site.clone().into()]);
    let copy = Endpoint { public_ip: "203.0.113.1".to_owned(), node_name: "a1".to_owned(), ..endpoint("s1") };
    let copied = domain("a").node("a1", "192.168.1.1", &["10.1.2.0/24"]).endpoint(copy);
    let view = View::build(&[copied.into(), site.into()], &Settings::default(), Some(&before));
    let gateway = |domain: &str| view.domains[&domain.parse::<DomainName>().unwrap()].gateways[0].clone();
    assert_eq!(gateway("site"), before.domains.values().next().unwrap().gateways[0]);
    assert_eq!((gateway("a").key, gateway("a").socket()), (None, None));
    assert!(told(&view, "Gateway a, endpoint a1: has the publicKey of endpoint s1 of Gateway site"));
    assert!(told(&view, "Gateway a, endpoint a1: has the address and port of endpoint s1 of Gateway site"));
}

#[test]
fn old_prefixes_that_are_kept_are_kept_from_others_too() {
    let zoo = |prefix| domain("zoo").node("z1", "10.0.0.1", &[prefix]);
    let other = domain("other").node("o1", "10.0.0.2", &["10.2.0.0/24"]);
    let before = build(&[zoo("10.1.0.0/24").into(), other.clone().into()]);
    let thief = domain("a").node("a1", "10.0.0.3", &["10.1.0.0/24"]);
    let view = View::build(
        &[zoo("10.2.0.0/24").into(), other.into(), thief.into()],
        &Settings::default(),
        Some(&before),
    );
    assert_eq!(subnets(&view, "zoo", "z1"), ["10.1.0.0/24"]);
    assert_eq!(subnets(&view, "a", "a1"), Vec::<String>::new());
}
