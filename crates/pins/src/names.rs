//! Names that cannot be wrong: parsed at the edge, trusted inside.
//!
//! Records are words between spaces, so no name holds white space or control characters, and none is empty.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not the name it was meant to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {what}: {rule}")]
pub struct NameError {
    what: &'static str,
    text: String,
    rule: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) {
                    return Ok(Self(text.to_owned()));
                }
                Err(NameError { what: $what, text: text.to_owned(), rule: $rule })
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// The characters of the CNI specification's identifiers (libcni `pkg/utils`).
fn cni_identifier(text: &str) -> bool {
    text.len() <= 255
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

name!(
    /// Name of a CNI network (`name` of the network configuration).
    Network,
    "network name",
    "letters, digits, '_', '.' and '-', the first a letter or a digit",
    cni_identifier
);
name!(
    /// `CNI_CONTAINERID`.
    ContainerId,
    "container id",
    "letters, digits, '_', '.' and '-', the first a letter or a digit",
    cni_identifier
);
name!(
    /// `CNI_IFNAME`: 1 to 15 bytes, no '/', no ':', no white space, neither "." nor ".." (Linux `dev_valid_name`).
    Interface,
    "interface name",
    "1 to 15 bytes without '/', ':' and white space, and not \".\" or \"..\"",
    |t| (1..=15).contains(&t.len())
        && t != "."
        && t != ".."
        && !t.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
);
name!(
    /// A Kubernetes namespace, pod name or pod UID: printable, without '/'.
    Label,
    "Kubernetes name",
    "1 to 253 printable characters without '/' and white space, and not \"-\"",
    |t| (1..=253).contains(&t.len()) && t != "-" && t.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
);

/// A pod by namespace and name: who an address is pinned to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodName {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: Label,
    /// `K8S_POD_NAME`.
    pub name: Label,
}

impl PodName {
    /// A pod from its two names.
    ///
    /// # Errors
    /// When one of them is not a Kubernetes name.
    pub fn new(namespace: &str, name: &str) -> Result<Self, NameError> {
        Ok(Self { namespace: namespace.parse()?, name: name.parse()? })
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for PodName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let rule = "a namespace and a name with '/' between them";
        let (namespace, name) =
            text.split_once('/').ok_or_else(|| NameError { what: "pod", text: text.to_owned(), rule })?;
        Self::new(namespace, name)
    }
}

/// What an address is pinned to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PinId {
    /// The network the address is of.
    pub network: Network,
    /// The pod it belongs to.
    pub pod: PodName,
    /// The pod's interface.
    pub interface: Interface,
}

impl PinId {
    /// The four words that stand for it in a record.
    pub(crate) fn words(&self) -> String {
        format!("{} {} {} {}", self.network, self.pod.namespace, self.pod.name, self.interface)
    }

    pub(crate) fn from_words(words: &str) -> Option<Self> {
        let mut word = words.split(' ');
        let id = Self {
            network: word.next()?.parse().ok()?,
            pod: PodName::new(word.next()?, word.next()?).ok()?,
            interface: word.next()?.parse().ok()?,
        };
        word.next().is_none().then_some(id)
    }
}

/// One attachment of a container to a network (CNI: the pair of container ID and interface, within a network).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attachment {
    /// The network.
    pub network: Network,
    /// The container (of a pod: its sandbox).
    pub container: ContainerId,
    /// The interface in the container.
    pub interface: Interface,
}
