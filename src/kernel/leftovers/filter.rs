//! The filter that Raven puts on the overlay to clear the mark of what leaves by it (`linux/pkt_cls.h`,
//! `linux/rtnetlink.h`).

use corax_core::raven::{FILTER_PREFERENCE, Leftover};

use crate::kernel::error::Failure;
use crate::kernel::socket::Socket;
use crate::kernel::wire::{Attribute, Message, Writer};

pub(crate) const RTM_DELQDISC: u16 = 37;
pub(crate) const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;

const TC_H_CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
const ETH_P_IP: u16 = 0x0800;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_MATCHALL_ACT: u16 = 2;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_SKBEDIT_MARK: u16 = 5;

/// A request's header (`tcmsg`).
fn header(index: u32, handle: u32, parent: u32, info: u32) -> [u8; 20] {
    let mut header = [0; 20];
    let fields = [0, index, handle, parent, info];
    for (place, field) in header.chunks_exact_mut(4).zip(fields) {
        place.copy_from_slice(&field.to_ne_bytes());
    }
    header
}

/// Preference and protocol of Raven's.
fn info() -> u32 {
    u32::from(FILTER_PREFERENCE) << 16 | u32::from(ETH_P_IP.to_be())
}

/// The header of a removal of the filter alone.
pub(crate) fn filter_header(index: u32) -> [u8; 20] {
    header(index, 0, EGRESS, info())
}

pub(crate) fn put_filter(writer: &mut Writer) {
    writer.text(TCA_KIND, "matchall");
}

/// The header of a removal of the qdisc that holds it.
pub(crate) fn qdisc_header(index: u32) -> [u8; 20] {
    header(index, CLSACT_HANDLE, TC_H_CLSACT, 0)
}

pub(crate) fn put_qdisc(writer: &mut Writer) {
    writer.text(TCA_KIND, "clsact");
}

/// What is seen of a link's filters.
#[derive(Default)]
struct Seen {
    ravens: bool,
    others: bool,
}

/// Raven's filter, if it is on a link.
pub(super) fn read(socket: &mut Socket, index: u32) -> Result<Option<Leftover>, Failure> {
    let mut seen = Seen::default();
    for parent in [EGRESS, INGRESS] {
        let side = socket.dump(
            RTM_GETTFILTER,
            &header(index, 0, parent, 0),
            |_| {},
            Seen::default,
            |seen, message| look(seen, message, parent),
        )?;
        seen.ravens |= side.ravens;
        seen.others |= side.others;
    }
    Ok(seen.ravens.then_some(Leftover::Filter { alone: !seen.others }))
}

/// A filter comes as two messages: the place that it has, and what it does.
fn look(seen: &mut Seen, message: &Message<'_>, parent: u32) {
    let mut fields = message.fields();
    let (Some([..]), Some(found)) = (fields.array::<16>(), fields.u32()) else { return };
    let (mut kind, mut options) = (None, None);
    for attribute in fields.attributes() {
        match attribute.kind {
            TCA_KIND => kind = attribute.text(),
            TCA_OPTIONS => options = Some(attribute),
            _ => {}
        }
    }
    let place = parent == EGRESS && found == info() && kind == Some("matchall");
    match options {
        Some(options) if place && clears_mark(&options) => seen.ravens = true,
        None if place => {}
        _ => seen.others = true,
    }
}

/// Whether a filter sets the mark to zero, and does nothing else.
fn clears_mark(options: &Attribute<'_>) -> bool {
    let actions = options.nest().find(|attribute| attribute.kind == TCA_MATCHALL_ACT);
    let mut actions = actions.into_iter().flat_map(|actions| actions.nest());
    let (Some(action), None) = (actions.next(), actions.next()) else { return false };
    let part = |kind| action.nest().find(|attribute| attribute.kind == kind);
    let mark = part(TCA_ACT_OPTIONS)
        .and_then(|options| options.nest().find(|attribute| attribute.kind == TCA_SKBEDIT_MARK));
    part(TCA_ACT_KIND).and_then(|kind| kind.text()) == Some("skbedit")
        && mark.and_then(|mark| mark.u32()) == Some(0)
}
