//! Agents come and go beside traffic. A guest is slow, so a loss counts where a flow that Corax does not touch has none.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::agent::{await_ready, metric, status};
use crate::lab::Lab;
use crate::objects::{difference, ours};
use crate::traffic::{Flow, Server};
use crate::two_domains;

/// Packets of each flow come so far apart.
pub(crate) const STEP: Duration = Duration::from_millis(4);

/// Flows between the domains, both ways and families, from gateways' and members' pods.
pub(crate) fn flows(lab: &Lab, step: Duration) -> Vec<Flow> {
    let pairs = [("cloud-1", "site-1"), ("cloud-2", "site-2"), ("site-2", "cloud-2"), ("site-1", "cloud-1")];
    let pair = |(from, to): (&str, &str)| {
        let (from, to) = (lab.node(from), lab.node(to));
        [Flow::start(&from.pod, to.pod4(), step), Flow::start(&from.pod, to.pod6(), step)]
    };
    pairs.into_iter().flat_map(pair).collect()
}

/// A flow that Corax does not touch, over the same links: from a router to the other domain's gateway.
pub(crate) fn control(lab: &Lab, step: Duration) -> (Flow, Server) {
    let gateway = lab.node("cloud-1");
    let server = Server::start(&gateway.space);
    let IpAddr::V4(public) = lab.public("cloud") else { panic!("the underlay is IPv4") };
    (Flow::start(lab.router("site"), public.into(), step), server)
}

/// Ends the flows: they lost no more, of all that was sent, than the control flow did of its own.
#[track_caller]
pub(crate) fn lost_no_more(flows: Vec<Flow>, (control, server): (Flow, Server)) -> u64 {
    let control = control.stop();
    drop(server);
    let counts: Vec<_> = flows.into_iter().map(Flow::stop).collect();
    let sent = counts.iter().map(|count| count.sent).sum();
    for count in &counts {
        assert!(count.sent > 0);
        let (lost, spared) = (count.lost.len(), control.lost.len());
        assert!(
            lost <= spared,
            "{lost} of {} lost, the control flow lost {spared}: {:?}",
            count.sent,
            count.lost
        );
    }
    sent
}

/// Kills and restarts agents until so many packets are under way: each restart adopts what is there.
fn restarted_beside_traffic(lab: &mut Lab, packets: u64, signals: &[Signal]) {
    let flows = flows(lab, STEP);
    let control = control(lab, STEP);
    let begun = Instant::now();
    let least = STEP * u32::try_from(packets / flows.len() as u64).expect("not that many");
    let mut turn = 0;
    while begun.elapsed() < least || turn < 4 {
        let name = ["cloud-1", "site-1", "cloud-2", "site-2"][turn % 4];
        let signal = signals[turn % signals.len()];
        turn += 1;
        let before = (ours(&lab.node(name).space), tunnel(lab, name));
        lab.end_agent(name, signal);
        // At another moment of the loop each time.
        std::thread::sleep(Duration::from_millis(37 * (turn as u64 % 11)));
        lab.start_agent(name, &["--wireguard", "kernel"]);
        let space = &lab.node(name).space;
        await_ready(space);
        assert_eq!(
            metric(space, "corax_changes_total", &[]),
            0.0,
            "{name}: {}",
            status(space)["lastChanges"]
        );
        let after = (ours(space), tunnel(lab, name));
        assert_eq!(before.0, after.0, "{name}: {}", difference(&before.0, &after.0));
        assert_eq!(before.1, after.1, "{name}: the device and its endpoints stay");
    }
    let sent = lost_no_more(flows, control);
    eprintln!("{turn} restarts beside {sent} packets");
    assert!(sent >= packets, "only {sent} packets were sent");
}

/// What a device made anew, or a peer set anew, would change.
fn tunnel(lab: &Lab, name: &str) -> String {
    lab.node(name)
        .space
        .sh("cat /sys/class/net/raven-wg0/ifindex 2>/dev/null; wg show raven-wg0 public-key 2>/dev/null
         wg show raven-wg0 endpoints 2>/dev/null; true")
}

#[test]
fn agents_that_are_killed_and_started_again_lose_no_packet() {
    let mut lab = two_domains();
    restarted_beside_traffic(&mut lab, 100_000, &[Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL]);
}
