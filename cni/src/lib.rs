//! The CNI plugin `corax-cni`, and with the feature `cli` the commands that install it and look after pins.
//!
//! | module | idea |
//! | --- | --- |
//! | [`plugin`] | one call: environment and configuration in, result or error out |
//! | `plugin::ipam` | the verbs as IPAM, under a main plugin |
//! | `plugin::chain` | the verbs in a chain, after one |
//! | `plugin::netns` | a pod's network namespace, by netlink |
//! | `plugin::present` | whether it still has what a result says |
//! | `plugin::route_mtu` | the MTU of a pod's routes |
//! | [`config`] | the network configuration |
//! | `cli` | `corax cni` and `corax pins` |
//!
//! There is no runtime and no client of anything in the plugin: it reads two files, writes one or two, and ends.
#![forbid(unsafe_code)]

#[cfg(feature = "cli")]
pub mod cli;
pub mod config;
pub mod plugin;

#[cfg(feature = "cli")]
pub use cli::{CniCommand, PinsCommand};

/// Where the agent leaves the overlay's MTU in bytes, below the run directory: the routes of pods get it.
pub const MTU: &str = "mtu";

/// Where `corax cni install` keeps the originals of the configurations that it edited, below the state directory.
pub const ORIGINALS: &str = "cni";

pub use corax_pins::store::{RUN, makes};

/// This boot's identity (random(4)), by which holds are told from those of another.
fn boot() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    if boot.trim().is_empty() { "unknown".to_owned() } else { boot }
}

/// What the plugin is called in configurations.
pub const TYPE: &str = "corax-cni";
