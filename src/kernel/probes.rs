//! What the node's kernel can do.

use corax_core::problem::Problem;
use nix::errno::Errno;
use nix::sys::utsname::uname;

use super::error::Error;
use super::link;
use super::nexthop;
use super::socket::Socket;
use super::wire::{NLM_F_CREATE, NLM_F_EXCL};

/// The oldest kernel that serves.
const FLOOR: (u32, u32) = (5, 4);

/// What the kernel can do, asked once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Probes {
    /// Major and minor version.
    pub(crate) release: (u32, u32),
    /// VXLAN devices.
    pub(crate) vxlan: bool,
    /// Nexthop objects.
    pub(crate) nexthops: bool,
}

impl Probes {
    /// Asks the kernel; makes nothing.
    pub(super) fn ask(socket: &mut Socket) -> Result<Self, Error> {
        let read = |failure| Error::Read { what: "kernel's features", failure };
        // To be made without the data that it needs: that loads the module, and is refused as invalid where the kind is known,
        // and before that for want of permission.
        let probe = socket.ask(
            link::RTM_NEWLINK,
            NLM_F_CREATE | NLM_F_EXCL,
            &link::header(0, 0, 0),
            |writer| link::put_bare_kind(writer, "vxlan"),
            |_| Some(()),
        );
        let vxlan = match probe {
            Err(failure) if failure.errno == Errno::EPERM => return Err(Error::Capability),
            Err(failure) => failure.errno == Errno::EINVAL,
            Ok(_) => true,
        };
        let dumped =
            socket.dump(nexthop::RTM_GETNEXTHOP, &nexthop::plain_header(), |_| {}, || (), |(), _| {});
        let nexthops = match dumped {
            Err(failure) if matches!(failure.errno, Errno::EOPNOTSUPP | Errno::EINVAL) => false,
            result => result.map(|()| true).map_err(read)?,
        };
        Ok(Self { release: release(), vxlan, nexthops })
    }

    /// Why nothing can be done with this kernel; none where it serves.
    #[must_use]
    pub(super) const fn refusal(&self) -> Option<Error> {
        let ((major, minor), (floor, least)) = (self.release, FLOOR);
        if major < floor || (major == floor && minor < least) {
            Some(Error::TooOld(major, minor))
        } else if !self.nexthops {
            Some(Error::NoNexthops(major, minor))
        } else {
            None
        }
    }

    /// What a person has to know of a kernel that serves.
    #[must_use]
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let (major, minor) = self.release;
        let lacks_vxlan = Problem::new(
            format!("kernel {major}.{minor}"),
            "has no VXLAN, so no member of the domain can be reached",
            "load the module vxlan, or run a kernel with CONFIG_VXLAN",
        );
        if self.vxlan { Vec::new() } else { vec![lacks_vxlan] }
    }
}

/// Major and minor version of the running kernel; zeros where it does not say.
fn release() -> (u32, u32) {
    let name = uname().ok();
    let text = name.as_ref().and_then(|name| name.release().to_str()).unwrap_or_default();
    let mut numbers = text.split(|letter: char| !letter.is_ascii_digit()).map(str::parse);
    let mut next = || numbers.next().and_then(Result::ok).unwrap_or_default();
    (next(), next())
}
