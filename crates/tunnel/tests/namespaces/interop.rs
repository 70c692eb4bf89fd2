//! Corax talks to itself and to wireguard-go, either side first.

use super::traffic;
use super::world::{CORAX, Tunnel, WIREGUARD_GO, World, cable, join};

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

#[test]
fn iperf3_finds_no_fault_with_load_both_ways_and_four_streams() {
    let world = World::new();
    let (a, b) = world.pair();
    let (wga, _wgb) = join((&a, CORAX), (&b, CORAX));
    b.ping("10.8.0.1");
    let mut server = b.start("iperf3 -s -B 10.8.0.2");
    super::world::eventually("iperf3", || {
        assert!(!server.ended());
        a.try_run("iperf3 -c 10.8.0.2 -n 1K").status.success()
    });
    a.run("iperf3 -c 10.8.0.2 -n 30M -P 4");
    a.run("iperf3 -c 10.8.0.2 -t 1 --bidir");
    for reason in
        ["malformed", "not_authentic", "replayed", "source_not_allowed", "write_failed", "send_failed"]
    {
        assert_eq!(wga.metric(&format!("drops_{reason}_total")), 0, "{reason}");
    }
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

#[test]
fn a_preshared_key_counts_and_may_change() {
    let world = World::new();
    let (a, b) = world.pair();
    let (wga, wgb) = join((&a, CORAX), (&b, WIREGUARD_GO));
    let one = world.file("one", "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=\n");
    let two = world.file("two", "AAAAAws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=\n");
    wga.peer(&wgb, &format!("preshared-key {}", one.display()));
    wgb.peer(&wga, &format!("preshared-key {}", one.display()));
    a.ping("10.8.0.2");
    wga.peer(&wgb, &format!("preshared-key {}", two.display()));
    assert!(!a.reaches("10.8.0.2"), "keys differ");
    wgb.peer(&wga, &format!("preshared-key {}", two.display()));
    super::world::eventually("a handshake with the new key", || a.reaches("10.8.0.2"));
}

#[test]
fn work_is_spread_by_peer_over_threads() {
    let world = World::new();
    let (a, b) = world.pair();
    let (wga, wgb) = join((&a, &format!("{CORAX} --threads 2")), (&b, CORAX));
    let c = world.host("c");
    cable(&a, "eth1", &c, "eth0");
    a.run("ip addr add 10.9.1.1/24 dev eth1");
    c.run("ip addr add 10.9.1.3/24 dev eth0");
    let third = Tunnel::start(&c, CORAX, "wgc", 5003);
    c.run("ip addr add 10.8.0.3/24 dev wgc");
    wga.peer(&third, "endpoint 10.9.1.3:5003 allowed-ips 10.8.0.3/32");
    third.peer(&wga, "endpoint 10.9.1.1:5001 allowed-ips 10.8.0.1/32");
    a.ping("10.8.0.2");
    a.ping("10.8.0.3");
    traffic::tcp(&a, &b, "10.8.0.2", 4 << 20);
    traffic::udp(&a, &b, "10.8.0.2", 1392);
    traffic::udp(&a, &c, "10.8.0.3", 1392);
    traffic::tcp(&c, &a, "10.8.0.1", 4 << 20);
    drop(wgb);
}
