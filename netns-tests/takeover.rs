//! Nodes that ran Raven are taken over one by one, beside traffic.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::agent::{CORAX, await_ready, problems, status};
use crate::lab::{Lab, Plan};
use crate::raven;
use crate::traffic::{Flow, none_lost_anything};

/// What the kernel of the build machine may not have. In the filter's stead a rule keeps VXLAN's own packets, which have the
/// mark of those within, from going where that leads.
const LACKS: &str =
    "ip rule add priority 98 ipproto udp dport 4472 lookup main; KERNEL_LACKS='filter net-net'";

const NODES: [&str; 4] = ["site-2", "cloud-1", "cloud-2", "site-1"];

/// Two domains under Raven, its tunnel in user space. Pods reach each other. And what their nodes had before.
fn ravens(iptables: &str) -> (Lab, [BTreeSet<String>; 4]) {
    let mut lab = Lab::build(&[Plan::public("cloud", 2), Plan::nat("site", 2).mesh()]);
    let before = NODES.map(|name| raven::before(&lab.node(name).space, iptables));
    let make = "wireguard-go raven-wg0 >/dev/null 2>&1";
    let keys = ["cloud-1", "site-1"].map(|name| raven::device(&lab.node(name).space, make));
    let public = format!("{}:4500", lab.public("cloud"));
    raven::peer(&lab.node("site-1").space, &keys[0], Some(&public), &raven::pods(&lab, "cloud"));
    raven::peer(&lab.node("cloud-1").space, &keys[1], None, &raven::pods(&lab, "site"));
    for name in NODES {
        raven::state(&lab, name, &format!("{LACKS} IPTABLES={iptables}"));
    }
    lab.serve();
    (lab, before)
}

fn taken_over_one_by_one(iptables: &str) {
    let (mut lab, before) = ravens(iptables);
    let step = Duration::from_millis(2);
    let pairs = [("site-1", "cloud-1"), ("site-2", "cloud-2"), ("cloud-2", "site-2"), ("cloud-2", "site-1")];
    let flows = pairs.map(|(from, to)| Flow::start(&lab.node(from).pod, lab.node(to).pod4(), step)).into();
    lab.declare();
    lab.write();
    for name in NODES {
        let space = &lab.node(name).space;
        assert!(raven::left(space).contains("RAVEN-MARK-CHAIN"), "{name}");
        let source = lab.source().display().to_string();
        let words = format!("--node-name {name} --vtep-identity node-ip --source {source}");
        let plan = space.run(&format!("{CORAX} plan {words}"));
        for line in ["ip rule del priority 100 fwmark 0x40 lookup 9027", "ipset destroy raven-mark-set"] {
            assert!(plan.contains(line), "{line} is not in:\n{plan}");
        }
        lab.start_agent(name, &["--vtep-identity", "node-ip"]);
        let space = &lab.node(name).space;
        await_ready(space);
        assert_eq!(raven::left(space), "", "{name}");
        assert!(!problems(space).contains("Raven"), "{}", status(space));
    }
    none_lost_anything(flows);
    lab.everyone_reaches_everyone();
    for (name, before) in NODES.iter().zip(&before) {
        raven::leaves_nothing(&mut lab, name, before);
    }
}

#[test]
fn nodes_of_ravens_are_taken_over_one_by_one_and_lose_no_packet() {
    taken_over_one_by_one("iptables-nft");
}

#[test]
fn so_are_those_with_legacy_iptables() {
    taken_over_one_by_one("iptables-legacy");
}

#[test]
fn a_domain_with_one_member_of_ravens_forwards() {
    let lab = raven::mixed_domain(LACKS);
    assert!(raven::left(&lab.node("site-2").space).contains("RAVEN-MARK-CHAIN"), "it is Raven's still");
}

#[test]
fn cleanup_takes_what_raven_left_too() {
    let lab = Lab::build(&[Plan::public("cloud", 2)]);
    raven::state(&lab, "cloud-2", LACKS);
    let space = &lab.node("cloud-2").space;
    let told = space.run(&format!("{CORAX} cleanup --dry-run"));
    assert!(told.contains("ipset destroy raven-mark-set"), "{told}");
    assert!(raven::left(space).contains("raven-mark-set"), "a dry run changes nothing");
    space.run(&format!("{CORAX} cleanup"));
    let rules = space.sh("iptables-save; ipset list -n; ip rule; ip route show table 9027");
    assert!(!rules.to_lowercase().contains("raven") && !rules.contains("902"), "{rules}");
}
