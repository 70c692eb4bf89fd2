//! The control protocol of every WireGuard in user space (wireguard.com/xplatform), which `wg` speaks.
//!
//! One operation of our own: `get=metrics` answers with the counters of the data path, `key=value` lines like `get=1`.

pub(crate) mod apply;
pub(crate) mod report;
pub(crate) mod request;
pub(crate) mod server;
