//! What goes on while something changes.

use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::Signal;
use sha2::{Digest, Sha256};

use crate::agent::{CORAX, SOON, await_ready, lose_tunnel, metric, status};
use crate::await_::eventually;
use crate::drift::FORMER_RULES;
use crate::halfway::kill_halfway;
use crate::lab::{Lab, Plan};
use crate::objects::{Monitor, difference, ours};
use crate::space::Space;
use crate::traffic::{Flow, OneFlow, PORT, none_lost_anything, serve_one_transfer};

/// Slow enough that a machine that stalls for a second overflows no queue on the way.
const STEP: Duration = Duration::from_millis(20);

fn writes(space: &Space) -> f64 {
    metric(space, "corax_changes_total", &[])
}

fn three_domains() -> Lab {
    let mut lab = Lab::start(&[Plan::public("cloud", 2), Plan::nat("site", 2).mesh()]);
    lab.serve();
    lab
}

/// Flows between domains, both ways, from gateways' and members' pods, both families.
fn flows(lab: &Lab) -> Vec<Flow> {
    let pairs = [("cloud-1", "site-1"), ("cloud-2", "site-2"), ("site-2", "cloud-2"), ("site-1", "site-2")];
    let mut flows = Vec::new();
    for (from, to) in pairs {
        let (from, to) = (lab.node(from), lab.node(to));
        flows.push(Flow::start(&from.pod, to.pod4(), STEP));
        flows.push(Flow::start(&from.pod, to.pod6(), STEP));
    }
    flows
}

#[test]
fn a_member_joins_a_running_domain_and_nothing_else_blinks() {
    let mut lab = Lab::build(&[Plan::public("cloud", 3), Plan::nat("site", 2).mesh()]);
    lab.declare();
    // The third node of the cloud is not there yet.
    let whole = lab.gateways.get("cloud").expect("it is declared").clone();
    let nodes = lab.gateways.get_mut("cloud").and_then(|gateway| gateway.pointer_mut("/status/nodes"));
    let joining = nodes.and_then(|nodes| nodes.as_array_mut()).and_then(Vec::pop).expect("three nodes");
    lab.write();
    for name in ["cloud-1", "cloud-2", "site-1", "site-2"] {
        lab.start_agent(name, &[]);
    }
    for name in ["cloud-1", "cloud-2", "site-1", "site-2"] {
        await_ready(&lab.node(name).space);
    }
    lab.serve();
    let flows = flows(&lab);
    let watched = ["cloud-1", "cloud-2", "site-1", "site-2"];
    let before: Vec<_> = watched.iter().map(|name| ours(&lab.node(name).space)).collect();
    let monitors: Vec<_> =
        watched.iter().map(|name| Monitor::start(&lab.node(name).space, lab.scratch())).collect();

    lab.gateways.insert("cloud".to_owned(), whole);
    lab.write();
    lab.start_agent("cloud-3", &[]);
    await_ready(&lab.node("cloud-3").space);
    let newcomer = Flow::start(&lab.node("cloud-3").pod, lab.node("site-2").pod4(), STEP);
    let back = Flow::start(&lab.node("site-1").pod, lab.node("cloud-3").pod6(), STEP);
    std::thread::sleep(Duration::from_millis(500));

    none_lost_anything(flows);
    newcomer.lost_nothing();
    back.lost_nothing();
    let subnets = joining["subnets"].to_string();
    for ((name, before), monitor) in watched.iter().zip(before).zip(monitors) {
        let after = ours(&lab.node(name).space);
        let told = monitor.end();
        // Elements of a set may give way to a wider one, in one transaction.
        let deleted =
            |line: &&String| line.to_lowercase().contains("delete") && !line.starts_with("delete element");
        let deleted: Vec<_> = told.iter().filter(deleted).collect();
        assert!(deleted.is_empty(), "{name} deleted {deleted:?}");
        // Whatever was there is there, but for the sets and allowed IPs, which name the newcomer's pods now.
        let lost: Vec<_> = before
            .difference(&after)
            .filter(|line| !line.starts_with("nft:") && !line.starts_with("wg:"))
            .collect();
        assert!(lost.is_empty(), "{name} for {subnets}: {}", difference(&before, &after));
    }
}

#[test]
fn an_agent_that_is_killed_and_started_again_loses_no_packet_and_writes_nothing() {
    let mut lab = three_domains();
    let flows = flows(&lab);
    for (name, signal) in [
        ("cloud-1", Signal::SIGKILL),
        ("site-1", Signal::SIGKILL),
        ("cloud-2", Signal::SIGTERM),
        ("site-2", Signal::SIGKILL),
        ("site-1", Signal::SIGTERM),
    ] {
        let before = ours(&lab.node(name).space);
        let monitor = Monitor::start(&lab.node(name).space, lab.scratch());
        lab.end_agent(name, signal);
        std::thread::sleep(Duration::from_millis(200));
        lab.start_agent(name, &[]);
        let space = &lab.node(name).space;
        await_ready(space);
        assert_eq!(writes(space), 0.0, "{name}: {}", status(space)["lastChanges"]);
        let told = monitor.end();
        assert!(told.is_empty(), "{name}: {told:#?}");
        let after = ours(space);
        assert_eq!(before, after, "{name}: {}", difference(&before, &after));
    }
    none_lost_anything(flows);
}

/// From a version whose table had other chains and counters, and whose rules were others.
#[test]
fn an_upgrade_loses_no_packet() {
    let mut lab = three_domains();
    lab.await_tunnels();
    let flows = flows(&lab);
    // But for the checksum of nft's listing, in which what is new comes later.
    let ours = |space: &Space| {
        let mut ours = ours(space);
        let one = |line: &str| {
            line.strip_prefix("nft:\t\telements = { ")?.strip_suffix(" }")?.parse::<Ipv6Addr>().ok()
        };
        ours.retain(|line| one(line).is_none());
        ours
    };
    for name in ["cloud-1", "site-1", "cloud-2", "site-2"] {
        lab.end_agent(name, Signal::SIGTERM);
        let space = &lab.node(name).space;
        let after = ours(space);
        space.sh(FORMER_RULES);
        space.sh("nft flush chain inet corax arriving; nft delete chain inet corax arrived
                  nft flush chain inet corax redirects; nft delete counter inet corax icmp_redirect
                  nft add counter inet corax former; nft add chain inet corax former");
        assert!(ours(space) != after, "{name}");
        lab.start_agent(name, &[]);
        await_ready(&lab.node(name).space);
        let now = ours(&lab.node(name).space);
        assert!(now == after, "{name}: {}", difference(&after, &now));
    }
    none_lost_anything(flows);
}

#[test]
fn another_secret_on_all_gateways_costs_no_packet() {
    let mut lab = three_domains();
    lab.await_tunnels();
    let flows = flows(&lab);
    for name in ["cloud-1", "site-1"] {
        lab.end_agent(name, Signal::SIGTERM);
        lab.start_agent(name, &["--vpn-connection-psk", "another"]);
        let space = &lab.node(name).space;
        await_ready(space);
        let keys = space.run("wg show raven-wg0 preshared-keys");
        assert!(keys.trim().ends_with(&STANDARD.encode(Sha256::digest("another"))), "{name}: {keys}");
    }
    none_lost_anything(flows);
    // Who has no session any more begins one with the new secret.
    lose_tunnel(&lab.node("site-1").space);
    lab.everyone_reaches_everyone();
}

#[test]
fn an_agent_that_is_killed_halfway_through_a_view_loses_no_packet_of_what_stays() {
    let mut lab = three_domains();
    lab.await_tunnels();
    let flows = flows(&lab);
    let mut halfway = 0;
    for (turn, name) in (200..208).zip(["cloud-1", "site-1", "cloud-2", "site-2"].into_iter().cycle()) {
        halfway += u32::from(kill_halfway(&mut lab, name, turn, &[]));
    }
    assert!(halfway > 0, "every agent was done before it was killed");
    none_lost_anything(flows);
    lab.everyone_reaches_everyone();
}

#[test]
fn a_long_transfer_outlives_the_agents_of_both_gateways() {
    let mut lab = three_domains();
    lab.await_tunnels();
    let server = serve_one_transfer(&lab.node("site-2").pod);
    let client = lab.node("cloud-2").pod.spawn(
        &["iperf3", "-c", "10.101.2.10", "-t", "4", "-J", "--connect-timeout", "5000"],
        |command| {
            command.stdout(Stdio::piped());
        },
    );
    for name in ["cloud-1", "site-1", "cloud-2", "site-2"] {
        std::thread::sleep(Duration::from_millis(300));
        lab.end_agent(name, Signal::SIGKILL);
        std::thread::sleep(Duration::from_millis(200));
        lab.start_agent(name, &[]);
    }
    let report = client.output();
    drop(server);
    let report: serde_json::Value = serde_json::from_str(&report).expect("iperf3 prints JSON");
    assert_eq!(report["error"], serde_json::Value::Null, "{}", report["error"]);
    let intervals = report["intervals"].as_array().expect("intervals");
    let stalled = intervals.iter().filter(|interval| interval["sum"]["bytes"] == 0).count();
    assert!(intervals.len() >= 4 && stalled == 0, "{stalled} of {} seconds without a byte", intervals.len());
}

#[test]
fn a_second_apply_sends_nothing() {
    let lab = three_domains();
    for node in lab.nodes() {
        let monitor = Monitor::start(&node.space, lab.scratch());
        let before = (writes(&node.space), metric(&node.space, "corax_reconciles_total", &[]));
        // Something that has nothing to do with it makes the agent look again.
        node.space.run("ip address add 10.250.0.1/32 dev lo");
        eventually("the agent looks again", SOON, || {
            let now = metric(&node.space, "corax_reconciles_total", &[]);
            if now > before.1 { Ok(()) } else { Err(format!("{now} turns")) }
        });
        let told = monitor.end();
        assert!(told.is_empty(), "{}: {told:#?}", node.name);
        assert_eq!(writes(&node.space), before.0, "{}", status(&node.space)["lastChanges"]);
    }
}

#[test]
fn an_agent_whose_manifests_are_gone_brings_its_node_back_from_the_snapshot() {
    let mut lab = three_domains();
    for name in ["cloud-1", "site-2"] {
        let before = ours(&lab.node(name).space);
        // The source of Gateways is not there either.
        lab.lose_power(name);
        let nowhere = lab.scratch().join("nowhere");
        lab.start_agent_from(name, &nowhere, &[]);
        let space = &lab.node(name).space;
        await_ready(space);
        eventually("all of it is back", SOON, || {
            let after = ours(space);
            if before == after { Ok(()) } else { Err(difference(&before, &after)) }
        });
    }
    lab.everyone_reaches_everyone();
}

#[test]
fn an_empty_directory_deletes_nothing() {
    let mut lab = three_domains();
    let before: Vec<_> = lab.nodes().iter().map(|node| ours(&node.space)).collect();
    let flows = flows(&lab);
    // All at once: one file less of several is a Gateway deleted.
    std::fs::rename(lab.source(), lab.scratch().join("away")).expect("on the same filesystem");
    std::fs::create_dir(lab.source()).expect("the name is free");
    eventually("the agent says so", SOON, || {
        let text = crate::agent::problems(&lab.node("cloud-1").space);
        if text.contains("holds no") { Ok(()) } else { Err(text) }
    });
    for (node, before) in lab.nodes().iter().zip(before) {
        let after = ours(&node.space);
        assert_eq!(before, after, "{}: {}", node.name, difference(&before, &after));
    }
    none_lost_anything(flows);
    lab.everyone_reaches_everyone();
}

#[test]
fn a_gateway_that_is_gone_from_a_complete_directory_is_gone_from_the_kernel() {
    let lab = three_domains();
    let space = &lab.node("cloud-2").space;
    assert!(space.run("ip route show table 9028").contains("10.101.1.0/24"));
    std::fs::remove_file(lab.source().join("site.json")).expect("it is there");
    eventually("its routes are gone", SOON, || {
        let routes = space.run("ip route show table 9028");
        if routes.contains("10.101.") { Err(routes) } else { Ok(()) }
    });
}

#[test]
fn a_flow_that_began_before_its_way_was_known_comes_through_from_the_same_port() {
    let mut lab = Lab::build(&[Plan::public("cloud", 1), Plan::nat("site", 2).mesh()]);
    lab.serve();
    let (from, member, to) = (lab.node("site-2"), lab.node("site-1"), lab.node("cloud-1"));
    // The kernel ends a connection with a MASQUERADE that leaves by another device, but none with an SNAT.
    let (pods, outside) = (from.pods4(), from.address);
    from.space.nft(&format!(
        "insert rule inet cni postrouting ip saddr {pods} ip daddr != {pods} snat ip to {outside}"
    ));
    let others = [
        (&from.pod, to.pod4(), 7774),
        (&from.pod, to.pod6(), 7776),
        (&from.space, to.pod4(), 7774),
        (&from.pod, member.pod4(), 7778),
    ];
    let sockets = others.map(|(space, to, port)| {
        let any = if to.is_ipv4() { IpAddr::from([0_u8; 4]) } else { IpAddr::from([0_u16; 8]) };
        let socket = space.enter(|| UdpSocket::bind((any, port)).expect("the port is free"));
        socket.connect((to, PORT)).expect("there is a default route");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("not zero");
        socket
    });
    let asks = |socket: &UdpSocket| {
        socket.send(b"anybody there?").map_err(|error| error.to_string())?;
        socket.recv(&mut [0; 64]).map_err(|error| error.to_string())
    };
    for socket in &sockets {
        asks(socket).expect_err("nobody knows the way yet");
    }
    // The CNI has made them connections to the outside.
    let tracked = from.space.run("conntrack -L -p udp") + &from.space.run("conntrack -f ipv6 -L -p udp");
    for to in [to.pod4(), to.pod6(), member.pod4()] {
        assert!(tracked.contains(&format!("dst={to} ")), "{tracked}");
    }
    lab.declare();
    lab.write();
    lab.start_agents();
    lab.await_tunnels();
    for socket in &sockets {
        // Within far less than what would let the connection end by itself.
        eventually("an answer", Duration::from_secs(5), || asks(socket));
    }
}

#[test]
fn a_flow_that_began_while_our_table_was_gone_has_its_pods_source_again() {
    let lab = three_domains();
    lab.await_tunnels();
    let [node, member, other] = ["site-2", "site-1", "cloud-1"].map(|name| lab.node(name));
    // As flannel does with what comes from outside of the cluster's pods, as far as it knows them.
    node.space
        .nft("insert rule inet cni postrouting ip saddr 10.100.0.0/16 ip daddr 10.101.2.0/24 masquerade");
    let (left, came) = lab.without_table("site-2", || {
        let left = [(other, 7774), (member, 7776)].map(|(to, port)| OneFlow::start(node, to, port, node));
        let came = OneFlow::start(other, node, 7778, node);
        for flow in &left {
            // The CNI's MASQUERADE takes the address of the device by which it leaves.
            assert_eq!(flow.source().expect("it is tracked"), "10.101.2.0");
        }
        eventually("it comes, and is tracked", SOON, || {
            let source = came.source()?;
            if source == other.pod4().to_string() { Err(source) } else { Ok(()) }
        });
        (left, came)
    });
    left.iter().for_each(|flow| flow.await_source(node.pod4()));
    came.await_source(other.pod4());
}

#[test]
fn a_flow_that_passed_through_while_our_table_was_gone_is_tracked_no_more() {
    let lab = three_domains();
    lab.await_tunnels();
    let [from, gateway, to] = ["site-2", "cloud-1", "cloud-2"].map(|name| lab.node(name));
    let flow = lab.without_table("cloud-1", || {
        let flow = OneFlow::start(from, to, 7774, gateway);
        eventually("it is tracked", SOON, || flow.source());
        flow
    });
    // Within far less than what would let it end by itself.
    eventually("it is not", Duration::from_secs(10), || {
        let tracked = flow.tracked()?;
        if tracked.is_empty() { Ok(()) } else { Err(tracked) }
    });
}

#[test]
fn a_flow_of_a_pod_whose_prefix_its_node_gets_later_has_the_pods_source_from_then_on() {
    let mut lab = Lab::build(&[Plan::public("cloud", 1), Plan::nat("site", 2)]);
    lab.declare();
    let declared = lab.gateways["site"].clone();
    let first = lab.gateways.get_mut("site").and_then(|site| site.pointer_mut("/status/nodes/1/subnets/0"));
    *first.expect("the one of IPv4") = "10.101.2.0/29".into();
    lab.write();
    lab.start_agents();
    lab.await_tunnels();
    lab.gateways.insert("site".to_owned(), declared);
    let (node, to) = (lab.node("site-2"), lab.node("cloud-1"));
    let flow = OneFlow::start(node, to, 7774, node);
    assert_eq!(flow.source().expect("it is tracked"), "10.101.2.0", "of what is no pod, the node's");
    lab.write();
    flow.await_source(node.pod4());
}

#[test]
fn a_flow_whose_way_has_ended_has_the_source_of_the_outside() {
    let mut lab = three_domains();
    // Its other node is no Gateway's any more, soon.
    let node = lab.gateways.get_mut("cloud").and_then(|cloud| cloud.pointer_mut("/status/nodes"));
    node.and_then(|nodes| nodes.as_array_mut()).expect("nodes").retain(|node| node["nodeName"] == "cloud-1");
    let [cleaned, member, left] = ["site-1", "site-2", "cloud-2"].map(|name| lab.node(name));
    let gateway = lab.node("cloud-1");
    let [of_cleaned, of_member, of_left] =
        [(cleaned, gateway), (member, gateway), (left, member)].map(|(from, to)| {
            let flow = OneFlow::start(from, to, 7774, from);
            assert_eq!(flow.source().expect("it is tracked"), from.pod4().to_string());
            flow
        });
    lab.write();
    of_left.await_source(left.address);
    lab.signal_agent("site-1", Signal::SIGTERM);
    eventually("the agent ends", SOON, || cleaned.space.try_run(&format!("{CORAX} cleanup")));
    of_cleaned.await_source(cleaned.address);
    std::fs::remove_file(lab.source().join("cloud.json")).expect("it was there");
    of_member.await_source(member.address);
}

#[test]
fn a_tunnel_process_that_was_killed_speaks_first_to_who_is_behind_a_nat() {
    let mut lab = Lab::start(&[Plan::public("cloud", 1), Plan::nat("site", 1)]);
    lab.everyone_reaches_everyone();
    let space = &lab.node("cloud-1").space;
    let shown = |what: &str| space.run(&format!("wg show raven-wg0 {what}"));
    let endpoint = |text: String| text.split_whitespace().nth(1).unwrap_or("(none)").to_owned();
    // With nothing on its way, the end behind the NAT sends keepalives alone, which nobody has to answer.
    let before = endpoint(shown("endpoints"));
    eventually("the agent has heard it", SOON, || {
        let told = status(space)["tunnels"][0]["endpoint"].as_str().unwrap_or_default().to_owned();
        if told == before { Ok(()) } else { Err(told) }
    });
    space.sh("for pid in $(pgrep -f '[c]orax tunnel'); do kill -9 $pid; done");
    eventually("there is a session again", SOON, || {
        match space.try_run("wg show raven-wg0 latest-handshakes") {
            Ok(text) if text.split_whitespace().nth(1).is_some_and(|stamp| stamp != "0") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    assert_eq!(endpoint(shown("endpoints")), before);
    assert_eq!(endpoint(shown("persistent-keepalive")), "off");
    // That the view gives none is no reason to set it again.
    let before = writes(space);
    status(space);
    assert_eq!(writes(space), before, "{}", status(space)["lastChanges"]);
}

#[test]
fn a_peers_new_address_is_taken_at_once_by_an_agent_that_was_started_again() {
    let mut lab = three_domains();
    lab.everyone_reaches_everyone();
    let moved = |lab: &mut Lab, to: &str| {
        let gateway = lab.gateways.get_mut("cloud").expect("it is declared");
        gateway["status"]["activeEndpoints"][0]["publicIP"] = to.into();
        lab.write();
    };
    let followed = |lab: &Lab, to: &str| {
        let site = &lab.node("site-1").space;
        eventually(&format!("the tunnel goes to {to}"), SOON, || {
            let endpoints = site.run("wg show raven-wg0 endpoints");
            if endpoints.contains(&format!("\t{to}:4500")) { Ok(()) } else { Err(endpoints) }
        });
    };
    lab.end_agent("site-1", Signal::SIGKILL);
    lab.start_agent("site-1", &[]);
    await_ready(&lab.node("site-1").space);
    moved(&mut lab, "198.18.0.77");
    followed(&lab, "198.18.0.77");
    // While it does not run, too: it knows what it knew then.
    lab.end_agent("site-1", Signal::SIGTERM);
    moved(&mut lab, "198.18.0.78");
    lab.start_agent("site-1", &[]);
    followed(&lab, "198.18.0.78");
}
