//! Nexthop objects (`linux/nexthop.h`).

use std::net::{IpAddr, Ipv4Addr};

use corax_core::object::{NexthopId, PROTOCOL};
use corax_core::prefix::Family;

use super::address::{AF_UNSPEC, family_number};
use super::wire::{Message, Writer};

pub(super) const RTM_NEWNEXTHOP: u16 = 104;
pub(super) const RTM_DELNEXTHOP: u16 = 105;
pub(super) const RTM_GETNEXTHOP: u16 = 106;

const NHA_ID: u16 = 1;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const RTNH_F_ONLINK: u32 = 4;

/// What a nexthop message tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decoded {
    pub(super) id: NexthopId,
    pub(super) owned: bool,
    /// The next hop, and the link it is on; none where it is of another form.
    pub(super) gateway: Option<(IpAddr, u32)>,
}

impl Decoded {
    /// The next hop's address on `overlay`; the unspecified one where it is anything else, so that it is replaced.
    pub(super) fn on(&self, overlay: Option<u32>) -> IpAddr {
        let gateway = self.gateway.filter(|(_, link)| Some(*link) == overlay);
        gateway.map_or(Ipv4Addr::UNSPECIFIED.into(), |(address, _)| address)
    }
}

pub(super) fn decode(message: &Message<'_>) -> Option<Decoded> {
    let mut fields = message.fields();
    let [_, _, protocol, _] = fields.array()?;
    fields.u32()?;
    let (mut id, mut link, mut address, mut odd) = (None, None, None, false);
    for attribute in fields.attributes() {
        match attribute.kind {
            NHA_ID => id = attribute.u32(),
            NHA_OIF => link = attribute.u32(),
            NHA_GATEWAY => address = attribute.address(),
            _ => odd = true,
        }
    }
    let gateway = address.zip(link).filter(|_| !odd);
    Some(Decoded { id: NexthopId(id?), owned: protocol == PROTOCOL, gateway })
}

/// A request's header (`nhmsg`).
fn header(family: u8, protocol: u8, flags: u32) -> [u8; 8] {
    let [a, b, c, d] = flags.to_ne_bytes();
    [family, 0, protocol, 0, a, b, c, d]
}

pub(super) fn put_header(gateway: IpAddr) -> [u8; 8] {
    header(family_number(Family::of(gateway)), PROTOCOL, RTNH_F_ONLINK)
}

pub(super) fn plain_header() -> [u8; 8] {
    header(AF_UNSPEC, 0, 0)
}

pub(super) fn put(writer: &mut Writer, id: NexthopId, gateway: IpAddr, overlay: u32) {
    put_id(writer, id);
    writer.u32(NHA_OIF, overlay);
    writer.address(NHA_GATEWAY, gateway);
}

pub(super) fn put_id(writer: &mut Writer, id: NexthopId) {
    writer.u32(NHA_ID, id.0);
}
