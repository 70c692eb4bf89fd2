//! Random damage to what Corax keeps on a node, in every class of object. What of others it takes along it makes again.

use nix::sys::signal::Signal;

use super::kernel::{FOREIGN, FOREIGN_NEXTHOPS, FOREIGN_RULES, ours};
use super::operation::foreign_nft;
use crate::agent::SOON;
use crate::await_::eventually;
use crate::chance::Chance;
use crate::lab::{Lab, Plan};
use crate::objects::difference;

/// Damage to any node of a domain. `$k` is a random number, `$f` -4 or -6, `$t` a table.
const ANYWHERE: [(&str, &str); 40] = [
    ("a rule deleted", "l=$(pick ip $f rule show | own | at); rule=${l#*:}; ip $f rule del ${rule/proto/protocol} prio ${l%%:*}"),
    ("a rule of ours at another priority", "ip $f rule add prio 77 lookup 9029 protocol 90"),
    ("a rule of ours with another table", "ip $f rule add prio 100 iif raven0 lookup 9027 protocol 90"),
    ("rules flushed", "ip rule flush; ip rule add lookup main prio 32766; ip rule add lookup default prio 32767
        ip -6 rule flush; ip -6 rule add lookup main prio 32766; restore_rules"),
    ("rules of ours flushed", "ip $f rule flush protocol 90"),
    ("a route deleted", "l=$(ip $f route show table $t | own | at); set -- $l
        [ $1 = unreachable ] && ip $f route del unreachable $2 table $t metric 4294967295 || ip $f route del $1 table $t metric ${l##*metric } 2>/dev/null || ip $f route del $1 table $t"),
    ("a route altered", "l=$(ip -4 route show table $t | own | grep -v unreachable | at); set -- $l; ip route replace $1 dev cni0 table $t protocol 90"),
    ("a route of ours too many", "ip route add 10.199.$k.0/24 dev cni0 table $t protocol 90; ip -6 route add unreachable fd00:199:$k::/64 table $t protocol 90"),
    ("a route of ours with another metric", "l=$(ip -4 route show table $t | own | at); set -- ${l#unreachable}; ip route add unreachable $1 table $t metric 77 protocol 90"),
    ("routes flushed", "ip $f route flush table $t protocol 90"),
    ("a nexthop deleted", "l=$(ip nexthop show | own | at); set -- $l; ip nexthop del id $2"),
    ("a nexthop altered", "l=$(ip nexthop show | own | at); set -- $l; ip nexthop replace id $2 via 240.9.9.9 dev raven0 onlink protocol 90"),
    ("a nexthop of ours too many", "ip nexthop add id $((1073741824 + k)) via 240.9.9.$k dev raven0 onlink protocol 90"),
    ("nexthops flushed", "ip nexthop flush; restore_nexthops"),
    ("a neighbour deleted", "l=$(ip $f neigh show dev raven0 nud permanent | at); set -- $l; ip neigh del $1 dev raven0"),
    ("a neighbour altered", "l=$(ip $f neigh show dev raven0 nud permanent | at); set -- $l; ip neigh replace $1 lladdr 02:00:00:00:99:99 dev raven0 nud permanent"),
    ("a neighbour that may go stale", "l=$(ip $f neigh show dev raven0 nud permanent | at); set -- $l; ip neigh change $1 lladdr $3 dev raven0 nud reachable"),
    ("a neighbour too many", "ip neigh replace 240.9.9.$k lladdr 02:00:00:00:99:99 dev raven0 nud permanent protocol 90"),
    ("an FDB entry deleted", "l=$(bridge fdb show dev raven0 | at); set -- $l; bridge fdb del $1 dev raven0"),
    ("an FDB entry altered", "l=$(bridge fdb show dev raven0 | at); set -- $l; bridge fdb replace $1 dev raven0 dst 192.0.2.9 self permanent"),
    ("a second destination of an FDB entry", "bridge fdb append 00:00:00:00:00:00 dev raven0 dst 192.0.2.8 self permanent"),
    ("an FDB entry too many", "bridge fdb add 02:00:00:00:99:$k dev raven0 dst 192.0.2.9 self permanent"),
    ("nft: everything flushed and the others' loaded again", "(nft list tables | grep -v '^table inet corax$' | while read -r _ table; do nft -s list table $table; done) >/run/chaos.nft; (echo flush ruleset; cat /run/chaos.nft) | nft -f -; rm /run/chaos.nft"),
    ("nft: our table deleted", "nft delete table inet corax"),
    ("nft: a chain flushed", "c=$(nft list table inet corax | grep -o 'chain [a-z_0-9]*' | at); nft flush $(echo $c | sed 's/chain /chain inet corax /')"),
    ("nft: a rule of somebody's in our table", "c=$(nft list table inet corax | grep -o 'chain [a-z_0-9]*' | at); nft insert rule inet corax ${c#chain } counter drop"),
    ("nft: elements deleted", "nft flush set inet corax members4"),
    ("nft: a foreign element", "nft add element inet corax members4 \"{ 10.99.99.$k }\""),
    ("raven0's MAC", "ip link set raven0 address 02:00:00:00:99:99"),
    ("raven0's MTU", "ip link set raven0 mtu 1300"),
    ("raven0's MTU under what IPv6 needs", "ip link set raven0 mtu 1000"),
    ("raven0's alias", "ip link set raven0 alias somebody"),
    ("raven0 down", "ip link set raven0 down"),
    ("raven0 down and up", "ip link set raven0 down; ip link set raven0 up"),
    ("raven0 renamed", "ip link set raven0 down; ip link set raven0 name gone0; ip link set gone0 up; ip link del gone0"),
    ("raven0 deleted", "ip link del raven0"),
    ("raven0 deleted and another's made", "ip link del raven0 && ip link add raven0 type vxlan id 200 dstport 4472 nolearning"),
    ("raven0's addresses deleted", "ip $f addr flush dev raven0"),
    ("an address too many on raven0", "ip addr add 10.99.$k.1/32 dev raven0"),
    ("settings of raven0", "echo 1 >/proc/sys/net/ipv4/conf/raven0/rp_filter; echo 0 >/proc/sys/net/ipv4/conf/raven0/forwarding; echo 0 >/proc/sys/net/ipv6/conf/raven0/forwarding; echo 1 >/proc/sys/net/ipv4/conf/raven0/send_redirects"),
];

const AT_A_GATEWAY: [(&str, &str); 9] = [
    ("a peer removed", "p=$(wg show raven-wg0 peers | at); wg set raven-wg0 peer $p remove"),
    (
        "allowed IPs changed",
        "p=$(wg show raven-wg0 peers | at); wg set raven-wg0 peer $p allowed-ips 10.7.7.0/24",
    ),
    ("a foreign peer", "wg set raven-wg0 peer $(wg genkey | wg pubkey) allowed-ips 10.7.8.0/24"),
    (
        "the preshared key changed",
        "p=$(wg show raven-wg0 peers | at); wg genpsk >/run/chaos.psk; wg set raven-wg0 peer $p preshared-key /run/chaos.psk; rm /run/chaos.psk",
    ),
    ("the tunnel's port moved", "wg set raven-wg0 listen-port 4999"),
    ("raven-wg0 down", "ip link set raven-wg0 down"),
    ("raven-wg0's MTU", "ip link set raven-wg0 mtu 1290"),
    ("raven-wg0's addresses deleted", "ip $f addr flush dev raven-wg0"),
    ("raven-wg0 deleted", "ip link del raven-wg0"),
];

/// Names of damages for a node of that role.
pub fn choose(chance: &mut Chance, gateway: bool) -> &'static str {
    let at_a_gateway = if gateway { AT_A_GATEWAY.len() } else { 0 };
    let at = chance.below(ANYWHERE.len() + at_a_gateway);
    ANYWHERE.iter().chain(&AT_A_GATEWAY).nth(at).expect("within both").0
}

/// The script of a damage; `number` chooses what of several it meets.
pub fn script(name: &str, number: usize) -> String {
    let (_, script) =
        ANYWHERE.iter().chain(&AT_A_GATEWAY).find(|(known, _)| *known == name).expect("a damage");
    let family = ["-4", "-6"][number % 2];
    let table = [9027, 9028, 9029][number % 3];
    // What there is not, because the node is what it is, is not damaged.
    format!(
        "f={family}; t={table}; k={}
         own() {{ grep 'proto 90'; }}
         pick() {{ \"$@\"; }}
         at() {{ mapfile -t lines; (( ${{#lines[@]}} == 0 )) || echo \"${{lines[$(( {number} % ${{#lines[@]}} ))]}}\"; }}
         restore_rules() {{ {FOREIGN_RULES}
         }}
         restore_nexthops() {{ {FOREIGN_NEXTHOPS}
         }}
         {{ {script}
         }} >/dev/null 2>&1
         true",
        10 + number % 89
    )
}

/// A damage that does nothing, for a word that is wrong in it, would harm nobody for ever.
#[test]
fn every_damage_changes_what_is_coraxs() {
    let mut lab = Lab::build(&[Plan::public("cloud", 1), Plan::nat("site", 2).mesh()]);
    foreign_nft(&lab);
    for node in lab.nodes() {
        node.space.sh(&format!("{FOREIGN}\n{FOREIGN_RULES}\n{FOREIGN_NEXTHOPS}"));
    }
    lab.declare();
    lab.write();
    lab.start_agents();
    let space = &lab.node("site-1").space;
    let before = ours(space);
    for (name, _) in ANYWHERE.iter().chain(&AT_A_GATEWAY) {
        lab.signal_agent("site-1", Signal::SIGSTOP);
        // Of both families and all tables, as there is not everything in each.
        let damaged = (0..12).any(|number| {
            space.sh(&script(name, number));
            ours(space) != before
        });
        lab.signal_agent("site-1", Signal::SIGCONT);
        assert!(damaged, "{name}: nothing was damaged");
        eventually(&format!("{name}: repaired"), SOON, || {
            let after = ours(space);
            if before == after { Ok(()) } else { Err(difference(&before, &after)) }
        });
    }
}
