//! Agents come and go beside traffic.

use std::io::Write as _;
use std::net::Ipv6Addr;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::agent::{CORAX, await_ready, metric, status};
use crate::await_::slowness;
use crate::chance::Chance;
use crate::control::Traffic;
use crate::halfway::kill_halfway;
use crate::lab::Lab;
use crate::objects::{difference, ours};
use crate::space::Space;
use crate::traffic::Flow;
use crate::two_domains;

/// Packets of each flow come so far apart: an emulated machine carries two or three thousand a second in all.
pub(crate) const STEP: Duration = Duration::from_millis(16);

const OTHER_RULES: &str = "rules of another version";

/// Packets, answers included, that go beside restarts on a machine that is not slow.
const PACKETS: usize = 100_000;

/// Flows between the domains, both ways and families, from gateways' and members' pods.
fn flows(lab: &Lab, step: Duration) -> Vec<Flow> {
    let pairs = [("cloud-1", "site-1"), ("cloud-2", "site-2"), ("site-2", "cloud-2"), ("site-1", "cloud-1")];
    let pair = |(from, to): (&str, &str)| {
        let (from, to) = (lab.node(from), lab.node(to));
        [Flow::start(&from.pod, to.pod4(), step), Flow::start(&from.pod, to.pod6(), step)]
    };
    pairs.into_iter().flat_map(pair).collect()
}

/// Kills and restarts agents, and replaces their binary, until so many packets have gone while the machine itself lost none:
/// each start adopts what is there, or finds the rules of another version. An agent is also killed while it starts.
pub(crate) fn restarted_beside_traffic(lab: &mut Lab) {
    let mut chance = Chance::new();
    upgrade(lab);
    lab.await_tunnels();
    let before: Vec<_> = crate::names(lab)
        .into_iter()
        .map(|name| (name.clone(), (ours(&lab.node(&name).space), tunnel(lab, &name))))
        .collect();
    // A slower machine carries fewer, and is asked for fewer, in as much time.
    let (step, packets) = (STEP * slowness(), PACKETS / slowness() as usize);
    let mut traffic = Traffic::new(lab, flows(lab, step));
    let (mut turns, mut wanted) = (0, packets);
    for name in ["cloud-1", "site-1", "cloud-2", "site-2"].into_iter().cycle() {
        if turns % 3 == 2 {
            traffic.beside(OTHER_RULES, || find_other_rules(lab, name));
        } else {
            traffic.beside(name, || restart_twice(lab, name, &mut chance));
        }
        turns += 1;
        if turns < 5 || traffic.sent() < wanted {
            continue;
        }
        let judgement = traffic.so_far();
        // The last one cannot be judged yet.
        if judgement.packets >= packets && judgement.happened.len() == 5 {
            break;
        }
        assert!(wanted < 3 * packets, "this machine is too busy to tell: of {wanted} packets {judgement:?}");
        wanted += (packets / 10).max(packets.saturating_sub(judgement.packets));
    }
    let sent = traffic.sent();
    let judgement = traffic.stop();
    judgement.nothing_lost();
    judgement.figure(sent);
    eprintln!("{turns} turns of restarts beside {sent} packets: {judgement:?}");
    for (name, (objects, device)) in before {
        let space = &lab.node(&name).space;
        let after = ours(space);
        assert_eq!(objects, after, "{name}: {}", difference(&objects, &after));
        assert_eq!(device, tunnel(lab, &name), "{name}: the device and its endpoints stay");
    }
}

fn restart_twice(lab: &mut Lab, name: &str, chance: &mut Chance) {
    lab.end_agent(name, *chance.of(&[Signal::SIGKILL, Signal::SIGTERM]));
    lab.start_agent(name, &["--wireguard", "kernel"]);
    std::thread::sleep(Duration::from_millis(chance.below(4000) as u64));
    lab.end_agent(name, Signal::SIGKILL);
    upgrade(lab);
    lab.start_agent(name, &["--wireguard", "kernel"]);
    let space = &lab.node(name).space;
    await_ready(space);
    let changes = metric(space, "corax_changes_total", &[]);
    assert_eq!(changes, 0.0, "{name}: {}", status(space)["lastChanges"]);
}

/// Ends an agent, and starts one that takes the rules for those of another version: it puts its own in their place.
fn find_other_rules(lab: &mut Lab, name: &str) {
    lab.end_agent(name, Signal::SIGTERM);
    let space = &lab.node(name).space;
    let seal = |space: &Space| -> Ipv6Addr {
        let set = space.json("nft -j list set inet corax checksum");
        let element = set.pointer("/nftables/1/set/elem/0").and_then(Value::as_str);
        element.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{name}: {set}"))
    };
    let own = seal(space);
    // Its first half is the rules' as they were meant, its second that of their listing.
    let other = Ipv6Addr::from(u128::from(own) ^ 1 << 127);
    space.nft(&format!(
        "flush set inet corax checksum
         add element inet corax checksum {{ {other} }}"
    ));
    lab.start_agent(name, &["--wireguard", "kernel"]);
    let space = &lab.node(name).space;
    await_ready(space);
    let changes = metric(space, "corax_changes_total", &[]);
    assert!(changes > 0.0, "{name}: {}", status(space)["lastChanges"]);
    assert_eq!(seal(space), own, "{name}: the rules are its own");
}

/// Puts another file in the binary's place, as an upgrade does. Agents that run keep the one that they were started from.
fn upgrade(lab: &mut Lab) {
    let (binary, new) = (lab.scratch().join("corax"), lab.scratch().join("corax.new"));
    let older = if binary.exists() { binary.clone() } else { CORAX.into() };
    std::fs::copy(older, &new).expect("there is room");
    // What is behind the end of a program is nobody's: other bytes each time.
    let mut file = std::fs::OpenOptions::new().append(true).open(&new).expect("it can be written");
    file.write_all(b"upgraded").expect("there is room");
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
    restarted_beside_traffic(&mut two_domains());
}

#[test]
fn agents_that_are_killed_halfway_through_a_view_lose_no_packet_of_what_stays() {
    let mut lab = two_domains();
    lab.await_tunnels();
    // Four agents at once keep an emulated machine from its tunnels for longer than their queues last at the usual pace, and no
    // control has such a queue.
    let mut traffic = Traffic::new(&lab, flows(&lab, 4 * STEP * slowness()));
    let mut halfway = 0;
    for (turn, name) in (200..208).zip(["cloud-1", "site-1", "cloud-2", "site-2"].into_iter().cycle()) {
        traffic.beside(name, || {
            halfway += u32::from(kill_halfway(&mut lab, name, turn, &["--wireguard", "kernel"]));
        });
    }
    assert!(halfway > 0, "every agent was done before it was killed");
    traffic.lost_nothing();
}
