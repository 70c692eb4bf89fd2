//! Many peers, and strangers at the door.

use std::fmt::Write;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};

use super::world::{CORAX, Tunnel, WIREGUARD_GO, World, ask, eventually, join};

const PEERS: u32 = 5000;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn secret(index: u32) -> StaticSecret {
    let mut bytes = [7; 32];
    // Not the first byte: the curve ignores some of its bits.
    bytes[8..12].copy_from_slice(&index.to_le_bytes());
    StaticSecret::from(bytes)
}

/// A handshake initiation of peer `index` to `to`.
fn initiation(index: u32, to: PublicKey) -> Vec<u8> {
    begin(&mut Tunn::new(secret(index), to, None, None, index, None))
}

fn begin(peer: &mut Tunn) -> Vec<u8> {
    let mut buffer = [0; 256];
    match peer.format_handshake_initiation(&mut buffer, true) {
        TunnResult::WriteToNetwork(message) => message.to_vec(),
        other => panic!("{other:?}"),
    }
}

fn public(tunnel: &Tunnel) -> PublicKey {
    let state = ask(&tunnel.device, "get=1\n\n");
    let private = state.lines().find_map(|line| line.strip_prefix("private_key=")).unwrap();
    let bytes: Vec<u8> =
        (0..32).map(|at| u8::from_str_radix(&private[2 * at..2 * at + 2], 16).unwrap()).collect();
    PublicKey::from(&StaticSecret::from(<[u8; 32]>::try_from(bytes).unwrap()))
}

#[test]
fn five_thousand_peers_fit_into_little_memory_and_each_is_found() {
    let world = World::new();
    let (a, b) = world.pair();
    let (wga, wgb) = join((&a, CORAX), (&b, CORAX));
    a.ping("10.8.0.2");
    let mut request = "set=1\n".to_owned();
    for index in 0..PEERS {
        let key = PublicKey::from(&secret(index));
        let [high, low] = (index as u16).to_be_bytes();
        write!(
            request,
            "public_key={}\nendpoint=10.9.0.2:{}\nallowed_ip=10.100.{high}.{low}/32\nallowed_ip=fd64:{index:x}::/64\n",
            hex(key.as_bytes()),
            10_000 + index
        )
        .unwrap();
    }
    request.push('\n');
    assert_eq!(ask("wga", &request), "errno=0\n\n");
    // All of them are spoken to, so that each has its state; none answers.
    a.run("ip route add 10.100.0.0/16 dev wga");
    let before = wga.metric("initiations_sent_total");
    for first in (0..PEERS).step_by(100) {
        let speak = a.within(move || {
            let socket = UdpSocket::bind("10.8.0.1:0").unwrap();
            for index in first..first + 100 {
                let [high, low] = (index as u16).to_be_bytes();
                socket.send_to(&[0; 1000], (Ipv4Addr::new(10, 100, high, low), 9)).unwrap();
            }
        });
        speak.join().unwrap();
        eventually("handshakes", || wga.metric("initiations_sent_total") >= before + u64::from(first) + 100);
    }
    // And some are sprayed.
    let spray = a.within(|| {
        let socket = UdpSocket::bind("10.8.0.1:0").unwrap();
        for _ in 0..300 {
            for low in 0..100 {
                socket.send_to(&[0; 1300], (Ipv4Addr::new(10, 100, 1, low), 9)).unwrap();
            }
        }
    });
    spray.join().unwrap();
    eventually("packets that do not wait", || wga.metric("drops_too_many_waiting_total") > 1000);
    a.ping("10.8.0.2");
    // The peer that was there before wins by the longer prefix, and loses it again.
    wgb.peer(&wga, "allowed-ips 10.8.0.1/32,10.8.1.1/32");
    wga.peer(&wgb, "allowed-ips 10.8.0.2/32,10.100.0.0/16");
    b.run("ip addr add 10.100.255.1/32 dev wgb");
    a.ping("10.100.255.1");
    let state = ask("wga", "get=1\n\n");
    assert_eq!(state.matches("public_key=").count(), PEERS as usize + 1);
    assert_eq!(ask("wga", "set=1\nreplace_peers=true\n\n"), "errno=0\n\n");
    assert!(!ask("wga", "get=1\n\n").contains("public_key="));
    let limit = 8_000_000 + u64::from(PEERS) * 18_000;
    assert!(wga.peak() <= limit, "{} bytes of {limit}", wga.peak());
}

#[test]
fn under_load_strangers_get_cookies_and_a_peer_still_gets_in() {
    let world = World::new();
    let (a, b) = world.pair();
    let (wga, wgb) = join((&a, CORAX), (&b, WIREGUARD_GO));
    let key = public(&wga);
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let flood = b.within(move || {
        let socket = UdpSocket::bind("10.9.0.2:0").unwrap();
        let messages: Vec<_> = (0..50).map(|index| initiation(index, key)).collect();
        while !stopped.load(Ordering::Relaxed) {
            for message in &messages {
                socket.send_to(message, "10.9.0.1:5001").unwrap();
            }
            thread::sleep(Duration::from_millis(20));
        }
    });
    eventually("cookies", || wga.metric("cookies_sent_total") > 100);
    assert!(wga.metric("drops_unknown_peer_total") > 0, "strangers below the limit");
    // wireguard-go gets a cookie first and comes again with it, unless it comes as a second begins.
    eventually("a handshake by cookie", || {
        wgb.peer(&wga, "remove");
        wgb.peer(&wga, "endpoint 10.9.0.1:5001 allowed-ips 10.8.0.1/32");
        eventually("a handshake under load", || b.reaches("10.8.0.1"));
        wga.metric("handshakes_by_cookie_total") >= 1
    });
    stop.store(true, Ordering::Relaxed);
    flood.join().unwrap();
}

#[test]
fn a_flood_of_handshakes_by_cookie_has_a_limit_and_costs_a_session_nothing() {
    const ADDRESSES: u8 = 200;
    let world = World::new();
    let (a, b) = world.pair();
    let (wga, _wgb) = join((&a, CORAX), (&b, CORAX));
    a.ping("10.8.0.2");
    b.run("ip route add local 10.66.0.0/24 dev lo");
    a.run("ip route add 10.66.0.0/24 via 10.9.0.2");
    let key = public(&wga);
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    // Strangers whose addresses are theirs, each as often as one address may.
    let flood = b.within(move || {
        let mut strangers: Vec<_> = (1..=ADDRESSES)
            .map(|last| {
                let socket = UdpSocket::bind((Ipv4Addr::new(10, 66, 0, last), 0)).unwrap();
                socket.connect("10.9.0.1:5001").unwrap();
                socket.set_nonblocking(true).unwrap();
                let mut peer = Tunn::new(secret(last.into()), key, None, None, last.into(), None);
                let first = begin(&mut peer);
                (socket, peer, first)
            })
            .collect();
        while !stopped.load(Ordering::Relaxed) {
            for (socket, peer, message) in &mut strangers {
                drop(socket.send(message));
                let (mut cookie, mut buffer) = ([0; 64], [0; 256]);
                if socket.recv(&mut cookie).is_ok() {
                    peer.decapsulate(None, &cookie, &mut buffer);
                    *message = begin(peer);
                }
            }
            thread::sleep(Duration::from_millis(40));
        }
    });
    eventually("cookies", || wga.metric("handshakes_by_cookie_total") > 100);
    let (start, before) = (Instant::now(), wga.metric("handshakes_by_cookie_total"));
    let output = a.run("ping -n -i 0.02 -c 200 -q 10.8.0.2");
    let admitted = wga.metric("handshakes_by_cookie_total") - before;
    let limit = 100.0 + 500.0 * start.elapsed().as_secs_f64();
    assert!(output.contains(" 0% packet loss"), "{output}");
    assert!(admitted > 0 && admitted as f64 <= limit, "{admitted} of {limit}");
    assert!(wga.metric("drops_rate_limited_total") > 0);
    stop.store(true, Ordering::Relaxed);
    flood.join().unwrap();
}

#[test]
fn noise_from_the_network_is_counted_and_ignored() {
    let world = World::new();
    let (a, b) = world.pair();
    let (wga, _wgb) = join((&a, CORAX), (&b, CORAX));
    a.ping("10.8.0.2");
    let spray = b.within(|| {
        let socket = UdpSocket::bind("10.9.0.2:0").unwrap();
        for length in 0..200 {
            for kind in 0..6 {
                let mut message = vec![0xa5; length];
                message[..length.min(4)].copy_from_slice(&[kind, 0, 0, 0][..length.min(4)]);
                socket.send_to(&message, "10.9.0.1:5001").unwrap();
            }
        }
    });
    spray.join().unwrap();
    eventually("all of it", || {
        wga.metric("drops_not_wireguard_total") >= 500 && wga.metric("drops_unknown_index_total") >= 100
    });
    a.ping("10.8.0.2");
}
