//! What is applied is what iproute2 and nft show; what they make is what is observed.

use corax_core::change::Change;
use corax_core::object::{Address, Device, Link, LinkKind, Route, RouteKey, Scope, Sysctl, Table, Via};
use corax_core::observed::{Backend, NftTable};
use serde_json::json;

use super::support::*;
use crate::kernel::Kernel;

#[test]
fn every_class_is_applied_and_seen_by_its_echo() {
    in_namespace(|| {
        let mut kernel = Kernel::open().unwrap();
        assert_eq!(*kernel.observed(), Default::default());
        let changes = every_class();
        apply(&mut kernel, &changes);
        let observed = kernel.observed().clone();
        assert_mirror_is_fresh(&mut kernel, "applying every class");
        assert_same(&observed, kernel.observed(), "draining");
        assert_eq!(observed.links.get(&Device::Overlay), Some(&overlay(mac(1))));
        assert_eq!(observed.nft, NftTable::Intact(ruleset().fingerprint()));
        assert_eq!((observed.fdb.len(), observed.neighbours.len(), observed.nexthops.len()), (2, 4, 4));
        assert_eq!((observed.routes.len(), observed.rules.len(), observed.elements.len()), (8, 10, 6));
        assert_eq!(observed.addresses.len(), 4);
        assert!(!kernel.drain().ours);
    });
}

#[test]
fn the_printed_lines_make_the_same_as_the_changes() {
    let changes = every_class();
    let applied = in_namespace({
        let changes = changes.clone();
        move || {
            let mut kernel = Kernel::open().unwrap();
            apply(&mut kernel, &changes);
            kernel.observed().clone()
        }
    });
    let by_hand = in_namespace(move || {
        let mut kernel = Kernel::open().unwrap();
        for change in &changes {
            by_hand(change);
        }
        kernel.drain();
        assert_eq!(kernel.observed().nft, NftTable::Altered, "nobody sealed it");
        kernel.observed_mut().nft = NftTable::Intact(ruleset().fingerprint());
        kernel.observed().clone()
    });
    assert_same(&applied, &by_hand, "the printed lines");
}

#[test]
fn iproute2_shows_the_overlay_and_its_addresses() {
    in_namespace(|| {
        let mut kernel = Kernel::open().unwrap();
        apply(&mut kernel, &every_class());
        let links = json("ip -j -d link show dev raven0");
        let [link] = links.as_slice() else { panic!("{links:?}") };
        assert_eq!(link["address"], json!("aa:0f:00:00:00:01"));
        assert_eq!(link["mtu"], json!(1420));
        assert_eq!(link["ifalias"], json!("corax"));
        assert_eq!(link["inet6_addr_gen_mode"], json!("none"));
        assert!(link["flags"].as_array().unwrap().contains(&json!("UP")), "{link}");
        let data = &link["linkinfo"]["info_data"];
        assert_eq!((&data["id"], &data["port"]), (&json!(200), &json!(4472)));
        assert_eq!((&data["learning"], &data["ageing"]), (&json!(false), &json!(300)));
        let shown = json("ip -j addr show dev raven0");
        let mut addresses: Vec<_> = shown[0]["addr_info"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| {
                format!(
                    "{}/{} {}",
                    one["local"].as_str().unwrap(),
                    one["prefixlen"],
                    one["scope"].as_str().unwrap()
                )
            })
            .collect();
        addresses.sort();
        let expected = [
            "10.10.4.0/32 global",
            "240.0.0.1/8 link",
            "fd00::ff/128 global",
            "fe80::a80f:ff:fe00:1/64 link",
        ];
        assert_eq!(addresses, expected);
        assert!(!sh("ip -6 addr show dev raven0").contains("tentative"));
        assert_eq!(sh("cat /proc/sys/net/ipv4/conf/raven0/rp_filter").trim(), "2");
    });
}

#[test]
fn iproute2_shows_forwarding_entries_neighbours_nexthops_routes_and_rules() {
    in_namespace(|| {
        let mut kernel = Kernel::open().unwrap();
        apply(&mut kernel, &every_class());
        let fdb = json("bridge -j fdb show dev raven0");
        let entry = fdb.iter().find(|entry| entry["mac"] == json!("aa:0f:00:00:00:02")).unwrap();
        assert_eq!((&entry["dst"], &entry["state"]), (&json!("172.16.0.2"), &json!("permanent")));
        let neighbours = json("ip -j neigh show dev raven0 nud permanent");
        let entry = neighbours.iter().find(|entry| entry["dst"] == json!("240.0.0.2")).unwrap();
        assert_eq!(entry["lladdr"], json!("aa:0f:00:00:00:02"));
        let nexthops = json("ip -j nexthop");
        let entry = nexthops.iter().find(|entry| entry["gateway"] == json!("240.0.0.2")).unwrap();
        assert_eq!(
            (&entry["id"], &entry["dev"], &entry["protocol"]),
            (&json!(0x4000_0002), &json!("raven0"), &json!("90"))
        );
        assert!(entry["flags"].as_array().unwrap().contains(&json!("onlink")), "{entry}");
        let routes = json("ip -j -d route show table 9027");
        let entry = routes.iter().find(|entry| entry["dst"] == json!("10.0.2.0/24")).unwrap();
        assert_eq!((&entry["nhid"], &entry["protocol"]), (&json!(0x4000_0002), &json!("90")));
        let twins = json("ip -j -d -6 route show table 9028");
        let metrics: Vec<_> = twins.iter().map(|entry| (&entry["type"], &entry["metric"])).collect();
        assert_eq!(metrics, [(&json!("unicast"), &json!(1024)), (&json!("unreachable"), &json!(u32::MAX))]);
        let rules = sh("ip -d rule; ip -d -6 rule");
        for line in [
            "99:\tfrom all fwmark 0x1028 lookup main",
            "101:\tfrom all lookup 9028",
            "102:\tfrom all to 10.20.0.0/16 iif raven0 lookup main",
            "102:\tfrom all to fd00:20::/32 iif raven0 lookup main",
            "102:\tfrom all to 10.20.0.0/16 iif raven0 lookup main suppress_prefixlength 3",
            "102:\tfrom all to fd00:20::/32 iif raven0 lookup main suppress_prefixlength 3",
            "103:\tfrom all iif raven0 unreachable",
        ] {
            assert!(
                rules.lines().any(|shown| shown.starts_with(line) && shown.contains("90")),
                "{line}\n{rules}"
            );
        }
    });
}

#[test]
fn what_is_deleted_is_gone_and_deleting_it_again_succeeds() {
    in_namespace(|| {
        let mut kernel = Kernel::open().unwrap();
        let changes = every_class();
        apply(&mut kernel, &changes);
        let before = sh("ip -j link; ip -j rule; ip -j -6 rule");
        let deletes: Vec<Change> = changes.iter().rev().filter_map(opposite).collect();
        for _ in 0..2 {
            apply(&mut kernel, &deletes);
            assert_mirror_is_fresh(&mut kernel, "deleting");
            assert_eq!(*kernel.observed(), Default::default());
        }
        assert_ne!(before, sh("ip -j link; ip -j rule; ip -j -6 rule"));
        for shown in
            ["ip nexthop", "ip route show table 9027", "ip -6 route show table 9028", "nft list ruleset"]
        {
            assert_eq!(sh(&format!("{shown} 2>/dev/null || true")).trim(), "", "{shown}");
        }
        assert!(!sh("ip -d rule; ip -d -6 rule").contains("90"));
    });
}

#[test]
fn putting_what_is_there_succeeds_and_changes_nothing() {
    in_namespace(|| {
        let mut kernel = Kernel::open().unwrap();
        let changes = every_class();
        apply(&mut kernel, &changes);
        let before = kernel.observed().clone();
        // A link is made once only.
        apply(&mut kernel, changes.get(1..).unwrap());
        apply(&mut kernel, &[Change::SetLink(Device::Overlay, overlay(mac(1)))]);
        apply(&mut kernel, &[put_overlay()]);
        assert_same(kernel.observed(), &before, "the second time");
        assert_mirror_is_fresh(&mut kernel, "the second time");
    });
}

#[test]
fn a_link_that_was_altered_is_repaired_in_place() {
    in_namespace(|| {
        let mut kernel = Kernel::open().unwrap();
        let changes = every_class();
        apply(&mut kernel, &changes);
        let index = json("ip -j link show dev raven0")[0]["ifindex"].clone();
        for line in [
            "ip link set raven0 mtu 1300",
            "ip link set raven0 address 02:00:00:00:00:99",
            "ip link set raven0 alias ''",
            "ip link set raven0 type vxlan learning ageing 77",
            "ip link set raven0 down",
        ] {
            sh(line);
            assert!(kernel.drain().ours, "{line}");
            assert_ne!(kernel.observed().links.get(&Device::Overlay), Some(&overlay(mac(1))), "{line}");
            apply(&mut kernel, &[Change::SetLink(Device::Overlay, overlay(mac(1)))]);
            assert_eq!(kernel.observed().links.get(&Device::Overlay), Some(&overlay(mac(1))), "{line}");
            assert_mirror_is_fresh(&mut kernel, line);
        }
        assert_eq!(json("ip -j link show dev raven0")[0]["ifindex"], index);
    });
}

#[test]
fn an_overlay_over_ipv6_has_a_local_address() {
    in_namespace(|| {
        let mut kernel = Kernel::open().unwrap();
        let mut link = overlay(mac(1));
        let LinkKind::Vxlan(vxlan) = &mut link.kind else { panic!("a VXLAN device") };
        vxlan.local = Some(address("fd01::1"));
        vxlan.underlay = corax_core::prefix::Family::V6;
        sh("ip addr add fd01::1/64 dev lo");
        apply(&mut kernel, &[Change::AddLink(Device::Overlay, link.clone())]);
        apply(&mut kernel, &[Change::PutFdb(mac(2), address("fd01::2"))]);
        assert_eq!(kernel.observed().links.get(&Device::Overlay), Some(&link));
        assert_eq!(kernel.observed().fdb.get(&mac(2)), Some(&address("fd01::2")));
        assert_eq!(
            json("ip -j -d link show dev raven0")[0]["linkinfo"]["info_data"]["local6"],
            json!("fd01::1")
        );
        assert_mirror_is_fresh(&mut kernel, "an overlay over IPv6");
    });
}

#[test]
fn a_tun_device_gets_its_settings_and_its_maker_is_somebody_else() {
    in_namespace(|| {
        let mut kernel = Kernel::open().unwrap();
        let device = Device::WireGuard(0);
        let link = Link { kind: LinkKind::Tun, mac: None, mtu: 1380, up: true, owned: true };
        let mut asked = Vec::new();
        let changes = [
            Change::AddLink(device, link.clone()),
            Change::SetLink(device, link.clone()),
            Change::PutAddress(Address { device, address: address("10.10.4.0"), length: 32 }, Scope::Global),
            Change::DeletePeer(device, corax_core::key::PublicKey([7; 32])),
        ];
        let results = kernel.apply(&changes, &mut |change: &Change| {
            if let Change::AddLink(..) = change {
                sh("ip tuntap add raven-wg0 mode tun");
            }
            asked.push(change.clone());
            Ok(())
        });
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        assert_eq!(asked, [changes[0].clone(), changes[3].clone()]);
        assert_eq!(kernel.observed().links.get(&device), Some(&link));
        assert_mirror_is_fresh(&mut kernel, "a TUN device");
    });
}

#[test]
fn an_address_of_another_scope_is_replaced() {
    in_namespace(|| {
        let mut kernel = Kernel::open().unwrap();
        apply(&mut kernel, &[put_overlay(), Change::PutAddress(own_address(), Scope::Link)]);
        apply(&mut kernel, &[Change::PutAddress(own_address(), Scope::Global)]);
        assert_eq!(kernel.observed().addresses.get(&own_address()), Some(&Scope::Global));
        assert_eq!(json("ip -j addr show dev raven0")[0]["addr_info"][0]["scope"], json!("global"));
    });
}

#[test]
fn removing_a_path_never_removes_its_twin() {
    in_namespace(|| {
        let mut kernel = Kernel::open().unwrap();
        apply(&mut kernel, &every_class());
        let path = RouteKey { table: Table::Remote, prefix: prefix("10.20.0.0/16"), metric: 0 };
        assert!(kernel.observed().routes.contains_key(&path));
        // Behind the mirror's back: the removal finds the path gone already.
        sh("ip route del 10.20.0.0/16 table 9028 metric 0 dev raven0");
        let mut results = kernel.apply(&[Change::DeleteRoute(path)], &mut nowhere);
        assert_eq!(results.pop(), Some(Ok(())));
        let left = json("ip -j -d route show table 9028");
        assert_eq!(left.len(), 1);
        assert_eq!(left[0]["type"], json!("unreachable"));
    });
}

#[test]
fn ipv6_that_is_off_costs_ipv4_nothing() {
    in_namespace(|| {
        sh("echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6");
        let mut kernel = Kernel::open().unwrap();
        let changes: Vec<_> = every_class()
            .into_iter()
            .filter(|change| change.backend() == Backend::Routes)
            .filter(|change| !change.to_string().contains("fd00") && !change.to_string().contains("fe80"))
            .collect();
        apply(&mut kernel, &changes);
        assert_eq!(kernel.observed().sysctls.get(&(Device::Overlay, Sysctl::DisableIpv6)), Some(&1));
        assert_mirror_is_fresh(&mut kernel, "IPv6 off");
        // A device that is too small for IPv6 has no settings of it.
        let mut link = overlay(mac(1));
        link.mtu = 1000;
        let small =
            [Change::SetLink(Device::Overlay, link), Change::PutSysctl(Device::Overlay, Sysctl::AcceptRa, 0)];
        apply(&mut kernel, &small);
        assert_mirror_is_fresh(&mut kernel, "a small MTU");
    });
}

#[test]
fn of_two_routes_with_one_key_one_is_left() {
    in_namespace(|| {
        let mut kernel = Kernel::open().unwrap();
        apply(&mut kernel, &every_class());
        let key = RouteKey { table: Table::Remote, prefix: prefix("fd00:20::/32"), metric: 1024 };
        sh("ip -6 route append unreachable fd00:20::/32 table 9028 metric 1024 protocol 90");
        kernel.drain();
        assert_eq!(kernel.observed().routes.get(&key).map(|route| route.via), Some(Via::Other));
        let route = Route { via: Via::Device(Device::Overlay), source: None };
        apply(&mut kernel, &[Change::PutRoute(key, route)]);
        assert_eq!(kernel.observed().routes.get(&key), Some(&route));
        assert_eq!(json("ip -j -6 route show table 9028 metric 1024").len(), 1);
        assert_mirror_is_fresh(&mut kernel, "a doubled route");
    });
}

#[test]
fn rules_that_are_there_twice_are_found_and_removed() {
    in_namespace(|| {
        let mut kernel = Kernel::open().unwrap();
        apply(&mut kernel, &every_class());
        assert_eq!(kernel.repairs(), []);
        // iproute2 refuses equal rules; one of another protocol makes way for one more.
        let six = "ip -6 rule add priority 101 lookup 9028";
        sh(&format!("ip -6 rule del priority 101; {six} protocol 90; {six} protocol 91 || true"));
        kernel.drain();
        assert_eq!(kernel.repairs(), [], "a rule of another protocol is no copy");
        let rule = kernel.observed().rules.keys().find(|rule| rule.priority == 103).copied().unwrap();
        kernel.put_copy(&rule);
        kernel.drain();
        let repairs = kernel.repairs();
        assert_eq!(repairs, [Change::DeleteRule(rule)]);
        apply(&mut kernel, &repairs);
        assert_eq!(kernel.repairs(), []);
        assert!(kernel.observed().rules.contains_key(&rule));
        assert_mirror_is_fresh(&mut kernel, "copies of rules");
    });
}
