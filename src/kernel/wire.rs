//! Netlink's form on the wire: messages of a header and attributes, aligned to four bytes (RFC 3549;
//! `linux/netlink.h`). One codec for route netlink and nfnetlink, which reads in place.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use corax_core::mac::Mac;

pub(super) const NLM_F_REQUEST: u16 = 0x1;
pub(super) const NLM_F_ACK: u16 = 0x4;
pub(super) const NLM_F_DUMP_INTR: u16 = 0x10;
pub(super) const NLM_F_REPLACE: u16 = 0x100;
pub(super) const NLM_F_EXCL: u16 = 0x200;
pub(super) const NLM_F_DUMP: u16 = 0x300;
pub(super) const NLM_F_CREATE: u16 = 0x400;
/// In an answer: the request's payload is left out.
pub(super) const NLM_F_CAPPED: u16 = 0x100;

pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;
pub(super) const NLMSG_OVERRUN: u16 = 4;

const HEADER: usize = 16;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

const fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// Reads fixed-size fields off the front of a byte slice.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_ne_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_ne_bytes)
    }

    /// What is left, as attributes.
    pub(super) const fn attributes(self) -> Attributes<'a> {
        Attributes(self.0)
    }
}

/// One message.
#[derive(Clone, Copy)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    /// Of an event: the netlink port of whoever caused it.
    pub(super) port: u32,
    pub(super) payload: &'a [u8],
}

impl<'a> Message<'a> {
    pub(super) const fn fields(&self) -> Fields<'a> {
        Fields(self.payload)
    }
}

/// The messages of one datagram; ends at the first malformed one.
pub(super) struct Messages<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let mut fields = Fields(self.0);
        let length = usize::try_from(fields.u32()?).ok()?;
        let (kind, flags, sequence, port) = (fields.u16()?, fields.u16()?, fields.u32()?, fields.u32()?);
        let payload = self.0.get(HEADER..length)?;
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some(Message { kind, flags, sequence, port, payload })
    }
}

/// The attributes of a message or of a nest; ends at the first malformed one.
#[derive(Clone, Copy)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        let mut fields = Fields(self.0);
        let (length, kind) = (usize::from(fields.u16()?), fields.u16()?);
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some(Attribute { kind: kind & NLA_TYPE_MASK, value })
    }
}

/// One attribute.
#[derive(Clone, Copy)]
pub(super) struct Attribute<'a> {
    pub(super) kind: u16,
    pub(super) value: &'a [u8],
}

impl<'a> Attribute<'a> {
    pub(super) const fn nest(&self) -> Attributes<'a> {
        Attributes(self.value)
    }

    fn array<const N: usize>(&self) -> Option<[u8; N]> {
        self.value.try_into().ok()
    }

    pub(super) fn u8(&self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u32(&self) -> Option<u32> {
        self.array().map(u32::from_ne_bytes)
    }

    pub(super) fn be16(&self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn be32(&self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn be64(&self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn be128(&self) -> Option<u128> {
        self.array().map(u128::from_be_bytes)
    }

    /// An address; its length says the family.
    pub(super) fn address(&self) -> Option<IpAddr> {
        let v4 = self.array::<4>().map(|bytes| IpAddr::from(Ipv4Addr::from(bytes)));
        v4.or_else(|| self.array::<16>().map(|bytes| IpAddr::from(Ipv6Addr::from(bytes))))
    }

    pub(super) fn mac(&self) -> Option<Mac> {
        self.array().map(Mac)
    }

    /// A text, with or without its zero byte.
    pub(super) fn text(&self) -> Option<&'a str> {
        let end = self.value.iter().position(|byte| *byte == 0).unwrap_or(self.value.len());
        std::str::from_utf8(self.value.get(..end)?).ok()
    }
}

/// Several messages, to be sent at once.
#[derive(Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
    /// Where the last message begins.
    last: usize,
}

impl Writer {
    /// One message: `header` is what follows netlink's own header.
    pub(super) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        header: &[u8],
        attributes: impl FnOnce(&mut Self),
    ) {
        self.last = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(header);
        self.pad();
        attributes(self);
        let length = u32::try_from(self.bytes.len() - self.last).expect("a message is far below 4 GiB");
        self.patch(self.last, &length.to_ne_bytes());
    }

    pub(super) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).expect("an attribute's value is below 64 KiB");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    pub(super) fn u8(&mut self, kind: u16, value: u8) {
        self.attribute(kind, &[value]);
    }

    pub(super) fn u32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    pub(super) fn be32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// A text with its zero byte.
    pub(super) fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    pub(super) fn address(&mut self, kind: u16, value: IpAddr) {
        match value {
            IpAddr::V4(value) => self.attribute(kind, &value.octets()),
            IpAddr::V6(value) => self.attribute(kind, &value.octets()),
        }
    }

    pub(super) fn nest(&mut self, kind: u16, attributes: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.attribute(kind | NLA_F_NESTED, &[]);
        attributes(self);
        let length = u16::try_from(self.bytes.len() - start).expect("a nest is kept below 64 KiB");
        self.patch(start, &length.to_ne_bytes());
    }

    /// Asks for an acknowledgement of the last message.
    pub(super) fn acknowledge_last(&mut self) {
        let at = self.last + 6;
        let flags = self.bytes.get(at..).and_then(|rest| Fields(rest).u16());
        self.patch(at, &(flags.unwrap_or_default() | NLM_F_ACK).to_ne_bytes());
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.last = 0;
    }

    fn pad(&mut self) {
        self.bytes.resize(align(self.bytes.len()), 0);
    }

    fn patch(&mut self, at: usize, value: &[u8]) {
        let place = self.bytes.get_mut(at..at + value.len()).expect("what is patched was written");
        place.copy_from_slice(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let mut writer = Writer::default();
        writer.message(16, NLM_F_DUMP, 7, &[1, 2, 3], |writer| {
            writer.text(3, "raven0");
            writer.nest(18, |writer| writer.u32(1, 200));
        });
        writer.message(17, 0, 8, &[], |_| {});
        writer.acknowledge_last();
        let messages: Vec<_> = Messages(writer.bytes()).collect();
        let [first, second] = messages.as_slice() else { panic!("two messages") };
        assert_eq!((first.kind, first.flags, first.sequence), (16, NLM_F_DUMP | NLM_F_REQUEST, 7));
        assert_eq!((second.flags, second.payload), (NLM_F_REQUEST | NLM_F_ACK, &[][..]));
        let mut fields = first.fields();
        assert_eq!(fields.array(), Some([1, 2, 3, 0]));
        let mut attributes = fields.attributes();
        assert_eq!(attributes.next().and_then(|attribute| attribute.text()), Some("raven0"));
        let nest = attributes.next().unwrap();
        assert_eq!(nest.kind, 18);
        assert_eq!(nest.nest().next().and_then(|attribute| attribute.u32()), Some(200));
        assert!(attributes.next().is_none());
    }

    #[test]
    fn malformed_input_ends_the_reading() {
        for bytes in [&[][..], &[1], &[3, 0, 1, 0], &[255, 0, 1, 0, 0, 0], &[0; 8]] {
            assert!(Attributes(bytes).next().is_none(), "{bytes:?}");
            assert!(Messages(bytes).next().is_none(), "{bytes:?}");
        }
    }
}
