//! What is wrong with the input, or with the node, costs its own part only, and is said.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::agent::{CORAX, SOON, await_ready, problems};
use crate::await_::eventually;
use crate::lab::{Lab, Plan};
use crate::objects::{difference, ours};
use crate::space::Space;
use crate::traffic::Flow;

fn two_domains() -> Lab {
    Lab::start(&[Plan::public("cloud", 2), Plan::nat("site", 1)])
}

/// A domain of one node that exists on paper.
fn paper(name: &str, subnets: &[&str]) -> Value {
    let key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
    let endpoint = json!({
        "nodeName": format!("{name}-1"), "type": "tunnel", "publicIP": "198.18.9.2", "config": { "publicKey": key },
    });
    json!({
        "apiVersion": "raven.openyurt.io/v1beta1",
        "kind": "Gateway",
        "metadata": { "name": name },
        "spec": { "tunnelConfig": { "Replicas": 1 }, "endpoints": [endpoint] },
        "status": {
            "nodes": [{ "nodeName": format!("{name}-1"), "privateIP": "10.77.0.1", "subnets": subnets }],
            "activeEndpoints": [endpoint],
        },
    })
}

fn await_problem(space: &Space, words: &[&str]) {
    eventually(&format!("a problem with {words:?}"), SOON, || {
        let text = problems(space);
        if words.iter().all(|word| text.contains(word)) { Ok(()) } else { Err(text) }
    });
}

fn await_route(space: &Space, prefix: &str) {
    eventually(&format!("a route to {prefix}"), SOON, || {
        let routes = space.run("ip route show table 9028");
        if routes.lines().any(|line| line.starts_with(prefix)) { Ok(()) } else { Err(routes) }
    });
}

#[test]
fn a_malformed_file_keeps_its_own_last_gateways_and_others_go_on() {
    let mut lab = two_domains();
    lab.serve();
    let member = lab.node("cloud-2");
    let flow = Flow::start(&member.pod, lab.node("site-1").pod4(), Duration::from_millis(5));
    lab.write_file("site.json", "{ \"apiVersion\": ");
    await_problem(&member.space, &["site.json"]);
    lab.write_file("other.json", &paper("other", &["10.150.1.0/24"]).to_string());
    await_route(&member.space, "10.150.1.0/24");
    flow.lost_nothing();
    // Well again, it is followed again.
    lab.write();
    eventually("nothing is wrong", SOON, || {
        let text = problems(&member.space);
        if text.contains("site.json") { Err(text) } else { Ok(()) }
    });
}

#[test]
fn a_domain_that_overlaps_another_is_refused_and_others_go_on() {
    let mut lab = two_domains();
    lab.serve();
    let member = lab.node("cloud-2");
    let flow = Flow::start(&member.pod, lab.node("site-1").pod4(), Duration::from_millis(5));
    lab.write_file("thief.json", &paper("thief", &["10.101.1.0/24"]).to_string());
    lab.write_file("other.json", &paper("other", &["10.150.1.0/24"]).to_string());
    await_route(&member.space, "10.150.1.0/24");
    await_problem(&member.space, &["thief", "10.101.1.0/24"]);
    flow.lost_nothing();
    lab.everyone_reaches_everyone();
}

#[test]
fn a_prefix_that_would_cut_the_node_off_is_refused() {
    let lab = two_domains();
    let member = lab.node("cloud-2");
    let prefixes = ["172.16.0.0/16", "0.0.0.0/0", "10.96.0.0/20", "240.0.0.0/8", "10.150.1.0/24"];
    lab.write_file("greedy.json", &paper("greedy", &prefixes).to_string());
    await_route(&member.space, "10.150.1.0/24");
    for refused in ["172.16.0.0/16", "0.0.0.0/0", "10.96.0.0/20"] {
        await_problem(&member.space, &["greedy", refused]);
    }
    let routes = member.space.run("ip route show table 9028");
    assert!(
        !routes.contains("172.16") && !routes.contains("default") && !routes.contains("10.96"),
        "{routes}"
    );
    member.space.run("ping -n -c 1 -W 2 172.16.0.254");
}

#[test]
fn malformed_parts_of_a_gateway_cost_only_themselves() {
    let lab = two_domains();
    let member = lab.node("cloud-2");
    let mut gateway = paper("broken", &["", "10.150.1.0/24", "10.300.0.0/24"]);
    lab.write_file("broken.json", &gateway.to_string());
    await_route(&member.space, "10.150.1.0/24");
    await_problem(&member.space, &["broken", "10.300.0.0/24"]);
    gateway["status"]["activeEndpoints"][0]["config"]["publicKey"] = json!("no key");
    lab.write_file("broken.json", &gateway.to_string());
    let space = &lab.node("cloud-1").space;
    await_problem(space, &["broken", "no key"]);
    assert!(space.run("wg show raven-wg0 peers").lines().count() == 1, "the site's tunnel stays");
}

#[test]
fn a_foreign_raven0_is_refused_and_untouched() {
    let mut lab = Lab::build(&[Plan::public("cloud", 2), Plan::nat("site", 1)]);
    lab.declare();
    lab.write();
    let space = &lab.node("cloud-2").space;
    space.sh("ip link add raven0 type vxlan id 77 dstport 4789 remote 172.16.0.11 dev eth0; ip addr add 10.66.0.1/24 dev raven0; ip link set raven0 up");
    let look = "ip -d link show raven0; ip -4 addr show raven0; cat /proc/sys/net/ipv4/conf/raven0/rp_filter";
    let before = space.sh(look);
    lab.start_agents_of(&["cloud-1", "cloud-2", "site-1"]);
    await_problem(&lab.node("cloud-2").space, &["raven0"]);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(before, lab.node("cloud-2").space.sh(look));
}

#[test]
fn a_nexthop_id_of_somebody_else_is_avoided() {
    let mut lab = two_domains();
    let space = &lab.node("cloud-2").space;
    let nexthops = space.json("ip -j nexthop show");
    let taken = nexthops[0]["id"].as_u64().expect("a nexthop");
    lab.end_agent("cloud-2", Signal::SIGTERM);
    let space = &lab.node("cloud-2").space;
    space.run(&format!("{CORAX} cleanup"));
    space.run(&format!("ip nexthop add id {taken} via 172.16.0.254 dev eth0 protocol static"));
    let foreign = space.run(&format!("ip nexthop get id {taken}"));
    lab.start_agent("cloud-2", &[]);
    let space = &lab.node("cloud-2").space;
    await_ready(space);
    assert_eq!(space.run(&format!("ip nexthop get id {taken}")), foreign);
    lab.everyone_reaches_everyone();
}

#[test]
fn a_rule_of_somebody_else_that_shadows_ours_is_reported() {
    let lab = two_domains();
    let space = &lab.node("cloud-2").space;
    let before = ours(space);
    space.run("ip rule add priority 50 from all lookup 4711");
    await_problem(space, &["rule", "50"]);
    let after = ours(space);
    assert!(before.is_subset(&after), "{}", difference(&before, &after));
    space.run("ip rule del priority 50");
    eventually("it is no problem any more", SOON, || {
        let text = problems(space);
        if text.contains("50") { Err(text) } else { Ok(()) }
    });
}
