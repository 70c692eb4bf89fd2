//! A packet for another domain is never on the underlay but inside VXLAN between members, or inside a tunnel.

use std::net::UdpSocket;
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
const STRAY_VXLAN: &str = "udp port 4472 and not (src net 172.16.0.0/24 and dst net 172.16.0.0/24) \
     and not (src net 192.168.1.0/24 and dst net 192.168.1.0/24)";
/// Between the routers there is nothing but the tunnel.
const NO_TUNNEL: &str = "(ip or ip6) and not udp port 4500 and not icmp and not icmp6 and not ip6 multicast";
/// By which a capture proves at its end that it sees what leaves: sent to nobody's address.
const LAST: &str = "udp and dst host 192.0.2.99";

const KILL_TUNNEL: &str = "for pid in $(pgrep -f '[c]orax tunnel'); do kill -9 $pid; done; true";
const FLUSH_ROUTES: &str =
    "for t in 9026 9027 9028 9029; do ip route flush table $t; ip -6 route flush table $t; done
    ip rule flush; ip rule add lookup main prio 32766; ip rule add lookup default prio 32767
    ip -6 rule flush; ip -6 rule add lookup main prio 32766; true";

/// Where a capture is.
enum Place {
    Node(String),
    Router(&'static str),
}

impl Place {
    fn space<'a>(&self, lab: &'a Lab) -> &'a Space {
        match self {
            Self::Node(name) => &lab.node(name).space,
            Self::Router(domain) => lab.router(domain),
        }
    }
}

struct Watch(Vec<(Capture, Place)>);

impl Watch {
    fn start(lab: &Lab) -> Self {
        let mut all = Vec::new();
        for node in lab.nodes() {
            let leak = if node.domain == "cloud" { LEAK_IN_CLOUD } else { LEAK_IN_SITE };
            let filter = format!("({leak}) or ({STRAY_VXLAN}) or ({LAST})");
            let capture = Capture::start(&node.space, "eth0", "out", &filter, lab.scratch());
            all.push((capture, Place::Node(node.name.clone())));
        }
        for domain in ["cloud", "site"] {
            let capture = Capture::start(lab.router(domain), "wan", "inout", NO_TUNNEL, lab.scratch());
            all.push((capture, Place::Router(domain)));
        }
        Self(all)
    }

    /// What each of them saw, until the end: each is asked for a packet that leaves then.
    #[track_caller]
    fn end(self, lab: &Lab) -> Vec<(&Space, Vec<String>)> {
        let mut all = Vec::new();
        for (capture, place) in self.0 {
            let space = place.space(lab);
            eventually(&format!("the capture at {} sees what leaves", space.name), SOON, || {
                send(space, [192, 0, 2, 99].into(), 1);
                if capture.seen(LAST).is_empty() { Err("nothing") } else { Ok(()) }
            });
            all.push((space, capture.end(&format!("not ({LAST})"))));
        }
        all
    }

    #[track_caller]
    fn saw_nothing(self, lab: &Lab, when: &str) {
        for (space, seen) in self.end(lab) {
            let some: Vec<_> = seen.iter().take(5).collect();
            let place = &space.name;
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

const NODES: [&str; 4] = ["cloud-1", "cloud-2", "site-1", "site-2"];

/// Ends the agents, and sets what they would set back.
fn leave_alone_with_rp_filter(lab: &mut Lab, names: &[&str], value: &str) {
    for name in names {
        lab.end_agent(name, Signal::SIGKILL);
    }
    for name in names {
        let files = "/proc/sys/net/ipv4/conf/*/rp_filter";
        lab.node(name).space.sh(&format!("for f in {files}; do echo {value} >$f; done"));
    }
    rp_filter_is(lab, names, value);
}

/// Every device of these nodes checks the way back to a source so: the kernel takes the larger of the device's and `all`.
#[track_caller]
fn rp_filter_is(lab: &Lab, names: &[&str], value: &str) {
    for name in names {
        let told = lab.node(name).space.sh("grep -H . /proc/sys/net/ipv4/conf/*/rp_filter");
        assert!(
            told.contains("/raven0/") || !lab.node(name).space.run("ip link").contains("raven0:"),
            "{told}"
        );
        assert!(told.lines().all(|line| line.ends_with(&format!(":{value}"))), "{name}: {told}");
    }
}

#[test]
fn without_both_locks_there_is_a_leak_and_it_is_seen() {
    let mut lab = two_domains();
    leave_alone_with_rp_filter(&mut lab, &NODES, "0");
    for name in NODES {
        lab.node(name).space.sh(&format!("{FLUSH_ROUTES}\nnft delete table inet corax"));
    }
    // Once more where a router had to find its own next hop first, which can take a second.
    eventually("every capture sees all that leaks", SOON, || {
        let watch = Watch::start(&lab);
        shout(&lab, &["cloud-1", "cloud-2"], "site-2");
        shout(&lab, &["site-1", "site-2"], "cloud-2");
        // And VXLAN that leaves its domain.
        for name in NODES {
            let space = &lab.node(name).space;
            space.enter(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
                socket.send_to(b"stray", ("198.18.9.9", 4472)).expect("it leaves");
            });
        }
        for (space, seen) in watch.end(&lab) {
            let (four, six, stray) = (
                seen.iter().filter(|line| line.contains(" IP ") && !line.contains(".4472")).count(),
                seen.iter().filter(|line| line.contains(" IP6 ")).count(),
                seen.iter().filter(|line| line.contains("198.18.9.9.4472")).count(),
            );
            // Of pod and node, five each.
            if four < 10 || six < 10 || stray < 1 {
                return Err(format!("{}: {four}, {six}, {stray}: {seen:#?}", space.name));
            }
        }
        Ok(())
    });
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
    watch.saw_nothing(&lab, "on the way");
    lab.everyone_reaches_everyone();
}

#[test]
fn with_routes_and_rules_gone_the_nft_lock_holds() {
    let mut lab = two_domains();
    for rp_filter in ["0", "2"] {
        leave_alone_with_rp_filter(&mut lab, &NODES, rp_filter);
        for name in NODES {
            lab.node(name).space.sh(FLUSH_ROUTES);
        }
        let before = locked(&lab, "cloud-2");
        let watch = Watch::start(&lab);
        shout(&lab, &["cloud-1", "cloud-2"], "site-2");
        shout(&lab, &["site-1", "site-2"], "cloud-2");
        watch.saw_nothing(&lab, &format!("rp_filter {rp_filter}"));
        rp_filter_is(&lab, &NODES, rp_filter);
        let after = locked(&lab, "cloud-2");
        assert!(after >= before + 20, "the lock counted {} of 20 packets", after - before);
        lab.start_agents();
        lab.everyone_reaches_everyone();
    }
}

/// What the lock of a node dropped, by nft's own count.
fn locked(lab: &Lab, name: &str) -> u64 {
    counted(&lab.node(name).space, "plaintext_lock").0
}

/// Packets and bytes of a counter, by nft.
fn counted(space: &Space, reason: &str) -> (u64, u64) {
    let shown = space.json(&format!("nft -j list counter inet corax {reason}"));
    let counter = &shown["nftables"][1]["counter"];
    let number = |what: &str| counter[what].as_u64().expect("a counter");
    (number("packets"), number("bytes"))
}

#[test]
fn where_both_devices_are_somebody_elses_the_nft_lock_holds() {
    let mut lab = Lab::build(&[Plan::public("cloud", 2), Plan::nat("site", 1)]);
    lab.declare();
    lab.write();
    lab.node("cloud-1").space.sh("ip link add raven0 type bridge; ip link add raven-wg0 type bridge");
    lab.start_agents_of(&["cloud-1"]);
    let space = &lab.node("cloud-1").space;
    eventually("the lock is there", SOON, || space.try_run("nft list chain inet corax lock"));
    lab.end_agent("cloud-1", Signal::SIGKILL);
    lab.node("cloud-1").space.sh(FLUSH_ROUTES);
    let before = locked(&lab, "cloud-1");
    let leak = Capture::start(&lab.node("cloud-1").space, "eth0", "out", LEAK_IN_CLOUD, lab.scratch());
    shout(&lab, &["cloud-1"], "site-1");
    assert_eq!(leak.end(""), Vec::<String>::new());
    let after = locked(&lab, "cloud-1");
    assert!(after >= before + 10, "the lock counted {} of 10 packets or more", after - before);
}

#[test]
fn with_the_nft_table_gone_the_unreachable_routes_hold() {
    let mut lab = two_domains();
    for rp_filter in ["0", "2"] {
        leave_alone_with_rp_filter(&mut lab, &NODES, rp_filter);
        for name in NODES {
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
        watch.saw_nothing(&lab, &format!("rp_filter {rp_filter}"));
        rp_filter_is(&lab, &NODES, rp_filter);
        lab.start_agents();
        lab.everyone_reaches_everyone();
    }
}

/// The cloud's router, which is nobody's pod; the gateway's own default routes lead to it.
const FOREIGN: [&str; 2] = ["172.16.0.254", "fd00:16::fe"];

/// Nodes turn rogue: what they send to [`FOREIGN`], the site's gateway sends into the tunnel, and the cloud's member into
/// the overlay. Their agents have ended.
fn turn_rogue(lab: &Lab) {
    let site = &lab.node("site-1").space;
    let peer = site.run("wg show raven-wg0 peers").trim().to_owned();
    let [four, six] = FOREIGN;
    site.run(&format!(
        "wg set raven-wg0 peer {peer} allowed-ips 10.100.0.0/16,fd00:10::/48,{four}/32,{six}/128"
    ));
    let member = &lab.node("cloud-2").space;
    let nexthops = member.json("ip -j nexthop show");
    let to_the_gateway = |six: bool| {
        let all = nexthops.as_array().expect("nexthops").iter();
        let mut of_family =
            all.filter(|one| one["gateway"].as_str().is_some_and(|to| to.contains(':') == six));
        format!("nhid {}", of_family.next().expect("a nexthop to the gateway")["id"])
    };
    for (space, by4, by6) in [
        (site, "dev raven-wg0".to_owned(), "dev raven-wg0".to_owned()),
        (member, to_the_gateway(false), to_the_gateway(true)),
    ] {
        let own = |six: bool| {
            let shown = space.json("ip -j address show dev raven0 scope global");
            let all = shown[0]["addr_info"].as_array().expect("addresses").iter();
            let mut of_family =
                all.filter_map(|one| one["local"].as_str()).filter(|own| own.contains(':') == six);
            of_family.next().expect("a pod-side address").to_owned()
        };
        space.ip(&format!(
            "route replace {four}/32 {by4} src {}
             route replace {six}/128 {by6} src {}",
            own(false),
            own(true)
        ));
        space.run("nft delete table inet corax");
    }
}

/// Sends both families to [`FOREIGN`], in UDP and ICMP. No answer may come.
fn send_what_is_foreign(space: &Space) {
    for to in FOREIGN {
        send(space, to.parse().expect("an address"), 3);
        assert!(space.try_run(&format!("ping -n -c 2 -i 0.2 -W 1 {to}")).is_err(), "{}: {to}", space.name);
    }
}

#[test]
fn what_came_by_our_devices_goes_to_own_pods_or_nowhere_by_either_lock() {
    let rogues = ["site-1", "cloud-2"];
    let all = FOREIGN.map(|to| format!("dst host {to}")).join(" or ");
    let udp_or_echo = format!("({all}) and (udp or icmp or icmp6)");
    for lock in ["rules", "nft", "none"] {
        for rp_filter in ["0", "2"] {
            let mut lab = two_domains();
            lab.await_tunnels();
            leave_alone_with_rp_filter(&mut lab, &["cloud-1", "cloud-2", "site-1"], rp_filter);
            turn_rogue(&lab);
            let cloud = &lab.node("cloud-1").space;
            if lock != "rules" {
                cloud.sh(FLUSH_ROUTES);
            }
            if lock != "nft" {
                cloud.run("nft delete table inet corax");
            }
            for (rogue, device) in rogues.iter().zip(["raven-wg0", "raven0"]) {
                let arrived = Capture::start(cloud, device, "in", &udp_or_echo, lab.scratch());
                let left = Capture::start(cloud, "eth0", "out", &udp_or_echo, lab.scratch());
                let space = &lab.node(rogue).space;
                if lock == "none" {
                    for to in FOREIGN {
                        send(space, to.parse().expect("an address"), 3);
                    }
                    std::thread::sleep(Duration::from_millis(300));
                } else {
                    send_what_is_foreign(space);
                }
                let (arrived, left) = (arrived.end(""), left.end(""));
                let case = format!("{lock}, rp_filter {rp_filter}, by {device}");
                for to in FOREIGN {
                    let of = |lines: &[String]| lines.iter().filter(|line| line.contains(to)).count();
                    assert!(of(&arrived) >= 3, "{case}, {to}: the test reaches what it tests: {arrived:#?}");
                    // Without both locks there is something to keep back, and it is seen.
                    let expected = if lock == "none" { of(&left) >= 3 } else { of(&left) == 0 };
                    assert!(expected, "{case}, {to}: {left:#?}");
                }
            }
            rp_filter_is(&lab, &["cloud-1", "cloud-2", "site-1"], rp_filter);
        }
    }
}

#[test]
fn what_is_for_a_pod_that_is_not_there_leaves_by_no_default_route() {
    let lab = two_domains();
    lab.await_tunnels();
    let cloud = ["cloud-1", "cloud-2"].map(|name| lab.node(name));
    // As before the first pod after a boot.
    for node in cloud {
        node.space.run("ip link set cni0 down");
    }
    for node in cloud {
        for to in [node.pod4(), node.pod6()] {
            let filter = format!("dst host {to} and udp");
            let device = if node.name == "cloud-1" { "raven-wg0" } else { "raven0" };
            let arrived = Capture::start(&node.space, device, "in", &filter, lab.scratch());
            let left = Capture::start(&node.space, "eth0", "out", &filter, lab.scratch());
            send(&lab.node("site-1").pod, to, 3);
            eventually("all arrive", SOON, || {
                let arrived = arrived.seen("");
                if arrived.len() == 3 { Ok(()) } else { Err(format!("{arrived:#?}")) }
            });
            assert_eq!(left.end(""), <[String; 0]>::default(), "{}, {to}", node.name);
        }
    }
}

/// The agent's metrics and status say of a drop counter what nft says, packets and bytes.
#[track_caller]
fn told_as_nft_counts(space: &Space, reason: &str, at_least: u64) {
    eventually(&format!("{}: {reason} is told", space.name), SOON, || {
        let counted = counted(space, reason);
        let label = format!("reason=\"{reason}\"");
        let of = |what: &str| metric(space, &format!("corax_dropped_{what}_total"), &[&label]);
        let metrics = (of("packets") as u64, of("bytes") as u64);
        let status = status(space);
        let drops = status["drops"].as_array().expect("a list");
        let drop = drops.iter().find(|drop| drop["reason"] == reason).expect("each reason is listed");
        let told = (drop["packets"].as_u64().expect("a number"), drop["bytes"].as_u64().expect("a number"));
        if counted.0 >= at_least && metrics == counted && told == counted {
            Ok(())
        } else {
            Err(format!("nft {counted:?}, metrics {metrics:?}, status {told:?}"))
        }
    });
}

#[test]
fn what_is_forwarded_to_no_pod_is_counted() {
    let mut lab = two_domains();
    lab.await_tunnels();
    lab.end_agent("site-1", Signal::SIGKILL);
    lab.end_agent("cloud-2", Signal::SIGKILL);
    turn_rogue(&lab);
    let cloud = &lab.node("cloud-1").space;
    let (before, _) = counted(cloud, "forward_foreign");
    // The rules come first: the agent is held while they are gone.
    lab.signal_agent("cloud-1", Signal::SIGSTOP);
    cloud.sh(FLUSH_ROUTES);
    for name in ["site-1", "cloud-2"] {
        send_what_is_foreign(&lab.node(name).space);
    }
    lab.signal_agent("cloud-1", Signal::SIGCONT);
    await_ready(cloud);
    // Three datagrams and two echo requests, of each family, of each rogue.
    told_as_nft_counts(cloud, "forward_foreign", before + 20);
}

#[test]
fn redirects_do_not_leave_by_our_devices_and_are_counted() {
    use nix::sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
    };
    let lab = two_domains();
    let gateway = &lab.node("cloud-1").space;
    let pod = lab.node("site-1");
    let redirects = "icmp[icmptype] == icmp-redirect or (icmp6 and ip6[40] == 137)";
    let left = Capture::start(gateway, "raven-wg0", "out", &format!("{redirects} or {LAST}"), lab.scratch());
    gateway.enter(|| {
        for (to, family, protocol, kind) in [
            (pod.pod4(), AddressFamily::Inet, SockProtocol::Icmp, 5),
            (pod.pod6(), AddressFamily::Inet6, SockProtocol::IcmpV6, 137),
        ] {
            let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).expect("root may");
            let mut message = [0; 40];
            message[0] = kind;
            let to = SockaddrStorage::from(std::net::SocketAddr::new(to, 0));
            for _ in 0..3 {
                // What is dropped on its way out is refused.
                let refused = sendto(std::os::fd::AsRawFd::as_raw_fd(&raw), &message, &to, MsgFlags::empty());
                assert_eq!(refused, Err(nix::errno::Errno::EPERM));
            }
        }
    });
    told_as_nft_counts(gateway, "icmp_redirect", 6);
    assert_eq!(left.end(redirects), Vec::<String>::new());
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
    watch.saw_nothing(&lab, "with no tunnel");
    let routes = gateway.run("ip route show table 9028");
    assert!(routes.contains("unreachable 10.101."), "the twins are there: {routes}");
    assert!(gateway.run("ip rule").contains("lookup 9028"));
}
