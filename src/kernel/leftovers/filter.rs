//! The filter that Raven puts on the overlay to clear the mark of what leaves by it (`linux/pkt_cls.h`,
//! `linux/rtnetlink.h`).

use corax_core::raven::{FILTER_PREFERENCE, Leftover};

use crate::kernel::error::Failure;
use crate::kernel::socket::Socket;
use crate::kernel::wire::{Attribute, Message, Writer};

pub(crate) const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;

const EGRESS: u32 = 0xffff_fff3;
const ETH_P_IP: u16 = 0x0800;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_MATCHALL_ACT: u16 = 2;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_SKBEDIT_MARK: u16 = 5;

/// A request's header (`tcmsg`).
fn header(index: u32, info: u32) -> [u8; 20] {
    let mut header = [0; 20];
    let fields = [0, index, 0, EGRESS, info];
    for (place, field) in header.chunks_exact_mut(4).zip(fields) {
        place.copy_from_slice(&field.to_ne_bytes());
    }
    header
}

/// Preference and protocol of Raven's.
fn info() -> u32 {
    u32::from(FILTER_PREFERENCE) << 16 | u32::from(ETH_P_IP.to_be())
}

/// The header of a removal.
pub(crate) fn filter_header(index: u32) -> [u8; 20] {
    header(index, info())
}

pub(crate) fn put_filter(writer: &mut Writer) {
    writer.text(TCA_KIND, "matchall");
}

/// Raven's filter, if it is on a link.
pub(super) fn read(socket: &mut Socket, index: u32) -> Result<Option<Leftover>, Failure> {
    let found = socket.dump(
        RTM_GETTFILTER,
        &header(index, 0),
        |_| {},
        || false,
        |found, message| *found |= is_ravens(message),
    )?;
    Ok(found.then_some(Leftover::Filter))
}

/// A filter comes as two messages: the place that it has, and what it does.
fn is_ravens(message: &Message<'_>) -> bool {
    let mut fields = message.fields();
    let (Some([..]), Some(place)) = (fields.array::<16>(), fields.u32()) else { return false };
    let part = |kind| fields.attributes().find(|attribute| attribute.kind == kind);
    place == info()
        && part(TCA_KIND).and_then(|kind| kind.text()) == Some("matchall")
        && part(TCA_OPTIONS).is_some_and(|options| clears_mark(&options))
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
