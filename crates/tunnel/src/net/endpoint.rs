//! Where a peer is, and from which of our addresses it is spoken to.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use crate::sys::NAME;

const V4_NAME: usize = size_of::<libc::sockaddr_in>();

/// A peer's address and, once it has spoken to us, the address it used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    pub(crate) source: Option<IpAddr>,
}

/// A raw socket address, as the kernel wants it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Name {
    bytes: [u8; NAME],
    length: u8,
}

impl Name {
    /// For a socket of both families an IPv4 address is mapped into IPv6. None where IPv6 is meant and there is none.
    pub(crate) fn new(address: SocketAddr, dual: bool) -> Option<Self> {
        let mut bytes = [0; NAME];
        let length = match address {
            SocketAddr::V4(v4) if !dual => {
                bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                bytes[2..4].copy_from_slice(&v4.port().to_be_bytes());
                bytes[4..8].copy_from_slice(&v4.ip().octets());
                V4_NAME
            }
            SocketAddr::V6(_) if !dual => return None,
            _ => {
                let (ip, scope) = match address {
                    SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
                    SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
                };
                bytes[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
                bytes[8..24].copy_from_slice(&ip.octets());
                bytes[24..28].copy_from_slice(&scope.to_ne_bytes());
                NAME
            }
        };
        Some(Self { bytes, length: length as u8 })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// The address in a raw socket address; a mapped one becomes IPv4 again.
pub(crate) fn parse_name(name: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(*name.first_chunk::<2>()?));
    let port = u16::from_be_bytes(*name.get(2..)?.first_chunk::<2>()?);
    match family {
        libc::AF_INET => {
            let ip = *name.get(4..)?.first_chunk::<4>()?;
            Some(SocketAddrV4::new(ip.into(), port).into())
        }
        libc::AF_INET6 => {
            let ip = Ipv6Addr::from(*name.get(8..)?.first_chunk::<16>()?);
            let scope = u32::from_ne_bytes(*name.get(24..)?.first_chunk::<4>()?);
            Some(match ip.to_ipv4_mapped() {
                Some(v4) => SocketAddrV4::new(v4, port).into(),
                None => SocketAddrV6::new(ip, port, 0, scope).into(),
            })
        }
        _ => None,
    }
}

/// `address:port` as `wg` writes it; the zone of a link-local address may be a device's name.
pub(crate) fn parse(text: &str) -> Option<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let (host, port) = text.strip_prefix('[')?.split_once("]:")?;
    let (host, zone) = host.split_once('%')?;
    let scope = nix::net::if_::if_nametoindex(zone).ok()?;
    Some(SocketAddrV6::new(host.parse().ok()?, port.parse().ok()?, 0, scope).into())
}
