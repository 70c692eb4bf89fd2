//! Neighbours, and the VXLAN device's forwarding database, which the kernel keeps in the same messages
//! (`linux/neighbour.h`).

use std::net::{IpAddr, Ipv4Addr};

use corax_core::mac::Mac;
use corax_core::object::PROTOCOL;
use corax_core::prefix::Family;

use super::address::{AF_INET, AF_INET6, family_number};
use super::wire::{Message, Writer};

pub(super) const RTM_NEWNEIGH: u16 = 28;
pub(super) const RTM_DELNEIGH: u16 = 29;
pub(super) const RTM_GETNEIGH: u16 = 30;

const AF_BRIDGE: u8 = 7;
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
const NTF_SELF: u8 = 2;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_PORT: u16 = 6;
const NDA_VNI: u16 = 7;
const NDA_IFINDEX: u16 = 8;
const NDA_PROTOCOL: u16 = 12;
const NDA_NH_ID: u16 = 13;

const NO_MAC: Mac = Mac([0; 6]);

/// What a neighbour message tells of an object of one link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    /// Behind which underlay address a hardware address is; the unspecified one where the entry is not as Corax makes
    /// them: with a port or VNI of its own, or one that ages.
    Fdb(Mac, IpAddr),
    /// A hardware address with no destination at all: of an event, what the kernel's core says beside the driver, which
    /// says it all (Linux 6.1 does).
    BareFdb(Mac),
    /// A destination for what the forwarding database does not name: Raven's.
    Flood(IpAddr),
    /// A neighbour, with its hardware address if it is permanent; the zero one where it is somebody else's, as Raven's are.
    Neighbour(IpAddr, Option<Mac>),
}

pub(super) fn decode(message: &Message<'_>) -> Option<(u32, Decoded)> {
    let mut fields = message.fields();
    let [family, ..] = fields.array::<4>()?;
    let index = fields.u32()?;
    let (state, [flags, _]) = (fields.u16()?, fields.array()?);
    let (mut address, mut mac, mut odd, mut protocol) = (None, None, false, 0);
    for attribute in fields.attributes() {
        match attribute.kind {
            NDA_DST => address = attribute.address(),
            NDA_LLADDR => mac = attribute.mac(),
            NDA_PROTOCOL => protocol = attribute.u8().unwrap_or_default(),
            NDA_PORT | NDA_VNI | NDA_IFINDEX | NDA_NH_ID => odd = true,
            _ => {}
        }
    }
    let decoded = match family {
        AF_BRIDGE if flags & NTF_SELF != 0 => {
            let mac = mac?;
            if mac == NO_MAC {
                return Some((index, Decoded::Flood(address?)));
            }
            if address.is_none() && !odd {
                return Some((index, Decoded::BareFdb(mac)));
            }
            let stays = state & (NUD_PERMANENT | NUD_NOARP) != 0;
            let to = address.filter(|_| stays && !odd);
            Decoded::Fdb(mac, to.unwrap_or(Ipv4Addr::UNSPECIFIED.into()))
        }
        AF_INET | AF_INET6 => {
            let mac = mac.filter(|_| state & NUD_PERMANENT != 0);
            Decoded::Neighbour(address?, mac.map(|mac| if protocol == PROTOCOL { mac } else { NO_MAC }))
        }
        _ => return None,
    };
    Some((index, decoded))
}

/// A request's header (`ndmsg`).
fn header(family: u8, index: u32, state: u16, flags: u8) -> [u8; 12] {
    let [a, b, c, d] = index.to_ne_bytes();
    let [e, f] = state.to_ne_bytes();
    [family, 0, 0, 0, a, b, c, d, e, f, flags, 0]
}

/// The header of a dump of neighbours; the link is an attribute.
pub(super) fn dump_header() -> [u8; 12] {
    header(0, 0, 0, 0)
}

pub(super) fn put_link(writer: &mut Writer, index: u32) {
    writer.u32(NDA_IFINDEX, index);
}

/// The header of a dump of one link's forwarding database, on a strict socket.
pub(super) fn fdb_dump_header(index: u32) -> [u8; 12] {
    header(AF_BRIDGE, index, 0, 0)
}

pub(super) fn fdb_header(index: u32) -> [u8; 12] {
    header(AF_BRIDGE, index, NUD_PERMANENT, NTF_SELF)
}

/// The entry for what the forwarding database does not name.
pub(super) fn put_flood(writer: &mut Writer, to: IpAddr) {
    put_fdb(writer, NO_MAC, to);
}

pub(super) fn put_fdb(writer: &mut Writer, mac: Mac, to: IpAddr) {
    writer.attribute(NDA_LLADDR, &mac.0);
    writer.address(NDA_DST, to);
}

pub(super) fn neighbour_header(index: u32, address: IpAddr) -> [u8; 12] {
    header(family_number(Family::of(address)), index, NUD_PERMANENT, 0)
}

pub(super) fn put_neighbour(writer: &mut Writer, address: IpAddr, mac: Option<Mac>) {
    writer.address(NDA_DST, address);
    if let Some(mac) = mac {
        writer.attribute(NDA_LLADDR, &mac.0);
        writer.u8(NDA_PROTOCOL, PROTOCOL);
    }
}
