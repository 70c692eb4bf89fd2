//! Ancillary data of datagrams, built and read as bytes (cmsg(3)).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libc::{c_int, cmsghdr};

use crate::sys::CONTROL;

const ALIGN: usize = size_of::<usize>();
/// Bytes of `struct cmsghdr`, aligned.
const HEADER: usize = size_of::<cmsghdr>().next_multiple_of(ALIGN);
const LEVEL: usize = std::mem::offset_of!(cmsghdr, cmsg_level);
const TYPE: usize = std::mem::offset_of!(cmsghdr, cmsg_type);

/// Ancillary data in the making.
pub(crate) struct Builder<'a> {
    buffer: &'a mut [u8; CONTROL],
    length: usize,
}

impl<'a> Builder<'a> {
    pub(crate) fn new(buffer: &'a mut [u8; CONTROL]) -> Self {
        Self { buffer, length: 0 }
    }

    /// The datagram is a train: messages of `size` bytes, the last may be shorter (udp(7), UDP_SEGMENT).
    pub(crate) fn segment(&mut self, size: u16) {
        self.put(libc::SOL_UDP, libc::UDP_SEGMENT, &size.to_ne_bytes());
    }

    /// ECN bits of the outer header.
    pub(crate) fn ecn(&mut self, v4: bool, ecn: u8) {
        let (level, kind) =
            if v4 { (libc::SOL_IP, libc::IP_TOS) } else { (libc::SOL_IPV6, libc::IPV6_TCLASS) };
        self.put(level, kind, &c_int::from(ecn).to_ne_bytes());
    }

    /// Address to send from.
    pub(crate) fn source(&mut self, source: IpAddr) {
        match source {
            // struct in_pktinfo: interface, local address (used as source), destination (unused here).
            IpAddr::V4(v4) => {
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&v4.octets());
                self.put(libc::SOL_IP, libc::IP_PKTINFO, &info);
            }
            // struct in6_pktinfo: address, interface.
            IpAddr::V6(v6) => {
                let mut info = [0; 20];
                info[..16].copy_from_slice(&v6.octets());
                self.put(libc::SOL_IPV6, libc::IPV6_PKTINFO, &info);
            }
        }
    }

    /// Bytes in use.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    fn put(&mut self, level: c_int, kind: c_int, data: &[u8]) {
        let record = &mut self.buffer[self.length..];
        record[..HEADER].fill(0);
        record[..ALIGN].copy_from_slice(&(HEADER + data.len()).to_ne_bytes());
        record[LEVEL..LEVEL + 4].copy_from_slice(&level.to_ne_bytes());
        record[TYPE..TYPE + 4].copy_from_slice(&kind.to_ne_bytes());
        record[HEADER..HEADER + data.len()].copy_from_slice(data);
        self.length += HEADER + data.len().next_multiple_of(ALIGN);
    }
}

/// What the kernel says of a received datagram.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Received {
    /// Bytes of each message of a train but the last; none for a single message.
    pub(crate) segment: Option<usize>,
    /// ECN bits of the outer header.
    pub(crate) ecn: u8,
    /// Address it was sent to.
    pub(crate) local: Option<IpAddr>,
}

/// Reads ancillary data; what is unknown or cut short is passed over.
pub(crate) fn parse(mut control: &[u8]) -> Received {
    let mut received = Received::default();
    while let Some((level, kind, data, rest)) = next(control) {
        control = rest;
        match (level, kind) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                let size = data.first_chunk::<4>().map_or(0, |bytes| c_int::from_ne_bytes(*bytes));
                received.segment = usize::try_from(size).ok().filter(|size| *size > 0);
            }
            // One byte for IPv4, an int for IPv6.
            (libc::SOL_IP, libc::IP_TOS) => received.ecn = data.first().map_or(0, |tos| tos & 3),
            (libc::SOL_IPV6, libc::IPV6_TCLASS) => {
                received.ecn =
                    data.first_chunk::<4>().map_or(0, |bytes| c_int::from_ne_bytes(*bytes) as u8 & 3);
            }
            (libc::SOL_IP, libc::IP_PKTINFO) => {
                received.local = data
                    .get(4..)
                    .and_then(|data| data.first_chunk::<4>())
                    .map(|bytes| Ipv4Addr::from(*bytes).into());
            }
            // An IPv4 datagram on the socket of both families gives this one too, mapped; the other one tells more.
            (libc::SOL_IPV6, libc::IPV6_PKTINFO) if received.local.is_none() => {
                received.local = data.first_chunk::<16>().map(|bytes| Ipv6Addr::from(*bytes).to_canonical());
            }
            _ => {}
        }
    }
    received
}

fn next(control: &[u8]) -> Option<(c_int, c_int, &[u8], &[u8])> {
    let length = usize::from_ne_bytes(*control.first_chunk::<ALIGN>()?);
    let data = control.get(HEADER..length)?;
    let int = |at: usize| control[at..].first_chunk::<4>().map(|bytes| c_int::from_ne_bytes(*bytes));
    let rest = control.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
    Some((int(LEVEL)?, int(TYPE)?, data, rest))
}
