//! The MTU of a pod's routes: what leaves by a gateway may have to go through the overlay; the device and what is on link
//! keep theirs.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::Socket;

use super::netns::{Failed, RouteError, ask, inside, link};

/// Gives every route by a gateway over `interface` an MTU of at most `mtu` bytes.
pub(super) fn set(netns: &str, interface: &str, mtu: u32) -> Result<(), RouteError> {
    inside(netns, |socket| {
        for route in larger_routes(socket, interface, mtu)? {
            let name = describe(&route);
            replace(socket, with_mtu(route, mtu))
                .map_err(|e| (format!("route {name} cannot be given an MTU"), e))?;
        }
        Ok(())
    })
}

/// A route by a gateway over `interface` whose packets may be larger than `mtu` bytes, if there is one.
pub(super) fn larger(netns: &str, interface: &str, mtu: u32) -> Result<Option<String>, RouteError> {
    inside(netns, |socket| Ok(larger_routes(socket, interface, mtu)?.first().map(describe)))
}

fn larger_routes(socket: &Socket, interface: &str, mtu: u32) -> Result<Vec<RouteMessage>, Failed> {
    let (index, device) = link(socket, interface).map_err(|e| (format!("interface {interface}"), e))?;
    if device <= mtu {
        return Ok(Vec::new());
    }
    let mut all = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let answers = ask(socket, RouteNetlinkMessage::GetRoute(request), NLM_F_DUMP);
        for answer in answers.map_err(|e| ("routes cannot be read".to_owned(), e))? {
            if let RouteNetlinkMessage::NewRoute(route) = answer
                && by_gateway(&route, index)
                && route_mtu(&route).is_none_or(|own| own > mtu)
            {
                all.push(route);
            }
        }
    }
    Ok(all)
}

fn by_gateway(route: &RouteMessage, device: u32) -> bool {
    let has = |test: fn(&RouteAttribute, u32) -> bool| route.attributes.iter().any(|a| test(a, device));
    route.header.kind == RouteType::Unicast
        && route.header.table == RouteHeader::RT_TABLE_MAIN
        && has(|a, _| matches!(a, RouteAttribute::Gateway(_) | RouteAttribute::Via(_)))
        && has(|a, device| matches!(a, RouteAttribute::Oif(index) if *index == device))
}

fn route_mtu(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Metrics(metrics) => metrics.iter().find_map(|metric| match metric {
            RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
            _ => None,
        }),
        _ => None,
    })
}

fn with_mtu(mut route: RouteMessage, mtu: u32) -> RouteMessage {
    let mut metrics = vec![RouteMetric::Mtu(mtu)];
    route.attributes.retain(|attribute| match attribute {
        RouteAttribute::Metrics(old) => {
            metrics.extend(old.iter().filter(|metric| !matches!(metric, RouteMetric::Mtu(_))).cloned());
            false
        }
        // What a dump says besides, and no request may.
        RouteAttribute::CacheInfo(_) => false,
        _ => true,
    });
    route.attributes.push(RouteAttribute::Metrics(metrics));
    // The others tell of the device's state; this one lets a gateway be outside of all networks.
    route.header.flags &= RouteFlags::Onlink;
    route
}

fn describe(route: &RouteMessage) -> String {
    let destination = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(a)) => Some(a.to_string()),
        RouteAttribute::Destination(RouteAddress::Inet6(a)) => Some(a.to_string()),
        _ => None,
    });
    let family = if route.header.address_family == AddressFamily::Inet { "0.0.0.0" } else { "::" };
    format!("{}/{}", destination.unwrap_or_else(|| family.into()), route.header.destination_prefix_length)
}

fn replace(socket: &Socket, route: RouteMessage) -> io::Result<()> {
    ask(socket, RouteNetlinkMessage::NewRoute(route), NLM_F_ACK | NLM_F_REPLACE).map(drop)
}
