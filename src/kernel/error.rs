//! What the kernel refuses, in words. Errno ends here.

use std::fmt;

use corax_core::change::Change;
use corax_core::object::LinkKind;
use corax_core::problem::Problem;
use nix::errno::Errno;

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
    #[error(
        "linux {0}.{1} is too old: it has no nexthop objects, or no nat in tables of inet; run Linux 5.4 or later"
    )]
    TooOld(u32, u32),
    /// Of a version that has them, but built without.
    #[error("linux {0}.{1} has no nexthop objects: run a kernel with CONFIG_INET")]
    NoNexthops(u32, u32),
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

/// Whether a change that was not taken may be the victim of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lack {
    /// Something that it refers to is not there, or is down.
    Absent,
    /// It is the overlay, and there is no table that says who may speak to it.
    Table,
    /// Nothing: it is refused for what it is.
    Nothing,
}

/// A change that the kernel did not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{change}: {meaning}{}{}", joined(": ", .text), joined("; ", .remedy))]
pub(crate) struct ApplyError {
    /// What it lacks.
    pub(crate) lack: Lack,
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
        let (lack, meaning) = (Lack::Nothing, meaning.into());
        Self { lack, change: line(change), meaning, text: None, remedy: None }
    }

    /// An error of a change that refers to what is not there.
    #[must_use]
    pub(crate) fn absent(change: &Change, meaning: impl Into<String>) -> Self {
        Self { lack: Lack::Absent, ..Self::new(change, meaning) }
    }

    /// An error of what would let the overlay up without a table.
    #[must_use]
    pub(crate) fn unguarded(change: &Change) -> Self {
        let meaning = "without the table that says who may speak to it, the overlay stays down";
        Self { lack: Lack::Table, ..Self::new(change, meaning) }
    }

    /// What it means to who runs the node.
    pub(crate) fn problem(&self) -> Problem {
        let Self { change, meaning, text, remedy, .. } = self;
        let remedy = remedy.as_deref().unwrap_or("see what stands in its way; it is tried again");
        Problem::new(change, format!("{meaning}{}", joined(": ", text)), remedy)
    }

    pub(super) fn of(change: &Change, failure: &Failure) -> Self {
        Self {
            lack: if is_absence(change, failure.errno) { Lack::Absent } else { Lack::Nothing },
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

/// Whether the kernel says of a change that something it refers to is not there. Of a nexthop object, a source, or a
/// nexthop's device that is missing, it only says that the message is invalid.
fn is_absence(change: &Change, errno: Errno) -> bool {
    match errno {
        Errno::ENODEV | Errno::ENXIO | Errno::ENETDOWN | Errno::ENETUNREACH => true,
        Errno::EINVAL => matches!(change, Change::PutRoute(..) | Change::PutNexthop(..)),
        // The file of a device's setting, and the set of an element.
        Errno::ENOENT => matches!(change, Change::PutSysctl(..) | Change::ChangeElements { .. }),
        _ => false,
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
