//! Others change what is Corax's: it comes back.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::agent::{SOON, await_ready, by_events};
use crate::await_::eventually;
use crate::lab::{Lab, Plan};
use crate::objects::{difference, ours};
use crate::space::Space;

/// What is done to a node, in words and as a script.
type Damage<'a> = (&'a str, &'a str);

/// `ip route flush` leaves the routes that have a nexthop object: the kernel refuses to delete them as they are listed.
const TOOLS: &str = r#"
empty() {
    local f to what rest
    for f in -4 -6; do
        ip $f route show table $1 | while read -r to what rest; do
            [[ $to != unreachable ]] || to="$to $what"
            ip $f route del $to table $1
        done
    done
}
"#;

/// Rules to own pods as versions before had them.
pub const FORMER_RULES: &str = "for f in -4 -6; do
    ip $f rule show prio 102 | grep suppress_prefixlength | while read -r _ _ _ _ to _ device rest; do
        ip $f rule add prio 102 iif $device to $to lookup main protocol 90 && ip $f rule del prio 102 iif $device to $to
    done
done";

const ANYWHERE: [Damage<'_>; 30] = [
    (
        "ip rule flush",
        "ip rule flush; ip rule add lookup main prio 32766; ip rule add lookup default prio 32767",
    ),
    ("ip -6 rule flush", "ip -6 rule flush; ip -6 rule add lookup main prio 32766"),
    ("one rule deleted", "ip rule del prio 101"),
    ("rules to own pods as they were before they left out default routes", FORMER_RULES),
    ("nft flush ruleset", "nft flush ruleset"),
    ("one nft chain flushed", "nft flush chain inet corax lock"),
    ("a foreign rule in our nft table", "nft add rule inet corax lock counter drop"),
    ("nft elements deleted", "nft flush set inet corax members4"),
    ("a foreign nft element", "nft add element inet corax members4 '{ 10.99.99.99 }'"),
    ("raven0's MAC changed", "ip link set raven0 address 02:00:00:00:99:99"),
    ("raven0's MTU changed", "ip link set raven0 mtu 1300"),
    ("raven0's alias changed", "ip link set raven0 alias somebody"),
    (
        "raven0's settings changed",
        "cd /proc/sys/net/ipv4/conf/raven0; echo 1 >accept_redirects; echo 1 >send_redirects
         echo 1 >/proc/sys/net/ipv6/conf/raven0/accept_ra; echo 1 >rp_filter; echo 0 >forwarding",
    ),
    ("raven0 without IPv6", "echo 1 >/proc/sys/net/ipv6/conf/raven0/disable_ipv6"),
    ("raven0 down", "ip link set raven0 down"),
    ("raven0 down and up", "ip link set raven0 down; ip link set raven0 up"),
    ("raven0 deleted", "ip link del raven0"),
    ("raven0's addresses deleted", "ip -4 addr flush dev raven0; ip -6 addr flush dev raven0"),
    (
        "FDB entries deleted",
        "bridge fdb show dev raven0 | while read mac rest; do bridge fdb del $mac dev raven0; done",
    ),
    (
        "an FDB entry altered",
        "read mac _ < <(bridge fdb show dev raven0 | grep dst); bridge fdb replace $mac dev raven0 dst 192.0.2.9 self permanent",
    ),
    (
        "neighbours altered",
        "for f in -4 -6; do
             read to _ < <(ip $f neigh show dev raven0 nud permanent)
             ip neigh replace $to lladdr 02:00:00:00:99:99 dev raven0 nud permanent protocol 90
         done",
    ),
    (
        "a nexthop altered",
        "read _ id _ < <(ip nexthop show | grep -E 'via 2[45][0-9][.]'); ip nexthop replace id $id via 240.9.9.9 dev raven0 onlink protocol 90",
    ),
    ("a path altered", "ip route replace unreachable 10.101.1.0/24 table 9028 protocol 90"),
    ("a twin altered", "ip route replace blackhole 10.101.1.0/24 table 9028 metric 4294967295 protocol 90"),
    (
        "a default destination of the overlay",
        "for to in 192.0.2.8 192.0.2.9; do bridge fdb append 00:00:00:00:00:00 dev raven0 dst $to self permanent; done",
    ),
    (
        "neighbours deleted",
        "ip neigh flush dev raven0 nud permanent; ip -6 neigh flush dev raven0 nud permanent; ip neigh show dev raven0 nud permanent | while read a rest; do ip neigh del $a dev raven0; done",
    ),
    ("nexthops deleted", "ip nexthop flush"),
    ("table 9028 emptied", "empty 9028"),
    ("table 9029 emptied", "empty 9029"),
    ("a twin deleted", "ip route del unreachable 10.101.1.0/24 table 9028 metric 4294967295"),
];

const AT_A_GATEWAY: [Damage<'_>; 13] = [
    ("table 9027 emptied", "empty 9027"),
    ("a peer removed", "wg set raven-wg0 peer $(wg show raven-wg0 peers | head -n 1) remove"),
    (
        "allowed IPs changed",
        "wg set raven-wg0 peer $(wg show raven-wg0 peers | head -n 1) allowed-ips 10.7.7.0/24",
    ),
    ("the private key changed", "wg set raven-wg0 private-key <(wg genkey)"),
    ("the tunnel's mark changed", "wg set raven-wg0 fwmark 0x77"),
    (
        "keepalives changed",
        "wg set raven-wg0 peer $(wg show raven-wg0 peers | head -n 1) persistent-keepalive 99",
    ),
    (
        "a preshared key changed",
        "wg set raven-wg0 peer $(wg show raven-wg0 peers | head -n 1) preshared-key <(wg genpsk)",
    ),
    ("raven-wg0 without IPv6", "echo 1 >/proc/sys/net/ipv6/conf/raven-wg0/disable_ipv6"),
    ("a foreign peer", "wg set raven-wg0 peer $(wg genkey | wg pubkey) allowed-ips 10.7.8.0/24"),
    (
        "raven-wg0's settings changed",
        "cd /proc/sys/net/ipv4/conf/raven-wg0; echo 1 >accept_redirects; echo 1 >send_redirects
         echo 1 >/proc/sys/net/ipv6/conf/raven-wg0/accept_ra; echo 1 >rp_filter; echo 0 >forwarding",
    ),
    ("raven-wg0 down", "ip link set raven-wg0 down"),
    ("raven-wg0's addresses deleted", "ip -4 addr flush dev raven-wg0; ip -6 addr flush dev raven-wg0"),
    ("raven-wg0 deleted", "ip link del raven-wg0"),
];

/// Where there is one: the kernel's WireGuard has none.
const OF_A_PROCESS: Damage<'_> =
    ("the tunnel's process killed", "for pid in $(pgrep -f '[c]orax tunnel'); do kill -9 $pid; done");

/// What Corax keeps in the kernel of a node, every setting of its devices included.
fn state(space: &Space) -> BTreeSet<String> {
    let mut lines = ours(space);
    let settings = space.sh(
        "cd /proc/sys/net; for device in raven0 raven-wg0; do
             grep -H . ipv4/conf/$device/accept_redirects ipv6/conf/$device/{disable_ipv6,accept_ra} 2>/dev/null
         done
         wg show raven-wg0 persistent-keepalive 2>/dev/null | sed s/^/keepalive:/
         true",
    );
    lines.extend(settings.lines().map(ToOwned::to_owned));
    lines
}

fn lab() -> Lab {
    Lab::start(&[Plan::public("cloud", 2), Plan::nat("site", 2).mesh()])
}

/// Does every damage to a node, twice, and awaits its repair: while the agent is held, so that it is seen to be one, and
/// under its eyes. How long it took the agent then is told.
fn repaired(lab: &mut Lab, name: &str, damages: &[Damage<'_>]) {
    let node = lab.node(name);
    let before = state(&node.space);
    let mut times = Vec::new();
    let repaired = |what: &str| {
        eventually(&format!("{name}, {what}: repaired"), SOON, || {
            let after = state(&node.space);
            if before == after { Ok(()) } else { Err(difference(&before, &after)) }
        });
    };
    for (what, script) in damages {
        let script = format!("{TOOLS}{script}\ntrue");
        lab.signal_agent(name, Signal::SIGSTOP);
        node.space.sh(&script);
        let altered = state(&node.space);
        lab.signal_agent(name, Signal::SIGCONT);
        assert!(before != altered, "{name}, {what}: nothing was damaged");
        repaired(what);
        let time = by_events(&node.space, what, || {
            node.space.sh(&script);
            let damaged = Instant::now();
            repaired(what);
            damaged.elapsed().as_millis()
        });
        times.push((time, *what));
    }
    times.sort_unstable();
    let (middle, slowest) = (times[times.len() / 2].0, times[times.len() - 1]);
    eprintln!(
        "{name}: {} repairs, half within {middle} ms, the slowest {} ms: {}",
        times.len(),
        slowest.0,
        slowest.1
    );
    eprintln!("{name}, ms each: {:?}", times.iter().map(|(time, _)| time).collect::<Vec<_>>());
    lab.everyone_reaches_everyone();
}

#[test]
fn what_is_removed_or_altered_on_a_member_comes_back() {
    let mut lab = lab();
    repaired(&mut lab, "cloud-2", &ANYWHERE);
}

#[test]
fn what_is_removed_or_altered_on_a_gateway_comes_back() {
    let mut lab = lab();
    repaired(&mut lab, "cloud-1", &ANYWHERE);
}

#[test]
fn what_is_removed_or_altered_of_a_tunnel_comes_back() {
    let mut lab = lab();
    let space = &lab.node("cloud-1").space;
    let link = space.json("ip -j -d link show raven-wg0");
    let kind = link[0]["linkinfo"]["info_kind"].as_str().expect("a kind").to_owned();
    let processes = space.sh("pgrep -c -f '[c]orax tunnel' || true");
    // The kernel's WireGuard has no process that could be killed; a device of a process has one.
    let of_a_process = match (&*kind, processes.trim()) {
        ("wireguard", "0") => None,
        ("tun", "1") => Some(OF_A_PROCESS),
        (kind, count) => panic!("raven-wg0 is {kind}, and there are {count} processes of a tunnel"),
    };
    let damages: Vec<_> = AT_A_GATEWAY.into_iter().chain(of_a_process).collect();
    repaired(&mut lab, "cloud-1", &damages);
}

#[test]
fn what_is_altered_of_the_table_of_nodes_comes_back() {
    let mut lab = Lab::build(&[Plan::public("cloud", 3), Plan::nat("site", 1)]);
    lab.declare();
    lab.write();
    for name in ["cloud-1", "cloud-2", "cloud-3", "site-1"] {
        lab.start_agent(name, &["--forward-node-ip"]);
    }
    for node in lab.nodes() {
        await_ready(&node.space);
    }
    let routes = lab.node("cloud-1").space.run("ip route show table 9026");
    assert!(routes.contains("172.16.0.12") && routes.contains("172.16.0.13"), "{routes}");
    let damages = [
        ("table 9026 emptied", "empty 9026"),
        ("a route of table 9026 altered", "ip route replace unreachable 172.16.0.12 table 9026 protocol 90"),
        ("the rule to table 9026 deleted", "ip rule del iif raven-wg0 lookup 9026"),
    ];
    repaired(&mut lab, "cloud-1", &damages);
}

#[test]
fn what_the_kernel_tells_of_in_no_event_comes_back_within_a_minute() {
    let lab = lab();
    let space = &lab.node("cloud-1").space;
    let before = state(space);
    for device in ["raven0", "raven-wg0"] {
        space.sh(&format!(
            "cd /proc/sys/net; echo 1 | tee ipv4/conf/{device}/{{accept,send}}_redirects ipv6/conf/{device}/accept_ra"
        ));
    }
    assert_ne!(before, state(space));
    eventually("settings are as they were", Duration::from_secs(75), || {
        let after = state(space);
        if before == after { Ok(()) } else { Err(difference(&before, &after)) }
    });
}

#[test]
fn a_tunnel_that_was_moved_to_another_port_is_moved_back_and_the_far_end_follows() {
    let mut lab = lab();
    lab.await_tunnels();
    let (cloud, site) = (lab.node("cloud-1"), lab.node("site-1"));
    let before = ours(&cloud.space);
    cloud.space.run("wg set raven-wg0 listen-port 4999");
    eventually("it is moved back", SOON, || {
        let after = ours(&cloud.space);
        if before == after { Ok(()) } else { Err(difference(&before, &after)) }
    });
    // Where the far end heard it last, it looks for it; the first packet from the right port tells it.
    eventually("the far end follows", SOON, || {
        cloud.pod.try_run(&format!("ping -n -q -c 1 -W 1 {}", site.pod4()))
    });
    lab.everyone_reaches_everyone();
}
