//! WireGuard of the kernel, over generic netlink.
//!
//! Source: `include/uapi/linux/wireguard.h`.

mod codec;
mod genl;
mod threaded;

use std::io;

use corax_core::change::{PeerUpdate, TunnelUpdate};
use corax_core::key::PublicKey;
use corax_core::object::Device;
use corax_core::observed::ObservedTunnel;
use netlink_packet_wireguard::{WireguardAttribute, WireguardCmd, WireguardMessage};
use nix::errno::Errno;

use super::key::PrivateKey;
use super::memory::{Clocks, Memory};
use super::{Driver, Error};
use codec::Dump;
use genl::{Failure, Genl, Kind};

/// The message family's name.
const FAMILY: &str = "wireguard";

/// Drives WireGuard devices of the network namespace that it was opened in.
#[derive(Debug)]
pub(crate) struct Kernel {
    link: Link,
    key: PrivateKey,
    memory: Memory,
}

impl Kernel {
    /// A driver that sets this key. A kernel without WireGuard shows at the first request.
    ///
    /// # Errors
    ///
    /// When the kernel gives no netlink socket.
    pub(crate) fn open(key: PrivateKey) -> Result<Self, Error> {
        Ok(Self { link: Link::open()?, key, memory: Memory::default() })
    }
}

impl Driver for Kernel {
    fn read(&mut self, device: Device) -> Result<Option<ObservedTunnel>, Error> {
        let Some(dump) = self.link.read(device)? else {
            self.memory.forget_device(device);
            return Ok(None);
        };
        Ok(Some(self.memory.observe(device, dump.reading, Clocks::read())))
    }

    fn set_tunnel(&mut self, device: Device, update: &TunnelUpdate) -> Result<(), Error> {
        let held = self.key.public();
        if let Some(wanted) = update.key.filter(|wanted| *wanted != held) {
            return Err(Error::ForeignKey { device, wanted, held });
        }
        self.link.set("set", device, codec::tunnel(update, &self.key))
    }

    fn set_peer(&mut self, device: Device, key: PublicKey, update: &PeerUpdate) -> Result<(), Error> {
        for peer in codec::peer(key, update) {
            self.link.set("set a peer of", device, vec![WireguardAttribute::Peers(vec![peer])])?;
        }
        if let Some(allowed) = update.allowed.as_ref().filter(|allowed| !allowed.remove.is_empty()) {
            for peers in codec::taken_by(PrivateKey::generate().public(), &allowed.remove) {
                self.link.set(
                    "take allowed IPs from a peer of",
                    device,
                    vec![WireguardAttribute::Peers(peers)],
                )?;
            }
        }
        if let Some(endpoint) = update.endpoint {
            self.memory.configure(device, key, endpoint);
        }
        if !update.exists {
            threaded::enable(device);
        }
        Ok(())
    }

    fn delete_peer(&mut self, device: Device, key: PublicKey) -> Result<(), Error> {
        let peer = codec::removed_peer(key);
        self.link.set("remove a peer of", device, vec![WireguardAttribute::Peers(vec![peer])])?;
        self.memory.forget_peer(device, key);
        Ok(())
    }
}

/// Whether the kernel has the message family.
pub(super) fn probe() -> Result<bool, Error> {
    match Link::open()?.family() {
        Ok(_) => Ok(true),
        Err(Failure::Refused(error, _)) if is(&error, Errno::ENOENT) => Ok(false),
        Err(failure) => Err(Error::Socket(failure.into())),
    }
}

/// The private key of a device. None: there is no such device, or it has none.
pub(super) fn private_key(device: Device) -> Result<Option<PrivateKey>, Error> {
    Ok(Link::open()?.read(device)?.and_then(|dump| dump.key))
}

/// The socket, and the family's number once it is known.
#[derive(Debug)]
struct Link {
    socket: Genl,
    family: Option<u16>,
}

impl Link {
    fn open() -> Result<Self, Error> {
        Ok(Self { socket: Genl::open().map_err(Error::Socket)?, family: None })
    }

    /// The family's number; asking for it loads the module.
    fn family(&mut self) -> Result<u16, Failure> {
        if let Some(family) = self.family {
            return Ok(family);
        }
        let family = self.socket.family(FAMILY)?;
        self.family = Some(family);
        Ok(family)
    }

    fn read(&mut self, device: Device) -> Result<Option<Dump>, Error> {
        let verb = "read";
        let messages = match self.request(WireguardCmd::GetDevice, device, Vec::new()) {
            Ok(messages) => messages,
            // No module, no device, or one of another kind with this name.
            Err(Failure::Refused(error, _)) if is_missing(&error) || is(&error, Errno::ENOENT) => {
                return Ok(None);
            }
            Err(failure) => return Err(failed(verb, device, failure)),
        };
        codec::merge(messages).map(Some).map_err(|what| Error::Malformed { verb, device, what })
    }

    fn set(
        &mut self,
        verb: &'static str,
        device: Device,
        attributes: Vec<WireguardAttribute>,
    ) -> Result<(), Error> {
        match self.request(WireguardCmd::SetDevice, device, attributes) {
            Ok(_) => Ok(()),
            Err(Failure::Refused(error, _)) if is_missing(&error) => Err(Error::Missing { verb, device }),
            Err(Failure::Refused(error, _)) if is(&error, Errno::ENOENT) => Err(Error::Unsupported),
            Err(failure) => Err(failed(verb, device, failure)),
        }
    }

    fn request(
        &mut self,
        command: WireguardCmd,
        device: Device,
        mut attributes: Vec<WireguardAttribute>,
    ) -> Result<Vec<WireguardMessage>, Failure> {
        let kind = if command == WireguardCmd::GetDevice { Kind::Dump } else { Kind::Set };
        attributes.insert(0, WireguardAttribute::IfName(device.to_string()));
        let mut message = WireguardMessage { cmd: command, attributes };
        // The family's number is another one after the module was unloaded and loaded again.
        let known = self.family.is_some();
        let mut result = self.family().and_then(|family| self.socket.request(family, &message, kind));
        if known && matches!(&result, Err(Failure::Refused(error, _)) if is(error, Errno::ENOENT)) {
            self.family = None;
            result = self.family().and_then(|family| self.socket.request(family, &message, kind));
        }
        codec::wipe(&mut message);
        result
    }
}

fn failed(verb: &'static str, device: Device, failure: Failure) -> Error {
    match failure {
        Failure::Late => Error::Deadline { verb, device },
        Failure::Refused(source, detail) => Error::Refused { verb, device, source, detail },
        Failure::Malformed(what) => Error::Malformed { verb, device, what },
    }
}

fn is_missing(error: &io::Error) -> bool {
    is(error, Errno::ENODEV) || is(error, Errno::EOPNOTSUPP)
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

#[cfg(test)]
mod tests;
