//! Agents come and go beside traffic. A guest is slow, so a loss counts where a flow that Corax does not touch has none.

use std::net::IpAddr;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::agent::{CORAX, await_ready, metric, status};
use crate::chance::Chance;
use crate::lab::Lab;
use crate::objects::{difference, ours};
use crate::traffic::{Flow, Server};
use crate::two_domains;

/// Packets of each flow come so far apart: an emulated machine carries two or three thousand a second in all.
pub(crate) const STEP: Duration = Duration::from_millis(16);

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

/// Kills and restarts agents, and replaces their binary, until so many packets have gone: each start adopts what is
/// there. An agent is also killed while it starts.
fn restarted_beside_traffic(lab: &mut Lab, packets: u64, chance: &mut Chance) {
    upgrade(lab);
    lab.await_tunnels();
    let before: Vec<_> = crate::names(lab)
        .into_iter()
        .map(|name| (name.clone(), (ours(&lab.node(&name).space), tunnel(lab, &name))))
        .collect();
    let flows = flows(lab, STEP);
    let control = control(lab, STEP);
    let mut turn = 0;
    // Each packet comes back as another one.
    while turn < 4 || 2 * flows.iter().map(Flow::sent).sum::<u64>() < packets {
        let name = ["cloud-1", "site-1", "cloud-2", "site-2"][turn % 4];
        turn += 1;
        lab.end_agent(name, *chance.of(&[Signal::SIGKILL, Signal::SIGTERM]));
        lab.start_agent(name, &["--wireguard", "kernel"]);
        std::thread::sleep(Duration::from_millis(chance.below(1500) as u64));
        lab.end_agent(name, Signal::SIGKILL);
        upgrade(lab);
        lab.start_agent(name, &["--wireguard", "kernel"]);
        let space = &lab.node(name).space;
        await_ready(space);
        let changes = metric(space, "corax_changes_total", &[]);
        assert_eq!(changes, 0.0, "{name}: {}", status(space)["lastChanges"]);
    }
    let sent = 2 * lost_no_more(flows, control);
    eprintln!("{turn} times two restarts beside {sent} packets");
    assert!(sent >= packets, "only {sent} packets went");
    for (name, (objects, device)) in before {
        let space = &lab.node(&name).space;
        let after = ours(space);
        assert_eq!(objects, after, "{name}: {}", difference(&objects, &after));
        assert_eq!(device, tunnel(lab, &name), "{name}: the device and its endpoints stay");
    }
}

/// Puts another file in the binary's place, as an upgrade does. Agents that run keep the one that they were started from.
fn upgrade(lab: &mut Lab) {
    let (binary, new) = (lab.scratch().join("corax"), lab.scratch().join("corax.new"));
    std::fs::copy(CORAX, &new).expect("there is room");
    std::fs::rename(&new, &binary).expect("on the same filesystem");
    lab.binary = binary;
}

/// What a device made anew, or a peer set anew, would change.
fn tunnel(lab: &Lab, name: &str) -> String {
    lab.node(name)
        .space
        .sh("cat /sys/class/net/raven-wg0/ifindex 2>/dev/null; wg show raven-wg0 public-key 2>/dev/null
         wg show raven-wg0 endpoints 2>/dev/null; true")
}

#[test]
fn agents_that_are_killed_and_replaced_at_any_moment_lose_no_packet() {
    let mut lab = two_domains();
    let mut chance = Chance::new();
    restarted_beside_traffic(&mut lab, 100_000, &mut chance);
}
