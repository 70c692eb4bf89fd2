//! Where the agent answers, and how it listens there.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::str::FromStr;

use socket2::{Domain, Protocol, Socket, Type};

/// How many connections may wait to be taken.
const BACKLOG: i32 = 128;

/// Where the agent answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AdminAddress {
    /// At one address; the unspecified one is every address of its family.
    At(SocketAddr),
    /// At a port of every address of whatever family the node has, as Go and thus Raven understand `:10265`.
    Everywhere(u16),
}

impl AdminAddress {
    /// Listens there.
    ///
    /// # Errors
    /// Where the address is none of this node's, or taken.
    pub(crate) fn listen(self) -> io::Result<TcpListener> {
        match self {
            Self::At(address) => TcpListener::bind(address),
            Self::Everywhere(port) => listen_everywhere(port, bind),
        }
    }

    /// Where a program of the same node reaches it.
    pub(crate) fn here(self) -> SocketAddr {
        match self {
            Self::At(SocketAddr::V6(at)) if at.ip().is_unspecified() => {
                (Ipv6Addr::LOCALHOST, at.port()).into()
            }
            Self::At(SocketAddr::V4(at)) if at.ip().is_unspecified() => {
                (Ipv4Addr::LOCALHOST, at.port()).into()
            }
            Self::At(address) => address,
            Self::Everywhere(port) => (Ipv4Addr::LOCALHOST, port).into(),
        }
    }
}

impl FromStr for AdminAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = match text.strip_prefix(':') {
            Some(port) => port.parse().ok().map(Self::Everywhere),
            None => text.parse().ok().map(Self::At),
        };
        parsed.ok_or_else(|| {
            format!("{text:?} is no ADDR:PORT, as 127.0.0.1:10265 or :10265 is; names are not looked up")
        })
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(address) => address.fmt(out),
            Self::Everywhere(port) => write!(out, ":{port}"),
        }
    }
}

/// IPv6's every address takes IPv4 as well; a kernel without IPv6 has only IPv4's.
fn listen_everywhere<T>(port: u16, bind: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    match bind((Ipv6Addr::UNSPECIFIED, port).into()) {
        Err(error) if error.kind() != ErrorKind::AddrInUse => bind((Ipv4Addr::UNSPECIFIED, port).into()),
        bound => bound,
    }
}

/// Binds for both families, whatever net.ipv6.bindv6only says.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // As the standard library does: what a former process left in TIME_WAIT is in nobody's way.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use nix::libc;

    use super::*;

    #[test]
    fn an_address_is_what_raven_and_people_write() {
        for (text, here) in [
            ("127.0.0.1:10265", "127.0.0.1:10265"),
            ("0.0.0.0:10265", "127.0.0.1:10265"),
            ("[::]:1", "[::1]:1"),
            ("[fd00::1]:1", "[fd00::1]:1"),
            (":10265", "127.0.0.1:10265"),
        ] {
            let address: AdminAddress = text.parse().unwrap();
            assert_eq!((address.to_string().as_str(), address.here()), (text, here.parse().unwrap()));
        }
        for text in ["", ":", "10265", "::10265", ":65536", "localhost:1"] {
            assert!(text.parse::<AdminAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_kernel_without_ipv6_is_listened_on_by_ipv4() {
        let tried = RefCell::new(Vec::new());
        let without = |number| {
            let tried = &tried;
            move |address: SocketAddr| {
                tried.borrow_mut().push(address.to_string());
                if address.is_ipv6() { Err(io::Error::from_raw_os_error(number)) } else { Ok(address) }
            }
        };
        for number in [libc::EAFNOSUPPORT, libc::EADDRNOTAVAIL] {
            let bound = listen_everywhere(10265, without(number)).unwrap();
            assert_eq!(bound, "0.0.0.0:10265".parse().unwrap());
        }
        assert_eq!(tried.borrow()[..2], ["[::]:10265", "0.0.0.0:10265"]);
        // Half of it would be a surprise.
        let error = listen_everywhere(10265, without(libc::EADDRINUSE)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
    }
}
