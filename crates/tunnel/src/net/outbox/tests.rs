use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use super::*;
use crate::net::Wanted;

fn receiver() -> (UdpSocket, Endpoint) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, Endpoint { address, source: None })
}

fn sender() -> Socket {
    bound(true, None)
}

fn bound(segmentation: bool, refusal: Option<i32>) -> Socket {
    Socket::bind(0, 0, Wanted { segmentation, grouping: true, refusal }, false).unwrap()
}

fn fill(outbox: &mut Outbox, endpoint: &Endpoint, lengths: &[usize]) {
    for (index, length) in lengths.iter().enumerate() {
        outbox.room()[..*length].fill(index as u8);
        outbox.push(endpoint, 0, *length, true);
    }
}

fn arrive(socket: &UdpSocket, lengths: &[usize]) {
    let mut buffer = [0; 2048];
    for (index, length) in lengths.iter().enumerate() {
        let received = socket.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..received], vec![index as u8; *length]);
    }
}

const LENGTHS: &[usize] = &[100, 100, 100, 60, 100, 100, 200, 200, 1];

#[test]
fn messages_arrive_in_order_whatever_their_sizes() {
    let (socket, endpoint) = receiver();
    let mut outbox = Outbox::new(4096);
    fill(&mut outbox, &endpoint, LENGTHS);
    assert_eq!(outbox.trains.len(), 3, "a short message ends a train, a longer one begins the next");
    outbox.send(Some(&sender()), &Metrics::default(), |_| panic!("nothing fails"));
    arrive(&socket, LENGTHS);
    assert!(outbox.trains.is_empty());
}

#[test]
fn one_path_goes_without_trains_and_others_keep_them() {
    for errno in [libc::EIO, libc::EMSGSIZE, libc::EINVAL] {
        let ((one, narrow), (two, wide)) = (receiver(), receiver());
        let (sender, metrics) = (bound(true, Some(errno)), Metrics::default());
        let mut outbox = Outbox::new(8192);
        for endpoint in [&narrow, &wide, &narrow] {
            fill(&mut outbox, endpoint, LENGTHS);
        }
        let mut told = Vec::new();
        outbox.send(Some(&sender), &metrics, |failure| told.push((failure.address, failure.kind)));
        assert_eq!(told, [(narrow.address, FailureKind::Train)], "it is asked once");
        for _ in 0..2 {
            arrive(&one, LENGTHS);
        }
        arrive(&two, LENGTHS);
        assert!(outbox.trains.is_empty());
        assert_eq!(metrics.fallbacks.get(), 1);
        let trains: Vec<_> = metrics.send_sizes.buckets().map(|(_, count)| count).collect();
        assert_eq!(trains, [2 * LENGTHS.len() as u64, 1, 2, 0, 0, 0, 0], "three trains to the other");
    }
}

#[test]
fn a_source_that_is_no_longer_ours_is_let_go() {
    let (socket, endpoint) = receiver();
    let (sender, metrics) = (sender(), Metrics::default());
    let mut outbox = Outbox::new(4096);
    let stale = Endpoint { source: Some("192.0.2.1".parse().unwrap()), ..endpoint };
    fill(&mut outbox, &stale, LENGTHS);
    let mut told = Vec::new();
    outbox.send(Some(&sender), &metrics, |failure| told.push(failure.kind));
    assert_eq!(told.last(), Some(&FailureKind::Source), "trains may be blamed before");
    arrive(&socket, LENGTHS);
}

#[test]
fn a_source_that_is_no_longer_ours_is_let_go_without_trains_too() {
    let (socket, endpoint) = receiver();
    let (sender, metrics) = (bound(false, None), Metrics::default());
    let mut outbox = Outbox::new(4096);
    let stale = Endpoint { source: Some("192.0.2.1".parse().unwrap()), ..endpoint };
    fill(&mut outbox, &stale, LENGTHS);
    let mut told = Vec::new();
    outbox.send(Some(&sender), &metrics, |failure| told.push(failure.kind));
    assert_eq!(told, [FailureKind::Source]);
    arrive(&socket, LENGTHS);
}

#[test]
fn what_may_be_the_trains_fault_or_the_sources_is_tried_without_trains_first() {
    let (socket, endpoint) = receiver();
    let (sender, metrics) = (sender(), Metrics::default());
    let mut outbox = Outbox::new(4096);
    let pinned = Endpoint { source: Some(Ipv4Addr::LOCALHOST.into()), ..endpoint };
    fill(&mut outbox, &pinned, LENGTHS);
    let error = io::Error::from_raw_os_error(libc::EINVAL);
    let mut told = None;
    assert_eq!(outbox.recover(0, &error, &metrics, &mut |failure| told = Some(failure.kind)), 0);
    assert_eq!(told, Some(FailureKind::Train));
    assert_eq!(outbox.trains[0].endpoint, pinned);
    outbox.send(Some(&sender), &metrics, |_| panic!("nothing fails"));
    arrive(&socket, LENGTHS);
}

#[test]
fn what_cannot_be_sent_is_counted_and_the_rest_goes_on() {
    let (socket, endpoint) = receiver();
    let (sender, metrics) = (sender(), Metrics::default());
    let mut outbox = Outbox::new(4096);
    // Broadcast is not permitted to this socket.
    let refused = Endpoint { address: "255.255.255.255:9".parse().unwrap(), source: None };
    outbox.push(&refused, 0, 10, true);
    outbox.room()[..5].fill(0);
    outbox.push(&endpoint, 0, 5, true);
    outbox.send(Some(&sender), &metrics, |_| {});
    arrive(&socket, &[5]);
    assert_eq!(metrics.drops().find(|(name, _)| *name == "send_failed"), Some(("send_failed", 1)));
}
