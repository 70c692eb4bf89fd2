//! Whether a pod's namespace still has what its result says: interfaces, their addresses, the default routes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use corax_pins::store::identity;
use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::Socket;
use serde_json::Value;

use super::netns::{Failed, RouteError, ask, inside, link};

/// What a result says of one namespace.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    interfaces: BTreeSet<String>,
    addresses: BTreeSet<(String, IpAddr)>,
    /// By `true` for IPv6.
    defaults: BTreeSet<bool>,
}

/// The first thing of a result that the namespace does not have any more, in words.
pub(super) fn missing(netns: &str, result: &Value) -> Result<Option<String>, RouteError> {
    let said = said(netns, result);
    inside(netns, |socket| look(socket, &said))
}

fn said(netns: &str, result: &Value) -> Said {
    let list = |key: &str| result.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let ours = |interface: &Value| {
        let sandbox = interface.get("sandbox").and_then(Value::as_str).filter(|sandbox| !sandbox.is_empty());
        // One namespace may be known by two paths.
        let same = |sandbox: &str| sandbox == netns || (identity(sandbox) == identity(netns));
        let name = interface.get("name").and_then(Value::as_str).filter(|_| sandbox.is_some_and(same));
        name.map(str::to_owned)
    };
    let interfaces: Vec<_> = list("interfaces").iter().map(ours).collect();
    let mut said = Said { interfaces: interfaces.iter().flatten().cloned().collect(), ..Said::default() };
    for ip in list("ips") {
        let at = ip.get("interface").and_then(Value::as_u64).and_then(|at| usize::try_from(at).ok());
        let name = at.and_then(|at| interfaces.get(at)).cloned().flatten();
        let text = ip.get("address").and_then(Value::as_str).and_then(|text| text.split('/').next());
        said.addresses.extend(name.zip(text.and_then(|text| text.parse().ok())));
    }
    // An IPAM's result names no interfaces: its routes are for the main plugin to set.
    if !said.interfaces.is_empty() {
        let table = |route: &Value| route.get("table").and_then(Value::as_u64);
        let main = |route: &&Value| {
            table(route).is_none_or(|t| t == 0 || t == u64::from(RouteHeader::RT_TABLE_MAIN))
        };
        let routes = list("routes").iter().filter(main);
        said.defaults.extend(routes.filter_map(|route| match route.get("dst")?.as_str()? {
            "0.0.0.0/0" => Some(false),
            "::/0" => Some(true),
            _ => None,
        }));
    }
    said
}

fn look(socket: &Socket, said: &Said) -> Result<Option<String>, Failed> {
    let mut indexes = Vec::new();
    for name in &said.interfaces {
        match link(socket, name) {
            Ok((index, _)) => indexes.push((name, index)),
            Err(error) if gone(&error) => return Ok(Some(format!("interface {name}"))),
            Err(error) => return Err((format!("interface {name}"), error)),
        }
    }
    if !said.addresses.is_empty() {
        let there = addresses(socket)?;
        for (name, address) in &said.addresses {
            let index = indexes.iter().find(|(other, _)| *other == name).map(|(_, index)| *index);
            if !there.iter().any(|(on, other)| Some(*on) == index && other == address) {
                return Ok(Some(format!("address {address} of interface {name}")));
            }
        }
    }
    for &six in &said.defaults {
        if !has_default(socket, six)? {
            let (family, any) = if six {
                ("IPv6", IpAddr::V6(Ipv6Addr::UNSPECIFIED))
            } else {
                ("IPv4", IpAddr::V4(Ipv4Addr::UNSPECIFIED))
            };
            return Ok(Some(format!("{family} route {any}/0")));
        }
    }
    Ok(None)
}

fn gone(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ENODEV)
}

fn addresses(socket: &Socket) -> Result<Vec<(u32, IpAddr)>, Failed> {
    let answers = ask(socket, RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_DUMP)
        .map_err(|e| ("addresses cannot be read".to_owned(), e))?;
    let mut all = Vec::new();
    for answer in answers {
        let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
        // Of a point-to-point interface, Address is the peer's and Local the own.
        all.extend(message.attributes.iter().filter_map(|attribute| match attribute {
            AddressAttribute::Address(address) | AddressAttribute::Local(address) => {
                Some((message.header.index, *address))
            }
            _ => None,
        }));
    }
    Ok(all)
}

fn has_default(socket: &Socket, six: bool) -> Result<bool, Failed> {
    let mut request = RouteMessage::default();
    request.header.address_family = if six { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let answers = ask(socket, RouteNetlinkMessage::GetRoute(request), NLM_F_DUMP)
        .map_err(|e| ("routes cannot be read".to_owned(), e))?;
    Ok(answers.iter().any(|answer| match answer {
        RouteNetlinkMessage::NewRoute(route) => {
            route.header.kind == RouteType::Unicast
                && route.header.table == RouteHeader::RT_TABLE_MAIN
                && route.header.destination_prefix_length == 0
                && route
                    .attributes
                    .iter()
                    .any(|a| matches!(a, RouteAttribute::Oif(_) | RouteAttribute::MultiPath(_)))
        }
        _ => false,
    }))
}
