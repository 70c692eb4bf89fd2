//! Connections that began before their destination was steered (`linux/netfilter/nfnetlink_conntrack.h`). A CNI had given
//! them a source for the outside, which they keep for as long as packets come: they are forgotten, and begin anew.

use std::net::IpAddr;

use super::error::Failure;
use super::socket::Socket;
use super::wire::{Attribute, Attributes, Message, NLM_F_ACK, Writer};

const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;

const fn kind(message: u16) -> u16 {
    NFNL_SUBSYS_CTNETLINK << 8 | message
}

const fn header(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

/// One that is to be forgotten: its family, and the attributes that name it.
struct Found(u8, Vec<(u16, Vec<u8>)>);

/// Forgets connections whose far end, after all NAT, is `remote`, and whose near end is not `own`: no answer would find its
/// way. Gives their number.
pub(super) fn forget(
    socket: &mut Socket,
    remote: impl Fn(IpAddr) -> bool,
    own: impl Fn(IpAddr) -> bool,
) -> Result<usize, Failure> {
    let each = |into: &mut Vec<Found>, message: &Message<'_>| {
        let mut fields = message.fields();
        let Some([family, ..]) = fields.array::<4>() else { return };
        let reply = fields.attributes().find(|attribute| attribute.kind == CTA_TUPLE_REPLY);
        let Some((far, near)) = reply.and_then(ends) else { return };
        if !remote(far) || own(near) {
            return;
        }
        let names = |attribute: &Attribute<'_>| [CTA_TUPLE_ORIG, CTA_ID, CTA_ZONE].contains(&attribute.kind);
        let named = fields.attributes().filter(names);
        into.push(Found(family, named.map(|attribute| (attribute.kind, attribute.value.to_vec())).collect()));
    };
    let found = socket.dump(kind(IPCTNL_MSG_CT_GET), &header(0), |_| {}, Vec::new, each)?;
    for Found(family, named) in &found {
        let put = |writer: &mut Writer| {
            for (attribute, value) in named {
                match *attribute {
                    CTA_TUPLE_ORIG => writer.nest(*attribute, |writer| put_all(writer, Attributes(value))),
                    _ => writer.attribute(*attribute, value),
                }
            }
        };
        match socket.ask(kind(IPCTNL_MSG_CT_DELETE), NLM_F_ACK, &header(*family), put, |_| None::<()>) {
            // It ended by itself.
            Err(failure) if failure.errno == nix::errno::Errno::ENOENT => {}
            result => drop(result?),
        }
    }
    Ok(found.len())
}

/// A tuple is a nest of nests, which the kernel wants marked as such.
fn put_all(writer: &mut Writer, attributes: Attributes<'_>) {
    for attribute in attributes {
        writer.nest(attribute.kind, |writer| {
            for part in attribute.nest() {
                writer.attribute(part.kind, part.value);
            }
        });
    }
}

/// Source and destination of a tuple.
fn ends(tuple: Attribute<'_>) -> Option<(IpAddr, IpAddr)> {
    let addresses = tuple.nest().find(|attribute| attribute.kind == CTA_TUPLE_IP)?;
    let (mut source, mut destination) = (None, None);
    for attribute in addresses.nest() {
        match attribute.kind {
            CTA_IP_V4_SRC | CTA_IP_V6_SRC => source = attribute.address(),
            CTA_IP_V4_DST | CTA_IP_V6_DST => destination = attribute.address(),
            _ => {}
        }
    }
    Some((source?, destination?))
}
