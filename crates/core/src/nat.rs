//! NATs, and which pairs of them two gateways can talk through without a relay.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `natType` of an endpoint (RFC 3489, 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum NatType {
    /// One mapping for all, open to all.
    FullCone,
    /// One mapping for all, open to addresses spoken to.
    RestrictedCone,
    /// One mapping for all, open to addresses and ports spoken to.
    PortRestrictedCone,
    /// A mapping for each address and port spoken to.
    Symmetric,
    /// Not known.
    #[default]
    Undefined,
}

/// A text that is no NAT type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown natType {0:?}")]
pub struct NatTypeError(String);

impl FromStr for NatType {
    type Err = NatTypeError;

    fn from_str(text: &str) -> Result<Self, NatTypeError> {
        match text {
            "Full cone NAT" => Ok(Self::FullCone),
            "Restricted cone NAT" => Ok(Self::RestrictedCone),
            "Port Restricted cone NAT" => Ok(Self::PortRestrictedCone),
            "Symmetric NAT" => Ok(Self::Symmetric),
            "" | "Undefined" => Ok(Self::Undefined),
            _ => Err(NatTypeError(text.to_owned())),
        }
    }
}

impl NatType {
    /// Whether two gateways behind NATs of these types can reach each other directly. The same seen from both.
    #[must_use]
    pub const fn traverses(self, other: Self) -> bool {
        !matches!(
            (self, other),
            (Self::Undefined, _)
                | (_, Self::Undefined)
                | (Self::Symmetric, Self::Symmetric | Self::PortRestrictedCone)
                | (Self::PortRestrictedCone, Self::Symmetric)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_pairs_is_ravens() {
        // Rows and columns: full, restricted, port restricted, symmetric.
        let kinds = ["Full cone NAT", "Restricted cone NAT", "Port Restricted cone NAT", "Symmetric NAT"]
            .map(|text| text.parse::<NatType>().unwrap());
        let expected = ["yyyy", "yyyy", "yyyn", "yynn"];
        for (left, row) in kinds.iter().zip(expected) {
            for (right, cell) in kinds.iter().zip(row.chars()) {
                assert_eq!(left.traverses(*right), cell == 'y', "{left:?} {right:?}");
                assert!(!left.traverses(NatType::Undefined));
            }
        }
        assert!("Cone".parse::<NatType>().is_err());
    }
}
