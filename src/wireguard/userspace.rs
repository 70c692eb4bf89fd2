//! WireGuard in user space, over the UAPI socket of its process (`corax tunnel`, `wireguard-go`).
//!
//! Source: the cross-platform userspace interface, <https://www.wireguard.com/xplatform/#configuration-protocol>.

mod request;
mod response;
mod socket;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use corax_core::change::{PeerUpdate, TunnelUpdate};
use corax_core::key::PublicKey;
use corax_core::object::Device;
use corax_core::observed::ObservedTunnel;
use corax_core::plan::STALE;
use nix::errno::Errno;

use super::key::PrivateKey;
use super::memory::{Clocks, Memory};
use super::{Driver, Error};
use response::Response;

#[cfg(test)]
pub(crate) use socket::Listener;

/// Where WireGuard's processes have their sockets; `wg` looks here.
const DIRECTORY: &str = "/var/run/wireguard";

/// Seconds between keepalives that are to be sent but once.
const SPEAK: u16 = 25;

/// Drives tunnel processes by their sockets.
#[derive(Debug)]
pub(crate) struct Userspace {
    key: PrivateKey,
    directory: PathBuf,
    memory: Memory,
    /// Devices whose process does not know how to take a single allowed IP away.
    replace_only: BTreeSet<Device>,
    /// Where peers were heard that have a session: a process that takes the place of one that ended knows none of it.
    heard: BTreeMap<(Device, PublicKey), SocketAddr>,
}

impl Userspace {
    /// A driver that sets this key.
    pub(crate) fn new(key: PrivateKey) -> Self {
        Self {
            key,
            directory: DIRECTORY.into(),
            memory: Memory::default(),
            replace_only: BTreeSet::new(),
            heard: BTreeMap::new(),
        }
    }

    /// The same with another directory of sockets.
    #[cfg(test)]
    fn with_directory(self, directory: &Path) -> Self {
        Self { directory: directory.to_owned(), ..self }
    }

    /// Has a peer that was made anew asked for a handshake where it was last heard, as it knows of no need for one: what it
    /// sends is of a session that is no more.
    fn speak_first(&self, device: Device, key: PublicKey, keepalive: u16) -> Result<(), Error> {
        let Some(endpoint) = self.heard.get(&(device, key)) else { return Ok(()) };
        tracing::debug!(%device, %key, %endpoint, "the peer is spoken to where it was last heard");
        // Keepalives that begin send one at once.
        let keepalives = |endpoint, seconds| PeerUpdate {
            exists: true,
            endpoint,
            keepalive: Some(seconds),
            ..PeerUpdate::default()
        };
        for update in [
            keepalives(Some(*endpoint), 0),
            keepalives(None, keepalive.max(SPEAK)),
            keepalives(None, keepalive),
        ] {
            self.set("set a peer of", device, &request::peer(key, &update, true))?;
        }
        Ok(())
    }

    /// Sends a set request. The outer error is of the exchange, the inner number the process's own refusal.
    fn set(&self, verb: &'static str, device: Device, request: &str) -> Result<(), Error> {
        let path = socket::path(&self.directory, device);
        let answer = socket::exchange(verb, device, &path, request)?;
        let Some(answer) = answer else { return Err(Error::Silent { verb, device, path }) };
        let number = response::errno(&answer).map_err(|what| Error::Malformed { verb, device, what })?;
        refusal(verb, device, number)
    }
}

impl Driver for Userspace {
    fn read(&mut self, device: Device) -> Result<Option<ObservedTunnel>, Error> {
        let Some(Response { reading, .. }) = get(&self.directory, device)? else {
            self.memory.forget_device(device);
            self.replace_only.remove(&device);
            return Ok(None);
        };
        let observed = self.memory.observe(device, reading, Clocks::read());
        for (key, peer) in &observed.peers {
            // One that has had no handshake yet was not heard by this process.
            match (peer.handshake_age, peer.peer.endpoint) {
                (Some(age), Some(endpoint)) if age <= STALE => {
                    self.heard.insert((device, *key), endpoint);
                }
                (Some(_), _) => drop(self.heard.remove(&(device, *key))),
                (None, _) => {}
            }
        }
        Ok(Some(observed))
    }

    fn set_tunnel(&mut self, device: Device, update: &TunnelUpdate) -> Result<(), Error> {
        let held = self.key.public();
        if let Some(wanted) = update.key.filter(|wanted| *wanted != held) {
            return Err(Error::ForeignKey { device, wanted, held });
        }
        self.set("set", device, &request::tunnel(update, &self.key))
    }

    fn set_peer(&mut self, device: Device, key: PublicKey, update: &PeerUpdate) -> Result<(), Error> {
        let verb = "set a peer of";
        let single = !self.replace_only.contains(&device);
        let removes = update.allowed.as_ref().is_some_and(|allowed| !allowed.remove.is_empty());
        match self.set(verb, device, &request::peer(key, update, single)) {
            Err(Error::Refused { source, .. }) if single && removes && is_invalid(&source) => {
                tracing::debug!(%device, "the tunnel cannot take single allowed IPs away: they are replaced");
                self.replace_only.insert(device);
                self.set(verb, device, &request::peer(key, update, false))?;
            }
            result => result?,
        }
        if let Some(endpoint) = update.endpoint {
            self.memory.configure(device, key, endpoint);
        } else if !update.exists {
            self.speak_first(device, key, update.keepalive.unwrap_or_default())?;
        }
        Ok(())
    }

    fn delete_peer(&mut self, device: Device, key: PublicKey) -> Result<(), Error> {
        self.set("remove a peer of", device, &request::remove(key))?;
        self.memory.forget_peer(device, key);
        self.heard.remove(&(device, key));
        Ok(())
    }
}

#[cfg(test)]
/// Whether somebody answers a device's socket, nobody does any more, or there is none.
///
/// # Errors
///
/// When the socket cannot be tried.
pub(crate) fn listener(device: Device) -> Result<Listener, Error> {
    socket::listener(device, &socket::path(Path::new(DIRECTORY), device))
}

/// The private key that a running process has for a device.
///
/// # Errors
///
/// When there is one that cannot be read.
pub(super) fn private_key(device: Device) -> Result<Option<PrivateKey>, Error> {
    Ok(get(Path::new(DIRECTORY), device)?.and_then(|response| response.key))
}

/// Asks for everything. None: nobody answers.
fn get(directory: &Path, device: Device) -> Result<Option<Response>, Error> {
    let verb = "read";
    let path = socket::path(directory, device);
    let Some(answer) = socket::exchange(verb, device, &path, "get=1\n\n")? else { return Ok(None) };
    let response = response::parse(&answer).map_err(|what| Error::Malformed { verb, device, what })?;
    refusal(verb, device, response.errno)?;
    Ok(Some(response))
}

/// The process's own word: an errno, negative in wireguard-go, positive in the text of the protocol.
fn refusal(verb: &'static str, device: Device, number: i32) -> Result<(), Error> {
    if number == 0 {
        return Ok(());
    }
    let source = io::Error::from_raw_os_error(number.saturating_abs());
    Err(Error::Refused { verb, device, source, detail: String::new() })
}

fn is_invalid(error: &io::Error) -> bool {
    error
        .raw_os_error()
        .is_some_and(|number| [Errno::EINVAL, Errno::EPROTO].contains(&Errno::from_raw(number)))
}

#[cfg(test)]
mod tests;
