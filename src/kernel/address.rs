//! Addresses (`linux/if_addr.h`).

use std::net::IpAddr;

use corax_core::object::{Address, Scope};
use corax_core::prefix::Family;

use super::wire::{Message, Writer};

pub(super) const RTM_NEWADDR: u16 = 20;
pub(super) const RTM_DELADDR: u16 = 21;
pub(super) const RTM_GETADDR: u16 = 22;

pub(super) const AF_UNSPEC: u8 = 0;
pub(super) const AF_INET: u8 = 2;
pub(super) const AF_INET6: u8 = 10;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u8 = 2;
const IFA_F_TENTATIVE: u32 = 0x40;

/// An address of any link, by the link's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Held {
    pub(super) index: u32,
    pub(super) address: IpAddr,
    pub(super) length: u8,
}

/// The kernel's number of a family.
pub(super) const fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    }
}

/// An address that is in use. One that IPv6 is still asking the link about is not, and comes with an event once it is.
pub(super) fn decode(message: &Message<'_>) -> Option<(Held, Option<Scope>)> {
    let mut fields = message.fields();
    let [family, length, _, scope] = fields.array()?;
    (family == AF_INET || family == AF_INET6).then_some(())?;
    let index = fields.u32()?;
    let (mut near, mut far, mut flags) = (None, None, 0);
    for attribute in fields.attributes() {
        match attribute.kind {
            IFA_LOCAL => near = attribute.address(),
            IFA_ADDRESS => far = attribute.address(),
            IFA_FLAGS => flags = attribute.u32().unwrap_or_default(),
            _ => {}
        }
    }
    let scope = if scope >= RT_SCOPE_LINK { Scope::Link } else { Scope::Global };
    let used = message.kind == RTM_NEWADDR && flags & IFA_F_TENTATIVE == 0;
    Some((Held { index, address: near.or(far)?, length }, used.then_some(scope)))
}

/// A request's header (`ifaddrmsg`).
pub(super) fn header(index: u32, address: &Address, scope: Scope) -> [u8; 8] {
    let [a, b, c, d] = index.to_ne_bytes();
    let scope = match scope {
        Scope::Global => RT_SCOPE_UNIVERSE,
        Scope::Link => RT_SCOPE_LINK,
    };
    // IPv6: no duplicate address detection, so that it serves at once.
    let flags = if address.address.is_ipv6() { IFA_F_NODAD } else { 0 };
    [family_number(Family::of(address.address)), address.length, flags, scope, a, b, c, d]
}

pub(super) fn put(writer: &mut Writer, address: &Address) {
    writer.address(IFA_LOCAL, address.address);
    writer.address(IFA_ADDRESS, address.address);
    if address.address.is_ipv6() {
        writer.u32(IFA_FLAGS, u32::from(IFA_F_NODAD));
    }
}
