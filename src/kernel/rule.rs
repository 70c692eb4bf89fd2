//! Policy rules (`linux/fib_rules.h`).

use std::fmt::Write as _;

use corax_core::object::{Action, DEFAULT_LENGTH, Device, PROTOCOL, Rule, Table};
use corax_core::prefix::{Family, Prefix};
use corax_core::raven::{Leftover, MARK_RULE, TUNNEL_RULE};

use super::address::{AF_INET, AF_INET6, family_number};
use super::wire::{Message, Writer};

pub(super) const RTM_NEWRULE: u16 = 32;
pub(super) const RTM_DELRULE: u16 = 33;
pub(super) const RTM_GETRULE: u16 = 34;

const RT_TABLE_MAIN: u32 = 254;
const FR_ACT_TO_TBL: u8 = 1;
const FR_ACT_BLACKHOLE: u8 = 6;
const FR_ACT_UNREACHABLE: u8 = 7;
const FR_ACT_PROHIBIT: u8 = 8;
const FIB_RULE_INVERT: u32 = 2;
const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_OIFNAME: u16 = 17;
const FRA_PROTOCOL: u16 = 21;

/// A rule as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// One of ours.
    Ours(Rule),
    /// One that Raven left.
    Ravens(Leftover),
    /// Somebody else's, or with our protocol and of a form that Corax does not make.
    Foreign {
        family: Family,
        priority: u32,
        ours: bool,
        text: Box<str>,
        /// What of Raven's the kernel may take it for when that is to be removed: what a removal does not name may be
        /// anything.
        taken_for: Option<Leftover>,
    },
}

pub(super) fn decode(message: &Message<'_>) -> Option<Found> {
    let mut fields = message.fields();
    let [family, destination_length, source_length, tos] = fields.array()?;
    let [table, _, _, action] = fields.array()?;
    let flags = fields.u32()?;
    let family = match family {
        AF_INET => Family::V4,
        AF_INET6 => Family::V6,
        _ => return None,
    };
    let (mut table, mut priority, mut protocol) = (u32::from(table), 0, 0);
    let (mut input, mut destination, mut mark, mut mask) = (None, None, None, None);
    let mut text = String::from("from ");
    let mut fits = source_length == 0 && tos == 0 && flags & FIB_RULE_INVERT == 0;
    let mut selectors = String::new();
    let (mut source, mut suppressed) = (None, None);
    for attribute in fields.attributes() {
        match attribute.kind {
            FRA_TABLE => table = attribute.u32()?,
            FRA_PRIORITY => priority = attribute.u32()?,
            FRA_PROTOCOL => protocol = attribute.u8()?,
            FRA_DST => destination = Some(Prefix::new(attribute.address()?, destination_length)),
            FRA_SRC => source = Some(Prefix::new(attribute.address()?, source_length)),
            FRA_FWMARK => mark = attribute.u32(),
            FRA_FWMASK => mask = attribute.u32(),
            FRA_IIFNAME => input = attribute.text(),
            FRA_OIFNAME => {
                fits = false;
                let _ = write!(selectors, " oif {}", attribute.text().unwrap_or_default());
            }
            FRA_SUPPRESS_PREFIXLEN => suppressed = attribute.u32().filter(|length| *length != u32::MAX),
            _ => fits = false,
        }
    }
    let mark = mark.filter(|mark| *mark != 0);
    fits &= mask == mark.map(|_| u32::MAX);
    let what = match action {
        FR_ACT_TO_TBL if table == RT_TABLE_MAIN => Some(Action::Main),
        FR_ACT_TO_TBL => Table::from_number(table).map(Action::Lookup),
        FR_ACT_UNREACHABLE => Some(Action::Unreachable),
        _ => None,
    };
    let device = input.map(Device::from_name);
    // A removal does not name the length.
    let form = match (what, suppressed) {
        (what, None) => what,
        (Some(Action::Main), Some(length)) if length == u32::from(DEFAULT_LENGTH) => {
            Some(Action::MainWithoutDefault)
        }
        _ => None,
    };
    let form = form.filter(|_| fits && device != Some(None));
    let form =
        form.map(|action| Rule { priority, family, input: device.flatten(), mark, destination, action });
    match form {
        Some(rule) if protocol == PROTOCOL => return Some(Found::Ours(rule)),
        Some(rule) if rule == MARK_RULE => return Some(Found::Ravens(Leftover::MarkRule(protocol))),
        Some(rule) if rule == TUNNEL_RULE => return Some(Found::Ravens(Leftover::TunnelRule(protocol))),
        _ => {}
    }
    let alike = |rule: &Rule| {
        (family, priority, what) == (rule.family, rule.priority, Some(rule.action))
            && (rule.mark.is_none() || (mark, mask) == (rule.mark, Some(u32::MAX)))
    };
    let taken_for = if alike(&MARK_RULE) {
        Some(Leftover::MarkRule(protocol))
    } else {
        alike(&TUNNEL_RULE).then_some(Leftover::TunnelRule(protocol))
    };
    let _ = match source {
        Some(source) => write!(text, "{source}"),
        None => text.write_str("all"),
    };
    if let Some(destination) = destination {
        let _ = write!(text, " to {destination}");
    }
    if let Some(input) = input {
        let _ = write!(text, " iif {input}");
    }
    if let Some(mark) = mark {
        let _ = write!(text, " fwmark {mark:#x}/{:#x}", mask.unwrap_or(u32::MAX));
    }
    text.push_str(&selectors);
    let _ = match action {
        FR_ACT_TO_TBL if table == RT_TABLE_MAIN => text.write_str(" lookup main"),
        FR_ACT_TO_TBL => write!(text, " lookup {table}"),
        FR_ACT_BLACKHOLE => text.write_str(" blackhole"),
        FR_ACT_UNREACHABLE => text.write_str(" unreachable"),
        FR_ACT_PROHIBIT => text.write_str(" prohibit"),
        other => write!(text, " action {other}"),
    };
    if let Some(length) = suppressed {
        let _ = write!(text, " suppress_prefixlength {length}");
    }
    Some(Found::Foreign { family, priority, ours: protocol == PROTOCOL, text: text.into(), taken_for })
}

/// A request's header (`fib_rule_hdr`).
pub(super) fn header(rule: &Rule) -> [u8; 12] {
    let length = rule.destination.map_or(0, |prefix| prefix.length());
    let action = match rule.action {
        Action::Lookup(_) | Action::Main | Action::MainWithoutDefault => FR_ACT_TO_TBL,
        Action::Unreachable => FR_ACT_UNREACHABLE,
    };
    [family_number(rule.family), length, 0, 0, 0, 0, 0, action, 0, 0, 0, 0]
}

pub(super) fn dump_header(family: Family) -> [u8; 12] {
    [family_number(family), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}

pub(super) fn put(writer: &mut Writer, rule: &Rule) {
    put_of(writer, rule, PROTOCOL);
}

/// A rule of any protocol. A removal that says zero takes the first that is equal otherwise.
pub(super) fn put_of(writer: &mut Writer, rule: &Rule, protocol: u8) {
    writer.u32(FRA_PRIORITY, rule.priority);
    writer.u8(FRA_PROTOCOL, protocol);
    if let Some(device) = rule.input {
        writer.text(FRA_IIFNAME, &device.to_string());
    }
    if let Some(mark) = rule.mark {
        writer.u32(FRA_FWMARK, mark);
        writer.u32(FRA_FWMASK, u32::MAX);
    }
    if let Some(destination) = rule.destination {
        writer.address(FRA_DST, destination.first());
    }
    match rule.action {
        Action::Lookup(table) => writer.u32(FRA_TABLE, table.number()),
        Action::Main => writer.u32(FRA_TABLE, RT_TABLE_MAIN),
        Action::MainWithoutDefault => {
            writer.u32(FRA_TABLE, RT_TABLE_MAIN);
            writer.u32(FRA_SUPPRESS_PREFIXLEN, DEFAULT_LENGTH.into());
        }
        Action::Unreachable => {}
    }
}
