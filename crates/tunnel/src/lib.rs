//! WireGuard in user space, as fast as the cipher allows: a stand-in for `wireguard-go`.
//!
//! ```text
//!            read, up to 64 KB            seal             sendmmsg
//!  TUN ──► several packets in one ──► cut in place ──► one datagram train ──► UDP     outbound
//!
//!            writev                       open             recvmmsg
//!  TUN ◄── several packets in one ◄── join as pieces ◄── one datagram train ◄── UDP   inbound
//! ```
//!
//! One thread for both, run to completion: no channel, no allocation and no reordering on the way. The Noise protocol
//! (handshakes, timers, cookies, replay window) is `boringtun`'s behind a trait; all else is here. Control is the
//! cross-platform socket protocol that `wg` speaks, so `wg` and `wg-quick` work unchanged.

mod background;
mod device;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod inbound;
mod key;
mod limit;
mod link;
mod log;
mod metrics;
mod net;
mod noise;
mod options;
mod outbound;
#[doc(hidden)]
pub mod packet;
mod peer;
mod prefix;
pub mod secret;
mod service;
mod steering;
mod sys;
mod tun;
mod uapi;
mod waiting;
mod worker;

pub use error::Error;
pub use options::{Failure, Options};

/// Runs a tunnel until its device or its control socket is removed, or the process is asked to end (SIGTERM, SIGINT).
///
/// It logs to standard error, as much as `LOG_LEVEL` says, unless the caller has installed a log already.
///
/// Without [`Options::foreground`] the tunnel goes on in a process of its own, and this returns when its socket answers.
///
/// # Errors
///
/// The device or the socket cannot be made; see [`Error`].
pub fn run(options: &Options) -> Result<(), Error> {
    options.check()?;
    log::init();
    let child = background::is_child();
    if !options.foreground && !child {
        return background::start();
    }
    match service::Service::start(options) {
        Ok(service) => {
            // Until then whoever waits may end it with the process that it came from.
            if child {
                background::detach();
                background::report(Ok(()));
            }
            service.run()
        }
        Err(error) => {
            if child {
                background::report(Err(&error));
            }
            Err(error)
        }
    }
}
