//! Keys as WireGuard's configuration protocol writes them: 32 bytes in hexadecimal.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use boringtun::x25519;
use zeroize::Zeroizing;

/// Bytes of every key.
pub(crate) const LEN: usize = 32;

/// A node's secret: prints nothing, is cleared when dropped.
#[derive(Clone)]
pub(crate) struct PrivateKey(x25519::StaticSecret);

impl PrivateKey {
    /// All zeroes stand for "no key".
    pub(crate) fn parse(hex: &str) -> Option<Option<Self>> {
        let bytes = parse(hex)?;
        Some((*bytes != [0; LEN]).then(|| Self(x25519::StaticSecret::from(*bytes))))
    }

    pub(crate) fn public(&self) -> PublicKey {
        PublicKey(x25519::PublicKey::from(&self.0).to_bytes())
    }

    pub(crate) fn secret(&self) -> &x25519::StaticSecret {
        &self.0
    }

    pub(crate) fn hex(&self) -> Zeroizing<String> {
        hex(self.0.as_bytes())
    }
}

impl PartialEq for PrivateKey {
    fn eq(&self, other: &Self) -> bool {
        self.public() == other.public()
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey")
    }
}

/// The secret two peers share on top of their key pairs: prints nothing, is cleared when dropped.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct PresharedKey(Zeroizing<[u8; LEN]>);

impl PresharedKey {
    /// All zeroes stand for "no key".
    pub(crate) fn parse(hex: &str) -> Option<Option<Self>> {
        let bytes = parse(hex)?;
        Some((*bytes != [0; LEN]).then_some(Self(bytes)))
    }

    pub(crate) fn bytes(&self) -> &[u8; LEN] {
        &self.0
    }

    pub(crate) fn hex(&self) -> Zeroizing<String> {
        hex(&*self.0)
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey")
    }
}

/// A peer's name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PublicKey(pub(crate) [u8; LEN]);

impl PublicKey {
    pub(crate) fn parse(hex: &str) -> Option<Self> {
        parse(hex).map(|bytes| Self(*bytes))
    }

    pub(crate) fn hex(&self) -> Zeroizing<String> {
        hex(&self.0)
    }
}

/// As `wg` prints it.
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64_STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn parse(hex: &str) -> Option<Zeroizing<[u8; LEN]>> {
    let mut bytes = Zeroizing::new([0; LEN]);
    if hex.len() != 2 * LEN {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(bytes)
}

fn nibble(digit: u8) -> Option<u8> {
    (digit as char).to_digit(16).map(|value| value as u8)
}

fn hex(bytes: &[u8]) -> Zeroizing<String> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = Zeroizing::new(String::with_capacity(2 * bytes.len()));
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}
