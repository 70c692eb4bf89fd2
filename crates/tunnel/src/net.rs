//! The UDP side: one socket for both address families, trains of datagrams out and in.

pub(crate) mod control;
pub(crate) mod endpoint;
pub(crate) mod outbox;

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

use libc::c_int;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Type};

use crate::sys;

/// What the kernel is asked to queue in either direction, bytes.
const BUFFER: usize = 7 << 20;

/// What the socket may use; each is off where the kernel lacks it or a switch says so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// UDP_SEGMENT: a train of equal datagrams in one send.
    pub(crate) segmentation: bool,
    /// UDP_GRO: a train of equal datagrams in one receive.
    pub(crate) grouping: bool,
    /// What the path of the first train answers to every train, for tests of the fallbacks (errno).
    pub(crate) refusal: Option<i32>,
}

/// The socket of a device that is up.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: socket2::Socket,
    /// False where the kernel has no IPv6 at all: then names are `sockaddr_in`.
    pub(crate) dual: bool,
    pub(crate) port: u16,
    /// Whether trains may be sent; a path that takes none is its peers' own affair.
    pub(crate) segmentation: bool,
    refusal: Option<Refusal>,
}

/// A path that takes no trains: see [`Wanted::refusal`].
#[derive(Debug)]
struct Refusal {
    errno: i32,
    path: OnceLock<SocketAddr>,
}

impl Socket {
    /// Binds to `port` of every address, any free port for 0. `shared`: beside others that [share](Self::share) it.
    pub(crate) fn bind(port: u16, fwmark: u32, wanted: Wanted, shared: bool) -> io::Result<Self> {
        let (socket, dual) = match socket2::Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP)) {
            Ok(socket) => (socket, true),
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                (socket2::Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?, false)
            }
            Err(error) => return Err(error),
        };
        if dual {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_port(shared)?;
        let any: SocketAddr = if dual {
            (Ipv6Addr::UNSPECIFIED, port).into()
        } else {
            (std::net::Ipv4Addr::UNSPECIFIED, port).into()
        };
        socket.bind(&any.into())?;
        let port = socket.local_addr()?.as_socket().map_or(port, |address| address.port());

        let refusal = wanted.refusal.map(|errno| Refusal { errno, path: OnceLock::new() });
        let mut this = Self { socket, dual, port, segmentation: wanted.segmentation, refusal };
        this.tune(wanted)?;
        this.set_fwmark(fwmark)?;
        Ok(this)
    }

    /// Lets others bind to its port from now on. Not before it was bound: so it is nobody else's who shares, too.
    pub(crate) fn share(&self) -> io::Result<()> {
        self.socket.set_reuse_port(true)
    }

    fn tune(&mut self, wanted: Wanted) -> io::Result<()> {
        // Above what the sysctl allows with CAP_NET_ADMIN, else as far as it goes.
        if setsockopt(&self.socket, sockopt::RcvBufForce, &BUFFER).is_err() {
            self.socket.set_recv_buffer_size(BUFFER)?;
        }
        if setsockopt(&self.socket, sockopt::SndBufForce, &BUFFER).is_err() {
            self.socket.set_send_buffer_size(BUFFER)?;
        }
        let fd = self.socket.as_fd();
        let set = |level, option, value| sys::set_option(fd, level, option, value);
        // Like the kernel's WireGuard: packets above the path's MTU are fragmented, not lost.
        set(libc::SOL_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)?;
        set(libc::SOL_IP, libc::IP_PKTINFO, 1)?;
        set(libc::SOL_IP, libc::IP_RECVTOS, 1)?;
        if self.dual {
            set(libc::SOL_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT)?;
            set(libc::SOL_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
            set(libc::SOL_IPV6, libc::IPV6_RECVTCLASS, 1)?;
        }
        if wanted.grouping && set(libc::SOL_UDP, libc::UDP_GRO, 1).is_err() {
            tracing::debug!("the kernel groups no datagrams (UDP_GRO): one message each");
        }
        // Zero asks for no segmentation, but only of a kernel that knows the option.
        if wanted.segmentation && set(libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_err() {
            tracing::debug!("the kernel cuts no datagrams (UDP_SEGMENT): one message each");
            self.segmentation = false;
        }
        Ok(())
    }

    /// Marks what the socket sends, so that no route meant for the tunnel's payload catches it.
    pub(crate) fn set_fwmark(&self, fwmark: u32) -> io::Result<()> {
        sys::set_option(self.fd(), libc::SOL_SOCKET, libc::SO_MARK, fwmark as c_int)
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What a train to `address` is answered without asking the kernel, where a test wants that.
    #[inline]
    pub(crate) fn refuses(&self, address: SocketAddr) -> Option<io::Error> {
        let refusal = self.refusal.as_ref()?;
        (*refusal.path.get_or_init(|| address) == address)
            .then(|| io::Error::from_raw_os_error(refusal.errno))
    }
}
