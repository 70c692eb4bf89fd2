//! Corax talks to itself, to wireguard-go and to boringtun's program, either side first, and with several threads.

use std::thread;
use std::time::{Duration, Instant};

use super::traffic;
use super::world::{CORAX, Keys, Tunnel, WIREGUARD_GO, World, ask, boringtun_cli, eventually, join, third};

fn talk(left: &str, right: &str, right_first: bool) {
    let world = World::new();
    let (a, b) = world.pair();
    let (wga, wgb) = join((&a, left), (&b, right));
    if right_first {
        b.ping("10.8.0.1");
    }
    a.ping("10.8.0.2");
    b.ping("10.8.0.1");
    a.ping("fd08::2");
    traffic::tcp(&a, &b, "10.8.0.2", 4 << 20);
    traffic::tcp(&b, &a, "fd08::1", 4 << 20);
    traffic::udp(&a, &b, "fd08::2", 1372);
    traffic::udp(&b, &a, "10.8.0.1", 1392);
    for (tunnel, peer) in [(&wga, &wgb), (&wgb, &wga)] {
        let transfer = tunnel.show("transfer", peer);
        let [received, sent] =
            transfer.split_whitespace().map(|n| n.parse::<u64>().unwrap()).collect::<Vec<_>>()[..]
        else {
            panic!("wg show transfer: {transfer}")
        };
        assert!(received > 4 << 20 && sent > 4 << 20, "{transfer}");
        assert_ne!(tunnel.show("latest-handshakes", peer), "0");
    }
    // At rest both ways of asking say the same.
    eventually("metrics that say what wg says", || {
        let metrics = ask("wga", "get=metrics\n\n");
        let (_, of_peer) = metrics.split_once("public_key=").unwrap();
        let line = |name: &str| of_peer.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
        assert!(line("rx_packets=").parse::<u64>().unwrap() > 1000 && line("tx_packets=") != "0");
        assert_ne!(line("handshakes="), "0");
        wga.show("transfer", &wgb) == format!("{}\t{}", line("rx_bytes="), line("tx_bytes="))
    });
}

#[test]
fn corax_talks_to_corax() {
    talk(CORAX, CORAX, false);
}

#[test]
fn corax_calls_wireguard_go() {
    talk(CORAX, WIREGUARD_GO, false);
}

#[test]
fn wireguard_go_calls_corax() {
    talk(CORAX, WIREGUARD_GO, true);
}

/// Four streams each way and both ways at once, over both families; what went wrong is judged, not how fast it was.
fn iperf3_finds_no_fault(right: &str) {
    let world = World::new();
    let (a, b) = world.pair();
    let start = Instant::now();
    let (wga, wgb) = join((&a, CORAX), (&b, right));
    b.ping("10.8.0.1");
    for address in ["10.8.0.2", "fd08::2"] {
        for load in ["-n 30M -P 4", "-n 30M -P 4 -R", "-t 1 --bidir"] {
            // One for each: who has just served tells the next that it is busy.
            let _server = b.start(&format!("iperf3 -s -1 -B {address}"));
            eventually("iperf3 that listens", || !b.run("ss -Hltn sport = :5201").is_empty());
            a.run(&format!("iperf3 -c {address} {load}"));
        }
    }
    a.ping("10.8.0.2");
    let sessions = 1 + start.elapsed().as_secs() / 60;
    assert!(wga.metric("handshakes_total") <= sessions, "more than one every two minutes");
    let mut faults = wga.faults();
    // boringtun's threads send what they seal for one session in any order.
    faults.retain(|(reason, _)| *reason != "replayed" || !right.contains("boringtun"));
    assert_eq!(faults, []);
    if right == CORAX {
        wgb.found_no_fault();
    }
}

#[test]
fn iperf3_finds_no_fault_under_load_with_corax() {
    iperf3_finds_no_fault(CORAX);
}

#[test]
fn iperf3_finds_no_fault_under_load_with_wireguard_go() {
    iperf3_finds_no_fault(WIREGUARD_GO);
}

#[test]
fn iperf3_finds_no_fault_under_load_with_boringtun_cli() {
    iperf3_finds_no_fault(&boringtun_cli());
}

#[test]
fn endpoints_may_be_ipv6() {
    let world = World::new();
    let (a, b) = world.pair();
    let (wga, wgb) = join((&a, CORAX), (&b, WIREGUARD_GO));
    wga.peer(&wgb, "endpoint [fd09::2]:5002");
    wgb.peer(&wga, "endpoint [fd09::1]:5001");
    a.ping("10.8.0.2");
    assert_eq!(wgb.show("endpoints", &wga), "[fd09::1]:5001");
    traffic::tcp(&a, &b, "10.8.0.2", 1 << 20);
    traffic::tcp(&b, &a, "fd08::1", 1 << 20);
}

/// A preshared key that differs lets nothing through; one that changes on both sides costs no packet.
fn change_the_preshared_key(other: &str) {
    let world = World::new();
    let (a, b) = world.pair();
    let (wga, wgb) = join((&a, CORAX), (&b, other));
    let one = world.file("one", "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=\n");
    let two = world.file("two", "AAAAAws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=\n");
    let [one, two] = [one, two].map(|file| format!("preshared-key {}", file.display()));
    wga.peer(&wgb, &one);
    wgb.peer(&wga, &two);
    assert!(!a.reaches("10.8.0.2"), "the keys differ");
    wgb.peer(&wga, &one);
    eventually("a handshake with the key", || a.reaches("10.8.0.2"));
    let pinging = a.keep_pinging("10.8.0.2", "0.01", 300);
    wga.peer(&wgb, &two);
    assert!(b.reaches("10.8.0.1"), "the session goes on");
    wgb.peer(&wga, &two);
    pinging.lost_nothing();
    // Without its session the other side has to shake hands again: only with the new key.
    let again = |key: &str| {
        wgb.peer(&wga, "remove");
        wgb.peer(&wga, &format!("{key} endpoint 10.9.0.1:5001 allowed-ips 10.8.0.1/32,fd08::1/128"));
        b.reaches("10.8.0.1")
    };
    assert!(!again(&one));
    assert!(again(&two));
    eventually("the other way", || a.reaches("10.8.0.2"));
}

#[test]
fn a_preshared_key_counts_and_changes_without_a_packet_lost() {
    change_the_preshared_key(CORAX);
}

#[test]
fn so_it_does_where_the_other_is_wireguard_go() {
    change_the_preshared_key(WIREGUARD_GO);
}

/// How much longer the busier of two workers was on a core.
fn ratio(before: &[Duration], after: &[Duration]) -> f64 {
    let mut busy: Vec<_> = before.iter().zip(after).map(|(before, after)| *after - *before).collect();
    busy.sort();
    let [less, more] = busy[..] else { panic!("two workers: {busy:?}") };
    more.as_secs_f64() / less.as_secs_f64().max(1e-6)
}

#[test]
fn work_is_spread_by_peer_over_threads() {
    let world = World::new();
    let (a, b) = world.pair();
    let (wga, _wgb) = join((&a, &format!("{CORAX} --threads 2")), (&b, CORAX));
    let (c, _wgc) = third(&world, &a, &wga);
    a.ping("10.8.0.2");
    a.ping("10.8.0.3");
    let start = wga.busy();
    for (to, address) in [(&b, "10.8.0.2"), (&c, "10.8.0.3")] {
        traffic::tcp(&a, to, address, 8 << 20);
        traffic::udp(&a, to, address, 1392);
    }
    let sent = wga.busy();
    assert!(ratio(&start, &sent) < 5.0, "out: {start:?} {sent:?}");
    for from in [&b, &c] {
        traffic::tcp(from, &a, "10.8.0.1", 8 << 20);
        traffic::udp(from, &a, "10.8.0.1", 1392);
    }
    let received = wga.busy();
    assert!(ratio(&sent, &received) < 5.0, "in: {sent:?} {received:?}");
    wga.found_no_fault();
}

#[test]
fn all_that_is_a_peers_goes_by_one_thread_and_in_order() {
    let world = World::new();
    let (a, b) = world.pair();
    let program = format!("{CORAX} --threads 2");
    let (wga, wgb) = join((&a, &program), (&b, &program));
    // Whole networks behind both.
    for (host, device, own, other) in [(&a, "wga", 1, 2), (&b, "wgb", 2, 1)] {
        host.run(&format!("ip route add local 10.2{own}.0.0/24 dev lo"));
        host.run(&format!("ip route add 10.2{other}.0.0/24 dev {device}"));
    }
    wga.peer(&wgb, "allowed-ips 10.8.0.2/32,fd08::2/128,10.22.0.0/24");
    wgb.peer(&wga, "allowed-ips 10.8.0.1/32,fd08::1/128,10.21.0.0/24");
    // A peer that is there for the other worker only.
    wga.wg(&format!("peer {} allowed-ips 10.0.0.0/8,fd08::/64", Keys::new().public));
    a.ping("10.8.0.2");
    let before = [wga.busy(), wgb.busy()];
    thread::scope(|scope| {
        for last in 1..=8 {
            let (a, b) = (&a, &b);
            scope.spawn(move || traffic::tcp(a, b, &format!("10.22.0.{last}"), 4 << 20));
            scope.spawn(move || traffic::tcp(b, a, &format!("10.21.0.{last}"), 4 << 20));
            scope.spawn(move || traffic::udp(a, b, &format!("10.22.0.{}", 100 + last), 1392));
            scope.spawn(move || traffic::udp(b, a, &format!("10.21.0.{}", 100 + last), 1392));
        }
    });
    traffic::tcp(&a, &b, "fd08::2", 4 << 20);
    for (tunnel, before) in [&wga, &wgb].into_iter().zip(before) {
        let after = tunnel.busy();
        assert!(ratio(&before, &after) > 20.0, "{before:?} {after:?}");
        tunnel.found_no_fault();
    }
}

#[test]
fn a_port_that_threads_share_is_nobody_elses() {
    let world = World::new();
    let (a, b) = world.pair();
    let program = format!("{CORAX} --threads 2");
    let (wga, wgb) = join((&a, &program), (&b, CORAX));
    a.ping("10.8.0.2");
    let second = Tunnel::start(&a, &program, "wgx", 5001);
    eventually("a try", || a.run("ss -Hlun sport = :5001").lines().count() == 2);
    assert_eq!(ask("wgx", "set=1\nlisten_port=5001\n\n"), format!("errno={}\n\n", libc::EADDRINUSE));
    assert_eq!(a.run("ss -Hlun sport = :5001").lines().count(), 2, "the first one's");
    // New sessions come from any port, and so to any socket.
    for port in 6000..6008 {
        wgb.wg(&format!("listen-port {port}"));
        b.ping("10.8.0.1");
    }
    assert_eq!(second.metric("received_packets_total"), 0);
    drop(wga);
    eventually("the port", || a.run("ss -Hlun sport = :5001").lines().count() == 2);
}
