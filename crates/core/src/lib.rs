//! The pure core of Corax: from Gateway objects to kernel changes.
//!
//! ```text
//! Gateways ─► View ─► Topology ─► Desired ─┐
//!                        Facts ───┘        ├─► plan ─► [Change]
//!                               Observed ──┘
//! ```
//!
//! Everything here is a function of its arguments: no runtime, no sockets, no clock, no errno. The shells around it
//! live in the `corax` binary.
#![forbid(unsafe_code)]

pub mod api;
pub mod change;
pub mod desired;
pub mod facts;
pub mod fake;
pub mod kept;
pub mod key;
pub mod mac;
pub mod name;
pub mod nat;
pub mod nft;
pub mod object;
pub mod observed;
pub mod plan;
pub mod prefix;
pub mod problem;
pub mod raven;
#[cfg(any(test, feature = "sample"))]
pub mod sample;
pub mod sorted;
pub mod topology;
pub mod view;
pub mod vtep;
