//! Routes (`linux/rtnetlink.h`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use corax_core::object::{Device, NexthopId, PROTOCOL, Route, RouteKey, Table, Via};
use corax_core::prefix::{Family, Prefix};

use super::address::{AF_INET, AF_INET6, family_number};
use super::wire::{Message, Writer};

pub(super) const RTM_NEWROUTE: u16 = 24;
pub(super) const RTM_DELROUTE: u16 = 25;
pub(super) const RTM_GETROUTE: u16 = 26;

const RT_TABLE_MAIN: u32 = 254;
const RTM_F_CLONED: u32 = 0x200;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RT_SCOPE_NOWHERE: u8 = 255;
const RTN_UNSPEC: u8 = 0;
const RTN_UNICAST: u8 = 1;
const RTN_UNREACHABLE: u8 = 7;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_MARK: u16 = 16;
const RTA_VIA: u16 = 18;
const RTA_ENCAP: u16 = 22;
const RTA_NH_ID: u16 = 30;
const RTAX_MTU: u16 = 2;

/// What a route message tells.
pub(super) enum Decoded {
    /// A route in one of our tables.
    Ours(Found),
    /// A route in the main table.
    Main,
    /// Any other.
    Elsewhere,
}

/// A route in one of our tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) key: RouteKey,
    pub(super) source: Option<IpAddr>,
    pub(super) protocol: u8,
    pub(super) form: Form,
}

/// How a found route leads on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Nexthop(NexthopId),
    /// By a link alone.
    Link(u32),
    Unreachable,
    /// Of another form, by this link if by any.
    Other(Option<u32>),
    /// With a part of the key that Corax's have not: a type of service or a source prefix.
    Selective,
}

impl Found {
    /// Whether it is Corax's, or one that Raven left: over the overlay in table 9027, into its tunnel in table 9028.
    pub(super) fn is_owned(&self, device: impl Fn(u32) -> Option<Device>) -> bool {
        let by = match self.form {
            Form::Selective => return false,
            Form::Link(link) | Form::Other(Some(link)) => device(link),
            _ => None,
        };
        let ravens = matches!(
            (self.key.table, by),
            (Table::Domain, Some(Device::Overlay)) | (Table::Remote, Some(Device::WireGuard(_)))
        );
        self.protocol == PROTOCOL || ravens
    }

    pub(super) fn route(&self, device: impl Fn(u32) -> Option<Device>) -> Route {
        let via = match self.form {
            _ if self.protocol != PROTOCOL => Via::Other,
            Form::Nexthop(id) => Via::Nexthop(id),
            Form::Link(link) => device(link).map_or(Via::Other, Via::Device),
            Form::Unreachable => Via::Unreachable,
            Form::Other(_) | Form::Selective => Via::Other,
        };
        Route { via, source: self.source }
    }
}

pub(super) fn decode(message: &Message<'_>) -> Option<Decoded> {
    let mut fields = message.fields();
    let [family, length, source_length, tos] = fields.array()?;
    let [table, protocol, _, kind] = fields.array()?;
    let unspecified: IpAddr = match family {
        AF_INET => Ipv4Addr::UNSPECIFIED.into(),
        AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    if fields.u32()? & RTM_F_CLONED != 0 {
        return None;
    }
    let (mut table, mut destination, mut metric) = (u32::from(table), unspecified, 0);
    let (mut link, mut source, mut nexthop) = (None, None, None);
    let (mut metrics, mut hops) = (false, false);
    for attribute in fields.attributes() {
        match attribute.kind {
            RTA_TABLE => table = attribute.u32()?,
            RTA_DST => destination = attribute.address()?,
            RTA_PRIORITY => metric = attribute.u32()?,
            RTA_OIF => link = attribute.u32(),
            RTA_PREFSRC => source = attribute.address(),
            RTA_NH_ID => nexthop = attribute.u32(),
            RTA_METRICS => metrics = true,
            RTA_GATEWAY | RTA_VIA | RTA_MULTIPATH | RTA_ENCAP => hops = true,
            _ => {}
        }
    }
    // A route by nexthop object shows the object's next hop too.
    let odd = metrics || (hops && nexthop.is_none());
    let Some(table) = Table::from_number(table) else {
        return Some(if table == RT_TABLE_MAIN { Decoded::Main } else { Decoded::Elsewhere });
    };
    let form = match (kind, nexthop, link) {
        _ if tos != 0 || source_length != 0 => Form::Selective,
        (RTN_UNREACHABLE, None, _) if !odd => Form::Unreachable,
        (RTN_UNICAST, Some(id), _) if !odd => Form::Nexthop(NexthopId(id)),
        (RTN_UNICAST, None, Some(link)) if !odd => Form::Link(link),
        _ => Form::Other(link),
    };
    let key = RouteKey { table, prefix: Prefix::new(destination, length), metric };
    Some(Decoded::Ours(Found { key, source, protocol, form }))
}

/// A request's header (`rtmsg`). The table is an attribute, ours being above 255.
fn header(family: Family, length: u8, protocol: u8, scope: u8, kind: u8) -> [u8; 12] {
    [family_number(family), length, 0, 0, 0, protocol, scope, kind, 0, 0, 0, 0]
}

/// The header of a dump of one family, which [`put_table`] confines to one table.
pub(super) fn dump_header(family: Family) -> [u8; 12] {
    header(family, 0, 0, 0, 0)
}

pub(super) fn put_table(writer: &mut Writer, table: Table) {
    writer.u32(RTA_TABLE, table.number());
}

pub(super) fn put_route_header(key: &RouteKey, via: Via) -> [u8; 12] {
    let (scope, kind) = match via {
        Via::Device(_) => (RT_SCOPE_LINK, RTN_UNICAST),
        Via::Nexthop(_) => (RT_SCOPE_UNIVERSE, RTN_UNICAST),
        Via::Unreachable | Via::Other => (RT_SCOPE_UNIVERSE, RTN_UNREACHABLE),
    };
    header(key.prefix.family(), key.prefix.length(), PROTOCOL, scope, kind)
}

/// `link` is the index of the device that the route names.
pub(super) fn put_route(writer: &mut Writer, key: &RouteKey, route: &Route, link: Option<u32>) {
    put_key(writer, key);
    match route.via {
        Via::Nexthop(id) => writer.u32(RTA_NH_ID, id.0),
        Via::Device(_) | Via::Unreachable | Via::Other => {}
    }
    if let Some(link) = link {
        writer.u32(RTA_OIF, link);
    }
    if let Some(source) = route.source {
        writer.address(RTA_PREFSRC, source);
    }
}

/// The header of a removal. To IPv4 a metric of zero is any metric: the type keeps a path's removal off its
/// `unreachable` twin.
pub(super) fn delete_header(key: &RouteKey, via: Via) -> [u8; 12] {
    let (protocol, kind) = match via {
        Via::Nexthop(_) | Via::Device(_) => (PROTOCOL, RTN_UNICAST),
        Via::Unreachable => (PROTOCOL, RTN_UNREACHABLE),
        Via::Other => (0, RTN_UNSPEC),
    };
    header(key.prefix.family(), key.prefix.length(), protocol, RT_SCOPE_NOWHERE, kind)
}

pub(super) fn put_key(writer: &mut Writer, key: &RouteKey) {
    put_table(writer, key.table);
    writer.address(RTA_DST, key.prefix.first());
    writer.u32(RTA_PRIORITY, key.metric);
}

/// The way that a packet with a mark takes.
#[derive(Clone, Copy)]
pub(super) struct Way {
    pub(super) family: Family,
    pub(super) link: Option<u32>,
    /// The router that it goes by, if it does.
    pub(super) gateway: Option<IpAddr>,
    /// Where its packets come from, where they do not say.
    pub(super) source: Option<IpAddr>,
    /// MTU of the route, or the one that was learned.
    pub(super) mtu: Option<u32>,
}

pub(super) fn way_header(to: IpAddr) -> [u8; 12] {
    let family = Family::of(to);
    header(family, family.bits(), 0, 0, 0)
}

pub(super) fn put_way(writer: &mut Writer, to: IpAddr, mark: u32) {
    writer.address(RTA_DST, to);
    writer.u32(RTA_MARK, mark);
}

pub(super) fn decode_way(message: &Message<'_>) -> Option<Way> {
    let mut fields = message.fields();
    let [family, ..] = fields.array::<12>()?;
    let family = if family == AF_INET6 { Family::V6 } else { Family::V4 };
    let mut way = Way { family, link: None, gateway: None, source: None, mtu: None };
    for attribute in fields.attributes() {
        match attribute.kind {
            RTA_OIF => way.link = attribute.u32(),
            RTA_GATEWAY => way.gateway = attribute.address(),
            RTA_PREFSRC => way.source = attribute.address(),
            RTA_METRICS => {
                way.mtu =
                    attribute.nest().find(|metric| metric.kind == RTAX_MTU).and_then(|metric| metric.u32());
            }
            _ => {}
        }
    }
    Some(way)
}
