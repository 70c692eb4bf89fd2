//! What Raven left is seen, and taken away without touching what is somebody else's.

use corax_core::change::Change;
use corax_core::object::{Route, RouteKey, Table, Via};
use corax_core::raven::{Leftover, Set};

use super::support::*;
use crate::kernel::{FactsQuery, Kernel};

/// Raven's state of a gateway or member, as its DaemonSet leaves it. This kernel may lack what `lacks` names.
fn raven(role: &str, iptables: &str) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/netns-tests/fixtures/raven");
    if role == "gateway" {
        sh("ip tuntap add raven-wg0 mode tun; ip link set raven-wg0 alias corax up");
    }
    sh(&format!(
        "IPTABLES={iptables} KERNEL_LACKS='filter net-net' {script} {role} 192.168.1.1 192.168.1.4 \
         remote 10.20.0.0/24 $([ {role} = member ] || echo node 192.168.1.4 10.10.4.0/24)"
    ));
}

/// The policies that every table has, and nothing else.
fn is_empty(iptables: &str) -> bool {
    let tables = ["mangle", "nat"].map(|table| sh(&format!("{iptables} -t {table} -S")));
    tables.iter().flat_map(|table| table.lines()).all(|line| line.starts_with("-P "))
}

/// Takes everything of Raven's away, and gives the lines that do it.
fn take_away(kernel: &mut Kernel) -> Vec<String> {
    let left: Vec<Change> = kernel.observed().leftovers.iter().cloned().map(Change::TakeAway).collect();
    apply(kernel, &left);
    left.iter().map(ToString::to_string).collect()
}

fn is_taken_away_whole(role: &'static str, iptables: &'static str) {
    in_namespace(move || {
        raven(role, iptables);
        let mut kernel = Kernel::open().unwrap();
        let found = kernel.facts(&FactsQuery::default());
        let shadows = found.problems.iter().filter(|problem| problem.object.starts_with("rule "));
        assert_eq!(shadows.count(), 0, "{:?}", found.problems);
        assert!(!is_empty(iptables));
        let lines = take_away(&mut kernel);
        assert_eq!(kernel.observed().leftovers, [].into(), "{lines:#?}");
        assert!(is_empty(iptables), "{lines:#?}");
        assert_eq!(sh("ipset list -n"), "");
        let rules = sh("ip rule");
        assert!(!rules.contains("902"), "{rules}");
        assert!(!sh("bridge fdb show dev raven0").contains("00:00:00:00:00:00"));
        assert!(!sh("ip -d link show raven0").contains("remote"));
        assert_mirror_is_fresh(&mut kernel, "all of Raven's is gone");
        // The lines do the same.
        sh("ip link del raven0; ip link del raven-wg0 2>/dev/null || true; ip route flush table 9027");
        raven(role, iptables);
        let mut again = Kernel::open().unwrap();
        for left in again.observed().leftovers.clone() {
            sh(&left.to_string());
        }
        again.resync().unwrap();
        // The link's own destination is no entry: the FDB's line does what matters.
        let rest = again.observed().leftovers.iter().filter(|left| !matches!(left, Leftover::Flood(_)));
        assert_eq!(rest.count(), 0, "{:?}", again.observed().leftovers);
    });
}

#[test]
fn a_members_state_is_taken_away_whole() {
    is_taken_away_whole("member", "iptables-nft");
}

#[test]
fn a_gateways_state_is_taken_away_whole() {
    is_taken_away_whole("gateway", "iptables-nft");
}

#[test]
fn a_members_state_in_legacy_tables_is_taken_away_whole() {
    is_taken_away_whole("member", "iptables-legacy");
}

#[test]
fn a_gateways_state_in_legacy_tables_is_taken_away_whole() {
    is_taken_away_whole("gateway", "iptables-legacy");
}

/// What users have of their own, some of it near Raven's.
fn users(iptables: &str) -> String {
    format!(
        "ipset create raven-mark-set-2 hash:net; ipset create mine hash:net
         {iptables} -t mangle -N MINE
         {iptables} -t mangle -A PREROUTING -s 10.9.9.9/32 -j MINE
         {iptables} -t mangle -A MINE -m set --match-set mine dst -j MARK --set-mark 64
         {iptables} -t nat -A POSTROUTING -o raven-wg0 -j MASQUERADE
         {iptables} -t nat -A OUTPUT -m comment --comment 'raven traffic should skip NAT' -j ACCEPT
         ip rule add priority 100 fwmark 0x40/0xff lookup 9027
         ip rule add priority 100 fwmark 0x40 lookup 4711
         ip rule add priority 110 fwmark 0x40 lookup 9027
         ip rule add priority 101 fwmark 0x40 lookup 9027; ip rule add priority 100 iif lo lookup 9028"
    )
}

#[test]
fn what_users_have_near_it_stays() {
    for iptables in ["iptables-nft", "iptables-legacy"] {
        in_namespace(move || {
            sh(&users(iptables));
            let shown = || sh(&format!("ipset list; {iptables} -t mangle -S; {iptables} -t nat -S; ip rule"));
            let before = shown();
            raven("gateway", iptables);
            let mut kernel = Kernel::open().unwrap();
            assert_ne!(before, shown());
            take_away(&mut kernel);
            assert_eq!(before, shown());
        });
    }
}

#[test]
fn a_rule_that_the_kernel_would_remove_in_place_of_ravens_keeps_that_one_and_is_told() {
    for others in ["iif lo lookup 9028", "lookup 9028 suppress_prefixlength 0"] {
        keeps_ravens(others);
    }
}

fn keeps_ravens(others: &'static str) {
    in_namespace(move || {
        sh(&format!("ip rule add priority 101 {others}"));
        raven("gateway", "iptables-nft");
        let mut kernel = Kernel::open().unwrap();
        take_away(&mut kernel);
        let rules = sh("ip rule show priority 101");
        assert_eq!(rules.lines().count(), 2, "{rules}");
        let problems = kernel.facts(&FactsQuery::default()).problems;
        let remedy = "once that other rule is gone: ip rule del priority 101 lookup 9028 protocol 0";
        assert!(problems.iter().any(|problem| problem.remedy == remedy), "{problems:#?}");
        // Behind Raven's it is no matter.
        sh(&format!("ip rule del priority 101 {others}; ip rule add priority 101 {others}"));
        kernel.drain();
        take_away(&mut kernel);
        let rules = sh("ip rule show priority 101");
        assert_eq!(rules.split_whitespace().collect::<Vec<_>>().join(" "), format!("101: from all {others}"));
    });
}

#[test]
fn what_a_user_hangs_on_ravens_keeps_it_and_is_told_with_the_line_to_run() {
    for iptables in ["iptables-nft", "iptables-legacy"] {
        in_namespace(move || {
            raven("member", iptables);
            sh(&format!(
                "{iptables} -t mangle -A PREROUTING -s 10.9.9.9/32 -j RAVEN-MARK-CHAIN
                 {iptables} -t mangle -A FORWARD -m set --match-set raven-mark-set dst -j ACCEPT"
            ));
            let mut kernel = Kernel::open().unwrap();
            let left: Vec<Change> =
                kernel.observed().leftovers.iter().cloned().map(Change::TakeAway).collect();
            let results = kernel.apply(&left, &mut nowhere);
            let refused: Vec<_> = results.into_iter().filter_map(Result::err).collect();
            assert_eq!(refused.len(), 2, "{refused:#?}");
            // The chain is as it was, and neither is tried again.
            let chain = sh(&format!("{iptables} -t mangle -S RAVEN-MARK-CHAIN"));
            assert!(chain.contains("--match-set raven-mark-set dst"), "{chain}");
            assert_eq!(kernel.observed().leftovers, [].into());
            assert!(kernel.drain().facts);
            let told = kernel.facts(&FactsQuery::default()).problems;
            let remedies: Vec<&str> = told.iter().map(|problem| problem.remedy.as_str()).collect();
            let chain = if iptables == "iptables-nft" {
                "nft flush chain ip mangle RAVEN-MARK-CHAIN; nft delete chain ip mangle RAVEN-MARK-CHAIN"
            } else {
                "iptables-legacy -t mangle -F RAVEN-MARK-CHAIN; iptables-legacy -t mangle -X RAVEN-MARK-CHAIN"
            };
            for remedy in [chain, "ipset destroy raven-mark-set"] {
                assert!(remedies.contains(&remedy), "{remedy} is not in {remedies:#?}");
            }
            // Once the user's own is gone, the lines work, and the problems end.
            sh(&format!(
                "{iptables} -t mangle -F PREROUTING; {iptables} -t mangle -F FORWARD; {}",
                remedies.join("\n")
            ));
            kernel.resync().unwrap();
            assert_eq!(kernel.stuck(), []);
            assert_eq!(kernel.observed().leftovers, [].into());
        });
    }
}

#[test]
fn ravens_routes_are_replaced_in_place_and_neighbours_become_ours() {
    in_namespace(|| {
        raven("gateway", "iptables-nft");
        let mut kernel = Kernel::open().unwrap();
        let routes: Vec<_> =
            kernel.observed().routes.iter().map(|(key, route)| (key.table, route.via)).collect();
        assert_eq!(routes, [(Table::Domain, Via::Other), (Table::Remote, Via::Other)]);
        let key = RouteKey { table: Table::Remote, prefix: prefix("10.20.0.0/24"), metric: 0 };
        let via = Via::Device(corax_core::object::Device::WireGuard(0));
        let neighbour = *kernel.observed().neighbours.keys().next().unwrap();
        let mac = "aa:0f:f0:a8:01:04".parse().unwrap();
        assert_ne!(kernel.observed().neighbours[&neighbour], mac, "it is Raven's, by its protocol");
        apply(
            &mut kernel,
            &[Change::PutRoute(key, Route { via, source: None }), Change::PutNeighbour(neighbour, mac)],
        );
        let route = sh("ip route show table 9028");
        assert!(route.starts_with("10.20.0.0/24 dev raven-wg0 proto 90 scope link"), "{route}");
        assert_eq!(route.lines().count(), 1, "{route}");
        assert!(sh("ip neigh show dev raven0").contains("PERMANENT proto 90"));
        kernel.resync().unwrap();
        assert_eq!(kernel.observed().neighbours[&neighbour], mac);
    });
}

#[test]
fn a_node_without_raven_is_asked_for_nothing() {
    in_namespace(|| {
        let kernel = Kernel::open().unwrap();
        assert_eq!(kernel.observed().leftovers, [].into());
        assert_eq!(kernel.stuck(), []);
        assert!(!is_set(Set::Mark), "asking makes none");
        let tables = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
        assert_eq!(tables, "", "nor a legacy table");
    });
}

fn is_set(set: Set) -> bool {
    sh("ipset list -n").lines().any(|name| name == set.name())
}
