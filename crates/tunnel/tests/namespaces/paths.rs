//! What packets look like on their way.

use std::fs;
use std::io::Read;
use std::net::UdpSocket;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::traffic;
use super::world::{CORAX, Host, PATIENCE, World, cable, eventually, join, third};

#[test]
fn a_source_that_is_not_the_peers_is_dropped() {
    let world = World::new();
    let (a, b) = world.pair();
    let (wga, _wgb) = join((&a, CORAX), (&b, CORAX));
    a.ping("10.8.0.2");
    b.run("ip addr add 10.8.0.99/32 dev wgb");
    assert!(!b.try_run("ping -n -c 3 -i 0.1 -W 1 -I 10.8.0.99 10.8.0.1").status.success());
    eventually("the drops", || wga.metric("drops_source_not_allowed_total") >= 3);
}

#[test]
fn what_is_sent_again_by_somebody_else_is_dropped() {
    let world = World::new();
    let (a, b) = world.pair();
    let (wga, wgb) = join((&a, CORAX), (&b, CORAX));
    // All messages to a pass by somebody who sends each twice.
    wgb.peer(&wga, "endpoint 10.9.0.2:6000");
    b.within(|| {
        let socket = UdpSocket::bind("10.9.0.2:6000").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let (to, times) = if from.port() == 5002 { ("10.9.0.1:5001", 2) } else { ("10.9.0.2:5002", 1) };
            for _ in 0..times {
                socket.send_to(&buffer[..length], to).unwrap();
            }
        }
    });
    let output = b.run("ping -n -c 5 -i 0.1 -w 200 10.8.0.1");
    assert!(!output.contains("DUP"), "{output}");
    assert!(wga.metric("drops_replayed_total") >= 5);
    assert!(wga.metric("drops_old_handshake_total") >= 1);
}

#[test]
fn checksums_of_vxlan_inside_the_tunnel_are_right() {
    let world = World::new();
    let (a, b) = world.pair();
    let (_wga, _wgb) = join((&a, CORAX), (&b, CORAX));
    for (host, own, other) in [(&a, 1, 2), (&b, 2, 1)] {
        host.run(&format!(
            "ip link add vx type vxlan id 7 dstport 4789 local 10.8.0.{own} remote 10.8.0.{other} dev wg{}",
            host.name
        ));
        host.run(&format!("ip addr add 10.7.0.{own}/24 dev vx"));
        host.run("ip link set vx mtu 1370 up");
    }
    a.ping("10.7.0.2");
    traffic::tcp(&a, &b, "10.7.0.2", 2 << 20);
    traffic::udp(&b, &a, "10.7.0.1", 1342);
    // And with the inner checksum left to whoever comes last.
    for host in [&a, &b] {
        host.run("ip link del vx");
    }
    for (host, own, other) in [(&a, 1, 2), (&b, 2, 1)] {
        host.run(&format!(
            "ip link add vx type vxlan id 7 dstport 4789 local fd08::{own} remote fd08::{other} udp6zerocsumtx \
             udp6zerocsumrx dev wg{}",
            host.name
        ));
        host.run(&format!("ip addr add 10.7.0.{own}/24 dev vx"));
        host.run("ip link set vx mtu 1350 up");
    }
    a.ping("10.7.0.2");
    traffic::tcp(&a, &b, "10.7.0.2", 2 << 20);
}

#[test]
fn frames_of_a_forwarded_flow_come_uncut_however_many_segments_they_have() {
    let world = World::new();
    let (a, b) = world.pair();
    let c = world.host("c");
    cable(&c, "eth0", &a, "lan");
    c.run("ip addr add 10.6.0.2/24 dev eth0");
    c.run("ip route add 10.8.0.0/24 via 10.6.0.1");
    a.run("ip addr add 10.6.0.1/24 dev lan");
    a.run("sysctl -qw net.ipv4.ip_forward=1");
    let (wga, wgb) = join((&a, CORAX), (&b, CORAX));
    wgb.peer(&wga, "allowed-ips 10.8.0.1/32,10.6.0.0/24");
    b.run("ip route add 10.6.0.0/24 dev wgb");
    // A hundred of them to a frame of 64 KB.
    c.run("ip link set eth0 mtu 640");
    c.ping("10.8.0.2");
    let before = wga.metric("tun_reads_total");
    const BYTES: usize = 8 << 20;
    traffic::tcp(&c, &b, "10.8.0.2", BYTES);
    let reads = wga.metric("tun_reads_total") - before;
    assert!(reads < (BYTES / 588 / 10) as u64, "{reads} reads");
}

#[test]
fn packets_of_two_peers_that_come_in_turn_leave_in_trains_and_each_peers_in_order() {
    const EACH: usize = 100;
    let packet = |index: usize| index.to_le_bytes().repeat(16);
    let world = World::new();
    let (a, b) = world.pair();
    let (wga, _wgb) = join((&a, CORAX), (&b, CORAX));
    let (c, _wgc) = third(&world, &a, &wga);
    let (servers, addresses): (Vec<_>, Vec<_>) = [(&b, "10.8.0.2"), (&c, "10.8.0.3")]
        .map(|(host, address)| {
            a.ping(address);
            traffic::udp_server(host, address, EACH, EACH, packet)
        })
        .into_iter()
        .unzip();
    let before = wga.metric("send_batches_64");
    // What comes while the tunnel does not run is one batch.
    let tunnel = Pid::from_raw(wga.process.0.id() as i32);
    kill(tunnel, Signal::SIGSTOP).unwrap();
    eventually("all its threads to stop", || {
        let mut threads = fs::read_dir(format!("/proc/{tunnel}/task")).unwrap();
        threads
            .all(|thread| fs::read_to_string(thread.unwrap().path().join("stat")).unwrap().contains(") T "))
    });
    let send = a.within(move || {
        let clients: Vec<_> = addresses.into_iter().map(traffic::udp_client).collect();
        for index in 0..EACH {
            for client in &clients {
                client.send(&packet(index)).unwrap();
            }
        }
    });
    send.join().unwrap();
    kill(tunnel, Signal::SIGCONT).unwrap();
    servers.into_iter().for_each(|server| server.join().unwrap());
    // 64 and 36 to each, counted once they are sent.
    eventually("four trains", || wga.metric("send_batches_64") - before >= 4);
    assert_eq!(wga.metric("send_batches_64") - before, 4);
    wga.found_no_fault();
}

#[test]
fn congestion_is_told_across_the_tunnel_both_ways() {
    let outer = [("ip", "10.9.0.1", "10.9.0.2"), ("ip6", "[fd09::1]", "[fd09::2]")];
    let inner = [("ip", "10.8.0.2"), ("ip6", "fd08::2")];
    for ((outside, left, right), (inside, address)) in outer.into_iter().flat_map(|o| inner.map(|i| (o, i))) {
        let world = World::new();
        let (a, b) = world.pair();
        let (wga, wgb) = join((&a, CORAX), (&b, CORAX));
        wga.peer(&wgb, &format!("endpoint {right}:5002"));
        wgb.peer(&wga, &format!("endpoint {left}:5001"));
        a.ping(address);
        let counted = |table: &str| -> u64 {
            let listing = b.run(&format!("nft list table {table}"));
            let (_, rest) = listing.split_once("packets ").unwrap();
            rest.split_whitespace().next().unwrap().parse().unwrap()
        };
        let chain = |table: &str| {
            b.run(&format!("nft add table {table}"));
            b.run(&format!("nft add chain {table} in {{ type filter hook prerouting priority -300 ; }}"));
        };
        let (outer, inner) = (format!("{outside} outer"), format!("{inside} inner"));
        // The inner bits are seen outside: ECT(1) is 1, and 2 is ECT(0).
        chain(&outer);
        for (bits, name) in [(1, "ect1"), (2, "ect0")] {
            b.run(&format!("nft flush chain {outer} in"));
            b.run(&format!("nft add rule {outer} in udp dport 5002 {outside} ecn {name} counter"));
            a.run(&format!("ping -n -c 3 -i 0.1 -Q {bits} {address}"));
            assert!(counted(&outer) >= 3, "{outside} {inside} {name}");
        }
        // What the way marks outside arrives inside: CE is 3.
        b.run(&format!("nft flush chain {outer} in"));
        b.run(&format!("nft add rule {outer} in udp dport 5002 {outside} ecn set ce"));
        chain(&inner);
        b.run(&format!("nft add rule {inner} in iifname wgb {inside} ecn ce counter"));
        a.run(&format!("ping -n -c 3 -i 0.1 {address}"));
        assert_eq!(counted(&inner), 0, "{outside} {inside}: who cannot understand the mark does not get it");
        a.run(&format!("ping -n -c 3 -i 0.1 -Q 2 {address}"));
        assert!(counted(&inner) >= 3, "{outside} {inside}");
    }
}

#[test]
fn packets_are_padded_to_sixteen_but_not_above_the_mtu() {
    let world = World::new();
    let (a, b) = world.pair();
    let (_wga, _wgb) = join((&a, CORAX), (&b, CORAX));
    a.ping("10.8.0.2");
    let mut capture = Capture::start(&b, "udp and dst port 5002 and udp[8] = 4");
    // 20 + 8 + payload.
    for payload in [1, 4, 5, 100, 1392] {
        a.run(&format!("ping -n -c 1 -s {payload} 10.8.0.2"));
    }
    let lengths = capture.lengths(5);
    assert_eq!(lengths, [64, 64, 80, 160, 1452], "message: 16 header, packet, padding, 16 tag");
}

#[test]
fn the_mark_is_on_what_is_sent() {
    let world = World::new();
    let (a, b) = world.pair();
    let (wga, _wgb) = join((&a, CORAX), (&b, CORAX));
    a.run("nft add table ip marks");
    a.run("nft add chain ip marks out { type filter hook output priority 0 ; }");
    a.run("nft add rule ip marks out udp sport 5001 meta mark 0x1234 counter");
    wga.wg("fwmark 0x1234");
    a.ping("10.8.0.2");
    let listing = a.run("nft list table ip marks");
    assert!(!listing.contains("packets 0"), "{listing}");
    // The default route may go into the tunnel when marked packets go round it.
    a.run("ip rule add not fwmark 0x1234 table 77");
    a.run("ip route add default dev wga table 77");
    a.ping("10.8.0.2");
}

#[test]
fn the_mtu_is_followed() {
    let world = World::new();
    let (a, b) = world.pair();
    let (wga, _wgb) = join((&a, CORAX), (&b, CORAX));
    assert!(a.run("ip link show wga").contains("mtu 1420"));
    for (mtu, payload) in [(1380, 1352), (9000, 8972)] {
        for (host, device) in [(&a, "wga"), (&b, "wgb")] {
            host.run(&format!("ip link set {device} mtu {mtu}"));
        }
        eventually("the new MTU", || wga.metric("mtu") == mtu);
        a.run(&format!("ping -n -c 2 -i 0.1 -M do -s {payload} 10.8.0.2"));
        traffic::tcp(&a, &b, "10.8.0.2", 2 << 20);
        traffic::tcp(&b, &a, "fd08::1", 2 << 20);
    }
}

#[test]
fn odd_packets_pass() {
    let world = World::new();
    let (a, b) = world.pair();
    let (wga, wgb) = join((&a, CORAX), (&b, CORAX));
    a.ping("10.8.0.2");
    // IP options (record route), fragments, sizes up to the largest.
    a.run("ping -n -c 2 -i 0.1 -R 10.8.0.2");
    for size in [0, 1, 7, 1393, 2000, 9999, 65_000] {
        a.run(&format!("ping -n -c 2 -i 0.1 -s {size} 10.8.0.2"));
        a.run(&format!("ping -n -c 2 -i 0.1 -s {size} fd08::2"));
    }
    for tunnel in [&wga, &wgb] {
        assert_eq!(tunnel.metric("drops_malformed_total"), 0);
        assert_eq!(tunnel.metric("drops_write_failed_total"), 0);
    }
}

#[test]
fn what_comes_in_goes_on_while_the_way_out_is_stuck() {
    let world = World::new();
    let (a, b) = world.pair();
    let (wga, _wgb) = join((&a, CORAX), (&b, CORAX));
    a.ping("10.8.0.2");
    // A second and more for one train, and a queue that is longer than the socket's buffer.
    a.run("tc qdisc add dev eth0 root tbf rate 400kbit burst 4kb limit 500mb");
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let flood = a.within(move || {
        let socket = UdpSocket::bind("10.8.0.1:0").unwrap();
        while !stopped.load(Ordering::Relaxed) {
            drop(socket.send_to(&[0; 1392], "10.8.0.2:9"));
        }
    });
    eventually("the buffer to be full", || {
        let before = wga.metric("sent_bytes_total");
        thread::sleep(Duration::from_millis(500));
        let after = wga.metric("sent_bytes_total");
        after > 4 << 20 && after - before < 1 << 20
    });
    let start = Instant::now();
    const COUNT: u32 = 100;
    let receive = a.within(move || {
        let socket = UdpSocket::bind("10.8.0.1:7777").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut slowest = Duration::ZERO;
        for _ in 0..COUNT {
            let mut sent = [0; 8];
            socket.recv(&mut sent).unwrap();
            slowest = slowest.max(start.elapsed() - Duration::from_micros(u64::from_le_bytes(sent)));
        }
        slowest
    });
    let send = b.within(move || {
        let socket = UdpSocket::bind("10.8.0.2:0").unwrap();
        for _ in 0..COUNT {
            thread::sleep(Duration::from_millis(20));
            let now = start.elapsed().as_micros() as u64;
            socket.send_to(&now.to_le_bytes(), "10.8.0.1:7777").unwrap();
        }
    });
    send.join().unwrap();
    let slowest = receive.join().unwrap();
    assert!(slowest < Duration::from_millis(800), "{slowest:?}");
    // And the way out goes on where it ended.
    stop.store(true, Ordering::Relaxed);
    flood.join().unwrap();
    a.run("tc qdisc del dev eth0 root");
    a.ping("10.8.0.2");
    assert_eq!(wga.metric("drops_send_failed_total"), 0);
}

/// tcpdump on the underlay.
struct Capture {
    process: super::world::Process,
}

impl Capture {
    fn start(host: &Host, filter: &str) -> Self {
        let line = format!("tcpdump -n -l -t -U -i eth0 -c 5 {filter}");
        let mut command = host.command(&line);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // It says "listening on …" when it does.
        let mut said = Vec::new();
        let errors = child.stderr.as_mut().unwrap();
        let mut byte = [0];
        while !String::from_utf8_lossy(&said).contains("listening on") {
            errors.read_exact(&mut byte).unwrap();
            said.push(byte[0]);
        }
        Self { process: super::world::Process(child) }
    }

    /// UDP payload of the next packets.
    fn lengths(&mut self, count: usize) -> Vec<usize> {
        let mut output = String::new();
        self.process.0.stdout.take().unwrap().read_to_string(&mut output).unwrap();
        let lengths: Vec<_> = output
            .lines()
            .filter_map(|line| {
                line.rsplit_once("length ")?.1.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
            })
            .collect();
        assert_eq!(lengths.len(), count, "{output}");
        lengths
    }
}
