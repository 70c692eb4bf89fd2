//! Bad lines.

use std::net::SocketAddr;
use std::time::Duration;

use crate::agent::metric;
use crate::lab::Lab;
use crate::restart::restarted_beside_traffic;
use crate::traffic::{PORT, fetch};
use crate::two_domains;

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
    let mut lab = two_domains();
    let wrote = |lab: &Lab, name| metric(&lab.node(name).space, "corax_changes_total", &[]);
    let before = (wrote(&lab, "cloud-1"), wrote(&lab, "site-1"));
    spoil(&lab, "delay 100ms 20ms loss 5% reorder 10%");
    // New sessions on that line as well: both ends forget theirs.
    for name in ["cloud-1", "site-1"] {
        let space = &lab.node(name).space;
        space.sh("wg set raven-wg0 private-key <(wg genkey); true");
    }
    for _ in 0..3 {
        for (from, to) in [("cloud-2", "site-2"), ("site-2", "cloud-2")] {
            let (from, to) = (lab.node(from), lab.node(to));
            let reached =
                crate::await_::eventually("a transfer goes through", Duration::from_secs(60), || {
                    fetch(&from.pod, SocketAddr::new(to.pod4(), PORT), 20_000)
                });
            assert_eq!(reached, from.pod4());
        }
    }
    let after = (wrote(&lab, "cloud-1"), wrote(&lab, "site-1"));
    // One change an end: its own key, put back.
    assert!(after.0 - before.0 <= 1.0 && after.1 - before.1 <= 1.0, "{before:?} {after:?}");
    lab.router("site").run("tc qdisc del dev wan root");
    lab.router("site").run("tc qdisc del dev lan root");
    lab.everyone_reaches_everyone();
}
