//! The MTU of a pod's routes: what leaves by a gateway may have to go through the overlay; the device and what is on link
//! keep theirs.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;

/// Why a pod's routes could not be read or set.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the message is the documentation
pub(super) enum RouteError {
    #[error("netns {path} cannot be entered: {source}")]
    Netns { path: String, source: io::Error },
    #[error("{what} in netns {path}: {source}")]
    Netlink { what: String, path: String, source: io::Error },
}

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

type Failed = (String, io::Error);

/// A socket belongs to the namespace it was opened in: a thread of its own enters it and ends.
fn inside<T: Send>(
    path: &str,
    work: impl FnOnce(&Socket) -> Result<T, Failed> + Send,
) -> Result<T, RouteError> {
    let entered = || {
        let file = File::open(path)?;
        setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?;
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // SO_RCVTIMEO: the kernel answers at once or something is wrong.
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(5, 0))?;
        Ok(socket)
    };
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let socket = entered().map_err(|source| RouteError::Netns { path: path.to_owned(), source })?;
            work(&socket).map_err(|(what, source)| RouteError::Netlink {
                what,
                path: path.to_owned(),
                source,
            })
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
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
    route.header.flags = netlink_packet_route::route::RouteFlags::empty();
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

fn link(socket: &Socket, name: &str) -> io::Result<(u32, u32)> {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::IfName(name.to_owned()));
    let answers = ask(socket, RouteNetlinkMessage::GetLink(request), 0)?;
    let found = answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some((link.header.index, *mtu)),
            _ => None,
        }),
        _ => None,
    });
    found.ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn replace(socket: &Socket, route: RouteMessage) -> io::Result<()> {
    ask(socket, RouteNetlinkMessage::NewRoute(route), NLM_F_ACK | NLM_F_REPLACE).map(drop)
}

/// One request and all that is answered to it.
fn ask(socket: &Socket, request: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(request));
    message.header.flags = NLM_F_REQUEST | flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut answers = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let answer =
                NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            let length = usize::try_from(answer.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
            match answer.payload {
                NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::Done(_) => return Ok(answers),
                _ => {}
            }
        }
        if flags & (NLM_F_DUMP | NLM_F_ACK) == 0 {
            return Ok(answers);
        }
    }
}
