//! The TUN device: packets with a virtio header, several of one flow at a time where the kernel can.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::c_uint;

use crate::error::Error;
use crate::packet::coalesce::Abilities;
use crate::packet::vnet;
use crate::sys;

/// What the device may use; each is off where the kernel lacks it or a switch says so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// A virtio header before each packet.
    pub(crate) vnet: bool,
    /// Packets of TCP uncut.
    pub(crate) tso: bool,
    /// Datagrams of UDP uncut.
    pub(crate) uso: bool,
    /// Joined packets that are answered with EINVAL, for tests of the fallbacks.
    pub(crate) refused: Abilities,
}

/// Nothing joined.
const NONE: Abilities = Abilities { tcp: false, udp: false };

/// One queue of the device.
#[derive(Debug)]
pub(crate) struct Tun {
    file: File,
    /// A virtio header stands before each packet.
    pub(crate) vnet: bool,
    pub(crate) tso: bool,
    pub(crate) uso: bool,
    refused: Abilities,
}

impl Tun {
    /// Opens a queue of device `name`, which is made if it is not there and goes with the last queue. Returns the name, which
    /// the kernel chooses for a pattern like `wg%d`.
    pub(crate) fn open(name: &str, wanted: Wanted, several: bool) -> Result<(Self, String), Error> {
        let fail = |source| Error::Tun { name: name.to_owned(), source };
        let open = || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open("/dev/net/tun")
                .map_err(fail)
        };
        let queues = if several { libc::IFF_MULTI_QUEUE } else { 0 };
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | queues;
        if wanted.vnet {
            let file = open()?;
            match sys::tun_attach(file.as_fd(), name, flags | libc::IFF_VNET_HDR) {
                Ok(name) => {
                    let (tso, uso) = offload(file.as_fd(), wanted);
                    return Ok((Self { file, vnet: true, tso, uso, refused: wanted.refused }, name));
                }
                // EBUSY and EPERM would only come again.
                Err(error) if error.raw_os_error() != Some(libc::EINVAL) => return Err(fail(error)),
                Err(error) => tracing::debug!(%error, "no virtio header on the TUN device"),
            }
        }
        let file = open()?;
        let name = sys::tun_attach(file.as_fd(), name, flags).map_err(fail)?;
        Ok((Self { file, vnet: false, tso: false, uso: false, refused: NONE }, name))
    }

    /// Reads one frame, behind its virtio header if there is one.
    #[inline]
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// Writes one frame; the first piece is the virtio header if there is one.
    #[inline]
    pub(crate) fn write(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.refused != NONE && self.refuses(pieces) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        (&self.file).write_vectored(pieces)
    }

    fn refuses(&self, pieces: &[IoSlice<'_>]) -> bool {
        let header = pieces.first().and_then(|piece| piece.first_chunk()).and_then(vnet::Header::parse);
        match header.map(|header| header.gso) {
            Some(vnet::Gso::Tcp4 | vnet::Gso::Tcp6) => self.refused.tcp,
            Some(vnet::Gso::Udp) => self.refused.udp,
            _ => false,
        }
    }

    /// Bytes before each packet.
    pub(crate) fn offset(&self) -> usize {
        if self.vnet { vnet::LEN } else { 0 }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Whether the device is still ours; it may be gone, or moved to another network namespace.
    pub(crate) fn exists(&self) -> bool {
        // An empty write is refused with EINVAL by a device that is up, EIO by one that is down, EBADFD by none.
        !matches!((&self.file).write(&[]), Err(error) if error.raw_os_error() == Some(libc::EBADFD))
    }
}

/// Asks for as much as the kernel can do; returns TCP and UDP.
fn offload(tun: BorrowedFd<'_>, wanted: Wanted) -> (bool, bool) {
    const TSO: c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    const USO: c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    let attempts = [(true, true, TSO | USO), (true, false, TSO), (false, false, libc::TUN_F_CSUM)];
    for (tso, uso, flags) in attempts {
        if (tso && !wanted.tso) || (uso && !wanted.uso) {
            continue;
        }
        match sys::tun_set_offload(tun, flags) {
            Ok(()) => return (tso, uso),
            Err(error) => tracing::debug!(%error, tso, uso, "offload refused by the TUN device"),
        }
    }
    (false, false)
}
