use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::desired::Desired;
use crate::fake::FakeKernel;
use crate::object::{
    Address, Link, LinkKind, Route, Scope, VNI, VXLAN_AGEING, VXLAN_PORT, Via, Vxlan, path_metric,
};
use crate::plan::plan;
use crate::plan::tests::{any_desired, desire, sound};
use crate::prefix::{Family, Prefix};
use crate::sample::demo;

/// Routes of a table that lead on, IPv4, of what should be.
fn paths(desired: &Desired, table: Table) -> Vec<Prefix> {
    let key = |key: &RouteKey| {
        key.table == table && key.prefix.family() == Family::V4 && key.metric == path_metric(Family::V4)
    };
    desired.routes.keys().filter(|route| key(route)).map(|route| route.prefix).collect()
}

/// All that Raven leaves beside devices and routes, from one kind of iptables.
fn leftovers(tables: Tables) -> impl Iterator<Item = Leftover> {
    let jumps = Chain::ALL.into_iter().flat_map(move |to| {
        to.hooks().iter().map(move |from| Leftover::Jump(Jump { tables, to, from, rule: "7".into() }))
    });
    let chains = Chain::ALL.map(|chain| Leftover::Chain(tables, chain));
    let flood = Leftover::Flood(IpAddr::from([192, 168, 1, 1]));
    [Leftover::MarkRule(0), flood, Leftover::Filter]
        .into_iter()
        .chain(Set::ALL.map(Leftover::Set))
        .chain(chains)
        .chain(jumps)
}

/// A node on which Raven carried all that Corax is to carry.
fn ravens_node(desired: &Desired, tables: Tables) -> FakeKernel {
    let mut kernel = FakeKernel::default();
    let state = &mut kernel.state;
    let gateway = !desired.tunnels.is_empty();
    let kind = LinkKind::Vxlan(Vxlan {
        vni: VNI,
        port: VXLAN_PORT,
        learning: false,
        ageing: VXLAN_AGEING,
        underlay: Family::V4,
        local: None,
    });
    let mac = desired.links.get(&Device::Overlay).and_then(|link| link.mac);
    state.links.insert(Device::Overlay, Link { kind, mac, mtu: 1420, up: true, owned: false });
    let address = Address { device: Device::Overlay, address: IpAddr::from([240, 168, 1, 4]), length: 8 };
    state.addresses.insert(address, Scope::Link);
    let via = Route { via: Via::Other, source: None };
    let mut put = |table, prefixes: Vec<Prefix>| {
        let key = |prefix| RouteKey { table, prefix, metric: 0 };
        state.routes.extend(prefixes.into_iter().map(|prefix| (key(prefix), via)));
    };
    if gateway {
        put(Table::Remote, paths(desired, Table::Remote));
        put(Table::Domain, paths(desired, Table::Domain));
        state.leftovers.insert(Leftover::TunnelRule(0));
    } else {
        put(Table::Domain, vec![Prefix::new(Ipv4Addr::UNSPECIFIED.into(), 0)]);
    }
    state.leftovers.extend(leftovers(tables));
    kernel
}

/// A packet, as far as routing looks at it.
#[derive(Clone, Copy, Debug)]
struct Packet {
    to: IpAddr,
    input: Option<Device>,
    /// It is from or to another domain, so that Raven marks it.
    remote: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    By(Via),
    Main,
    Unreachable,
}

/// Which way the kernel would send a packet.
fn way(kernel: &FakeKernel, packet: Packet) -> Way {
    let state = &kernel.state;
    let marking = |left: &Leftover| matches!(left, Leftover::Jump(Jump { to: Chain::Mark, .. }));
    let marked = packet.remote && state.leftovers.iter().any(marking);
    let ravens = state.leftovers.iter().filter_map(|left| match left {
        Leftover::MarkRule(_) => Some(MARK_RULE),
        Leftover::TunnelRule(_) => Some(TUNNEL_RULE),
        _ => None,
    });
    // Raven's were there first.
    let mut rules: Vec<Rule> = ravens.chain(state.rules.keys().copied()).collect();
    rules.sort_by_key(|rule| rule.priority);
    let asked = |rule: &&Rule| {
        rule.family == Family::V4
            && rule.input.is_none_or(|input| packet.input == Some(input))
            && rule.mark.is_none_or(|mark| Some(mark) == MARK_RULE.mark && marked)
            && rule.destination.is_none_or(|prefix| prefix.contains(packet.to))
    };
    for rule in rules.iter().filter(asked) {
        let table = match rule.action {
            Action::Main | Action::MainWithoutDefault => return Way::Main,
            Action::Unreachable => return Way::Unreachable,
            Action::Lookup(table) => table,
        };
        let matching =
            state.routes.iter().filter(|(key, _)| key.table == table && key.prefix.contains(packet.to));
        match matching
            .min_by_key(|(key, _)| (u8::MAX - key.prefix.length(), key.metric))
            .map(|(_, route)| route.via)
        {
            Some(Via::Unreachable) => return Way::Unreachable,
            Some(via) => return Way::By(via),
            None => {}
        }
    }
    Way::Main
}

/// Packets that Raven carried on a node, with whether each of them must leave by a path.
fn packets(desired: &Desired) -> Vec<(Packet, bool)> {
    let gateway = !desired.tunnels.is_empty();
    let host = |prefix: &Prefix| prefix.first();
    let to_others = paths(desired, Table::Remote)
        .iter()
        .map(host)
        .flat_map(|to| {
            // Those of own pods, and on a gateway those of members.
            let members = gateway.then_some(Some(Device::Overlay));
            [Some(None), members]
                .into_iter()
                .flatten()
                .map(move |input| (Packet { to, input, remote: !gateway }, true))
        })
        .collect::<Vec<_>>();
    let to_members = paths(desired, Table::Domain)
        .iter()
        .map(host)
        .filter(|_| gateway)
        .map(|to| (Packet { to, input: Some(Device::WireGuard(0)), remote: true }, true))
        .collect::<Vec<_>>();
    let internet = Packet { to: IpAddr::from([198, 51, 100, 250]), input: None, remote: false };
    to_others.into_iter().chain(to_members).chain([(internet, false)]).collect()
}

/// Every packet that had a path has one, and no other is led into a tunnel or the overlay.
fn carried(kernel: &FakeKernel, packets: &[(Packet, bool)]) -> Result<(), String> {
    for (packet, by_path) in packets {
        let way = way(kernel, *packet);
        if *by_path != matches!(way, Way::By(_)) {
            return Err(format!("{packet:?} goes {way:?}"));
        }
    }
    sound(kernel)
}

/// A gateway or member of domains that reach each other, or of some that may not.
fn any_node() -> impl Strategy<Value = Desired> {
    let node = prop::sample::select(vec!["c1", "c2", "s1", "s2", "b1"]);
    let of_demo = (node, any::<bool>()).prop_map(|(node, mesh)| desire(&demo(), node, mesh));
    prop_oneof![3 => of_demo, 1 => any_desired()]
}

fn any_tables() -> impl Strategy<Value = Tables> {
    prop::sample::select(vec![Tables::Nft, Tables::Legacy])
}

proptest! {
    #[test]
    fn no_packet_of_ravens_loses_its_path_after_any_step_of_a_take_over(desired in any_node(), tables in any_tables()) {
        let mut kernel = ravens_node(&desired, tables);
        let packets = packets(&desired);
        prop_assert_eq!(carried(&kernel, &packets), Ok(()), "before");
        for change in plan(&desired, &kernel.state) {
            kernel.apply(&change).map_err(|refusal| TestCaseError::fail(format!("{change}: {refusal}")))?;
            prop_assert_eq!(carried(&kernel, &packets), Ok(()), "after {}", change);
        }
        prop_assert_eq!(&kernel.state.leftovers, &Default::default());
        prop_assert_eq!(plan(&desired, &kernel.state), vec![]);
    }

    #[test]
    fn none_leaks_where_changes_fail(
        desired in any_node(), tables in any_tables(), fails in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
    ) {
        let mut kernel = ravens_node(&desired, tables);
        let packets = packets(&desired);
        let mut gate = Gate::default();
        let changes = plan(&desired, &kernel.state);
        let fails: Vec<usize> = fails.iter().map(|fail| fail.index(changes.len().max(1))).collect();
        for (at, change) in changes.iter().enumerate() {
            if !gate.lets(change) {
                continue;
            }
            if fails.contains(&at) || kernel.apply(change).is_err() {
                gate.failed(change);
            }
            prop_assert_eq!(leaks(&kernel, &packets), Ok(()), "after {}", change);
        }
        for _ in 0..3 {
            let mut gate = Gate::default();
            for change in plan(&desired, &kernel.state) {
                if gate.lets(&change) && kernel.apply(&change).is_err() {
                    gate.failed(&change);
                }
                prop_assert_eq!(leaks(&kernel, &packets), Ok(()), "then after {}", change);
            }
        }
        prop_assert_eq!(plan(&desired, &kernel.state), vec![]);
    }
}

/// No packet for another domain goes by the main table, and none for elsewhere is led off.
fn leaks(kernel: &FakeKernel, packets: &[(Packet, bool)]) -> Result<(), String> {
    for (packet, by_path) in packets {
        let way = way(kernel, *packet);
        if *by_path && way == Way::Main && packet.input != Some(Device::WireGuard(0))
            || !*by_path && way != Way::Main
        {
            return Err(format!("{packet:?} goes {way:?}"));
        }
    }
    Ok(())
}

#[test]
fn each_is_taken_away_by_the_line_that_does_it() {
    let jump = |tables, rule: &str| {
        Leftover::Jump(Jump { tables, to: Chain::Mark, from: "OUTPUT", rule: rule.into() })
    };
    let lines = [
        Leftover::MarkRule(3),
        Leftover::TunnelRule(0),
        Leftover::Flood(IpAddr::from([192, 168, 1, 1])),
        jump(Tables::Nft, "5"),
        jump(Tables::Legacy, "-j RAVEN-MARK-CHAIN"),
        Leftover::Chain(Tables::Nft, Chain::Postrouting),
        Leftover::Chain(Tables::Legacy, Chain::Mark),
        Leftover::Filter,
        Leftover::Set(Set::Mark),
    ];
    assert!(lines.is_sorted(), "this is the order in which they go");
    let lines: Vec<String> = lines.into_iter().map(|left| Change::TakeAway(left).to_string()).collect();
    assert_eq!(
        lines.join("\n"),
        "ip rule del priority 100 fwmark 0x40 lookup 9027 protocol 3
ip rule del priority 101 lookup 9028 protocol 0
bridge fdb del 00:00:00:00:00:00 dev raven0 dst 192.168.1.1 self
nft delete rule ip mangle OUTPUT handle 5
iptables-legacy -t mangle -D OUTPUT -j RAVEN-MARK-CHAIN
nft flush chain ip nat RAVEN-POSTROUTING
nft delete chain ip nat RAVEN-POSTROUTING
iptables-legacy -t mangle -F RAVEN-MARK-CHAIN
iptables-legacy -t mangle -X RAVEN-MARK-CHAIN
tc filter del dev raven0 egress protocol ip pref 20000 matchall
ipset destroy raven-mark-set"
    );
}
