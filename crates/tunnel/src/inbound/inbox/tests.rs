use std::sync::Mutex;

use super::*;
use crate::net::Wanted;
use crate::packet::{checksum, ip};

/// Refuses joined packets of one kind, like the kernels that do.
struct Picky {
    refused: Gso,
    taken: Mutex<Vec<Vec<u8>>>,
    refusals: Mutex<usize>,
}

impl Sink for Picky {
    fn write(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        if Header::parse(pieces[0].first_chunk().unwrap()).unwrap().gso == self.refused {
            *self.refusals.lock().unwrap() += 1;
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let packet: Vec<u8> = pieces[1..].iter().flat_map(|piece| piece.to_vec()).collect();
        self.taken.lock().unwrap().push(packet);
        Ok(0)
    }

    fn takes(&self) -> (bool, Abilities) {
        (true, Abilities { tcp: true, udp: true })
    }
}

/// A UDP datagram over IPv6.
fn datagram(index: u8) -> Vec<u8> {
    let mut packet = vec![0; 148];
    ip::set_u16(&mut packet, 44, 108);
    packet[48..].fill(index);
    finished(packet, ip::UDP, 46)
}

/// A segment of a TCP stream over IPv6.
fn segment(index: u8) -> Vec<u8> {
    let mut packet = vec![0; 160];
    ip::set_u32(&mut packet, 44, u32::from(index) * 100);
    packet[52] = 0x50;
    packet[53] = 0x10;
    packet[60..].fill(index);
    finished(packet, ip::TCP, 56)
}

fn finished(mut packet: Vec<u8>, protocol: u8, field: usize) -> Vec<u8> {
    let length = packet.len() - 40;
    packet[0] = 0x60;
    packet[6] = protocol;
    packet[8..40].fill(0xfd);
    ip::set_u16(&mut packet, 4, length as u16);
    let sum = checksum::pseudo_header(&packet[8..40], protocol, length);
    let sum = checksum::finish(checksum::add(sum, &packet[40..]));
    ip::set_u16(&mut packet, field, sum);
    packet
}

#[test]
fn packets_of_a_kind_that_the_device_refuses_joined_are_written_one_by_one_and_the_others_not() {
    let kinds = [(Gso::Udp, datagram as fn(u8) -> _, segment as fn(u8) -> _), (Gso::Tcp6, segment, datagram)];
    for (refused, refused_packet, taken_packet) in kinds {
        let wanted = Wanted { segmentation: true, grouping: true, refusal: None };
        let device = Device::new("test".into(), wanted, 1, 1420).unwrap();
        let sink = Arc::new(Picky { refused, taken: Mutex::default(), refusals: Mutex::default() });
        let mut inbox = Inbox::new(Arc::new(device), Arc::clone(&sink));
        let mut write = |packets: &[Vec<u8>]| {
            for packet in packets {
                inbox.room(packet.len()).copy_from_slice(packet);
                inbox.push(packet.len());
            }
            inbox.write();
            std::mem::take(&mut *sink.taken.lock().unwrap())
        };
        for half in [0..10, 10..20] {
            let packets: Vec<_> = half.clone().map(refused_packet).collect();
            assert_eq!(write(&packets), packets, "every byte, in order");
            let packets: Vec<_> = half.map(taken_packet).collect();
            assert_eq!(write(&packets).len(), 1, "the other kind is joined all the time");
        }
        assert_eq!(*sink.refusals.lock().unwrap(), 1, "it is asked once");
        assert_eq!(inbox.device.metrics.fallbacks.get(), 1);
    }
}
