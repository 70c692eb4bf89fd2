//! A tunnel at work allocates nothing: a whole one in this process, with every allocation counted.
//!
//! By itself in its process, as what else ran there would be counted, too.

#![allow(clippy::unwrap_used)] // a test fails so

#[allow(dead_code)] // more is needed elsewhere
#[path = "namespaces/world.rs"]
mod world;

use std::alloc::System;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::thread;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

use world::{CORAX, Host, Keys, Tunnel, World, eventually, feed};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const PACKETS: u64 = 10_000;
/// Packets on their way at a time; so none is lost.
const WINDOW: u64 = 20;
const STREAM: u64 = 16 << 20;

/// Sends packets and waits for one back a window; the other end sends as many back.
fn send(socket: &UdpSocket, packets: u64) {
    let mut buffer = [7; 2000];
    for _ in 0..packets / WINDOW {
        for _ in 0..WINDOW {
            assert_eq!(socket.send(&buffer[..1392]).unwrap(), 1392);
        }
        for _ in 0..WINDOW {
            assert_eq!(socket.recv(&mut buffer).unwrap(), 1392);
        }
    }
}

/// Sends so many bytes of a stream, and takes as many.
fn exchange(stream: &mut TcpStream, bytes: u64) {
    let mut buffer = [7; 1 << 16];
    let mut left = bytes as usize;
    while left > 0 {
        let size = left.min(buffer.len());
        stream.write_all(&buffer[..size]).unwrap();
        stream.read_exact(&mut buffer[..size]).unwrap();
        left -= size;
    }
}

/// What sends every packet and every byte back.
fn echo(host: &Host) -> (SocketAddr, SocketAddr) {
    let sockets = host.within(|| {
        let udp = UdpSocket::bind("10.8.0.2:0").unwrap();
        let tcp = TcpListener::bind("10.8.0.2:0").unwrap();
        let addresses = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
        thread::spawn(move || {
            let mut buffer = [0; 2000];
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                udp.send_to(&buffer[..length], from).unwrap();
            }
        });
        thread::spawn(move || {
            let mut buffer = [0; 1 << 16];
            let (mut stream, _) = tcp.accept().unwrap();
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                stream.write_all(&buffer[..length]).unwrap();
            }
        });
        addresses
    });
    sockets.join().unwrap()
}

#[test]
fn ten_thousand_packets_and_a_stream_each_way_cost_no_allocation() {
    let world = World::new();
    let (a, b) = world.pair();
    let far = Tunnel::start(&b, CORAX, "wgb", 5002);
    b.run("ip addr add 10.8.0.2/24 dev wgb");
    let keys = Keys::new();
    far.wg(&format!("peer {} allowed-ips 10.8.0.1/32", keys.public));

    // The one that is judged: not a process of its own.
    a.within(|| corax_tunnel::run(&corax_tunnel::Options::foreground("wga")).unwrap());
    eventually("its socket", || UnixStream::connect(world::socket("wga")).is_ok());
    let configuration = format!(
        "[Interface]\nPrivateKey = {}\nListenPort = 5001\n[Peer]\nPublicKey = {}\nEndpoint = 10.9.0.2:5002\n\
         AllowedIPs = 10.8.0.2/32\n",
        keys.private, far.keys.public
    );
    assert!(feed("wg setconf wga /dev/stdin", &configuration).status.success());
    a.run("ip link set wga up");
    a.run("ip addr add 10.8.0.1/24 dev wga");
    a.ping("10.8.0.2");

    let (udp, tcp) = echo(&b);
    // Whoever waits for this thread does nothing meanwhile.
    let judged = a.within(move || {
        let socket = UdpSocket::bind("10.8.0.1:0").unwrap();
        socket.connect(udp).unwrap();
        let mut stream = TcpStream::connect(tcp).unwrap();
        // Lists find their length.
        send(&socket, PACKETS);
        exchange(&mut stream, STREAM);
        let region = Region::new(ALLOCATOR);
        send(&socket, PACKETS);
        exchange(&mut stream, STREAM);
        let change = region.change();
        change.allocations + change.reallocations + change.deallocations
    });
    assert_eq!(judged.join().unwrap(), 0, "allocations while {PACKETS} packets went each way");
    // And those who count can count.
    let region = Region::new(ALLOCATOR);
    drop(std::hint::black_box(vec![0u8; 100]));
    assert_eq!(region.change().allocations, 1);
}
