//! What is somebody else's is never ours, and what stands in the way is named.

use corax_core::change::Change;
use corax_core::facts::Facts;
use corax_core::key::PublicKey;
use corax_core::object::{Device, LinkKind, NexthopId, Route, RouteKey, Sysctl, Table, Via};
use corax_core::raven::Leftover;

use super::support::*;
use crate::kernel::{FactsQuery, Kernel, Lack};

fn facts(kernel: &mut Kernel) -> Facts {
    kernel.drain();
    kernel.facts(&FactsQuery::default())
}

/// Lines that make objects of others, in every class.
const OTHERS: &str = "
    ip link add v0 type veth peer name v1
    ip link set v0 up
    ip link set v1 up
    ip link add flannel.1 type vxlan id 1 dstport 8472
    ip link set flannel.1 up
    ip addr add 10.99.0.0/32 dev flannel.1
    ip addr add 192.0.2.9/24 dev v0
    bridge fdb append aa:bb:cc:00:00:01 dev flannel.1 dst 192.0.2.1
    ip neigh add 10.99.1.0 lladdr aa:bb:cc:00:00:01 dev flannel.1 nud permanent
    ip nexthop add id 7 via 192.0.2.1 dev v0
    ip route add 10.98.0.0/16 nhid 7
    ip route add 10.97.0.0/16 dev v0 table 9028
    ip -6 route add unreachable fd97::/64 table 9027
    ip rule add priority 200 lookup 77
    ip rule add priority 101 iif v0 lookup main
    nft add table inet kube
    nft add set inet kube members4 '{ type ipv4_addr; }'
    nft add element inet kube members4 '{ 1.2.3.4 }'
    nft add table ip corax
";

#[test]
fn objects_of_others_are_not_observed() {
    in_namespace(|| {
        let mut kernel = Kernel::open().unwrap();
        sh(OTHERS);
        let drained = kernel.drain();
        assert!(drained.facts);
        assert_eq!(*kernel.observed(), Default::default());
        assert_mirror_is_fresh(&mut kernel, "objects of others");
    });
}

#[test]
fn everything_of_ours_comes_and_goes_and_nothing_of_others() {
    in_namespace(|| {
        sh(OTHERS);
        let shown = || {
            sh(
                "ip -d link; ip addr; ip nexthop; ip route show table all; ip -6 route show table all; ip rule; ip -6 rule; bridge fdb; ip neigh; nft list ruleset",
            )
        };
        let mut kernel = Kernel::open().unwrap();
        // The kernel is still bringing up the links, and asking who has their addresses.
        let busy = || {
            let text = sh("ip addr show up");
            text.contains("tentative") || text.contains("state DOWN") || text.contains("state LOWERLAYERDOWN")
        };
        while busy() {
            assert!(more_to_come(&kernel), "links never come up");
            kernel.drain();
        }
        let before = shown();
        let changes = every_class();
        apply(&mut kernel, &changes);
        assert_ne!(before, shown());
        let deletes: Vec<Change> = changes.iter().rev().filter_map(opposite).collect();
        apply(&mut kernel, &deletes);
        assert_eq!(before, shown());
    });
}

#[test]
fn what_stands_in_the_way_is_a_problem_with_its_remedy() {
    in_namespace(|| {
        let mut kernel = Kernel::open().unwrap();
        sh("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
        assert_eq!(facts(&mut kernel).problems, []);
        sh(OTHERS);
        sh("ip nexthop add id 1073741830 via 192.0.2.1 dev v0");
        sh(
            "ip rule add priority 0 to 10.99.0.0/24 lookup main; ip rule add priority 50 from 10.0.0.0/8 lookup 77 protocol 90",
        );
        let found = facts(&mut kernel);
        assert_eq!(found.foreign_nexthops, [NexthopId(0x4000_0006)].into());
        let problems: Vec<String> = found.problems.iter().map(ToString::to_string).collect();
        for (object, remedy) in [
            ("rule 101 (from all iif v0 lookup main)", "ip rule del priority 101"),
            ("rule 50 (from 10.0.0.0/8 lookup 77)", "ip rule del priority 50"),
            (
                "rule 0 (from all to 10.99.0.0/24 lookup main)",
                "ip rule del priority 0 from all to 10.99.0.0/24",
            ),
            ("route 10.97.0.0/16 in table 9028", "ip route del 10.97.0.0/16 table 9028"),
            ("route fd97::/64 in table 9027", "del fd97::/64 table 9027"),
        ] {
            let named = |problem: &&String| problem.starts_with(object) && problem.contains(remedy);
            assert!(problems.iter().any(|problem| named(&problem)), "{object}\n{problems:#?}");
        }
        assert_eq!(problems.len(), 5, "{problems:#?}");
        sh(
            "ip rule del priority 101; ip rule del priority 50; ip rule del priority 0 to 10.99.0.0/24; ip route flush table 9028; ip -6 route flush table 9027",
        );
        sh("ip nexthop del id 1073741830");
        let found = facts(&mut kernel);
        assert_eq!((found.problems, found.foreign_nexthops), (vec![], [].into()));
        sh("echo 0 > /proc/sys/net/ipv4/ip_forward");
        let found = facts(&mut kernel);
        assert_eq!(found.problems[0].object, "net.ipv4.ip_forward");
        assert_eq!(found.problems[0].remedy, "sysctl -w net.ipv4.ip_forward=1");
    });
}

#[test]
fn a_link_with_our_name_is_ours_ravens_or_refused() {
    in_namespace(|| {
        let mut kernel = Kernel::open().unwrap();
        sh("ip link add raven0 type veth peer name other");
        let found = facts(&mut kernel);
        let reason = found.foreign_links.get(&Device::Overlay).unwrap();
        assert!(reason.contains("kind veth"), "{reason}");
        assert_eq!(kernel.observed().links[&Device::Overlay].kind, LinkKind::Other("veth".into()));
        for change in [Change::DeleteLink(Device::Overlay), Change::SetLink(Device::Overlay, overlay(mac(1)))]
        {
            let results = kernel.apply(&[change], &mut nowhere);
            let error = results[0].clone().unwrap_err();
            assert!(error.to_string().contains("raven0 is somebody else's"), "{error}");
        }
        let results = kernel.apply(&[put_overlay()], &mut nowhere);
        assert!(results[0].is_err());
        sh("ip link del raven0; ip link add raven0 type vxlan id 7 dstport 4472");
        assert!(facts(&mut kernel).foreign_links[&Device::Overlay].contains("VNI 7"));
        sh(
            "ip link del raven0; ip link add raven0 type vxlan id 200 dstport 4472 nolearning remote 192.0.2.1 dev lo",
        );
        assert!(facts(&mut kernel).foreign_links.is_empty(), "Raven's is taken over");
        sh("ip link set raven0 address 02:00:00:00:00:09");
        apply(&mut kernel, &[Change::SetLink(Device::Overlay, overlay(mac(1)))]);
        assert_eq!(kernel.observed().links.get(&Device::Overlay), Some(&overlay(mac(1))));
        sh("ip tuntap add raven-wg0 mode tun; ip link set raven-wg0 up");
        assert!(facts(&mut kernel).foreign_links[&Device::WireGuard(0)].contains("silent"));
        sh("ip link set raven-wg0 alias corax");
        assert!(facts(&mut kernel).foreign_links.is_empty());
        assert_mirror_is_fresh(&mut kernel, "links with our names");
    });
}

#[test]
fn ravens_leftovers_are_seen_to_be_replaced() {
    in_namespace(|| {
        let mut kernel = Kernel::open().unwrap();
        sh("ip link add raven0 address aa:0f:f0:a8:01:04 type vxlan id 200 dstport 4472 nolearning
            ip link set raven0 up
            ip addr add 240.168.1.4/8 dev raven0 scope link
            bridge fdb append 00:00:00:00:00:00 dev raven0 dst 192.168.1.1
            bridge fdb append aa:0f:f0:a8:01:01 dev raven0 dst 192.168.1.1
            ip neigh add 240.168.1.1 lladdr aa:0f:f0:a8:01:01 dev raven0 nud permanent
            ip route add default via 240.168.1.1 dev raven0 onlink mtu 1420 table 9027");
        kernel.drain();
        let observed = kernel.observed();
        let key = RouteKey { table: Table::Domain, prefix: prefix("0.0.0.0/0"), metric: 0 };
        assert_eq!(observed.routes.get(&key), Some(&Route { via: Via::Other, source: None }));
        assert_eq!((observed.fdb.len(), observed.neighbours.len(), observed.addresses.len()), (1, 1, 1));
        assert_eq!(observed.leftovers, [Leftover::Flood(address("192.168.1.1"))].into());
        assert_mirror_is_fresh(&mut kernel, "Raven's objects");
        apply(&mut kernel, &[Change::DeleteRoute(key)]);
        assert_eq!(json("ip -j route show table 9027").len(), 0);
        assert_mirror_is_fresh(&mut kernel, "Raven's route deleted");
    });
}

#[test]
fn objects_of_others_are_not_overwritten() {
    in_namespace(|| {
        let mut kernel = Kernel::open().unwrap();
        sh(OTHERS);
        sh("ip nexthop add id 1073741830 via 192.0.2.1 dev v0");
        let key = RouteKey { table: Table::Remote, prefix: prefix("10.97.0.0/16"), metric: 0 };
        let changes = [
            put_overlay(),
            Change::PutNexthop(NexthopId(0x4000_0006), address("240.0.0.2")),
            Change::DeleteNexthop(NexthopId(0x4000_0006)),
            Change::PutRoute(key, Route { via: Via::Device(Device::Overlay), source: None }),
        ];
        let results = kernel.apply(&changes, &mut nowhere);
        assert!(results[0].is_ok());
        assert!(results.iter().skip(1).all(Result::is_err), "{results:?}");
        // A removal says our protocol and form; somebody else's stays.
        apply(&mut kernel, &[Change::DeleteRoute(RouteKey { prefix: prefix("10.97.0.0/16"), ..key })]);
        assert!(sh("ip route show table 9028").contains("10.97.0.0/16 dev v0"));
        assert!(sh("ip nexthop").contains("id 1073741830 via 192.0.2.1 dev v0"));
    });
}

#[test]
fn errors_name_the_line_the_reason_and_the_kernels_own_words() {
    in_namespace(|| {
        let mut kernel = Kernel::open().unwrap();
        apply(&mut kernel, &[put_overlay()]);
        let key = RouteKey { table: Table::Domain, prefix: prefix("10.1.0.0/24"), metric: 0 };
        let changes = [
            Change::PutNexthop(NexthopId(0x4000_0001), address("240.0.0.2")),
            Change::PutRoute(key, Route { via: Via::Nexthop(NexthopId(0x4000_0099)), source: None }),
            Change::PutFdb(mac(3), address("172.16.0.3")),
            Change::PutRoute(key, Route { via: Via::Device(Device::WireGuard(1)), source: None }),
        ];
        let results = kernel.apply(&changes, &mut nowhere);
        assert!(results[0].is_ok() && results[2].is_ok(), "{results:?}");
        let error = results[1].clone().unwrap_err();
        assert_eq!(
            error.to_string(),
            "ip route replace 10.1.0.0/24 nhid 1073741977 table 9027 protocol 90: the kernel refuses it as invalid: \
             Nexthop id does not exist"
        );
        let error = results[3].clone().unwrap_err();
        assert!(error.to_string().ends_with("raven-wg1 is not there"), "{error}");
        sh("ip link set raven0 down");
        let results = kernel.apply(&changes[..1], &mut nowhere);
        let error = results[0].clone().unwrap_err();
        assert!(error.to_string().contains("the device is down"), "{error}");
        let foreign =
            kernel.apply(&[Change::DeletePeer(Device::WireGuard(0), PublicKey([1; 32]))], &mut nowhere);
        assert!(foreign[0].is_err());
    });
}

#[test]
fn what_is_not_there_is_told_apart_from_what_is_refused_for_its_own_sake() {
    in_namespace(|| {
        let mut kernel = Kernel::open().unwrap();
        let lacks = |kernel: &mut Kernel, changes: &[Change]| {
            let results = kernel.apply(changes, &mut nowhere).into_iter();
            results.map(|result| result.unwrap_err().lack).collect::<Vec<_>>()
        };
        let routes = |via, sources: [Option<&'static str>; 2]| {
            ["10.77.0.0/24", "fd00:77::/64"].into_iter().zip(sources).map(move |(prefix, source)| {
                let key = RouteKey { table: Table::Remote, prefix: prefix.parse().unwrap(), metric: 1024 };
                Change::PutRoute(key, Route { via, source: source.map(address) })
            })
        };
        let hops = ["240.0.0.2", "fe80::2"].into_iter().zip([NexthopId(0x4000_0071), NexthopId(0x4000_0072)]);
        let hops: Vec<_> = hops.map(|(to, id)| Change::PutNexthop(id, address(to))).collect();
        let by_device = || routes(Via::Device(Device::Overlay), [None, None]);
        let setting = Change::PutSysctl(Device::Overlay, Sysctl::RpFilter, 2);
        // No device, one that is down, one that is up.
        let without: Vec<_> = hops.iter().cloned().chain(by_device()).chain([setting]).collect();
        assert_eq!(lacks(&mut kernel, &without), [Lack::Absent; 5]);
        sh("ip link add raven0 type vxlan id 200 dstport 4472 nolearning");
        kernel.drain();
        let down: Vec<_> = hops.into_iter().chain(by_device()).collect();
        assert_eq!(lacks(&mut kernel, &down), [Lack::Absent; 4]);
        sh("ip link set raven0 up");
        kernel.drain();
        let sourced = routes(Via::Device(Device::Overlay), [Some("10.77.0.1"), Some("fd00:77::1")]);
        let absent: Vec<_> =
            sourced.chain(routes(Via::Nexthop(NexthopId(0x4000_0073)), [None, None])).collect();
        assert_eq!(lacks(&mut kernel, &absent), [Lack::Absent; 4]);
        let strange = Change::PutFdb(mac(9), address("fd00::9"));
        assert_eq!(lacks(&mut kernel, &[strange]), [Lack::Nothing]);
    });
}

#[test]
fn facts_tell_addresses_and_the_mtu_of_the_way() {
    in_namespace(|| {
        let mut kernel = Kernel::open().unwrap();
        sh("ip link add up0 type veth peer name up1
            ip link set up1 up
            ip link set up0 up mtu 1400
            ip addr add 192.0.2.2/24 dev up0
            ip link add side0 type veth peer name side1
            ip link set side1 up
            ip link set side0 up
            ip addr add 198.51.100.2/24 dev side0
            ip route add default via 192.0.2.1
            ip route add 203.0.113.0/24 via 192.0.2.1 mtu 1300");
        kernel.drain();
        apply(&mut kernel, &every_class());
        let query = FactsQuery {
            underlay: Some(address("192.0.2.2")),
            endpoints: ["203.0.113.5", "198.51.100.9", "8.8.8.8", "2001:db8::9"].map(address).to_vec(),
            ..FactsQuery::default()
        };
        let facts = kernel.facts(&query);
        assert_eq!(facts.underlay_mtu, 1400);
        assert_eq!(facts.path_mtu, [(address("198.51.100.9"), 1500), (address("203.0.113.5"), 1300)].into());
        assert!(facts.addresses.contains(&address("192.0.2.2")));
        assert!(!facts.addresses.contains(&own_address().address));
        let strange = FactsQuery { underlay: Some(address("192.0.2.3")), ..FactsQuery::default() };
        let told = |query: &FactsQuery, kernel: &mut Kernel| {
            kernel.facts(query).problems.iter().any(|problem| problem.object.starts_with("address "))
        };
        assert!(told(&strange, &mut kernel) && !told(&query, &mut kernel));
        // Without an own address on it, the default route's link.
        assert_eq!(kernel.facts(&FactsQuery::default()).underlay_mtu, 1400);
        sh("ip link set up0 mtu 1350");
        assert!(kernel.drain().facts);
        assert_eq!(kernel.facts(&query).underlay_mtu, 1350);
        sh("ip route change 203.0.113.0/24 via 192.0.2.1 mtu 1200");
        assert!(kernel.drain().facts);
        assert_eq!(kernel.facts(&query).path_mtu[&address("203.0.113.5")], 1200);
    });
}

#[test]
fn each_other_address_that_vxlan_would_come_from_is_told_with_a_member_who_sees_it() {
    in_namespace(|| {
        sh("ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up
            ip link add side0 type veth peer name side1; ip link set side0 up; ip link set side1 up
            ip addr add 192.0.2.2/24 dev up0; ip addr add 198.51.100.2/24 dev side0
            ip addr add 2001:db8:7::2/64 dev up0 nodad; ip addr add 2001:db8:7::3/64 dev up0 nodad
            ip route add default via 192.0.2.1");
        let mut kernel = Kernel::open().unwrap();
        let query = |own: &str, members: &[(&str, &str)]| FactsQuery {
            underlay: Some(address(own)),
            members: members.iter().map(|(node, at)| (node.parse().unwrap(), address(at))).collect(),
            ..FactsQuery::default()
        };
        let told = |kernel: &mut Kernel, query: &FactsQuery| {
            let told = kernel.facts(query).problems.into_iter();
            let told = told.filter(|problem| problem.object.starts_with("address "));
            told.map(|problem| (problem.what, problem.remedy)).collect::<Vec<_>>()
        };
        let near = [("near", "192.0.2.9"), ("far", "203.0.113.9")];
        assert_eq!(told(&mut kernel, &query("192.0.2.2", &near)), []);
        // A second link has its own: a route can mend that, and another privateIP cannot.
        let all = [near[0], near[1], ("aside", "198.51.100.9"), ("too", "198.51.100.10")];
        let [(what, remedy)] = &told(&mut kernel, &query("192.0.2.2", &all))[..] else { panic!("one") };
        assert!(what.contains("the member aside (198.51.100.9) comes from 198.51.100.2"), "{what}");
        assert_eq!(remedy, "give `src 192.0.2.2` to the route that `ip route get 198.51.100.9` goes by");
        let [(_, remedy)] = &told(&mut kernel, &query("198.51.100.2", &near))[..] else { panic!("one") };
        assert!(remedy.starts_with("make 192.0.2.2 its privateIP, or give `src 198.51.100.2`"), "{remedy}");
        // Over IPv6 the device says where its packets come from, and so it may over IPv4.
        let six = query("2001:db8:7::3", &[("six", "2001:db8:7::9")]);
        assert_eq!(told(&mut kernel, &six), []);
        sh("ip link add raven0 type vxlan id 200 dstport 4472 local 192.0.2.2 nolearning
            ip link set raven0 alias corax");
        kernel.drain();
        assert_eq!(told(&mut kernel, &query("192.0.2.2", &all)), []);
        sh("ip link del raven0; ip route change 198.51.100.0/24 dev side0 src 192.0.2.2");
        assert!(kernel.drain().facts);
        assert_eq!(told(&mut kernel, &query("192.0.2.2", &all)), []);
    });
}

#[test]
fn another_vxlan_device_with_our_vni_or_our_port_taken_is_named_with_the_remedy() {
    in_namespace(|| {
        let mut kernel = Kernel::open().unwrap();
        sh("ip link add other type vxlan id 200 dstport 4472");
        let error = kernel.apply(&[put_overlay()], &mut nowhere).remove(0).unwrap_err().to_string();
        assert!(error.contains("VNI 200, see `ip -d link show type vxlan`"), "{error}");
        sh("ip link del other");
        let taken = std::net::UdpSocket::bind("0.0.0.0:4472").unwrap();
        let error = kernel.apply(&[put_overlay()], &mut nowhere).remove(0).unwrap_err().to_string();
        assert!(error.contains("UDP port 4472 is taken, `ss -lunp"), "{error}");
        drop(taken);
        // Another test's child may still have the socket, until it has become the program that it runs.
        let up = [Change::SetLink(Device::Overlay, overlay(mac(1)))];
        let begun = std::time::Instant::now();
        while let Err(error) = kernel.apply(&up, &mut nowhere).remove(0) {
            assert!(begun.elapsed().as_secs() < 60, "{error}");
            std::thread::yield_now();
        }
    });
}

#[test]
fn networks_and_default_gateways_of_the_node_are_facts() {
    in_namespace(|| {
        sh("ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up
            ip addr add 192.168.7.5/24 dev v0; ip addr add 192.168.9.9/32 dev v0; ip addr add fd07::5/64 dev v0 nodad");
        let mut kernel = Kernel::open().unwrap();
        let found = facts(&mut kernel);
        assert!(found.default_gateways.is_empty(), "{found:?}");
        let held: Vec<_> = found.networks.iter().map(|(network, link)| format!("{network} {link}")).collect();
        assert_eq!(held, ["192.168.7.0/24 v0", "fd07::/64 v0"]);
        sh("ip route add default via 192.168.7.1; ip -6 route add default via fd07::1");
        let gateways = facts(&mut kernel).default_gateways;
        assert_eq!(gateways, [address("192.168.7.1"), address("fd07::1")].into());
    });
}
