//! Ways into the crate for its fuzz targets; not for use by others.

use std::io::{self, IoSlice};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;

use crate::device::Device;
use crate::inbound::Receiver;
use crate::inbound::inbox::Sink;
use crate::key::{PrivateKey, PublicKey};
use crate::net::{Socket, Wanted};
use crate::packet::coalesce::Abilities;
use crate::sys::Incoming;
use crate::uapi::request::Request;
use crate::uapi::{apply, report};

/// Does what a control request asks of a device that is down, and the same with what can be read of it then.
///
/// # Panics
///
/// The second device is not as the first.
pub fn request(text: &str) {
    let Some(first) = configured(text) else { return };
    let mut again = "set=1\n".to_owned();
    let count = |line: &&str| !line.starts_with("last_handshake_time") && !line.contains("x_bytes=");
    for line in first.lines().filter(count) {
        again.push_str(line);
        again.push('\n');
    }
    assert_eq!(configured(&again), Some(first), "what it says of itself makes another like it");
}

/// What a new device says of itself after a request.
fn configured(text: &str) -> Option<String> {
    let request = Request::parse(text)?;
    let wanted = Wanted { segmentation: false, grouping: false, refusal: None };
    let device = Device::new("fuzz".into(), wanted, 1, 1420).ok()?;
    if let Request::Set(set) = request {
        apply::apply(&device, &set).ok()?;
    }
    Some(report::state(&device).to_string())
}

/// Takes every frame.
#[derive(Default)]
struct Nowhere {
    packets: Mutex<usize>,
}

impl Sink for Nowhere {
    fn write(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut packets = self.packets.lock().map_err(|_| io::ErrorKind::Other)?;
        *packets += pieces.len() - 1;
        Ok(pieces.iter().map(|piece| piece.len()).sum())
    }

    fn takes(&self) -> (bool, Abilities) {
        (true, Abilities { tcp: true, udp: true })
    }
}

/// A device without a TUN behind it, and a peer that has a session with it.
pub struct Tunnel {
    device: Arc<Device>,
    receiver: Receiver<Nowhere>,
    sink: Arc<Nowhere>,
    socket: Socket,
    peer: Tunn,
}

impl Tunnel {
    /// Makes both and shakes hands.
    ///
    /// # Errors
    ///
    /// No UDP socket can be had, or no handshake came about.
    pub fn new() -> io::Result<Self> {
        let wanted = Wanted { segmentation: false, grouping: false, refusal: None };
        let socket = Socket::bind(0, 0, wanted, false)?;
        let device = Arc::new(Device::new("fuzz".into(), wanted, 1, 1420)?);
        let own = x25519::StaticSecret::from([1; 32]);
        let theirs = x25519::StaticSecret::from([2; 32]);
        let (own_public, their_public) = (x25519::PublicKey::from(&own), x25519::PublicKey::from(&theirs));
        device.set_identity(PrivateKey::parse(&"01".repeat(32)).flatten());
        let key = PublicKey(their_public.to_bytes());
        let state = device.peer(key);
        for prefix in ["0.0.0.0/0", "::/0"] {
            device.table_mut().allow(&key, crate::prefix::Prefix::parse(prefix).ok_or(io::ErrorKind::Other)?);
        }
        let sink = Arc::new(Nowhere::default());
        let receiver = Receiver::new(Arc::clone(&device), Arc::clone(&sink));
        let mut tunnel =
            Self { device, receiver, sink, socket, peer: Tunn::new(theirs, own_public, None, None, 7, None) };

        // The answer comes back to the socket that it is sent by.
        let back = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        back.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut buffer = [0; 256];
        if let TunnResult::WriteToNetwork(message) =
            tunnel.peer.format_handshake_initiation(&mut buffer, false)
        {
            let message = message.to_vec();
            let port = back.local_addr()?.port();
            tunnel.receive(&name(port), &[], &message);
        }
        let length = back.recv(&mut buffer)?;
        let mut out = [0; 256];
        drop(state);
        match tunnel.peer.decapsulate(None, &buffer[..length], &mut out) {
            TunnResult::WriteToNetwork(keepalive) => {
                let keepalive = keepalive.to_vec();
                tunnel.receive(&name(9), &[], &keepalive);
                Ok(tunnel)
            }
            _ => Err(io::ErrorKind::Other.into()),
        }
    }

    /// A datagram as the kernel would give it.
    pub fn receive(&mut self, name: &[u8], control: &[u8], data: &[u8]) {
        let incoming = Incoming { name, control, data, truncated: false };
        let table = self.device.table();
        self.receiver.datagram(&incoming, &table, &self.socket);
        self.receiver.flush();
    }

    /// Packets that the peer seals, all in one batch; returns the pieces written so far.
    pub fn packets<'a>(&mut self, packets: impl Iterator<Item = &'a [u8]>) -> usize {
        let name = name(9);
        for packet in packets {
            let mut sealed = vec![0; (packet.len() + 32).max(148)];
            if let TunnResult::WriteToNetwork(message) = self.peer.encapsulate(packet, &mut sealed) {
                let incoming = Incoming { name: &name, control: &[], data: message, truncated: false };
                let table = self.device.table();
                self.receiver.datagram(&incoming, &table, &self.socket);
            }
        }
        self.receiver.flush();
        self.sink.packets.lock().map_or(0, |packets| *packets)
    }
}

/// `struct sockaddr_in` of a local port.
fn name(port: u16) -> [u8; 16] {
    let mut name = [0; 16];
    name[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    name[2..4].copy_from_slice(&port.to_be_bytes());
    name[4..8].copy_from_slice(&[127, 0, 0, 1]);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_did_can_be_read_and_set_again() {
        let (key, own) = ("11".repeat(32), "22".repeat(32));
        request(&format!(
            "set=1\nprivate_key={own}\nlisten_port=7\nfwmark=0x42\nreplace_peers=true\npublic_key={key}\n\
             preshared_key={own}\nendpoint=[fe80::1%1]:5\npersistent_keepalive_interval=9\nallowed_ip=10.0.0.0/8\n\
             allowed_ip=::/0\nallowed_ip=-10.0.0.0/8\npublic_key={own}\nallowed_ip=::/0\n"
        ));
        request("set=1\nlisten_port=none\n");
        request("get=1\n");
    }

    #[test]
    fn the_way_in_leads_to_the_device() {
        let mut tunnel = Tunnel::new().unwrap();
        let mut packet = [0; 28];
        packet[0] = 0x45;
        packet[3] = 28;
        assert_eq!(tunnel.packets([&packet[..], &packet[..]].into_iter()), 2);
        tunnel.receive(&[], &[1; 40], &[4, 0, 0, 0]);
        assert_eq!(tunnel.packets([&[0x60; 60][..]].into_iter()), 2, "not a packet");
    }
}
