//! WireGuard keys. What is secret prints nothing and is cleared when dropped.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// The well-known secret that Raven uses where none is given.
pub const RAVEN_SECRET: &str = "openyurt-raven";

/// A Curve25519 public key, 32 bytes, written as base64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey(pub [u8; 32]);

/// A text that is no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "malformed WireGuard key {0:?}: expected the base64 of 32 bytes, as `corax key` or `wg pubkey` print it"
)]
pub struct KeyError(String);

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bytes = STANDARD.decode(text.trim()).map_err(|_| KeyError(text.to_owned()))?;
        Ok(Self(bytes.try_into().map_err(|_| KeyError(text.to_owned()))?))
    }
}

impl TryFrom<String> for PublicKey {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{self}")
    }
}

/// The key that both ends of a tunnel share beside their own, 32 bytes.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; 32]);

impl PresharedKey {
    /// The key of a cluster: SHA-256 of its secret string, as Raven makes it.
    #[must_use]
    pub fn of_secret(secret: &str) -> Self {
        Self(Sha256::digest(secret.as_bytes()).into())
    }

    /// A key read back from a tunnel.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, for the tunnel's own interface.
    #[must_use]
    pub const fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preshared_key_is_ravens() {
        // printf openyurt-raven | sha256sum
        let key = PresharedKey::of_secret(RAVEN_SECRET);
        let hex: String = key.expose().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("key/openyurt-raven.sha256").trim());
    }

    #[test]
    fn a_secret_prints_nothing() {
        assert_eq!(format!("{:?}", PresharedKey::of_secret("x")), "(hidden)");
    }

    #[test]
    fn a_public_key_reads_back_and_a_wrong_one_is_refused() {
        let text = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
        assert_eq!(text.parse::<PublicKey>().unwrap().to_string(), text);
        for bad in ["", "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8D", "AAAA", "not a key"] {
            assert!(bad.parse::<PublicKey>().is_err(), "{bad}");
        }
    }
}
