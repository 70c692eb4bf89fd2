//! One blocking generic netlink socket: a request, its answers, a deadline.

use std::fmt::Debug;
use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use netlink_packet_core::{
    Emitable, ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NlasIterator, ParseableParametrized,
};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use zeroize::{Zeroize, Zeroizing};

use crate::wireguard::DEADLINE;

/// The kernel fills at most 32 KiB at a time.
const BUFFER: usize = 1 << 16;

/// How often a dump is repeated that changed while it was read.
const REPEATS: u32 = 8;

/// `NLMSGERR_ATTR_MSG`: the kernel's reason, in words (`linux/netlink.h`).
const REASON: u16 = 1;

/// Length of the header that the kernel repeats before its reason.
const HEADER: usize = 16;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One answer.
    Get,
    /// Answers until `NLMSG_DONE`.
    Dump,
    /// An acknowledgement.
    Set,
}

/// Why a request came to nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// No answer in time.
    Late,
    /// The kernel's refusal, with its reason in words after a colon.
    Refused(io::Error, String),
    /// An answer that makes no sense.
    Malformed(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Late,
            _ => Self::Refused(error, String::new()),
        }
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Late => io::ErrorKind::TimedOut.into(),
            Failure::Refused(error, _) => error,
            Failure::Malformed(what) => Self::new(io::ErrorKind::InvalidData, what),
        }
    }
}

/// The socket.
#[derive(Debug)]
pub(super) struct Genl {
    socket: Socket,
    sequence: u32,
}

impl Genl {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Refusals in words, without the request and the keys in it.
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The number of a family, by its name.
    pub(super) fn family(&mut self, name: &str) -> Result<u16, Failure> {
        let nlas = vec![GenlCtrlAttrs::FamilyName(name.to_owned())];
        let request = GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas };
        let answers = self.request(request.family_id(), &request, Kind::Get)?;
        let number = answers.iter().flat_map(|answer| &answer.nlas).find_map(|nla| match nla {
            GenlCtrlAttrs::FamilyId(number) => Some(*number),
            _ => None,
        });
        number.ok_or_else(|| Failure::Malformed(format!("no number of the family {name}")))
    }

    /// Sends a request and gathers its answers. A dump that changed meanwhile is repeated.
    pub(super) fn request<F>(&mut self, family: u16, request: &F, kind: Kind) -> Result<Vec<F>, Failure>
    where
        F: GenlFamily + Emitable + Clone + Debug + ParseableParametrized<[u8], GenlHeader>,
    {
        let end = Instant::now() + DEADLINE;
        for _ in 0..REPEATS {
            self.send(family, request, kind)?;
            if let Some(answers) = self.receive(kind, end)? {
                return Ok(answers);
            }
        }
        Err(Failure::Malformed(format!("it changed during each of {REPEATS} readings")))
    }

    fn send<F>(&mut self, family: u16, request: &F, kind: Kind) -> Result<(), Failure>
    where
        F: GenlFamily + Emitable + Debug,
    {
        let header = GenlHeader { cmd: request.command(), version: request.version() };
        let mut packet = Zeroizing::new(vec![0; HEADER + header.buffer_len() + request.buffer_len()]);
        self.sequence = self.sequence.wrapping_add(1);
        let flags = match kind {
            Kind::Get => NLM_F_REQUEST,
            Kind::Dump => NLM_F_REQUEST | NLM_F_DUMP,
            Kind::Set => NLM_F_REQUEST | NLM_F_ACK,
        };
        let length =
            u32::try_from(packet.len()).map_err(|_| Failure::Malformed("the request is too long".into()))?;
        let mut netlink = NetlinkHeader::default();
        netlink.length = length;
        netlink.message_type = family;
        netlink.flags = flags;
        netlink.sequence_number = self.sequence;
        let (before, body) = packet.split_at_mut(HEADER);
        netlink.emit(before);
        let (before, body) = body.split_at_mut(header.buffer_len());
        header.emit(before);
        request.emit(body);
        self.socket.send(&packet, 0)?;
        Ok(())
    }

    /// The answers to the last request. None: they do not fit together and are to be asked for again.
    fn receive<F>(&mut self, kind: Kind, end: Instant) -> Result<Option<Vec<F>>, Failure>
    where
        F: Debug + ParseableParametrized<[u8], GenlHeader>,
    {
        let mut answers = Vec::new();
        let mut torn = false;
        let mut buffer = Zeroizing::new(Vec::with_capacity(BUFFER));
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Failure::Late);
            }
            self.limit(left)?;
            buffer.zeroize();
            match self.socket.recv(&mut *buffer, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            }
            for message in messages::<F>(&buffer) {
                let message = message?;
                // The rest of an answer that came too late.
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                torn |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(answer) => {
                        answers.push(answer.into_parts().1);
                        if kind == Kind::Get {
                            return Ok(Some(answers));
                        }
                    }
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(Failure::Refused(
                            io::Error::from_raw_os_error(-done.code),
                            String::new(),
                        ));
                    }
                    NetlinkPayload::Done(_) => return Ok((!torn).then_some(answers)),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(Some(answers)),
                    NetlinkPayload::Error(error) => return Err(refused(&error)),
                    _ => {}
                }
            }
        }
    }

    /// Lets a reading wait no longer than this.
    fn limit(&self, left: Duration) -> Result<(), Failure> {
        let micros = i64::try_from(left.as_micros()).unwrap_or(i64::MAX).max(1);
        let result =
            setsockopt(&self.socket.as_fd(), sockopt::ReceiveTimeout, &TimeVal::microseconds(micros));
        result.map_err(|errno: Errno| io::Error::from(errno).into())
    }
}

/// The messages of one packet.
fn messages<F>(mut packet: &[u8]) -> impl Iterator<Item = Result<NetlinkMessage<GenlMessage<F>>, Failure>>
where
    F: Debug + ParseableParametrized<[u8], GenlHeader>,
{
    std::iter::from_fn(move || {
        if packet.is_empty() {
            return None;
        }
        let message = NetlinkMessage::<GenlMessage<F>>::deserialize(packet);
        // Each begins at a multiple of four bytes.
        let length = message.as_ref().map_or(packet.len(), |message| aligned(message.header.length));
        packet = packet.get(length.max(HEADER)..).unwrap_or_default();
        Some(message.map_err(|error| Failure::Malformed(error.to_string())))
    })
}

fn aligned(length: u32) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX).next_multiple_of(mem::size_of::<u32>())
}

/// The kernel's refusal, with its own words where it gave any.
fn refused(error: &ErrorMessage) -> Failure {
    let reason = error.header.get(HEADER..).and_then(|attributes| {
        NlasIterator::new(attributes).filter_map(Result::ok).find(|nla| nla.kind() == REASON).map(|nla| {
            let text = nla.value().split(|byte| *byte == 0).next().unwrap_or_default();
            format!(": {}", String::from_utf8_lossy(text))
        })
    });
    Failure::Refused(error.to_io(), reason.unwrap_or_default())
}
