//! Bad lines.

use std::net::IpAddr;
use std::time::Duration;

use crate::agent::{SOON, metric};
use crate::await_::eventually;
use crate::lab::Lab;
use crate::restart::{STEP, restarted_beside_traffic};
use crate::space::Space;
use crate::traffic::{Count, Flow, Server};
use crate::two_domains;

/// How many packets of a hundred a flow may lose more or less than the control: by chance, two flows of a line that loses a tenth
/// of them differ by as many once in ten thousand times.
const MARGIN: f64 = 5.0;

/// Makes the line between a domain and the internet bad, both ways.
fn spoil(lab: &Lab, how: &str) {
    lab.router("site").run(&format!("tc qdisc replace dev wan root netem limit 10000 {how}"));
    lab.router("site").run(&format!("tc qdisc replace dev lan root netem limit 10000 {how}"));
}

#[test]
fn restarts_lose_nothing_on_a_line_that_delays_and_reorders() {
    let mut lab = two_domains();
    spoil(&lab, "delay 40ms 10ms reorder 25% 50%");
    restarted_beside_traffic(&mut lab);
}

#[test]
fn a_tunnel_stays_on_a_line_that_loses_a_packet_in_twenty_and_takes_its_time() {
    const GATEWAYS: [&str; 2] = ["cloud-1", "site-1"];
    let mut lab = two_domains();
    lab.await_tunnels();
    let wrote = |lab: &Lab| GATEWAYS.map(|name| metric(&lab.node(name).space, "corax_changes_total", &[]));
    let shaken = |lab: &Lab| GATEWAYS.map(|name| last_handshake(&lab.node(name).space));
    let (before, first) = (wrote(&lab), shaken(&lab));
    spoil(&lab, "delay 100ms 20ms loss 5% reorder 10%");
    // New sessions on that line: each end forgets its own, and has its key put back.
    for name in GATEWAYS {
        lab.node(name).space.sh("wg set raven-wg0 private-key <(wg genkey)");
    }
    lab.await_tunnels();
    eventually("a handshake on that line", SOON, || {
        let now = shaken(&lab);
        if now.iter().zip(first).all(|(now, first)| *now > first) { Ok(()) } else { Err(format!("{now:?}")) }
    });
    // What crosses the same line both ways, and no tunnel.
    let IpAddr::V4(router) = lab.public("site") else { panic!("the internet is IPv4") };
    let internet = IpAddr::from((u32::from(router) - 1).to_be_bytes());
    let _server = Server::start(lab.internet());
    let mut flows = vec![Flow::start(&lab.node("site-1").space, internet, STEP)];
    for (from, to) in [("cloud-2", "site-2"), ("site-2", "cloud-2")] {
        let (from, to) = (lab.node(from), lab.node(to));
        flows.extend([to.pod4(), to.pod6()].map(|to| Flow::start(&from.pod, to, STEP)));
    }
    std::thread::sleep(Duration::from_secs(60));
    flows.iter().for_each(Flow::end);
    let shares: Vec<_> = flows.into_iter().map(Flow::stop).map(share).collect();
    let (_, control) = shares[0];
    eprintln!("hundredths of the packets that were lost: {shares:?}");
    for (name, lost) in &shares {
        assert!(
            (lost - control).abs() <= MARGIN,
            "{name} lost {lost:.1} in a hundred, and nobody's flow {control:.1}"
        );
    }
    // One change an end: its own key, put back.
    assert_eq!(wrote(&lab), before.map(|changes| changes + 1.0), "{before:?}");
    lab.router("site").run("tc qdisc del dev wan root");
    lab.router("site").run("tc qdisc del dev lan root");
    lab.everyone_reaches_everyone();
}

/// When the last handshake of a gateway's only peer was.
fn last_handshake(space: &Space) -> u64 {
    let told = space.sh("wg show raven-wg0 latest-handshakes | cut -f 2");
    told.trim().parse().unwrap_or_else(|_| panic!("{}: {told}", space.name))
}

/// Packets of a hundred that a flow lost.
fn share(count: Count) -> (String, f64) {
    assert!(count.sent.len() > 1000, "{}: this machine is too busy to tell", count.name);
    (count.name, 100.0 * count.lost.len() as f64 / count.sent.len() as f64)
}
