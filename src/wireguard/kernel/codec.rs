//! Between the core's objects and the attributes of generic netlink.

use std::time::Duration;

use corax_core::change::{PeerUpdate, TunnelUpdate};
use corax_core::key::{PresharedKey, PublicKey};
use corax_core::prefix::{Family, Prefix};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardMessage,
    WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};
use zeroize::Zeroize;

use crate::wireguard::key::PrivateKey;
use crate::wireguard::memory::Reading;

/// The most allowed IPs in one message: 20 KiB, where an attribute ends at 64 KiB.
const PART: usize = 512;

/// A device as the kernel gives it.
#[derive(Debug, Default)]
pub(super) struct Dump {
    /// The device.
    pub(super) reading: Reading,
    /// Its private key.
    pub(super) key: Option<PrivateKey>,
}

/// What an update names of the device.
pub(super) fn tunnel(update: &TunnelUpdate, key: &PrivateKey) -> Vec<WireguardAttribute> {
    let key = update.key.map(|_| WireguardAttribute::PrivateKey(*key.expose()));
    let port = update.port.map(WireguardAttribute::ListenPort);
    let mark = update.mark.map(WireguardAttribute::Fwmark);
    [key, port, mark].into_iter().flatten().collect()
}

/// What an update names of a peer, but for the allowed IPs that it is to lose, in as many parts as the others need.
pub(super) fn peer(key: PublicKey, update: &PeerUpdate) -> Vec<WireguardPeer> {
    let add = update.allowed.as_ref().map_or(&[][..], |allowed| &allowed.add);
    let (first, rest) = add.split_at(add.len().min(PART));
    let mut attributes = vec![WireguardPeerAttribute::PublicKey(key.0)];
    if update.exists {
        attributes.push(WireguardPeerAttribute::Flags(WireguardPeerFlags::UpdateOnly));
    }
    if let Some(preshared) = &update.preshared {
        attributes.push(WireguardPeerAttribute::PresharedKey(*preshared.expose()));
    }
    attributes.extend(update.endpoint.map(WireguardPeerAttribute::Endpoint));
    attributes.extend(update.keepalive.map(WireguardPeerAttribute::PersistentKeepalive));
    if !first.is_empty() {
        attributes.push(allowed_ips(first));
    }
    let more = rest.chunks(PART).map(|part| {
        WireguardPeer(vec![
            WireguardPeerAttribute::PublicKey(key.0),
            WireguardPeerAttribute::Flags(WireguardPeerFlags::UpdateOnly),
            allowed_ips(part),
        ])
    });
    std::iter::once(WireguardPeer(attributes)).chain(more).collect()
}

/// Takes prefixes from whoever has them, in as many messages' peers as they need: `heir`, a key that is nobody's, gets them
/// and is removed in the same message, and the prefixes with it. Kernels before 6.16 have but one other way, to replace all that
/// a peer has, which leaves it without those that stay for a while, and where the agent ends between two messages, for longer.
pub(super) fn taken_by(heir: PublicKey, prefixes: &[Prefix]) -> impl Iterator<Item = Vec<WireguardPeer>> {
    prefixes.chunks(PART).map(move |part| {
        let attributes = vec![WireguardPeerAttribute::PublicKey(heir.0), allowed_ips(part)];
        vec![WireguardPeer(attributes), removed_peer(heir)]
    })
}

/// A peer that is to go.
pub(super) fn removed_peer(key: PublicKey) -> WireguardPeer {
    WireguardPeer(vec![
        WireguardPeerAttribute::PublicKey(key.0),
        WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe),
    ])
}

fn allowed_ips(prefixes: &[Prefix]) -> WireguardPeerAttribute {
    let allowed = prefixes.iter().map(|prefix| {
        let family = match prefix.family() {
            Family::V4 => WireguardAddressFamily::Ipv4,
            Family::V6 => WireguardAddressFamily::Ipv6,
        };
        WireguardAllowedIp(vec![
            WireguardAllowedIpAttr::Family(family),
            WireguardAllowedIpAttr::IpAddr(prefix.first()),
            WireguardAllowedIpAttr::Cidr(prefix.length()),
        ])
    });
    WireguardPeerAttribute::AllowedIps(allowed.collect())
}

/// Puts a dump's messages together. Only the first tells of the device, and a peer with many allowed IPs goes on in
/// the next message, by its public key.
pub(super) fn merge(messages: Vec<WireguardMessage>) -> Result<Dump, String> {
    let mut dump = Dump::default();
    for mut message in messages {
        for attribute in &message.attributes {
            match attribute {
                WireguardAttribute::PrivateKey(key) => dump.key = PrivateKey::from_bytes(*key),
                WireguardAttribute::PublicKey(key) => dump.reading.key = Some(PublicKey(*key)),
                WireguardAttribute::ListenPort(port) => dump.reading.port = *port,
                WireguardAttribute::Fwmark(mark) => dump.reading.mark = *mark,
                WireguardAttribute::Peers(peers) => {
                    peers.iter().try_for_each(|peer| merge_peer(&mut dump.reading, peer))?;
                }
                _ => {}
            }
        }
        wipe(&mut message);
    }
    Ok(dump)
}

fn merge_peer(reading: &mut Reading, attributes: &WireguardPeer) -> Result<(), String> {
    let key = attributes.iter().find_map(|attribute| match attribute {
        WireguardPeerAttribute::PublicKey(key) => Some(PublicKey(*key)),
        _ => None,
    });
    let peer = reading.peers.entry(key.ok_or("a peer without a public key")?).or_default();
    for attribute in attributes.iter() {
        match attribute {
            WireguardPeerAttribute::PresharedKey(key) => peer.preshared = PresharedKey::from_bytes(*key),
            WireguardPeerAttribute::Endpoint(endpoint) => peer.endpoint = Some(*endpoint),
            WireguardPeerAttribute::PersistentKeepalive(seconds) => peer.keepalive = *seconds,
            WireguardPeerAttribute::LastHandshake(time) => {
                let seconds = u64::try_from(time.seconds).unwrap_or_default();
                peer.handshake = Duration::new(seconds, u32::try_from(time.nano_seconds).unwrap_or_default());
            }
            WireguardPeerAttribute::RxBytes(bytes) => peer.received = *bytes,
            WireguardPeerAttribute::TxBytes(bytes) => peer.sent = *bytes,
            WireguardPeerAttribute::AllowedIps(allowed) => {
                let prefixes =
                    allowed.iter().map(|allowed| prefix(allowed).ok_or("an incomplete allowed IP"));
                for prefix in prefixes {
                    peer.allowed.push(prefix?);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn prefix(allowed: &WireguardAllowedIp) -> Option<Prefix> {
    let address = allowed.iter().find_map(|attribute| match attribute {
        WireguardAllowedIpAttr::IpAddr(address) => Some(*address),
        _ => None,
    });
    let length = allowed.iter().find_map(|attribute| match attribute {
        WireguardAllowedIpAttr::Cidr(length) => Some(*length),
        _ => None,
    });
    Some(Prefix::new(address?, length?))
}

/// Clears the keys in a message.
pub(super) fn wipe(message: &mut WireguardMessage) {
    for attribute in &mut message.attributes {
        match attribute {
            WireguardAttribute::PrivateKey(key) => key.zeroize(),
            WireguardAttribute::Peers(peers) => {
                for attribute in peers.iter_mut().flat_map(|peer| &mut peer.0) {
                    if let WireguardPeerAttribute::PresharedKey(key) = attribute {
                        key.zeroize();
                    }
                }
            }
            _ => {}
        }
    }
}
