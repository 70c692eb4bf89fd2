//! Bad lines.

use std::time::Duration;

use crate::agent::{SOON, await_ready, metric};
use crate::await_::eventually;
use crate::control::Traffic;
use crate::lab::{Lab, Plan};
use crate::restart::{STEP, restarted_beside_traffic};
use crate::space::Space;
use crate::traffic::Flow;
use crate::{is_in_user_space, is_kernels, names, two_domains};

/// Makes the line between a domain and the internet bad, both ways.
fn spoil(lab: &Lab, domain: &str, how: &str) {
    for device in ["wan", "lan"] {
        lab.router(domain).run(&format!("tc qdisc replace dev {device} root netem limit 10000 {how}"));
    }
}

#[test]
fn restarts_lose_nothing_on_a_line_that_delays_and_reorders() {
    let mut lab = two_domains();
    spoil(&lab, "site", "delay 40ms 10ms reorder 25% 50%");
    restarted_beside_traffic(&mut lab);
}

/// Gateways with a bad line between them, and whose WireGuard both have.
const PAIRS: [(&str, &str, &str); 2] = [("cloud-1", "site-1", "kernel"), ("dock-1", "box-1", "userspace")];

/// Longer than chance makes a flow silent that loses a packet in ten, shorter than what one handshake that failed costs.
const SILENCE: Duration = Duration::from_secs(3);

#[test]
fn tunnels_stay_on_a_line_that_loses_a_packet_in_twenty_and_takes_its_time() {
    let mut lab = pairs();
    let keys = PAIRS.map(|(one, other, _)| [one, other].map(|name| key(&lab.node(name).space)));
    let shaken = |lab: &Lab| {
        let of_pair = |((one, other, _), keys): ((&str, &str, &str), &[String; 2])| {
            [(one, &keys[1]), (other, &keys[0])]
                .map(|(name, peer)| last_handshake(&lab.node(name).space, peer))
        };
        PAIRS.into_iter().zip(&keys).flat_map(of_pair).collect::<Vec<_>>()
    };
    let wrote = |lab: &Lab| -> Vec<f64> {
        lab.nodes().iter().map(|node| metric(&node.space, "corax_changes_total", &[])).collect()
    };
    let (before, first) = (wrote(&lab), shaken(&lab));
    for domain in ["site", "box"] {
        spoil(&lab, domain, "delay 100ms 20ms loss 5% reorder 10%");
    }
    // New sessions on that line: each end forgets its own, and has its key put back.
    for node in lab.nodes() {
        node.space.sh("wg set raven-wg0 private-key <(wg genkey)");
    }
    lab.await_tunnels();
    eventually("handshakes on that line", SOON, || {
        let now = shaken(&lab);
        if now.iter().zip(&first).all(|(now, first)| now > first) { Ok(()) } else { Err(format!("{now:?}")) }
    });
    let flows = PAIRS.iter().flat_map(|(one, other, _)| {
        let (one, other) = (lab.node(one), lab.node(other));
        [Flow::start(&one.pod, other.pod4(), 2 * STEP), Flow::start(&other.pod, one.pod6(), 2 * STEP)]
    });
    Traffic::off_the_line(&lab, flows.collect()).is_never_silent_for(SILENCE, Duration::from_secs(130));
    // One change an end: its own key, put back.
    let once: Vec<f64> = before.iter().map(|changes| changes + 1.0).collect();
    assert_eq!(wrote(&lab), once, "of {:?}", names(&lab));
    for domain in ["site", "box"] {
        lab.router(domain).run("tc qdisc del dev wan root");
        lab.router(domain).run("tc qdisc del dev lan root");
    }
    lab.everyone_reaches_everyone();
}

/// A domain for each gateway of the pairs, whose pods reach each other.
fn pairs() -> Lab {
    let plans =
        [Plan::public("cloud", 1), Plan::nat("site", 1), Plan::public("dock", 1), Plan::nat("box", 1)];
    let mut lab = Lab::build(&plans);
    lab.declare();
    lab.write();
    for (one, other, wireguard) in PAIRS {
        for name in [one, other] {
            lab.start_agent(name, &["--wireguard", wireguard]);
        }
    }
    for node in lab.nodes() {
        await_ready(&node.space);
    }
    for (one, other, wireguard) in PAIRS {
        let is = if wireguard == "kernel" { is_kernels } else { is_in_user_space };
        for name in [one, other] {
            is(&lab.node(name).space);
        }
    }
    lab.serve();
    lab.await_tunnels();
    lab
}

fn key(space: &Space) -> String {
    space.run("wg show raven-wg0 public-key").trim().to_owned()
}

/// When the last handshake with a peer was, in seconds of the clock.
fn last_handshake(space: &Space, peer: &str) -> u64 {
    let told = space.run("wg show raven-wg0 latest-handshakes");
    let line = told.lines().find_map(|line| line.strip_prefix(peer)?.trim().parse().ok());
    line.unwrap_or_else(|| panic!("{}: no {peer} in {told}", space.name))
}
