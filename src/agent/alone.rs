//! One agent a network namespace: two would undo each other's changes for ever.

use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use anyhow::Context;
use nix::sys::socket::{getsockopt, sockopt};

/// An abstract socket, which belongs to the network namespace and goes with its process.
const NAME: &str = "corax-agent";

fn address() -> anyhow::Result<SocketAddr> {
    SocketAddr::from_abstract_name(NAME).context("no abstract socket")
}

/// Takes the namespace for as long as the listener is held.
///
/// # Errors
/// Where another agent has it, with its process.
pub(crate) fn claim() -> anyhow::Result<UnixListener> {
    match UnixListener::bind_addr(&address()?) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let who = other().map_or_else(String::new, |pid| format!(", process {pid},"));
            anyhow::bail!("another agent{who} runs in this network namespace: stop it first")
        }
        claimed => claimed.context("no abstract socket"),
    }
}

/// The process of the agent in this network namespace, if there is one.
pub(crate) fn other() -> Option<i32> {
    let stream = UnixStream::connect_addr(&address().ok()?).ok()?;
    getsockopt(&stream, sockopt::PeerCredentials).ok().map(|who| who.pid())
}
