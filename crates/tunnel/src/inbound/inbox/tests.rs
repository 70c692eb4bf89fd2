use std::sync::Mutex;

use super::*;
use crate::net::Wanted;
use crate::packet::{checksum, ip};

/// Takes single packets, refuses joined ones like the kernels that do.
#[derive(Default)]
struct Picky {
    taken: Mutex<Vec<Vec<u8>>>,
    refused: Mutex<usize>,
}

impl Sink for Picky {
    fn write(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        if pieces[0][1] != 0 {
            *self.refused.lock().unwrap() += 1;
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
    packet[0] = 0x60;
    packet[6] = ip::UDP;
    packet[8..40].fill(0xfd);
    ip::set_u16(&mut packet, 4, 108);
    ip::set_u16(&mut packet, 44, 108);
    packet[48..].fill(index);
    let sum = checksum::pseudo_header(&packet[8..40], ip::UDP, 108);
    let sum = checksum::finish(checksum::add(sum, &packet[40..]));
    ip::set_u16(&mut packet, 46, sum);
    packet
}

#[test]
fn a_device_that_refuses_joined_packets_gets_them_one_by_one() {
    let device = Device::new("test".into(), Wanted { segmentation: true, grouping: true }, 1, 1420).unwrap();
    let sink = Arc::new(Picky::default());
    let mut inbox = Inbox::new(Arc::new(device), Arc::clone(&sink));
    let packets: Vec<_> = (0..20).map(datagram).collect();
    for half in packets.chunks(10) {
        for packet in half {
            inbox.room(packet.len()).copy_from_slice(packet);
            inbox.push(packet.len());
        }
        inbox.write();
    }
    assert_eq!(*sink.taken.lock().unwrap(), packets, "every byte, in order");
    assert_eq!(*sink.refused.lock().unwrap(), 1, "it is asked once");
    assert_eq!(inbox.device.metrics.fallbacks.get(), 1);
}
