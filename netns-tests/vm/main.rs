//! Tests of the whole system with the kernel's WireGuard, and with what else only a full kernel has: netem, Raven's own
//! state. They run in a guest, by groups of
//! `netns-tests/vm/run`; elsewhere each fails and says so.
#![allow(unreachable_pub, dead_code)] // a test has no outside, and shares more with its neighbour than it uses

#[path = "../agent.rs"]
mod agent;
#[path = "../await_.rs"]
mod await_;
#[path = "../chance.rs"]
mod chance;
mod clock;
mod control;
#[path = "../figure.rs"]
mod figure;
#[path = "../halfway.rs"]
mod halfway;
#[path = "../lab.rs"]
mod lab;
#[path = "../manifests.rs"]
mod manifests;
mod modes;
#[path = "../mtu.rs"]
mod mtu;
mod netem;
mod networkd;
#[path = "../objects.rs"]
mod objects;
#[path = "../raven.rs"]
mod raven;
mod restart;
#[path = "../space.rs"]
mod space;
mod takeover;
#[path = "../traffic.rs"]
mod traffic;

use crate::lab::{Lab, Plan};
use crate::space::Space;

/// A public domain of two nodes and one of two behind a NAT, every agent with the kernel's WireGuard, every pod serving.
fn two_domains() -> Lab {
    let mut lab = Lab::build(&[Plan::public("cloud", 2), Plan::nat("site", 2).mesh()]);
    lab.declare();
    lab.write();
    for name in names(&lab) {
        lab.start_agent(&name, &["--wireguard", "kernel"]);
    }
    for node in lab.nodes() {
        agent::await_ready(&node.space);
    }
    for gateway in ["cloud-1", "site-1"] {
        is_kernels(&lab.node(gateway).space);
    }
    lab.serve();
    lab
}

fn names(lab: &Lab) -> Vec<String> {
    lab.nodes().iter().map(|node| node.name.clone()).collect()
}

/// The tunnel's device is the kernel's own, and no process stands behind it.
#[track_caller]
fn is_kernels(space: &Space) {
    assert_eq!(agent::wireguard(space), "kernel", "{}", space.name);
}

/// The tunnel is a process of Corax.
#[track_caller]
fn is_in_user_space(space: &Space) {
    assert_eq!(agent::wireguard(space), "userspace", "{}", space.name);
}
