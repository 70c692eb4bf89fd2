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

    /// Whether the kernel is below the floor.
    #[must_use]
    pub(crate) fn is_too_old(&self) -> bool {
        self.release < FLOOR || !self.nexthops
    }

    /// What a person has to know of it.
    #[must_use]
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let (major, minor) = self.release;
        if self.release < FLOOR {
            problems.push(Problem::new(
                format!("kernel {major}.{minor}"),
                "is too old: nexthop objects and nat in inet tables are missing",
                "run Linux 5.4 or later",
            ));
        } else if !self.nexthops {
            problems.push(Problem::new(
                format!("kernel {major}.{minor}"),
                "has no nexthop objects, so no member can be reached",
                "run Linux 5.4 or later with CONFIG_INET",
            ));
        }
        if !self.vxlan {
            problems.push(Problem::new(
                format!("kernel {major}.{minor}"),
                "has no VXLAN, so no member of the domain can be reached",
                "load the module vxlan, or run a kernel with CONFIG_VXLAN",
            ));
        }
        problems
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_and_one_without_vxlan_are_named_with_the_remedy() {
        let good = Probes { release: (5, 4), vxlan: true, nexthops: true };
        assert_eq!(good.problems(), []);
        assert!(!good.is_too_old());
        for bad in [Probes { release: (4, 19), ..good }, Probes { nexthops: false, ..good }] {
            assert!(bad.is_too_old());
            assert!(bad.problems().iter().all(|problem| problem.remedy.contains("5.4")));
            assert_eq!(bad.problems().len(), 1);
        }
        let [problem] = &Probes { vxlan: false, ..good }.problems()[..] else { panic!("one problem") };
        assert!(problem.remedy.contains("vxlan"));
    }
}
