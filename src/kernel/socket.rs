//! A blocking netlink socket: dumps, acknowledged batches, events. Every request has a deadline.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_sys::SocketAddr;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::error::{Error, Failure};
use super::wire::{
    Attributes, Fields, Message, Messages, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLMSG_DONE,
    NLMSG_ERROR, NLMSG_OVERRUN, Writer,
};

/// How long the kernel may take for one answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// How often a dump that was torn by a change is begun anew.
const ATTEMPTS: usize = 32;

/// Room for one datagram: a dump's are 32 KiB at most.
const DATAGRAM: usize = 64 * 1024;

/// Room in the kernel for what was not read yet.
const QUEUE: usize = 8 * 1024 * 1024;

const NLMSGERR_ATTR_MSG: u16 = 1;
const MSG_DONTWAIT: i32 = nix::libc::MSG_DONTWAIT;
const MSG_TRUNC: i32 = nix::libc::MSG_TRUNC;

pub(super) struct Socket {
    socket: netlink_sys::Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

/// What came without waiting.
pub(super) enum Received<'a> {
    Nothing,
    /// Something was lost.
    Overrun,
    Datagram(&'a [u8]),
}

impl Socket {
    /// A socket for requests. A strict one filters dumps in the kernel, and breaks `route get`.
    pub(super) fn open(protocol: u16, strict: bool) -> Result<Self, Error> {
        let socket = Self::bound(protocol, QUEUE)?;
        socket.socket.set_ext_ack(true)?;
        socket.socket.set_cap_ack(true)?;
        if strict {
            socket.socket.set_netlink_get_strict_chk(true)?;
        }
        setsockopt(&socket.socket, sockopt::SndBufForce, &QUEUE).map_err(std::io::Error::from)?;
        let deadline = TimeVal::milliseconds(i64::try_from(DEADLINE.as_millis()).unwrap_or(i64::MAX));
        setsockopt(&socket.socket, sockopt::ReceiveTimeout, &deadline).map_err(std::io::Error::from)?;
        Ok(socket)
    }

    /// A socket for events, with room for `queue` bytes of them.
    pub(super) fn listen(protocol: u16, groups: &[u32], queue: usize) -> Result<Self, Error> {
        let socket = Self::bound(protocol, queue)?;
        for group in groups {
            socket.socket.add_membership(*group)?;
        }
        socket.socket.set_non_blocking(true)?;
        Ok(socket)
    }

    /// Stops listening to groups, and forgets what came of them.
    pub(super) fn leave(&mut self, groups: &[u32]) -> Result<(), Failure> {
        for group in groups {
            self.socket.drop_membership(*group)?;
        }
        while !matches!(self.receive_now()?, Received::Nothing) {}
        Ok(())
    }

    pub(super) fn join(&self, groups: &[u32]) -> Result<(), Failure> {
        for group in groups {
            self.socket.add_membership(*group)?;
        }
        Ok(())
    }

    /// The queue that events get where nothing else is said, in bytes.
    pub(super) const QUEUE: usize = QUEUE;

    fn bound(protocol: u16, queue: usize) -> Result<Self, Error> {
        let mut socket = netlink_sys::Socket::new(isize::try_from(protocol).expect("a small number"))?;
        socket.bind(&SocketAddr::new(0, 0))?;
        match setsockopt(&socket, sockopt::RcvBufForce, &queue) {
            Ok(()) => {}
            Err(Errno::EPERM) => return Err(Error::Capability),
            Err(errno) => return Err(Error::Socket(errno.into())),
        }
        Ok(Self { socket, buffer: Vec::with_capacity(DATAGRAM), sequence: 0 })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The port by which the kernel knows this socket.
    pub(super) fn port(&self) -> Result<u32, Error> {
        let mut address = SocketAddr::new(0, 0);
        self.socket.get_address(&mut address)?;
        Ok(address.port_number())
    }

    /// The next request's number, never zero: the kernel's own messages have that.
    pub(super) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.checked_add(1).unwrap_or(1);
        self.sequence
    }

    pub(super) fn send(&self, writer: &Writer) -> Result<(), Failure> {
        self.socket.send(writer.bytes(), 0)?;
        Ok(())
    }

    /// Waits for the next datagram.
    pub(super) fn receive(&mut self) -> Result<&[u8], Failure> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => return Ok(&self.buffer),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes the next datagram if there is one.
    pub(super) fn receive_now(&mut self) -> Result<Received<'_>, Failure> {
        self.buffer.clear();
        match self.socket.recv(&mut self.buffer, MSG_DONTWAIT | MSG_TRUNC) {
            Ok(length) if length > DATAGRAM => Ok(Received::Overrun),
            Ok(_) => Ok(Received::Datagram(&self.buffer)),
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EAGAIN) => Ok(Received::Nothing),
                Some(Errno::EINTR) => Ok(Received::Datagram(&[])),
                Some(Errno::ENOBUFS) => Ok(Received::Overrun),
                _ => Err(error.into()),
            },
        }
    }

    /// Dumps a class of objects into what `new` makes; begun anew when it was torn by a change.
    pub(super) fn dump<T>(
        &mut self,
        kind: u16,
        header: &[u8],
        attributes: impl Fn(&mut Writer),
        new: impl Fn() -> T,
        mut each: impl FnMut(&mut T, &Message<'_>),
    ) -> Result<T, Failure> {
        for _ in 0..ATTEMPTS {
            let sequence = self.next_sequence();
            let mut writer = Writer::default();
            writer.message(kind, NLM_F_DUMP, sequence, header, &attributes);
            self.send(&writer)?;
            let mut into = new();
            if self.read_dump(sequence, |message| each(&mut into, message))? {
                return Ok(into);
            }
        }
        Err(Errno::EINTR.into())
    }

    /// Reads a dump to its end; false when it was torn.
    fn read_dump(&mut self, sequence: u32, mut each: impl FnMut(&Message<'_>)) -> Result<bool, Failure> {
        let mut whole = true;
        loop {
            for message in Messages(self.receive()?).filter(|message| message.sequence == sequence) {
                whole &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        return match failure(&message) {
                            Some(failure) if failure.errno == Errno::EINTR => Ok(false),
                            Some(failure) => Err(failure),
                            None => Ok(whole),
                        };
                    }
                    NLMSG_OVERRUN => whole = false,
                    _ => each(&message),
                }
            }
        }
    }

    /// Sends one request and gives its one answer to `each`.
    pub(super) fn get<T>(
        &mut self,
        kind: u16,
        header: &[u8],
        attributes: impl FnOnce(&mut Writer),
        each: impl FnOnce(&Message<'_>) -> Option<T>,
    ) -> Result<Option<T>, Failure> {
        self.ask(kind, 0, header, attributes, each)
    }

    /// The same with flags of the request.
    pub(super) fn ask<T>(
        &mut self,
        kind: u16,
        flags: u16,
        header: &[u8],
        attributes: impl FnOnce(&mut Writer),
        each: impl FnOnce(&Message<'_>) -> Option<T>,
    ) -> Result<Option<T>, Failure> {
        let sequence = self.next_sequence();
        let mut writer = Writer::default();
        writer.message(kind, flags, sequence, header, attributes);
        self.send(&writer)?;
        loop {
            let answer = Messages(self.receive()?).find(|message| message.sequence == sequence);
            let Some(message) = answer else { continue };
            return match message.kind {
                NLMSG_ERROR => failure(&message).map_or(Ok(None), Err),
                _ => Ok(each(&message)),
            };
        }
    }
}

/// The error of an NLMSG_ERROR or NLMSG_DONE; none where it is an acknowledgement.
pub(super) fn failure(message: &Message<'_>) -> Option<Failure> {
    let mut fields = message.fields();
    let code = fields.array().map(i32::from_ne_bytes)?;
    if code == 0 {
        return None;
    }
    Some(Failure { errno: Errno::from_raw(code.saturating_neg()), text: extended_text(message, fields) })
}

/// The extended acknowledgement's text. An error carries the request's header before it, and the request itself where
/// it is not capped.
fn extended_text(message: &Message<'_>, mut fields: Fields<'_>) -> Option<Box<str>> {
    if message.kind == NLMSG_ERROR {
        let length = usize::try_from(fields.u32()?).ok()?;
        fields.array::<12>()?;
        if message.flags & NLM_F_CAPPED == 0 {
            fields = Fields(fields.0.get(length.checked_sub(16)?.next_multiple_of(4)..)?);
        }
    }
    let text = Attributes(fields.0).find(|attribute| attribute.kind == NLMSGERR_ATTR_MSG)?.text()?;
    (!text.is_empty()).then(|| text.into())
}
