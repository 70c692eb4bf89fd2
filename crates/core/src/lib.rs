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

//Xpub mod api;
pub mod change;
//Xpub mod desired;
pub mod facts;
//Xpub mod fake;
pub mod key;
pub mod mac;
pub mod name;
//Xpub mod nat;
pub mod nft;
pub mod object;
pub mod observed;
//Xpub mod plan;
pub mod prefix;
pub mod problem;
pub mod sorted;
//Xpub mod topology;
//Xpub mod view;
//Xpub mod vtep;
