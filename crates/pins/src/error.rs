//! What can go wrong, in words a user can act on.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::names::{ContainerId, Network, PinId, PodName};

/// Why something could not be done to pins or holds.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the message is the documentation
pub enum Error {
    #[error("{path} is locked for more than {} ms: its holder is stuck or stopped", after.as_millis())]
    Locked { path: PathBuf, after: Duration },
    #[error("{path} was removed meanwhile: others may have been at work")]
    LostLock { path: PathBuf },
    #[error("{address} is still held by container {container}{}", of_pod(pod.as_ref()))]
    Held { address: IpAddr, container: ContainerId, pod: Option<PodName> },
    #[error("{address} is in use by container {container} according to host-local's files")]
    HeldByHostLocal { address: IpAddr, container: String },
    #[error(
        "network {network} is handed over to another IPAM plugin, by `corax cni uninstall`; `corax cni install` takes it back"
    )]
    Retired { network: Network },
    #[error("no address is left in {set}: every one is held, or pinned to a pod of this node")]
    Exhausted { set: String },
    #[error("requested address {address} is in none of the ranges, or reserved")]
    NotInRanges { address: IpAddr },
    #[error("requested addresses {0} and {1} are of one range set: a pod gets one of each")]
    SameSet(IpAddr, IpAddr),
    #[error("requested address {address} is pinned to pod {pod} of this node")]
    Pinned { address: IpAddr, pod: PodName },
    #[error("the pin cannot be made durable: {path}: {cause}; free the disk or make it writable")]
    NotDurable { path: PathBuf, cause: io::Error },
    #[error("the hold cannot be written: {path}: {cause}; make room in its directory, or make it writable")]
    NotHeld { path: PathBuf, cause: io::Error },
    #[error("{path} cannot be used: {cause}{}", remedy(cause))]
    Io { path: PathBuf, cause: io::Error },
    #[error("container {container} holds nothing on network {network} by interface {interface}")]
    NoHold { network: Network, container: ContainerId, interface: String },
    #[error("container {container} holds {held}, but its result says {said}")]
    Differs { container: ContainerId, held: String, said: String },
    #[error("pod {} has no pin on network {} for {}", .0.pod, .0.network, .0.interface)]
    NoPin(PinId),
    #[error("an excerpt of the log cannot answer this")]
    #[doc(hidden)]
    Incomplete,
}

impl Error {
    /// Whether the same request may succeed later with nothing but time passing (CNI error 11).
    pub fn passes(&self) -> bool {
        matches!(
            self,
            Self::Locked { .. }
                | Self::LostLock { .. }
                | Self::Held { .. }
                | Self::HeldByHostLocal { .. }
                | Self::Retired { .. }
        )
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |cause| Self::Io { path, cause }
    }
}

/// What helps, where that is known.
fn remedy(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::ReadOnlyFilesystem => "; make it writable",
        io::ErrorKind::PermissionDenied => "; run as root",
        io::ErrorKind::StorageFull => "; make room there",
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
            "; something else is in its place: move that away"
        }
        _ => "",
    }
}

fn of_pod(pod: Option<&PodName>) -> String {
    pod.map(|pod| format!(" of pod {pod}")).unwrap_or_default()
}
