//! Pins and holds: which address belongs to which pod.
//!
//! A *pin* binds (network, namespace, pod, interface) to one address of each range set and outlives restarts; a *hold*
//! is its use by a live sandbox and dies with the boot. Pins are an append-only log in the state directory
//! (`/var/lib/corax/pins`), holds one in the run directory (`/run/corax/holds`). Whoever changes them holds the lock of
//! the run directory for the length of one [`Transaction`]; readers ([`Snapshot`]) take no lock.
//!
//! | module | idea |
//! | --- | --- |
//! | [`names`] | names that cannot be wrong |
//! | [`range`] | the addresses a network may give out |
//! | `frame`, `record` | a checksum a record; what a record says |
//! | `book`, [`holds`], [`pods`] | what the two logs and the pod list say, replayed |
//! | `choose`, `decide` | the decisions, pure: no clock, no file, no lock |
//! | `contents`, `excerpt` | where in a large log what is; what one call needs of it |
//! | `journal`, `lock`, [`store`] | the shell: files, deadline, transaction |
//! | [`hostlocal`], [`runtime`], [`import`] | host-local's directory, the runtime's cache, joining them |
#![forbid(unsafe_code)]

mod book;
mod choose;
mod contents;
mod decide;
mod error;
mod excerpt;
mod frame;
mod heal;
pub mod holds;
pub mod hostlocal;
pub mod import;
mod journal;
mod lock;
pub mod names;
pub mod pods;
pub mod range;
mod record;
pub mod runtime;
pub mod snapshot;
pub mod store;

pub use decide::{Answer, Request};
pub use error::Error;
pub use holds::{Hold, Netns};
pub use names::{Attachment, ContainerId, Interface, Network, PinId, PodName};
pub use pods::PodList;
pub use range::{Range, RangeError, RangeSet, Ranges};
pub use snapshot::{Pin, PinState, Snapshot};
pub use store::{Store, Transaction};
