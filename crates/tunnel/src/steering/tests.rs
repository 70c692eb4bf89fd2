use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use super::*;
use crate::net::{Socket, Wanted};
use crate::sys::RecvRing;

#[test]
fn an_index_tells_whose_it_is_and_keeps_the_rest() {
    for workers in 1..=64 {
        for worker in 0..workers {
            for random in (0..=0xff).map(|byte| 0xab_cd00 | byte) {
                let told = index(random, worker, workers);
                assert_eq!(told >> 8, 0xabcd);
                assert_eq!((told & 0xff) as usize % workers, worker);
            }
        }
    }
    assert_eq!(index(0x12_3456, 0, 1), 0x12_3456);
}

#[test]
fn messages_come_to_the_socket_of_the_receiver_that_they_name() {
    const WORKERS: usize = 3;
    let wanted = Wanted { segmentation: true, grouping: true, refusal: None };
    let mut sockets = vec![Socket::bind(0, 0, wanted, false).unwrap()];
    let port = sockets[0].port;
    assert!(Socket::bind(port, 0, wanted, true).is_err(), "nobody else's until it is shared");
    sockets[0].share().unwrap();
    for _ in 1..WORKERS {
        sockets.push(Socket::bind(port, 0, wanted, true).unwrap());
    }
    assert!(Socket::bind(port, 0, wanted, false).is_err(), "another tunnel begins so");
    by_receiver(sockets[0].fd(), WORKERS as u32).unwrap();
    let mut ring = RecvRing::new(8, 2048);
    // Senders whose addresses would lead anywhere.
    for _ in 0..8 {
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        for worker in 0..WORKERS {
            let own = index(0xab_cdef, worker, WORKERS) << 8 | 0x77;
            let other = index(0xab_cdef, (worker + 1) % WORKERS, WORKERS) << 8;
            for (kind, first, second) in
                [(noise::DATA, own, other), (noise::COOKIE, own, other), (noise::RESPONSE, other, own)]
            {
                let mut message = vec![kind, 0, 0, 0];
                message.extend(first.to_le_bytes());
                message.extend(second.to_le_bytes());
                sender.send_to(&message, (Ipv4Addr::LOCALHOST, port)).unwrap();
            }
            let (mut counts, start) = ([0; WORKERS], Instant::now());
            while counts.iter().sum::<usize>() < 3 && start.elapsed() < Duration::from_secs(30) {
                for (count, socket) in counts.iter_mut().zip(&sockets) {
                    *count += ring.receive(socket.fd()).unwrap_or(0);
                }
            }
            let mut expected = [0; WORKERS];
            expected[worker] = 3;
            assert_eq!(counts, expected);
        }
    }
}
