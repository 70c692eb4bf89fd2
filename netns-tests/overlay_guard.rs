//! Nothing comes out of the overlay but what members of the domain sent into it, of their own side.

use std::net::{Ipv4Addr, UdpSocket};

use nix::sys::signal::Signal;

use crate::agent::{SOON, metric};
use crate::await_::eventually;
use crate::capture::Capture;
use crate::lab::{Lab, Plan};

fn domains() -> Lab {
    Lab::start(&[Plan::public("cloud", 2), Plan::nat("site", 2)])
}

#[test]
fn a_stranger_on_the_underlay_cannot_send_into_the_overlay() {
    let lab = domains();
    let victim = lab.node("cloud-2");
    let mac = victim.space.json("ip -j link show raven0")[0]["address"].as_str().expect("a MAC").to_owned();
    let stranger = lab.router("cloud");
    stranger.ip(&format!(
        "link add vx type vxlan id 200 dstport 4472 remote 172.16.0.12 dev lan
         address add 10.101.2.99/32 dev vx
         link set vx up
         neigh add 10.100.2.10 lladdr {mac} dev vx nud permanent
         route add 10.100.2.10 dev vx src 10.101.2.99"
    ));
    let reason = ["reason=\"vxlan_stranger\""];
    let before = metric(&victim.space, "corax_dropped_packets_total", &reason);
    let arriving = Capture::start(&victim.pod, "eth0", "in", "host 10.101.2.99", lab.scratch());
    assert!(stranger.try_run("ping -n -c 5 -i 0.1 -W 1 10.100.2.10").is_err());
    assert_eq!(arriving.end(""), Vec::<String>::new());
    eventually("the drops are counted", SOON, || {
        let now = metric(&victim.space, "corax_dropped_packets_total", &reason);
        if now >= before + 5.0 { Ok(()) } else { Err(format!("{before}, then {now}")) }
    });
}

/// A UDP datagram from one pod to another as VXLAN carries it (RFC 7348), in Ethernet to `mac`.
fn encapsulated(mac: &str, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    const PAYLOAD: &[u8] = b"from a stranger";
    let udp = 8 + PAYLOAD.len() as u16;
    let mut frame = vec![8, 0, 0, 0, 0, 0, 200, 0];
    frame.extend(mac.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal")));
    frame.extend([2, 0, 0, 0, 0, 0x99, 8, 0]);
    let [high, low] = (20 + udp).to_be_bytes();
    let mut header = [0x45, 0, high, low, 0, 1, 0, 0, 64, 17, 0, 0].to_vec();
    header.extend(from.octets().into_iter().chain(to.octets()));
    let words = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum = words.sum::<u32>();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(header);
    frame.extend([9, 9, 9, 9].into_iter().chain(udp.to_be_bytes()).chain([0, 0]));
    frame.extend(PAYLOAD);
    frame
}

#[test]
fn a_stranger_cannot_either_by_broadcast_or_to_a_group() {
    let lab = domains();
    let victim = lab.node("cloud-2");
    let mac = victim.space.json("ip -j link show raven0")[0]["address"].as_str().expect("a MAC").to_owned();
    let frame = encapsulated(&mac, Ipv4Addr::new(10, 101, 2, 99), Ipv4Addr::new(10, 100, 2, 10));
    let stranger = lab.router("cloud");
    stranger.ip("route add 224.0.0.0/4 dev lan
                 route add 255.255.255.255/32 dev lan");
    let reason = ["reason=\"vxlan_stranger\""];
    let arriving = Capture::start(&victim.pod, "eth0", "in", "host 10.101.2.99", lab.scratch());
    for to in ["172.16.0.255", "255.255.255.255", "224.0.0.1"] {
        let before = metric(&victim.space, "corax_dropped_packets_total", &reason);
        stranger.enter(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            socket.set_broadcast(true).expect("broadcasts");
            socket.send_to(&frame, (to, 4472)).unwrap_or_else(|error| panic!("to {to}: {error}"));
        });
        eventually(&format!("the packet to {to} is counted"), SOON, || {
            let now = metric(&victim.space, "corax_dropped_packets_total", &reason);
            if now > before { Ok(()) } else { Err(format!("{before}, then {now}")) }
        });
    }
    assert_eq!(arriving.end(""), Vec::<String>::new());
}

#[test]
fn a_member_cannot_send_into_the_overlay_what_is_not_of_its_side() {
    let mut lab = domains();
    let reason = ["reason=\"overlay_source\""];
    lab.end_agent("cloud-2", Signal::SIGKILL);
    let (member, gateway) = (lab.node("cloud-2"), lab.node("cloud-1"));
    member.space.sh("nft delete table inet corax; ip addr add 203.0.113.7/32 dev lo");
    let before = metric(&gateway.space, "corax_dropped_packets_total", &reason);
    assert!(member.space.try_run("ping -n -c 5 -i 0.1 -W 1 -I 203.0.113.7 10.101.2.10").is_err());
    eventually("the drops are counted", SOON, || {
        let now = metric(&gateway.space, "corax_dropped_packets_total", &reason);
        if now >= before + 5.0 { Ok(()) } else { Err(format!("{before}, then {now}")) }
    });
}

/// With the CNI's masquerading it would come from the node, which is a member.
#[test]
fn a_pod_cannot_send_into_the_overlay_by_its_node() {
    let lab = domains();
    let (node, victim) = (lab.node("cloud-2"), lab.node("cloud-1"));
    let mac = victim.space.json("ip -j link show raven0")[0]["address"].as_str().expect("a MAC").to_owned();
    let frame = encapsulated(&mac, Ipv4Addr::new(10, 100, 2, 99), Ipv4Addr::new(10, 100, 1, 10));
    let reason = ["reason=\"vxlan_forged\""];
    let arriving = Capture::start(&victim.pod, "eth0", "in", "host 10.100.2.99", lab.scratch());
    let send = |from: &str| {
        node.pod.enter(|| {
            let socket = UdpSocket::bind((from, 0)).expect("a socket");
            socket.send_to(&frame, "172.16.0.11:4472").expect("it leaves the pod");
        });
    };
    let counted = |more: f64| {
        eventually("the drops are counted", SOON, || {
            let now = metric(&node.space, "corax_dropped_packets_total", &reason);
            if now >= more { Ok(()) } else { Err(format!("{now}")) }
        });
    };
    send("10.100.2.10");
    counted(1.0);
    // By an address of the underlay, to which the way leads elsewhere.
    node.pod.ip("address add 172.16.0.254/32 dev lo");
    node.space.sh("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.cni0.rp_filter=0");
    send("172.16.0.254");
    counted(2.0);
    assert_eq!(arriving.end(""), Vec::<String>::new());
}
