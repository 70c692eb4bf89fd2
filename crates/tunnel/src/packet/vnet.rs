//! `struct virtio_net_hdr` (linux/virtio_net.h), which stands before every packet of a TUN device opened with IFF_VNET_HDR.

/// Bytes of the header on the wire.
pub const LEN: usize = 10;

/// The transport checksum is not finished: sum from `csum_start`, store at `csum_start + csum_offset`.
const NEEDS_CSUM: u8 = 1;

/// Kinds of a packet that stands for several.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gso {
    /// One packet.
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP of either version, each segment a datagram (USO, Linux 6.2).
    Udp,
}

/// What the kernel says of a packet it hands over, and what we say of one we hand over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// How the packet is to be cut.
    pub gso: Gso,
    /// Payload bytes of every segment but the last.
    pub gso_size: u16,
    /// Bytes of all headers together; a hint only in what the kernel gives.
    pub header_len: u16,
    /// Where the unfinished checksum starts and, from there, where it belongs.
    pub checksum: Option<(u16, u16)>,
}

impl Header {
    /// One packet, nothing to be done to it.
    pub const PLAIN: Self = Self { gso: Gso::None, gso_size: 0, header_len: 0, checksum: None };

    /// None for a kind of packet that we never asked for.
    #[must_use]
    pub fn parse(bytes: &[u8; LEN]) -> Option<Self> {
        let field = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        // Bit 7 says that a TCP segment has CWR set; the segmenter looks for itself.
        let gso = match bytes[1] & 0x7f {
            0 => Gso::None,
            1 => Gso::Tcp4,
            4 => Gso::Tcp6,
            5 => Gso::Udp,
            _ => return None,
        };
        let checksum = (bytes[0] & NEEDS_CSUM != 0).then(|| (field(6), field(8)));
        Some(Self { gso, gso_size: field(4), header_len: field(2), checksum })
    }

    /// The header's bytes.
    #[must_use]
    pub fn bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[0] = u8::from(self.checksum.is_some()) * NEEDS_CSUM;
        bytes[1] = match self.gso {
            Gso::None => 0,
            Gso::Tcp4 => 1,
            Gso::Tcp6 => 4,
            Gso::Udp => 5,
        };
        let (start, offset) = self.checksum.unwrap_or_default();
        for (at, value) in [(2, self.header_len), (4, self.gso_size), (6, start), (8, offset)] {
            bytes[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        }
        bytes
    }
}
