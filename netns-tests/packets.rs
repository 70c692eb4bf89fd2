//! Sizes of packets, and where tunnels find each other.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::Signal;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::agent::{CORAX, SECRET, SOON};
use crate::await_::eventually;
use crate::capture::Capture;
use crate::lab::{Lab, Plan};
use crate::traffic::{Flow, fetch};

/// What fits every path where the underlay carries 1500 bytes.
const MTU: usize = 1420;

fn two_domains() -> Lab {
    Lab::start(&[Plan::public("cloud", 2), Plan::nat("site", 2).mesh()])
}

#[test]
fn the_largest_packet_passes_whole_and_one_byte_more_is_answered_with_the_size_that_fits() {
    let lab = two_domains();
    lab.await_tunnels();
    let pairs = [("cloud-2", "site-2"), ("site-2", "cloud-2"), ("cloud-1", "site-1"), ("site-1", "cloud-2")];
    for (from, to) in pairs {
        let (from, to) = (lab.node(from), lab.node(to));
        for (address, headers) in [(to.pod4(), 28), (to.pod6(), 48)] {
            let ping =
                |size: usize| format!("ping -n -M do -c 5 -i 0.3 -W 2 -s {} {address}", size - headers);
            // One answer says that the size passes; a tunnel that is just coming up may cost the first.
            from.pod.run(&ping(MTU));
            let told = from.pod.try_run(&ping(MTU + 1)).expect_err("it is too large");
            let right = format!("mtu{}{MTU}", if address.is_ipv4() { " = " } else { "=" });
            assert!(told.contains(&right), "{} to {address}: {told}", from.name);
            // What the pod has learned is for this destination; the next test wants to be told again.
            from.pod.sh("ip route flush cache; ip -6 route flush cache");
        }
    }
}

#[test]
fn the_segment_size_is_clamped_both_ways() {
    let mut lab = two_domains();
    lab.serve();
    lab.await_tunnels();
    for (from, to) in [("cloud-2", "site-2"), ("site-1", "cloud-1")] {
        let (from, to) = (lab.node(from), lab.node(to));
        for (address, most) in [(to.pod4(), MTU - 40), (to.pod6(), MTU - 60)] {
            let syn = "tcp port 8080 and (tcp[tcpflags] & tcp-syn != 0 or (ip6 and ip6[53] & 2 != 0))";
            let ends = [&from.pod, &to.pod].map(|pod| Capture::start(pod, "eth0", "in", syn, lab.scratch()));
            fetch(&from.pod, (address, 8080).into(), 3_000_000).expect("it is reached");
            for capture in ends {
                let seen = capture.end("");
                let sizes: Vec<usize> = seen.iter().filter_map(|line| segment_size(line)).collect();
                assert_eq!(sizes, [most], "{} to {address}: {:?}", from.name, seen.first());
            }
        }
    }
}

fn segment_size(line: &str) -> Option<usize> {
    let (_, rest) = line.split_once("mss ")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[test]
fn a_tunnel_goes_on_when_the_nat_gives_it_another_port() {
    let mut lab = two_domains();
    lab.serve();
    let (cloud, site) = (lab.node("cloud-2"), lab.node("site-2"));
    let flow = Flow::start(&site.pod, cloud.pod4(), Duration::from_millis(20));
    let endpoint = || lab.node("cloud-1").space.run("wg show raven-wg0 endpoints");
    let before = endpoint();
    assert!(before.contains("198.18.1.2:"), "{before}");
    let router = lab.router("site");
    router.nft(
        "flush chain ip nat postrouting
         add rule ip nat postrouting oifname wan ip protocol udp masquerade to :20000-20999 random
         add rule ip nat postrouting oifname wan masquerade",
    );
    router.sh("conntrack -F");
    eventually("the cloud follows", SOON, || {
        let now = endpoint();
        if now.contains("198.18.1.2:20") && now != before { Ok(()) } else { Err(now) }
    });
    let count = flow.stop();
    // What came back to the old port is lost, and no more: less than a second.
    assert!(count.lost.len() <= 50, "{} of {} lost", count.lost.len(), count.sent.len());
    Flow::start(&cloud.pod, site.pod4(), Duration::from_millis(20)).lost_nothing();
}

#[test]
fn a_gateway_tracks_neither_transit_nor_the_overlay_itself() {
    let mut lab = two_domains();
    lab.serve();
    let (cloud, site) = (lab.node("cloud-2"), lab.node("site-2"));
    lab.await_tunnels();
    for (from, to) in [(cloud, site), (site, cloud)] {
        fetch(&from.pod, (to.pod4(), 8080).into(), 100_000).expect("it is reached");
    }
    for gateway in ["cloud-1", "site-1"] {
        let tracked = lab.node(gateway).space.run("conntrack -L");
        for never in [cloud.pod4().to_string(), site.pod4().to_string(), "dport=4472".to_owned()] {
            assert!(!tracked.contains(&never), "{gateway} tracks {never}:\n{tracked}");
        }
    }
    let tracked = cloud.space.run("conntrack -L");
    assert!(tracked.contains(&site.pod4().to_string()), "the member does, for Services:\n{tracked}");
}

#[test]
fn somebody_elses_wireguard_is_a_peer() {
    let mut lab = Lab::build(&[Plan::public("cloud", 2), Plan::nat("site", 1)]);
    lab.declare();
    // The site's gateway runs wireguard-go and nothing of Corax.
    let site = &lab.node("site-1").space;
    site.sh("mkdir -p /run/wireguard; wg genkey >/run/key; nft delete table inet cni");
    let key = site.sh("wg pubkey </run/key").trim().to_owned();
    let cloud_key = lab.node("cloud-1").space.run(&format!("{CORAX} key")).trim().to_owned();
    let gateway = lab.gateways.get_mut("site").expect("it is declared");
    for list in ["/spec/endpoints/0", "/status/activeEndpoints/0"] {
        gateway.pointer_mut(list).expect("an endpoint")["config"]["publicKey"] = json!(key);
    }
    lab.write();
    lab.start_agent("cloud-1", &[]);
    lab.start_agent("cloud-2", &[]);
    for name in ["cloud-1", "cloud-2"] {
        crate::agent::await_ready(&lab.node(name).space);
    }
    let site = &lab.node("site-1").space;
    let peer = site.spawn(&["wireguard-go", "-f", "wg9"], |_| {});
    eventually("wireguard-go answers", SOON, || site.try_run("wg show wg9"));
    let preshared = STANDARD.encode(Sha256::digest(SECRET));
    site.sh(&format!("echo {preshared} >/run/psk"));
    site.run(&format!(
        "wg set wg9 private-key /run/key listen-port 4500 peer {cloud_key} preshared-key /run/psk \
         allowed-ips 10.100.0.0/16,fd00:10:0::/48 endpoint 198.18.0.2:4500 persistent-keepalive 5"
    ));
    site.ip("link set wg9 mtu 1420 up
         route add 10.100.0.0/16 dev wg9
         route add fd00:10:0::/48 dev wg9");
    lab.everyone_reaches_everyone();
    peer.end(Signal::SIGTERM);
}

#[test]
fn domains_whose_underlay_is_ipv6_reach_each_other() {
    let mut lab =
        Lab::start(&[Plan::public("alpha", 2).over_ipv6(), Plan::public("beta", 2).over_ipv6().mesh()]);
    let link = lab.node("beta-2").space.json("ip -j -d link show raven0");
    assert_eq!(link[0]["linkinfo"]["info_data"]["local6"], json!("fd00:16:1::12"), "{link}");
    lab.everyone_reaches_everyone();
}
