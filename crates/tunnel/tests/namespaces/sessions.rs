//! What a session lives through.

use std::path::Path;

use super::traffic;
use super::world::{CORAX, Tunnel, WIREGUARD_GO, World, cable, eventually, join};

#[test]
fn a_peer_that_moves_is_followed() {
    for right in [CORAX, WIREGUARD_GO] {
        let world = World::new();
        let (a, b) = world.pair();
        let (wga, wgb) = join((&a, CORAX), (&b, right));
        a.ping("10.8.0.2");
        assert_eq!(wga.show("endpoints", &wgb), "10.9.0.2:5002");
        let handshake = wga.show("latest-handshakes", &wgb);
        b.run("ip addr add 10.9.0.77/24 dev eth0");
        b.run("ip addr del 10.9.0.2/24 dev eth0");
        b.run("ip addr replace 10.9.0.77/24 dev eth0");
        wgb.wg("listen-port 6002");
        eventually("an answer", || b.reaches("10.8.0.1"));
        assert_eq!(wga.show("endpoints", &wgb), "10.9.0.77:6002");
        a.ping("10.8.0.2");
        assert_eq!(wga.show("latest-handshakes", &wgb), handshake, "the session went on");
        b.run("ip addr flush dev eth0");
        b.run("ip addr add fd09::78/64 dev eth0 nodad");
        wgb.peer(&wga, "endpoint [fd09::1]:5001");
        eventually("an answer over IPv6", || b.reaches("10.8.0.1"));
        assert_eq!(wga.show("endpoints", &wgb), "[fd09::78]:6002");
    }
}

#[test]
fn an_answer_comes_from_the_address_that_was_spoken_to() {
    let world = World::new();
    let (a, b) = world.pair();
    let (wga, wgb) = join((&a, CORAX), (&b, CORAX));
    a.run("ip addr add 10.9.0.55/24 dev eth0");
    wgb.peer(&wga, "endpoint 10.9.0.55:5001");
    // Only b speaks first: a knows nothing of it.
    wga.wg(&format!("peer {} remove", wgb.keys.public));
    wga.peer(&wgb, "allowed-ips 10.8.0.2/32");
    b.ping("10.8.0.1");
    assert_eq!(wgb.show("endpoints", &wga), "10.9.0.55:5001");
    // That address goes: another is taken, and nothing is lost for long.
    a.run("ip addr del 10.9.0.55/24 dev eth0");
    eventually("an answer from another address", || a.reaches("10.8.0.2"));
    assert_eq!(wgb.show("endpoints", &wga), "10.9.0.1:5001");
}

#[test]
fn keepalives_come_without_traffic_and_from_the_start() {
    let world = World::new();
    let (a, b) = world.pair();
    let (wga, wgb) = join((&a, CORAX), (&b, WIREGUARD_GO));
    wga.peer(&wgb, "persistent-keepalive 1");
    eventually("a handshake that nobody asked for", || wga.show("latest-handshakes", &wgb) != "0");
    let received = || wgb.show("transfer", &wga).split_whitespace().next().unwrap().parse::<u64>().unwrap();
    let before = received();
    eventually("three keepalives", || received() >= before + 3 * 32);
    // The peer is away and comes back: keepalives find it again, with no traffic of ours.
    drop(wgb);
    let again = Tunnel::start(&b, WIREGUARD_GO, "wgb", 5002);
    wga.peer(&again, "endpoint 10.9.0.2:5002 persistent-keepalive 1 allowed-ips 10.8.0.2/32");
    again.peer(&wga, "allowed-ips 10.8.0.1/32");
    eventually("a new handshake", || wga.show("latest-handshakes", &again) != "0");
}

/// Corax, to whom the clock says what the file adds to it.
fn with_clock(file: &Path) -> String {
    const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
    let library = LIBRARY.replace("x86_64", std::env::consts::ARCH);
    assert!(Path::new(&library).exists(), "{library} is not there: Debian package libfaketime");
    let file = file.display();
    format!("env LD_PRELOAD={library} FAKETIME_TIMESTAMP_FILE={file} FAKETIME_NO_CACHE=1 {CORAX}")
}

#[test]
fn new_keys_are_made_every_two_minutes_and_nothing_is_lost() {
    let world = World::new();
    let (a, b) = world.pair();
    let clock = world.file("clock", "+0\n");
    let (wga, wgb) = join((&a, &with_clock(&clock)), (&b, CORAX));
    a.ping("10.8.0.2");
    let started = wga.metric("handshakes_total");
    // 125 s pass for one side.
    std::fs::write(&clock, "+125\n").unwrap();
    let output = a.run("ping -n -c 30 -i 0.1 10.8.0.2");
    assert!(output.contains(" 0% packet loss"), "{output}");
    assert_eq!(wga.metric("handshakes_total"), started + 1);
    assert_eq!(wgb.metric("handshakes_total"), started + 1);
    // Ten minutes pass: all keys are dead, and the next packet makes new ones.
    std::fs::write(&clock, "+800\n").unwrap();
    eventually("a session after a long silence", || a.reaches("10.8.0.2"));
    assert!(wga.metric("handshakes_total") >= started + 2);
}

#[test]
fn a_handshake_with_a_preshared_key_that_the_other_side_gets_later_costs_no_packet() {
    let world = World::new();
    let (a, b) = world.pair();
    let clock = world.file("clock", "+0\n");
    let (wga, wgb) = join((&a, &with_clock(&clock)), (&b, CORAX));
    let key = world.file("key", "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=\n");
    let preshared = format!("preshared-key {}", key.display());
    a.ping("10.8.0.2");
    let (tries, handshakes) = (wga.metric("initiations_sent_total"), wga.metric("handshakes_total"));
    let pinging = a.keep_pinging("10.8.0.2", "0.02", 600);
    wga.peer(&wgb, &preshared);
    std::fs::write(&clock, "+125\n").unwrap();
    eventually("a handshake with the new key begins", || wga.metric("initiations_sent_total") > tries);
    a.ping("10.8.0.2");
    assert_eq!(wga.metric("handshakes_total"), handshakes, "the other side has another key");
    wgb.peer(&wga, &preshared);
    eventually("the next one succeeds", || wga.metric("handshakes_total") > handshakes);
    pinging.lost_nothing();
    assert!(wga.metric("drops_not_authentic_total") > 0, "the answer with the other key was none");
}

#[test]
fn a_peer_that_was_started_again_is_back_at_once() {
    let world = World::new();
    let (a, b) = world.pair();
    let (wga, wgb) = join((&a, CORAX), (&b, CORAX));
    a.ping("10.8.0.2");
    let keys = wgb.keys.clone();
    drop(wgb);
    let wgb = Tunnel::start(&b, CORAX, "wgb", 5002);
    let key = world.file("key", &keys.private);
    wgb.wg(&format!("private-key {}", key.display()));
    wgb.peer(&wga, "endpoint 10.9.0.1:5001 allowed-ips 10.8.0.1/32");
    b.run("ip addr add 10.8.0.2/24 dev wgb");
    b.ping("10.8.0.1");
    a.ping("10.8.0.2");
}

#[test]
fn being_configured_again_costs_no_session() {
    let world = World::new();
    let (a, b) = world.pair();
    let (wga, wgb) = join((&a, CORAX), (&b, CORAX));
    a.ping("10.8.0.2");
    let handshake = wga.show("latest-handshakes", &wgb);
    let mut ping = a.command("ping -n -i 0.02 -c 200 -q 10.8.0.2");
    let ping = ping.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let configuration = a.run("wg showconf wga");
    for _ in 0..20 {
        wga.configure(&configuration);
        wga.peer(&wgb, "endpoint 10.9.0.2:5002 persistent-keepalive 25");
        let key = world.file("key", &wga.keys.private);
        wga.wg(&format!("private-key {} listen-port 5001", key.display()));
    }
    let output = ping.wait_with_output().unwrap();
    let output = super::world::text(&output.stdout);
    assert!(output.contains(" 0% packet loss"), "{output}");
    assert_eq!(wga.show("latest-handshakes", &wgb), handshake);
    traffic::tcp(&a, &b, "10.8.0.2", 1 << 20);
}

#[test]
fn a_new_private_key_makes_a_new_node() {
    let world = World::new();
    let (a, b) = world.pair();
    let (wga, wgb) = join((&a, CORAX), (&b, CORAX));
    a.ping("10.8.0.2");
    let new = super::world::Keys::new();
    let key = world.file("key", &new.private);
    wga.wg(&format!("private-key {}", key.display()));
    assert!(!a.reaches("10.8.0.2"), "b does not know that key");
    wgb.wg(&format!("peer {} endpoint 10.9.0.1:5001 allowed-ips 10.8.0.1/32", new.public));
    eventually("a session with the new key", || a.reaches("10.8.0.2"));
}

#[test]
fn down_is_silent_and_up_goes_on() {
    let world = World::new();
    let (a, b) = world.pair();
    let (_wga, _wgb) = join((&a, CORAX), (&b, CORAX));
    a.ping("10.8.0.2");
    a.run("ip link set wga down");
    eventually("the port to be free", || a.run("ss -Hlun sport = :5001").is_empty());
    assert!(!b.reaches("10.8.0.1"));
    a.run("ip link set wga up");
    eventually("the port to be bound", || !a.run("ss -Hlun sport = :5001").is_empty());
    b.ping("10.8.0.1");
}

#[test]
fn a_route_that_moves_to_another_uplink_is_followed_though_the_address_stays() {
    let world = World::new();
    let (a, b, between) = (world.host("a"), world.host("b"), world.host("r"));
    for (device, at, net) in [("eth0", "up0", 1), ("eth1", "up1", 2)] {
        cable(&a, device, &between, at);
        a.run(&format!("ip addr add 10.9.{net}.1/24 dev {device}"));
        between.run(&format!("ip addr add 10.9.{net}.254/24 dev {at}"));
    }
    cable(&b, "eth0", &between, "far");
    b.run("ip addr add 10.9.0.2/24 dev eth0");
    between.run("ip addr add 10.9.0.254/24 dev far");
    between.run("sysctl -qw net.ipv4.ip_forward=1");
    b.run("ip route add default via 10.9.0.254");
    a.run("ip route add default via 10.9.1.254");
    let (wga, wgb) = join((&a, CORAX), (&b, CORAX));
    wgb.peer(&wga, "endpoint 10.9.1.1:5001");
    b.ping("10.8.0.1");
    a.ping("10.8.0.2");
    // The first uplink is dead further on, and nobody else carries its address.
    between.run("nft add table ip cut");
    between.run("nft add chain ip cut forward { type filter hook forward priority 0 ; }");
    between.run("nft add rule ip cut forward ip saddr 10.9.1.1 drop");
    between.run("nft add rule ip cut forward ip daddr 10.9.1.1 drop");
    a.run("ip route replace default via 10.9.2.254");
    eventually("an answer by the other uplink", || a.reaches("10.8.0.2"));
    assert_eq!(wgb.show("endpoints", &wga), "10.9.2.1:5001");
    // Another port begins without what was learnt, too.
    a.run("ip route replace default via 10.9.1.254");
    between.run("nft flush chain ip cut forward");
    between.run("nft add rule ip cut forward ip saddr 10.9.2.1 drop");
    wga.wg("listen-port 5003");
    a.ping("10.8.0.2");
    assert_eq!(wgb.show("endpoints", &wga), "10.9.1.1:5003");
}
