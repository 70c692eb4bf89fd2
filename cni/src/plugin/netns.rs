//! A pod's network namespace, asked by netlink.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
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

pub(super) type Failed = (String, io::Error);

/// Asks a namespace by a socket that belongs to it. The thread stays in it: the plugin does this last, and has no other.
pub(super) fn inside<T>(
    path: &str,
    work: impl FnOnce(&Socket) -> Result<T, Failed>,
) -> Result<T, RouteError> {
    let enter = || {
        let file = File::open(path)?;
        setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?;
        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // SO_RCVTIMEO: the kernel answers at once or something is wrong.
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(5, 0))?;
        Ok(socket)
    };
    let socket = enter().map_err(|source| RouteError::Netns { path: path.to_owned(), source })?;
    work(&socket).map_err(|(what, source)| RouteError::Netlink { what, path: path.to_owned(), source })
}

/// The kernel fills no datagram of a dump beyond this.
const DATAGRAM: usize = 32 << 10;

/// An interface's index and MTU in bytes.
pub(super) fn link(socket: &Socket, name: &str) -> io::Result<(u32, u32)> {
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

/// One request and all that is answered to it.
pub(super) fn ask(
    socket: &Socket,
    request: RouteNetlinkMessage,
    flags: u16,
) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(request));
    message.header.flags = NLM_F_REQUEST | flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut answers = Vec::new();
    let mut datagram = Vec::with_capacity(DATAGRAM);
    loop {
        datagram.clear();
        socket.recv_from(&mut datagram, 0)?;
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
