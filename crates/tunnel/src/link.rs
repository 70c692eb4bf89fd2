//! The TUN device as the kernel's route netlink tells of it: up, MTU, gone.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sched::{CloneFlags, setns};

use crate::sys;
use crate::tun::Tun;

/// RTNLGRP_LINK.
const LINK_GROUP: u32 = 1;
const QUEUE: u32 = 1000;

/// News of the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum News {
    /// Administrative state and MTU in bytes.
    State { up: bool, mtu: usize },
    /// Deleted, renumbered or moved to another network namespace.
    Gone,
}

/// A netlink socket that hears of one device.
pub(crate) struct Link {
    socket: Socket,
    index: u32,
    buffer: Vec<u8>,
}

impl Link {
    /// What is to be told of the device of `tun`, wherever it is. Nothing of ours stays in its namespace, which would not go
    /// with its last process then.
    pub(crate) fn look(tun: &Tun) -> io::Result<Vec<News>> {
        let name = sys::tun_name(tun.fd())?;
        let namespace = sys::tun_namespace(tun.fd())?;
        // A thread may be in another namespace than its process.
        let look = thread::Builder::new().spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            Self::watch(&name)?.news()
        })?;
        look.join().map_err(|_| io::ErrorKind::Other)?
    }

    /// Subscribes, then asks for the state of now, which arrives with the news.
    pub(crate) fn watch(name: &str) -> io::Result<Self> {
        let index = nix::net::if_::if_nametoindex(name)?;
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.add_membership(LINK_GROUP)?;
        socket.set_non_blocking(true)?;
        let link = Self { socket, index, buffer: vec![0; 32 << 10] };
        link.ask()?;
        Ok(link)
    }

    /// Asks for the state of now.
    pub(crate) fn ask(&self) -> io::Result<()> {
        self.send(RouteNetlinkMessage::GetLink(self.message()))
    }

    /// Sets the MTU and the length of the queue.
    pub(crate) fn configure(&self, mtu: usize) -> io::Result<()> {
        let mut message = self.message();
        message.attributes = vec![LinkAttribute::Mtu(mtu as u32), LinkAttribute::TxQueueLen(QUEUE)];
        self.send(RouteNetlinkMessage::SetLink(message))
    }

    /// What has come since the last call, the newest last.
    pub(crate) fn news(&mut self) -> io::Result<Vec<News>> {
        let mut news = Vec::new();
        loop {
            let length = match self.socket.recv(&mut &mut self.buffer[..], 0) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(news),
                // Something was lost: ask again.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.ask()?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let mut rest = &self.buffer[..length.min(self.buffer.len())];
            while let Ok(header) = NetlinkBuffer::new_checked(rest) {
                let size = (header.length() as usize).next_multiple_of(4).min(rest.len());
                news.extend(self.read(rest));
                if size == 0 {
                    break;
                }
                rest = &rest[size..];
            }
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn read(&self, bytes: &[u8]) -> Option<News> {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes).ok()?;
        match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link))
                if link.header.index == self.index =>
            {
                let mtu = link.attributes.iter().find_map(|attribute| match attribute {
                    LinkAttribute::Mtu(mtu) => Some(*mtu as usize),
                    _ => None,
                })?;
                Some(News::State { up: link.header.flags.contains(LinkFlags::Up), mtu })
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link))
                if link.header.index == self.index =>
            {
                Some(News::Gone)
            }
            NetlinkPayload::Error(error) => {
                tracing::debug!(%error, "the kernel refused a change of the device");
                None
            }
            _ => None,
        }
    }

    fn message(&self) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = self.index;
        message
    }

    fn send(&self, message: RouteNetlinkMessage) -> io::Result<()> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0).map(drop)
    }
}
