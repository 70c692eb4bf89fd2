//! What the kernel refuses, in words. Errno ends here.

use std::fmt;

use corax_core::change::Change;
use corax_core::object::LinkKind;
use corax_core::problem::Problem;
use nix::errno::Errno;

use super::run::UNGUARDED;

/// Why the kernel shell cannot work, or could not read something.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A socket could not be opened.
    #[error("cannot open a netlink socket: {0}")]
    Socket(#[from] std::io::Error),
    /// Without it nothing can be changed.
    #[error("no permission to change the network: run as root, or give the capability CAP_NET_ADMIN")]
    Capability,
    /// The table is made by the program `nft`.
    #[error("no program nft: install the package nftables")]
    NoNft,
    /// Below the floor.
    #[error("linux {0}.{1} is too old: Corax needs 5.4 or later, with nexthop objects")]
    TooOld(u32, u32),
    /// A dump failed or timed out.
    #[error("cannot read the {what}: {failure}")]
    Read {
        /// The class of objects.
        what: &'static str,
        /// Why.
        failure: Failure,
    },
    /// A program failed.
    #[error("{program} {what}: {text}")]
    Program {
        /// Its name.
        program: String,
        /// What it was to do.
        what: &'static str,
        /// What it said.
        text: String,
    },
}

/// What the kernel answered to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(super) errno: Errno,
    /// The kernel's own words (extended acknowledgement).
    pub(super) text: Option<Box<str>>,
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self { errno, text: None }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        // A receive timeout is EAGAIN.
        let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        Self::from(if errno == Errno::EAGAIN { Errno::ETIMEDOUT } else { errno })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(meaning(self.errno))?;
        match &self.text {
            Some(text) => write!(out, ": {text}"),
            None => Ok(()),
        }
    }
}

/// A change that the kernel did not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{change}: {meaning}{}{}", joined(": ", .text), joined("; ", .remedy))]
pub(crate) struct ApplyError {
    /// The line that does the same by hand.
    pub(crate) change: String,
    /// What is wrong.
    pub(crate) meaning: String,
    /// The kernel's or nft's own words.
    pub(crate) text: Option<String>,
    /// What to do about it, where that is known.
    pub(crate) remedy: Option<String>,
}

impl ApplyError {
    /// An error of a change, in words.
    #[must_use]
    pub(crate) fn new(change: &Change, meaning: impl Into<String>) -> Self {
        Self { change: line(change), meaning: meaning.into(), text: None, remedy: None }
    }

    /// What it means to who runs the node.
    pub(crate) fn problem(&self) -> Problem {
        let Self { change, meaning, text, remedy } = self;
        let remedy = remedy.as_deref().unwrap_or("see what stands in its way; it is tried again");
        Problem::new(change, format!("{meaning}{}", joined(": ", text)), remedy)
    }

    /// Whether nothing is wrong with it but that there is no table.
    pub(crate) fn wants_table(&self) -> bool {
        self.meaning == UNGUARDED
    }

    pub(super) fn of(change: &Change, failure: &Failure) -> Self {
        Self {
            change: line(change),
            meaning: meaning(failure.errno).to_owned(),
            text: failure.text.as_deref().map(str::to_owned),
            remedy: remedy(change, failure.errno),
        }
    }
}

fn joined(between: &str, text: &Option<String>) -> String {
    text.as_ref().map(|text| format!("{between}{text}")).unwrap_or_default()
}

/// One line of a change; a whole table is named only.
pub(crate) fn line(change: &Change) -> String {
    match change {
        Change::ReplaceTable(..) => "nft -f - (table inet corax)".to_owned(),
        _ => change.to_string().replace('\n', "; "),
    }
}

fn meaning(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM | Errno::EACCES => "not permitted, CAP_NET_ADMIN is missing",
        Errno::ENOENT | Errno::ESRCH => "what it refers to is not there",
        Errno::ENODEV => "there is no such device",
        Errno::EEXIST => "something else is in its place",
        Errno::EINVAL => "the kernel refuses it as invalid",
        Errno::EOPNOTSUPP => "this kernel cannot do it",
        Errno::EAFNOSUPPORT => "this kernel has no such address family, or the device none",
        Errno::ENETDOWN => "the device is down",
        Errno::ENETUNREACH | Errno::EHOSTUNREACH => "the network is unreachable",
        Errno::EADDRNOTAVAIL => "there is no such address",
        Errno::EADDRINUSE => "the address or port is in use",
        Errno::EBUSY => "the kernel is busy with it",
        Errno::ENOBUFS | Errno::ENOMEM => "the kernel has no memory for it",
        Errno::ETIMEDOUT => "the kernel did not answer in time",
        Errno::EINTR => "it changed while it was read",
        Errno::EMSGSIZE => "too large for one message",
        Errno::ENOSPC | Errno::ENFILE | Errno::EMFILE => "a limit of the kernel is reached",
        _ => errno.desc(),
    }
}

/// How to get past what the kernel says of a change, where more is known than its words.
fn remedy(change: &Change, errno: Errno) -> Option<String> {
    let (Change::AddLink(_, link) | Change::SetLink(_, link)) = change else { return None };
    let LinkKind::Vxlan(vxlan) = &link.kind else { return None };
    match errno {
        Errno::EADDRINUSE => Some(port_taken(vxlan.port)),
        Errno::EEXIST => {
            Some(format!("remove the other device with VNI {}, see `ip -d link show type vxlan`", vxlan.vni))
        }
        _ => None,
    }
}

/// How to find out who has a UDP port.
pub(crate) fn port_taken(port: u16) -> String {
    format!("UDP port {port} is taken, `ss -lunp 'sport = :{port}'` shows by whom")
}
