//! A node on which Raven runs: Corax goes on with its tunnel as it is, and takes the rest away once its own stands.

use crate::agent::{CORAX, await_ready, problems, status};
use crate::control::Traffic;
use crate::lab::{Lab, Plan};
use crate::raven;
use crate::restart::STEP;
use crate::traffic::Flow;
use crate::{is_kernels, names};

use std::time::Duration;

const DEVICE: &str = "ip link add raven-wg0 type wireguard";

#[test]
fn ravens_tunnel_goes_on_with_its_running_key_and_loses_no_packet() {
    let mut lab = Lab::build(&[Plan::public("cloud", 1), Plan::nat("site", 1)]);
    let (cloud, site) = (lab.node("cloud-1"), lab.node("site-1"));
    let keys = [raven::device(&cloud.space, DEVICE), raven::device(&site.space, DEVICE)];
    let public = format!("{}:4500", lab.public("cloud"));
    raven::peer(&site.space, &keys[0], Some(&public), &cloud.pods4());
    raven::peer(&cloud.space, &keys[1], None, &site.pods4());
    for name in ["cloud-1", "site-1"] {
        raven::state(&lab, name, "");
    }
    lab.serve();
    let (cloud, site) = (lab.node("cloud-1"), lab.node("site-1"));
    let step = Duration::from_millis(4);
    let flows = vec![Flow::start(&site.pod, cloud.pod4(), step), Flow::start(&cloud.pod, site.pod4(), step)];
    let mut traffic = Traffic::new(&lab, flows);
    let index = |lab: &Lab, name: &str| lab.node(name).space.run("cat /sys/class/net/raven-wg0/ifindex");
    let before = (index(&lab, "cloud-1"), index(&lab, "site-1"));

    for (name, key) in ["cloud-1", "site-1"].iter().zip(&keys) {
        let told = lab.node(name).space.run(&format!("{CORAX} key"));
        assert_eq!(told.trim(), key, "{name}: the running key is the node's");
    }
    lab.declare();
    lab.write();
    for name in names(&lab) {
        traffic.beside(&name, || {
            lab.start_agent(&name, &[]);
            await_ready(&lab.node(&name).space);
        });
    }

    traffic.lost_nothing();
    for (name, key) in ["cloud-1", "site-1"].iter().zip(&keys) {
        let space = &lab.node(name).space;
        is_kernels(space);
        assert_eq!(space.run("wg show raven-wg0 public-key").trim(), key, "{name}");
    }
    assert_eq!(before, (index(&lab, "cloud-1"), index(&lab, "site-1")), "the devices are the same ones");
    lab.everyone_reaches_everyone();
}

/// Gateways and members of two domains, one without and one with mesh, under Raven.
#[test]
fn gateways_and_members_are_taken_over_one_by_one_and_lose_no_packet() {
    let mut lab = Lab::build(&[Plan::public("cloud", 2), Plan::nat("site", 2).mesh()]);
    // A member and a gateway.
    let had = ["site-2", "cloud-1"].map(|name| (name, raven::before(&lab.node(name).space, "iptables")));
    let keys = ["cloud-1", "site-1"].map(|name| raven::device(&lab.node(name).space, DEVICE));
    let public = format!("{}:4500", lab.public("cloud"));
    raven::peer(&lab.node("site-1").space, &keys[0], Some(&public), &raven::pods(&lab, "cloud"));
    raven::peer(&lab.node("cloud-1").space, &keys[1], None, &raven::pods(&lab, "site"));
    for name in names(&lab) {
        raven::state(&lab, &name, "");
    }
    lab.serve();
    let pairs = [("site-1", "cloud-1"), ("site-2", "cloud-2"), ("cloud-2", "site-2"), ("cloud-2", "site-1")];
    let flows = pairs.map(|(from, to)| Flow::start(&lab.node(from).pod, lab.node(to).pod4(), STEP)).into();
    let mut traffic = Traffic::new(&lab, flows);
    lab.declare();
    lab.write();
    for name in ["site-2", "cloud-1", "cloud-2", "site-1"] {
        let before = raven::left(&lab.node(name).space);
        for part in ["RAVEN-MARK-CHAIN", "raven-mark-set", "matchall"] {
            assert!(before.contains(part), "{name}: {part} is not in {before}");
        }
        traffic.beside(if name.ends_with("-1") { "a gateway" } else { "a member" }, || {
            lab.start_agent(name, &["--vtep-identity", "node-ip"]);
            await_ready(&lab.node(name).space);
        });
        let space = &lab.node(name).space;
        assert_eq!(raven::left(space), "", "{name}");
        assert!(!problems(space).contains("Raven"), "{}", status(space));
    }
    let witnessed = traffic.lost_nothing();
    assert_eq!(witnessed.len(), 2, "this machine is too busy to tell of both roles: {witnessed:?}");
    for name in ["cloud-1", "site-1"] {
        is_kernels(&lab.node(name).space);
    }
    lab.everyone_reaches_everyone();
    for (name, had) in &had {
        raven::leaves_nothing(&mut lab, name, had);
    }
}

#[test]
fn a_domain_with_one_member_of_ravens_forwards() {
    let lab = raven::mixed_domain("");
    assert!(raven::left(&lab.node("site-2").space).contains("matchall"), "it is Raven's still");
}
