//! WireGuard devices and their peers: of the kernel, over generic netlink, and of a `corax tunnel` process, over its
//! UAPI socket. One trait, blocking, for the thread that reconciles.
//!
//! A driver sets what it is told to and nothing else: a peer that is not named keeps its session and its endpoint.

pub(crate) mod kernel;
pub(crate) mod key;
mod memory;
pub(crate) mod process;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod userspace;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use corax_core::change::{PeerUpdate, TunnelUpdate};
use corax_core::key::PublicKey;
use corax_core::object::Device;
use corax_core::observed::ObservedTunnel;

use key::PrivateKey;

/// The device that carries the tunnels of the active gateway.
pub(crate) const DEFAULT_DEVICE: Device = Device::WireGuard(0);

/// How long one request may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(2);

/// Reads and sets WireGuard devices.
pub(crate) trait Driver: Send {
    /// The device as it stands, with all its peers. None: there is no such device, or nobody answers its socket.
    ///
    /// # Errors
    ///
    /// When it is there and cannot be read in time; then nothing is known of it.
    fn read(&mut self, device: Device) -> Result<Option<ObservedTunnel>, Error>;

    /// Sets what the update names of the device itself.
    ///
    /// # Errors
    ///
    /// When the device is missing or refuses; see [`Error`].
    fn set_tunnel(&mut self, device: Device, update: &TunnelUpdate) -> Result<(), Error>;

    /// Makes a peer, or sets what the update names of one that exists. One that is said to exist and does not is not
    /// made: the next reading shows that it is missing.
    ///
    /// # Errors
    ///
    /// When the device is missing or refuses; see [`Error`].
    fn set_peer(&mut self, device: Device, key: PublicKey, update: &PeerUpdate) -> Result<(), Error>;

    /// Removes a peer; one that is not there is removed already.
    ///
    /// # Errors
    ///
    /// When the device is missing or refuses; see [`Error`].
    fn delete_peer(&mut self, device: Device, key: PublicKey) -> Result<(), Error>;
}

/// Why a WireGuard device cannot be read or set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The kernel has no WireGuard.
    #[error("the kernel has no WireGuard: load the module `wireguard`, or run with --wireguard userspace")]
    Unsupported,
    /// There is no such device.
    #[error("cannot {verb} {device}: there is no such WireGuard device")]
    Missing {
        /// What was to be done.
        verb: &'static str,
        /// Where.
        device: Device,
    },
    /// Nobody listens to the device's socket.
    #[error("cannot {verb} {device}: nobody answers {}; start `corax tunnel {device}`", path.display())]
    Silent {
        /// What was to be done.
        verb: &'static str,
        /// Where.
        device: Device,
        /// The socket.
        path: PathBuf,
    },
    /// The device, or whoever speaks for it, refused or broke off.
    #[error("cannot {verb} {device}: {source}{detail}")]
    Refused {
        /// What was to be done.
        verb: &'static str,
        /// Where.
        device: Device,
        /// The reason, as the other side gave it.
        source: io::Error,
        /// What the kernel adds to it; empty, or it begins with a colon.
        detail: String,
    },
    /// No answer in time.
    #[error("cannot {verb} {device}: no answer within {} ms", DEADLINE.as_millis())]
    Deadline {
        /// What was to be done.
        verb: &'static str,
        /// Where.
        device: Device,
    },
    /// The answer makes no sense.
    #[error("cannot {verb} {device}: malformed answer: {what}")]
    Malformed {
        /// What was to be done.
        verb: &'static str,
        /// Where.
        device: Device,
        /// What is wrong with it.
        what: String,
    },
    /// The key to be set is not the one that this process holds.
    #[error("cannot set the key of {device} to {wanted}: this node's key is {held}")]
    ForeignKey {
        /// Where.
        device: Device,
        /// The public key that was asked for.
        wanted: PublicKey,
        /// The public key of the private one at hand.
        held: PublicKey,
    },
    /// A request could not be made at all.
    #[error("cannot open a socket to the kernel's WireGuard: {0}")]
    Socket(#[source] io::Error),
    /// `corax tunnel` could not be started, or ended before its socket answered.
    #[error("cannot start `corax tunnel {device}`: {what}")]
    Spawn {
        /// The device it was for.
        device: Device,
        /// The reason, with the last line that it printed.
        what: String,
    },
}

impl Error {
    /// Whether there is no device, or nobody who speaks for it.
    pub(crate) const fn is_absence(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::Silent { .. })
    }

    /// Whether the port that the device was to listen on is somebody else's.
    pub(crate) fn is_port_taken(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if source.kind() == io::ErrorKind::AddrInUse)
    }
}

/// Whether the kernel has WireGuard. Asking for its message family loads the module where there is one; no device is
/// made.
///
/// # Errors
///
/// When the kernel cannot be asked.
pub(crate) fn probe() -> Result<bool, Error> {
    kernel::probe()
}

/// The private key of a device that runs, of the kernel or of a tunnel process: what a node without a key file goes
/// on with. None where there is no device, no key in it, or no answer.
pub(crate) fn running_key(device: Device) -> Option<PrivateKey> {
    let kernel = kernel::private_key(device).unwrap_or_else(|error| {
        tracing::debug!(%device, %error, "no key read from the kernel");
        None
    });
    kernel.or_else(|| {
        userspace::private_key(device).unwrap_or_else(|error| {
            tracing::warn!(%device, %error, "the key of the running tunnel cannot be read");
            None
        })
    })
}
