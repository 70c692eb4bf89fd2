//! Nodes as Raven leaves them, made by other people's programs, and what may be left of that.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use nix::sys::signal::Signal;

use crate::agent::{CORAX, SECRET, SOON, await_ready};
use crate::await_::eventually;
use crate::lab::{Lab, Node, Plan};
use crate::objects::{difference, everything};
use crate::space::Space;
use crate::traffic::{PORT, fetch};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/netns-tests/fixtures/raven");

/// What is neither Raven's nor Corax's: the CNI's rule, the tests' own, and the lock of iptables.
const OTHERS: [&str; 3] = ["oifname \"raven*\" return", "dport 4472 lookup main", "file:/run/xtables.lock"];

/// What Raven's WireGuard driver leaves on a gateway: the device, with a key that is nowhere else. `make` makes the device.
pub fn device(space: &Space, make: &str) -> String {
    space
        .sh(&format!(
            "{make}
             wg set raven-wg0 private-key <(wg genkey) listen-port 4500
             ip link set raven-wg0 mtu 1420 up
             wg show raven-wg0 public-key"
        ))
        .trim()
        .to_owned()
}

/// The peer of a gateway: another gateway, and all pods behind it.
pub fn peer(space: &Space, key: &str, endpoint: Option<&str>, pods: &str) {
    let endpoint = endpoint.map(|endpoint| format!("endpoint {endpoint}")).unwrap_or_default();
    space.sh(&format!(
        "wg set raven-wg0 peer {key} {endpoint} persistent-keepalive 5 allowed-ips {pods} \
            preshared-key <(printf {SECRET} | sha256sum | xxd -r -p | base64)"
    ));
}

/// IPv4 pods of a domain, a comma between.
pub fn pods(lab: &Lab, domain: &str) -> String {
    let nodes = lab.nodes().iter().filter(|node| node.domain == domain);
    nodes.map(Node::pods4).collect::<Vec<_>>().join(",")
}

/// Everything else that Raven has on a node. `settings` are those of the script.
pub fn state(lab: &Lab, name: &str, settings: &str) {
    let node = lab.node(name);
    let gateway = lab.node(&format!("{}-1", node.domain));
    let role = if gateway.name == name { "gateway" } else { "member" };
    let mut words = format!("{settings} {SCRIPT} {role} {} {}", node.address, gateway.address);
    for other in lab.nodes() {
        if other.domain != node.domain {
            words += &format!(" remote {}", other.pods4());
        } else if role == "gateway" && other.name != name {
            words += &format!(" node {} {}", other.address, other.pods4());
        }
    }
    // Where Raven runs, a CNI knows the cluster's pods, and masquerades none that go to others.
    node.space.sh(&format!("set -e\n{words}\nnft insert rule inet cni postrouting oifname 'raven*' return"));
}

/// What is Raven's in a space, a line each.
pub fn left(space: &Space) -> String {
    space.sh("
        saved=$(iptables-save && iptables-legacy-save) || exit 1
        grep -i raven <<<$saved
        ipset list -n | grep raven
        ip -d rule | grep -e 0x40 -e 'lookup 902' | grep -v 'proto 90'
        for table in 9026 9027 9028 9029; do ip route show table $table | grep -v 'proto 90'; done
        ip neigh show dev raven0 nud permanent | grep -v 'proto 90'
        bridge fdb show dev raven0 | grep 00:00:00:00:00:00
        ip -d link show raven0 | grep -o 'remote [^ ]*'
        tc filter show dev raven0 egress | grep matchall
        true")
}

/// What a node has before Raven runs there. iptables is in use: its own tables and chains stay, as a program of others made them.
pub fn before(space: &Space, iptables: &str) -> BTreeSet<String> {
    space.sh(&format!(
        "set -e
         for chain in 'mangle PREROUTING' 'mangle OUTPUT' 'nat POSTROUTING'; do
             for what in -A -D; do {iptables} -t ${{chain% *}} $what ${{chain#* }} -j ACCEPT; done
         done"
    ));
    without_others(space)
}

/// Ends the agent of a node that was taken over, and cleans up: the node has what it had before Raven ran there, and no more.
#[track_caller]
pub fn leaves_nothing(lab: &mut Lab, name: &str, before: &BTreeSet<String>) {
    lab.end_agent(name, Signal::SIGTERM);
    let space = &lab.node(name).space;
    space.run(&format!("{CORAX} cleanup --state"));
    eventually(&format!("{name} is as it was before Raven"), SOON, || {
        let after = without_others(space);
        if *before == after { Ok(()) } else { Err(difference(before, &after)) }
    });
}

fn without_others(space: &Space) -> BTreeSet<String> {
    let mut all = everything(space);
    all.retain(|line| !OTHERS.iter().any(|others| line.contains(others)));
    all
}

/// A domain of which one member runs Raven, made with `settings`. Its pods and the others' reach another domain, and are reached.
pub fn mixed_domain(settings: &str) -> Lab {
    let mut lab = Lab::build(&[Plan::public("cloud", 1), Plan::nat("site", 3)]);
    lab.declare();
    lab.write();
    state(&lab, "site-2", settings);
    for name in ["cloud-1", "site-1", "site-3"] {
        lab.start_agent(name, &["--vtep-identity", "node-ip"]);
        await_ready(&lab.node(name).space);
    }
    lab.serve();
    lab.await_tunnels();
    for (from, to) in
        [("site-2", "cloud-1"), ("cloud-1", "site-2"), ("site-3", "cloud-1"), ("cloud-1", "site-3")]
    {
        let (from, to) = (lab.node(from), lab.node(to));
        let seen = fetch(&from.pod, SocketAddr::new(to.pod4(), PORT), 100_000);
        assert_eq!(seen, Ok(from.pod4()), "{} to {}", from.name, to.name);
    }
    lab
}
