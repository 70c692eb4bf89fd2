//! A box whose clock is lost with its power, and peers that stayed up.

use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

use crate::agent::{SOON, await_ready, tail};
use crate::await_::{eventually, patience};
use crate::lab::{Lab, Plan};
use crate::{is_kernels, names};

fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_REALTIME).expect("there is a clock").tv_sec() as u64
}

fn set(to: u64) {
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(Duration::from_secs(to)))
        .expect("this guest is ours");
}

/// What a power cut takes away of the site's gateway, and a clock that begins anew.
fn cut_power(lab: &mut Lab) {
    lab.lose_power("site-1");
    // The kernel lets nobody set it to before its own start.
    let up = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("there is a clock").tv_sec() as u64;
    set(up + 100);
}

/// Waits until the peer has heard of the site after all that it sent itself: it has no reason to begin a handshake then.
fn await_keepalive(lab: &Lab) {
    let received = || lab.node("cloud-1").space.sh("wg show raven-wg0 transfer | cut -f 2");
    let before = received();
    eventually("a keepalive", SOON, || {
        let now = received();
        if now == before { Err(now) } else { Ok(()) }
    });
}

fn reached(lab: &Lab, seconds: u64) -> Result<String, String> {
    lab.node("site-1")
        .pod
        .try_run(&format!("ping -n -q -i 0.5 -c 1 -w {seconds} {}", lab.node("cloud-1").pod4()))
}

fn after_a_lost_clock(wireguard: &str) {
    // Whatever a test before left.
    set(now().max(1_800_000_000));
    let mut lab = Lab::build(&[Plan::public("cloud", 1), Plan::nat("site", 1)]);
    lab.declare();
    lab.write();
    let options = ["--wireguard", wireguard];
    for name in names(&lab) {
        lab.start_agent(&name, &options);
        await_ready(&lab.node(&name).space);
    }
    lab.await_tunnels();
    await_keepalive(&lab);
    let before = now();

    // Without a floor the peer, which stayed up, refuses every handshake: this is what the floor is for.
    cut_power(&mut lab);
    lab.node("site-1").space.run("mv /var/lib/corax/clock /run/clock");
    lab.start_agent("site-1", &options);
    await_ready(&lab.node("site-1").space);
    reached(&lab, 12).expect_err("the peer takes no handshake of 1970");

    cut_power(&mut lab);
    lab.node("site-1").space.run("mv /run/clock /var/lib/corax/clock");
    lab.start_agent("site-1", &options);
    let site = &lab.node("site-1").space;
    await_ready(site);
    assert!(now() >= before, "the clock stands at {}, and it was {before}", now());
    reached(&lab, patience(SOON).as_secs()).expect("the tunnel is back");
    let log = tail(&lab.log("site-1"), 100);
    assert!(log.contains("was stepped up"), "{log}");
    if wireguard == "kernel" {
        is_kernels(site);
    }
    lab.everyone_reaches_everyone();
}

#[test]
fn a_clock_at_1970_is_stepped_up_and_the_kernels_tunnel_comes_back_to_a_peer_that_stayed_up() {
    after_a_lost_clock("kernel");
}

#[test]
fn a_clock_at_1970_is_stepped_up_and_a_tunnel_in_user_space_comes_back_to_a_peer_that_stayed_up() {
    after_a_lost_clock("userspace");
}
