//! Traffic whose every byte is looked at.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::JoinHandle;

use nix::sys::socket::{setsockopt, sockopt};

use super::world::{Host, PATIENCE};

/// Byte `at` of a stream: its position, mixed.
fn byte(at: usize) -> u8 {
    let mixed = (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

/// Sends `bytes` from one host to an address of the other over TCP; all must arrive as sent.
#[track_caller]
pub(crate) fn tcp(from: &Host, to: &Host, address: &str, bytes: usize) {
    let (port, listening) = std::sync::mpsc::channel();
    let bind = address.to_owned();
    let server = to.within(move || {
        let listener = TcpListener::bind((bind.as_str(), 0)).unwrap();
        port.send(listener.local_addr().unwrap()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = vec![0; 1 << 16];
        let mut at = 0;
        loop {
            let length = stream.read(&mut buffer).unwrap();
            if length == 0 {
                return at;
            }
            for (offset, have) in buffer[..length].iter().enumerate() {
                assert_eq!(*have, byte(at + offset), "byte {}", at + offset);
            }
            at += length;
        }
    });
    let address = listening.recv().unwrap();
    let client = from.within(move || {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
        let mut at = 0;
        // Odd sizes, so that segments end anywhere.
        while at < bytes {
            let size = (at % 70_001 + 1).min(bytes - at);
            let chunk: Vec<u8> = (at..at + size).map(byte).collect();
            stream.write_all(&chunk).unwrap();
            at += size;
        }
        stream.shutdown(Shutdown::Write).unwrap();
        drop(stream.read(&mut [0]));
    });
    assert_eq!(server.join().unwrap(), bytes);
    client.join().unwrap();
}

/// Sends datagrams of many sizes from one host to an address of the other; each that arrives must be as sent, come in order,
/// and be answered by itself before the next few are sent, so that none may be missing.
#[track_caller]
pub(crate) fn udp(from: &Host, to: &Host, address: &str, largest: usize) {
    const COUNT: usize = 400;
    const WINDOW: usize = 20;
    let (server, address) = udp_server(to, address, COUNT, WINDOW, move |index| datagram(index, largest));
    let client = from.within(move || {
        let socket = udp_client(address);
        for index in 0..COUNT {
            socket.send(&datagram(index, largest)).unwrap();
            if (index + 1) % WINDOW == 0 {
                socket.recv(&mut [0; 8]).unwrap();
            }
        }
    });
    server.join().unwrap();
    client.join().unwrap();
}

/// Sends trains of datagrams, a system call each (udp(7), UDP_SEGMENT), from one host to an address of the other; each datagram
/// must arrive as sent and in order.
#[track_caller]
pub(crate) fn udp_trains(from: &Host, to: &Host, address: &str) {
    const TRAINS: usize = 40;
    const TRAIN: usize = 10;
    const SIZE: usize = 1200;
    let bytes = |from: usize, length: usize| -> Vec<u8> { (from..from + length).map(byte).collect() };
    let (server, address) =
        udp_server(to, address, TRAINS * TRAIN, TRAIN, move |index| bytes(index * SIZE, SIZE));
    let client = from.within(move || {
        let socket = udp_client(address);
        setsockopt(&socket, sockopt::UdpGsoSegment, &(SIZE as i32)).unwrap();
        for train in 0..TRAINS {
            socket.send(&bytes(train * TRAIN * SIZE, TRAIN * SIZE)).unwrap();
            socket.recv(&mut [0; 8]).unwrap();
        }
    });
    server.join().unwrap();
    client.join().unwrap();
}

/// Takes `count` datagrams on an address of a host, each of which must be the next of `expected`, and answers after every
/// `window` of them. Returns where it listens.
pub(crate) fn udp_server(
    host: &Host,
    address: &str,
    count: usize,
    window: usize,
    expected: impl Fn(usize) -> Vec<u8> + Send + 'static,
) -> (JoinHandle<()>, SocketAddr) {
    let (port, listening) = std::sync::mpsc::channel();
    let bind = address.to_owned();
    let server = host.within(move || {
        let socket = UdpSocket::bind((bind.as_str(), 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        port.send(socket.local_addr().unwrap()).unwrap();
        let mut buffer = vec![0; 1 << 16];
        for index in 0..count {
            let (length, peer) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!(buffer[..length], expected(index), "datagram {index}");
            if (index + 1) % window == 0 {
                socket.send_to(&[1], peer).unwrap();
            }
        }
    });
    (server, listening.recv().unwrap())
}

/// A socket that sends to that address.
pub(crate) fn udp_client(address: SocketAddr) -> UdpSocket {
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(address).unwrap();
    socket
}

/// Runs of equal sizes, which can be joined, with shorter and longer ones between.
fn datagram(index: usize, largest: usize) -> Vec<u8> {
    let size = match index % 10 {
        0 => 1,
        1..=6 => largest.min(1200),
        7 => largest,
        8 => 0,
        _ => index % largest + 1,
    };
    (0..size).map(|at| byte(at + index)).collect()
}
