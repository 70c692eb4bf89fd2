use super::*;
use crate::object::{VNI, VXLAN_PORT, Vxlan};

#[test]
fn a_change_prints_the_line_that_does_the_same() {
    let vxlan =
        Vxlan { vni: VNI, port: VXLAN_PORT, learning: false, ageing: 300, underlay: Family::V4, local: None };
    let link = Link {
        kind: LinkKind::Vxlan(vxlan),
        mac: Some("aa:0f:f0:a8:01:04".parse().unwrap()),
        mtu: 1420,
        up: true,
        owned: true,
    };
    let prefix: Prefix = "10.10.4.0/24".parse().unwrap();
    let key = RouteKey { table: Table::Remote, prefix, metric: 0 };
    let twin = RouteKey { metric: TWIN_METRIC, ..key };
    let source = Some("10.10.1.0".parse().unwrap());
    let lines = [
        Change::AddLink(Device::Overlay, link),
        Change::PutFdb("aa:0f:f0:a8:01:04".parse().unwrap(), "192.168.1.4".parse().unwrap()),
        Change::PutNeighbour("240.168.1.4".parse().unwrap(), "aa:0f:f0:a8:01:04".parse().unwrap()),
        Change::PutNexthop(NexthopId(0x4000_0001), "240.168.1.4".parse().unwrap()),
        Change::PutRoute(key, Route { via: Via::Nexthop(NexthopId(0x4000_0001)), source }),
        Change::PutRoute(twin, Route { via: Via::Unreachable, source: None }),
        Change::DeleteRoute(twin),
        Change::PutRule(Rule {
            priority: 102,
            family: Family::V4,
            input: Some(Device::WireGuard(0)),
            mark: None,
            destination: Some(prefix),
            action: Action::MainWithoutDefault,
        }),
    ];
    let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines.join("\n"),
        "ip link add raven0 address aa:0f:f0:a8:01:04 mtu 1420 type vxlan id 200 dstport 4472 nolearning ageing 300
ip link set raven0 alias corax up
bridge fdb replace aa:0f:f0:a8:01:04 dev raven0 dst 192.168.1.4 self permanent
ip neigh replace 240.168.1.4 lladdr aa:0f:f0:a8:01:04 dev raven0 nud permanent protocol 90
ip nexthop replace id 1073741825 via 240.168.1.4 dev raven0 onlink protocol 90
ip route replace 10.10.4.0/24 nhid 1073741825 table 9028 src 10.10.1.0 protocol 90
ip route replace unreachable 10.10.4.0/24 table 9028 metric 4294967295 protocol 90
ip route del 10.10.4.0/24 table 9028 metric 4294967295
ip rule add priority 102 iif raven-wg0 to 10.10.4.0/24 lookup main suppress_prefixlength 3 protocol 90"
    );
}

#[test]
fn a_key_is_never_printed() {
    let update = PeerUpdate { preshared: Some(PresharedKey::from_bytes([42; 32])), ..PeerUpdate::default() };
    let change = Change::SetPeer(Device::WireGuard(0), PublicKey([1; 32]), Box::new(update));
    assert!(change.to_string().ends_with("preshared-key (hidden)"), "{change}");
    assert!(!format!("{change:?}").contains("42"));
}
