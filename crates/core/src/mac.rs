//! Ethernet addresses.

use std::cmp::Ordering;
use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An Ethernet (MAC) address, most significant byte first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

/// A text that is no Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed MAC address {0:?}, expected the form aa:0f:f0:a8:01:04")]
pub struct MacError(String);

/// By the last 28 bits, then the rest. Next hops and nexthop ids are made of these bits, so what is made of VTEPs in order of
/// their MACs is in order too.
impl Ord for Mac {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl PartialOrd for Mac {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Mac {
    /// Its 48 bits as a number that rises in order.
    #[must_use]
    pub const fn rank(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        let number = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        (number & 0x0fff_ffff) << 20 | number >> 28
    }

    /// The link-local address that IPv6 makes of it (RFC 4291, appendix A).
    #[must_use]
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let malformed = || MacError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(malformed)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| malformed())?;
        }
        if parts.next().is_some() { Err(malformed()) } else { Ok(Self(bytes)) }
    }
}

impl TryFrom<String> for Mac {
    type Error = MacError;

    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_local_address_is_the_kernels() {
        // `ip link add … address aa:0f:f0:a8:01:04; ip -6 addr` on Linux.
        let mac: Mac = "aa:0f:f0:a8:01:04".parse().unwrap();
        assert_eq!(mac.link_local().to_string(), "fe80::a80f:f0ff:fea8:104");
    }

    #[test]
    fn malformed_addresses_are_refused() {
        for text in ["", "aa:0f:f0:a8:01", "aa:0f:f0:a8:01:04:05", "aa:0f:f0:a8:01:g4", "a:0f:f0:a8:01:004"] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }
}
