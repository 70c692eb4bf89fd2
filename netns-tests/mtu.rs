//! Underlays of every size: the largest packet passes, one byte more is answered with the size that fits, TCP goes on.

use crate::agent::{SOON, problems, wireguard, wireguard_asked};
use crate::await_::{eventually, patience};
use crate::lab::{Lab, Node, Plan};
use crate::traffic::{PORT, fetch};

/// What a tunnel adds to a packet at most: IPv6, UDP and WireGuard.
const OVERHEAD: usize = 80;
/// No device that carries IPv6 is smaller; what is too large then goes out in fragments.
const LEAST: usize = 1280;
/// The kernel does not cut VXLAN over IPv6: on a smaller underlay members are not reached by large packets, and each says so.
const LEAST_OVER_IPV6: usize = 1350;

/// From the default to each size and on to the next: all links of the underlay, and pods that could send as much.
fn resize(lab: &Lab, mtu: usize) {
    let set = format!(
        "for link in /sys/class/net/*; do
             case ${{link##*/}} in
                 lo|raven*) ;;
                 cni0|pod) echo {0} >$link/mtu ;;
                 *) echo {mtu} >$link/mtu ;;
             esac
         done
         {FORGET}",
        mtu.max(1500)
    );
    lab.internet().sh(&set);
    for domain in ["alpha", "beta"] {
        lab.router(domain).sh(&set);
    }
    for node in lab.nodes() {
        node.space.sh(&set);
        node.pod.sh(&format!("echo {} >/sys/class/net/eth0/mtu; {FORGET}", mtu.max(1500)));
    }
}

/// What was learned of paths.
const FORGET: &str = "echo 1 >/proc/sys/net/ipv4/route/flush; ip -6 route flush cache";

/// One packet that must not be cut passes at this size, and not at the next.
fn fits_exactly(from: &Node, to: &Node, mtu: usize) {
    for (address, headers) in [(to.pod4(), 28), (to.pod6(), 48)] {
        // Until the first answer, or the first that says why there is none.
        let most = patience(SOON).as_secs();
        let ping =
            |size: usize| format!("ping -n -M do -c 1 -i 0.3 -w {most} -s {} {address}", size - headers);
        from.pod.run(&ping(mtu));
        let told = from.pod.try_run(&ping(mtu + 1)).expect_err("it is too large");
        let right = format!("mtu{}{mtu}", if address.is_ipv4() { " = " } else { "=" });
        assert!(told.contains(&right), "{} to {address}, {mtu}: {told}", from.name);
        // What the pod has learned is for this destination; the next size wants to be told again.
        from.pod.sh(FORGET);
    }
}

/// Waits until a node says that its underlay is too small, or no longer does.
fn tells_of(lab: &Lab, node: &Node, underlay: usize) {
    let wanted = underlay < LEAST_OVER_IPV6 && node.address.is_ipv6();
    eventually(&format!("{} tells of {underlay}: {wanted}", node.name), SOON, || {
        let told = problems(&node.space);
        let words = [
            &*format!("link eth0\",\"what\":\"has an MTU of {underlay},"),
            &format!("ip link set eth0 mtu {LEAST_OVER_IPV6}"),
        ];
        let tells =
            if wanted { words.iter().all(|word| told.contains(word)) } else { told.contains("an MTU") };
        if tells == wanted { Ok(()) } else { Err(told) }
    });
    let log = std::fs::read_to_string(lab.log(&node.name)).expect("there is a log");
    assert!(!wanted || log.contains(&format!("link eth0: has an MTU of {underlay},")), "{log}");
}

fn every_size(plans: &[Plan], sizes: &[usize]) {
    let mut lab = Lab::start(plans);
    if let Some(whose) = wireguard_asked() {
        for gateway in ["alpha-1", "beta-1"] {
            assert_eq!(wireguard(&lab.node(gateway).space), whose, "{gateway}");
        }
    }
    lab.serve();
    lab.await_tunnels();
    for &underlay in sizes {
        resize(&lab, underlay);
        let mtu = (underlay - OVERHEAD).max(LEAST);
        for node in lab.nodes() {
            let device = if node.name.ends_with("-1") { "raven-wg0" } else { "raven0" };
            eventually(&format!("{} of {} follows {underlay}", device, node.name), SOON, || {
                let now = node.space.run(&format!("cat /sys/class/net/{device}/mtu"));
                if now.trim() == mtu.to_string() { Ok(()) } else { Err(now) }
            });
            tells_of(&lab, node, underlay);
        }
        let gateways = underlay < LEAST_OVER_IPV6 && lab.node("alpha-1").address.is_ipv6();
        let pairs = [("beta-1", "alpha-1"), ("alpha-2", "beta-2"), ("alpha-1", "beta-2")];
        let pairs = if gateways { &pairs[..1] } else { &pairs[..] };
        for (from, to) in pairs.iter().map(|(from, to)| (lab.node(from), lab.node(to))) {
            fits_exactly(from, to, mtu);
            for address in [to.pod4(), to.pod6()] {
                fetch(&from.pod, (address, PORT).into(), 500_000)
                    .unwrap_or_else(|why| panic!("{} to {address} over {underlay}: {why}", from.name));
            }
        }
    }
}

#[test]
fn packets_fit_whatever_an_underlay_of_ipv4_carries() {
    every_size(&[Plan::public("alpha", 2), Plan::nat("beta", 2).mesh()], &[1492, 1280, 1400, 9000, 1500]);
}

#[test]
fn packets_fit_whatever_an_underlay_of_ipv6_carries() {
    let plans = [Plan::public("alpha", 2).over_ipv6(), Plan::public("beta", 2).over_ipv6().mesh()];
    every_size(&plans, &[1492, 1280, 1400, 9000, 1500]);
}
