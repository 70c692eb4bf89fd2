//! A packet for another domain is never on the underlay but inside VXLAN between members, or inside a tunnel.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::agent::{SOON, await_ready, metric, status};
use crate::await_::eventually;
use crate::capture::Capture;
use crate::lab::{Lab, Plan};
use crate::space::Space;
use crate::traffic::{Flow, PORT, fetch};

/// Packets from or to pods of the other domain, in plain sight.
const LEAK_IN_CLOUD: &str = "net 10.101.0.0/16 or net fd00:10:1::/48";
/// The same at the site.
const LEAK_IN_SITE: &str = "net 10.100.0.0/16 or net fd00:10:0::/48";
/// VXLAN stays in its domain.
const STRAY_VXLAN: &str =
    "udp port 4472 and not (net 172.16.0.0/24 or (src net 192.168.1.0/24 and dst net 192.168.1.0/24))";
/// Between the routers there is nothing but the tunnel.
const NO_TUNNEL: &str = "ip and not udp port 4500 and not icmp";

const KILL_TUNNEL: &str = "for pid in $(pgrep -f '[c]orax tunnel'); do kill -9 $pid; done; true";
const FLUSH_ROUTES: &str =
    "for t in 9026 9027 9028 9029; do ip route flush table $t; ip -6 route flush table $t; done
    ip rule flush; ip rule add lookup main prio 32766; ip rule add lookup default prio 32767
    ip -6 rule flush; ip -6 rule add lookup main prio 32766; true";

struct Watch(Vec<(Capture, String)>);

impl Watch {
    fn start(lab: &Lab) -> Self {
        let mut all = Vec::new();
        for node in lab.nodes() {
            let leak = if node.domain == "cloud" { LEAK_IN_CLOUD } else { LEAK_IN_SITE };
            let filter = format!("({leak}) or ({STRAY_VXLAN})");
            all.push((Capture::start(&node.space, "eth0", "out", &filter, lab.scratch()), node.name.clone()));
        }
        for domain in ["cloud", "site"] {
            let capture = Capture::start(lab.router(domain), "wan", "inout", NO_TUNNEL, lab.scratch());
            all.push((capture, format!("{domain}'s router")));
        }
        Self(all)
    }

    #[track_caller]
    fn saw_nothing(self, when: &str) {
        for (capture, place) in self.0 {
            let seen = capture.end("");
            let some: Vec<_> = seen.iter().take(5).collect();
            assert!(seen.is_empty(), "{when}: {} packets in the open at {place}: {some:#?}", seen.len());
        }
    }
}

fn two_domains() -> Lab {
    let mut lab = Lab::start(&[Plan::public("cloud", 2), Plan::nat("site", 2).mesh()]);
    lab.serve();
    lab
}

/// Packets from pods and from the nodes themselves, both families, to the other domain's pods.
fn shout(lab: &Lab, from: &[&str], to: &str) {
    let to = lab.node(to);
    for name in from {
        let node = lab.node(name);
        for space in [&node.pod, &node.space] {
            for address in [to.pod4(), to.pod6()] {
                send(space, address, 5);
            }
        }
    }
}

fn send(space: &Space, to: std::net::IpAddr, packets: u32) {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    space.enter(|| {
        for _ in 0..packets {
            // An error is an unreachable that came back, or none to begin with: nothing was sent.
            if let Ok(socket) = UdpSocket::bind(any) {
                let _ = socket.send_to(b"in the open?", (to, PORT));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    });
}

fn set_rp_filter(lab: &Lab, value: &str) {
    for node in lab.nodes() {
        node.space.sh(&format!("for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo {value} >$f; done"));
    }
}

#[test]
fn nothing_leaks_whatever_happens_to_gateways_and_members() {
    let mut lab = two_domains();
    let watch = Watch::start(&lab);
    let every = Duration::from_millis(3);
    let mut flows = Vec::new();
    for (from, to) in
        [("cloud-1", "site-2"), ("cloud-2", "site-1"), ("site-1", "cloud-2"), ("site-2", "cloud-1")]
    {
        for address in [lab.node(to).pod4(), lab.node(to).pod6()] {
            flows.push(Flow::start(&lab.node(from).pod, address, every));
            flows.push(Flow::start(&lab.node(from).space, address, every));
        }
    }
    let happenings = [
        KILL_TUNNEL,
        "ip link set raven0 down",
        "ip link del raven0",
        "ip link del raven-wg0 2>/dev/null; true",
        "nft flush ruleset",
        FLUSH_ROUTES,
        "ip addr flush dev raven0",
        "ip nexthop flush",
    ];
    for happening in happenings {
        for name in ["cloud-1", "cloud-2", "site-1", "site-2"] {
            lab.node(name).space.sh(&format!("{happening}\ntrue"));
        }
        std::thread::sleep(Duration::from_millis(400));
        for node in lab.nodes() {
            await_ready(&node.space);
        }
    }
    // The uplink goes and comes, where no other CNI has routes on it.
    for name in ["site-1", "site-2"] {
        let back = "ip link set eth0 down; ip link set eth0 up; ip route add default via 192.168.1.254";
        lab.node(name).space.sh(&format!("{back}; ip route add default via fe80::1 dev eth0"));
    }
    std::thread::sleep(Duration::from_millis(400));
    // The same without anybody who would repair it, one lock at a time.
    for name in ["cloud-1", "cloud-2", "site-1", "site-2"] {
        lab.end_agent(name, Signal::SIGKILL);
        lab.node(name).space.sh(KILL_TUNNEL);
        std::thread::sleep(Duration::from_millis(150));
        lab.node(name).space.sh("ip link del raven0");
        std::thread::sleep(Duration::from_millis(150));
        lab.start_agent(name, &[]);
    }
    for node in lab.nodes() {
        await_ready(&node.space);
    }
    for flow in flows {
        assert!(flow.sent() > 100);
    }
    watch.saw_nothing("on the way");
    lab.everyone_reaches_everyone();
}

#[test]
fn with_routes_and_rules_gone_the_nft_lock_holds() {
    let mut lab = two_domains();
    for rp_filter in ["0", "2"] {
        set_rp_filter(&lab, rp_filter);
        for name in ["cloud-1", "cloud-2", "site-1", "site-2"] {
            lab.end_agent(name, Signal::SIGKILL);
            lab.node(name).space.sh(FLUSH_ROUTES);
        }
        let before = locked(&lab, "cloud-2");
        let watch = Watch::start(&lab);
        shout(&lab, &["cloud-1", "cloud-2"], "site-2");
        shout(&lab, &["site-1", "site-2"], "cloud-2");
        watch.saw_nothing(&format!("rp_filter {rp_filter}"));
        let after = locked(&lab, "cloud-2");
        assert!(after >= before + 20, "the lock counted {} of 20 packets", after - before);
        lab.start_agents();
        lab.everyone_reaches_everyone();
    }
}

/// What the lock of a node dropped, by nft's own count.
fn locked(lab: &Lab, name: &str) -> u64 {
    let counter = lab.node(name).space.json("nft -j list counter inet corax plaintext_lock");
    counter["nftables"][1]["counter"]["packets"].as_u64().expect("a counter")
}

#[test]
fn with_the_nft_table_gone_the_unreachable_routes_hold() {
    let mut lab = two_domains();
    for rp_filter in ["0", "2"] {
        set_rp_filter(&lab, rp_filter);
        for name in ["cloud-1", "cloud-2", "site-1", "site-2"] {
            lab.end_agent(name, Signal::SIGKILL);
            lab.node(name).space.sh(&format!("nft delete table inet corax\n{KILL_TUNNEL}"));
        }
        let watch = Watch::start(&lab);
        // First the tunnels are gone, then the overlay too.
        shout(&lab, &["cloud-1", "cloud-2"], "site-2");
        shout(&lab, &["site-1", "site-2"], "cloud-2");
        for node in lab.nodes() {
            node.space.run("ip link del raven0");
        }
        shout(&lab, &["cloud-1", "cloud-2"], "site-2");
        shout(&lab, &["site-1", "site-2"], "cloud-2");
        // The kernel tells one sender only so often, and was asked a lot.
        let told = lab
            .node("cloud-2")
            .pod
            .try_run("ping -n -c 2 -i 4 -W 1 10.101.2.10")
            .expect_err("there is no path");
        assert!(told.contains("Unreachable"), "{told}");
        watch.saw_nothing(&format!("rp_filter {rp_filter}"));
        lab.start_agents();
        lab.everyone_reaches_everyone();
    }
}

#[test]
fn what_came_out_of_a_tunnel_goes_to_own_pods_or_nowhere_by_either_lock() {
    for lock in ["rules", "nft"] {
        let mut lab = two_domains();
        lab.await_tunnels();
        // The site's gateway turns rogue: it sends the cloud's router what is no pod's.
        lab.end_agent("site-1", Signal::SIGKILL);
        lab.end_agent("cloud-1", Signal::SIGKILL);
        let site = &lab.node("site-1").space;
        let peer = site.run("wg show raven-wg0 peers").trim().to_owned();
        let allowed = "10.100.0.0/16,fd00:10::/48,172.16.0.254/32";
        site.run(&format!("wg set raven-wg0 peer {peer} allowed-ips {allowed}"));
        site.sh("nft delete table inet corax; ip route add 172.16.0.254 dev raven-wg0 src 10.101.1.0");
        let cloud = &lab.node("cloud-1").space;
        match lock {
            "nft" => drop(cloud.sh(FLUSH_ROUTES)),
            _ => drop(cloud.sh("nft delete table inet corax")),
        }
        let arrived =
            Capture::start(cloud, "raven-wg0", "in", "icmp and dst host 172.16.0.254", lab.scratch());
        let left = Capture::start(cloud, "eth0", "out", "icmp and dst host 172.16.0.254", lab.scratch());
        assert!(site.try_run("ping -n -c 3 -i 0.2 -W 1 172.16.0.254").is_err());
        let (arrived, left) = (arrived.end(""), left.end(""));
        assert!(!arrived.is_empty(), "the test reaches what it tests");
        assert!(left.is_empty(), "{lock}: {left:#?}");
    }
}

#[test]
fn two_gateways_that_take_each_other_for_the_gateway_do_not_loop() {
    let mut lab = Lab::build(&[Plan::public("cloud", 2), Plan::nat("site", 1)]);
    lab.declare();
    lab.serve();
    // Each of the cloud's nodes believes the other to be the gateway.
    let cloud = lab.gateways.get("cloud").expect("it is declared").clone();
    for (believer, gateway) in [("cloud-1", "cloud-2"), ("cloud-2", "cloud-1")] {
        let source = lab.scratch().join(format!("of-{believer}"));
        std::fs::create_dir(&source).expect("it is new");
        let mut believed = cloud.clone();
        for list in ["/spec/endpoints/0", "/status/activeEndpoints/0"] {
            let endpoint = believed.pointer_mut(list).expect("an endpoint");
            endpoint["nodeName"] = json!(gateway);
        }
        std::fs::write(source.join("cloud.json"), believed.to_string()).expect("it can be written");
        let site = lab.gateways.get("site").expect("it is declared").to_string();
        std::fs::write(source.join("site.json"), site).expect("it can be written");
        lab.start_agent_from(believer, &source, &[]);
    }
    let (one, two) = (lab.node("cloud-1"), lab.node("cloud-2"));
    await_ready(&one.space);
    await_ready(&two.space);
    let sent = |space: &Space| -> u64 {
        let links = space.json("ip -j -s link show raven0");
        links[0]["stats64"]["tx"]["packets"].as_u64().expect("a counter")
    };
    let before = sent(&one.space) + sent(&two.space);
    let told = one.pod.try_run("ping -n -c 10 -i 0.05 -W 1 10.101.1.10").expect_err("there is no path");
    let after = sent(&one.space) + sent(&two.space);
    // Each packet goes over once, and its error once back; a loop would make it dozens.
    assert!(after - before <= 40, "{} packets on the overlay for 10", after - before);
    assert!(after - before >= 10, "the packets went over: {}", after - before);
    assert!(told.contains("Unreachable"), "{told}");
    assert!(!told.contains("Time to live exceeded"), "{told}");
}

#[test]
fn a_stranger_on_the_underlay_cannot_send_into_the_overlay() {
    let lab = two_domains();
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
    let lab = two_domains();
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
    let mut lab = two_domains();
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

#[test]
fn a_tunnel_that_cannot_start_costs_only_itself() {
    let mut lab = Lab::build(&[Plan::public("cloud", 2).mesh(), Plan::nat("site", 1)]);
    lab.declare();
    lab.write();
    lab.start_agent("cloud-1", &["--tunnel", "external"]);
    lab.start_agent("cloud-2", &[]);
    lab.serve();
    let gateway = &lab.node("cloud-1").space;
    eventually("the mesh", SOON, || {
        let member = lab.node("cloud-2");
        fetch(&lab.node("cloud-1").pod, (member.pod4(), PORT).into(), 100)
    });
    let told = status(gateway).to_string();
    assert!(told.contains("start `corax tunnel raven-wg0` beside the agent"), "{told}");
    let watch = Watch::start(&lab);
    shout(&lab, &["cloud-1", "cloud-2"], "site-1");
    watch.saw_nothing("with no tunnel");
    let routes = gateway.run("ip route show table 9028");
    assert!(routes.contains("unreachable 10.101."), "the twins are there: {routes}");
    assert!(gateway.run("ip rule").contains("lookup 9028"));
}
