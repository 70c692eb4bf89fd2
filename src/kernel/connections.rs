//! Connections that began before their destination was steered (`linux/netfilter/nfnetlink_conntrack.h`). A CNI had given
//! them a source for the outside, which they keep for as long as packets come: they are forgotten, and begin anew.

use std::net::IpAddr;
use std::sync::mpsc::{self, Receiver, Sender};

use corax_core::prefix::Prefix;
use tracing::{info, warn};

use super::error::Failure;
use super::nft::NETLINK_NETFILTER;
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

/// A thread that forgets: there may be hundreds of thousands to look through. It begins with the first prefixes and ends with
/// this; who only looks at the kernel needs none.
#[derive(Default)]
pub(super) struct Connections(Option<Sender<Steered>>);

/// What is steered from now on, and what is the node's own.
struct Steered {
    remote: Vec<Prefix>,
    own: Vec<Prefix>,
}

impl Connections {
    /// Has connections to `remote` forgotten whose near end is none of `own`, soon, in the network namespace of the caller's
    /// thread.
    pub(super) fn forget(&mut self, remote: Vec<Prefix>, own: Vec<Prefix>) {
        let sender = self.0.get_or_insert_with(|| {
            let (sender, steered) = mpsc::channel();
            std::thread::spawn(move || work(&steered));
            sender
        });
        // The thread ends with this alone.
        let _ = sender.send(Steered { remote, own });
    }
}

fn work(steered: &Receiver<Steered>) {
    while let Ok(Steered { mut remote, mut own }) = steered.recv() {
        // What came meanwhile is looked for in the same pass.
        for more in steered.try_iter() {
            remote.extend(more.remote);
            own = more.own;
        }
        remote.sort_unstable();
        own.sort_unstable();
        let found = Socket::open(NETLINK_NETFILTER, false)
            .map_err(|error| error.to_string())
            .and_then(|mut socket| forget(&mut socket, &remote, &own).map_err(|failure| failure.to_string()));
        match found {
            Ok(0) => {}
            Ok(count) => info!(count, "connections from before their way was known begin anew"),
            Err(error) => warn!(error, "connections from before their way was known are not looked for"),
        }
    }
}

/// Whether one of `prefixes`, which are sorted and do not overlap, has the address.
fn is_within(prefixes: &[Prefix], address: IpAddr) -> bool {
    let next = prefixes.partition_point(|prefix| *prefix <= Prefix::host(address));
    next.checked_sub(1).is_some_and(|at| prefixes[at].contains(address))
}

const fn kind(message: u16) -> u16 {
    NFNL_SUBSYS_CTNETLINK << 8 | message
}

const fn header(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

/// One that is to be forgotten: its family, and the attributes that name it.
struct Found(u8, Vec<(u16, Vec<u8>)>);

/// Forgets connections whose far end, after all NAT, is in `remote`, and whose near end is not in `own`: no answer would
/// find its way. Gives their number.
fn forget(socket: &mut Socket, remote: &[Prefix], own: &[Prefix]) -> Result<usize, Failure> {
    let each = |into: &mut Vec<Found>, message: &Message<'_>| {
        let mut fields = message.fields();
        let Some([family, ..]) = fields.array::<4>() else { return };
        let reply = fields.attributes().find(|attribute| attribute.kind == CTA_TUPLE_REPLY);
        let Some((far, near)) = reply.and_then(ends) else { return };
        if !is_within(remote, far) || is_within(own, near) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_in_the_prefix_that_has_it() {
        let prefixes =
            ["10.0.0.0/24", "10.0.2.0/23", "10.0.4.1/32", "fd00::/64"].map(|text| text.parse().unwrap());
        for (address, within) in [
            ("9.255.255.255", false),
            ("10.0.0.0", true),
            ("10.0.0.255", true),
            ("10.0.1.0", false),
            ("10.0.3.255", true),
            ("10.0.4.0", false),
            ("10.0.4.1", true),
            ("fcff::", false),
            ("fd00::1", true),
            ("fd00:0:0:1::", false),
        ] {
            assert_eq!(is_within(&prefixes, address.parse().unwrap()), within, "{address}");
        }
    }
}
