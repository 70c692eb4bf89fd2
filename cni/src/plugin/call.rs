//! The environment of a call (CNI 1.1, section 2).

use corax_pins::names::Label;
use corax_pins::store::{Part, identity};
use corax_pins::{Attachment, ContainerId, Interface, Netns, Network, PodName, Request};

use super::error::{Code, Failure};

/// `CNI_COMMAND`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the specification's words
pub enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Verb {
    pub(super) fn parse(command: Option<String>) -> Result<Self, Failure> {
        let Some(command) = command else {
            return Err(Failure::new(Code::Environment, "CNI_COMMAND is missing"));
        };
        Ok(match command.as_str() {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            "VERSION" => Self::Version,
            _ => return Err(Failure::new(Code::Environment, format!("CNI_COMMAND is unknown: {command}"))),
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    fn has_attachment(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }
}

/// A call, its variables checked.
#[derive(Debug, Clone)]
pub struct Call {
    /// What to do.
    pub verb: Verb,
    attachment: Option<(ContainerId, Interface)>,
    /// `CNI_NETNS`.
    pub netns: Option<String>,
    /// `CNI_ARGS`, pair by pair.
    arguments: Vec<(String, String)>,
}

impl Call {
    pub(super) fn parse(verb: Verb, environment: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let invalid = |message: String| Failure::new(Code::Environment, message);
        let mut needed = Vec::new();
        if verb.has_attachment() {
            needed.extend(["CNI_CONTAINERID", "CNI_IFNAME"]);
        }
        if matches!(verb, Verb::Add | Verb::Check) {
            needed.push("CNI_NETNS");
        }
        needed.retain(|name| environment(name).is_none());
        if !needed.is_empty() {
            return Err(invalid(format!("missing: {}", needed.join(", "))));
        }
        if let (Verb::Add, Some(path)) = (verb, environment("CNI_NETNS")) {
            // Without its namespace no DEL would come, and nothing would say that the hold is dead.
            use std::io::ErrorKind::{NotADirectory, NotFound};
            if let Err(error) = std::fs::metadata(&path)
                && matches!(error.kind(), NotFound | NotADirectory)
            {
                return Err(invalid(format!("CNI_NETNS: there is no network namespace at {path}: {error}")));
            }
        }
        let attachment = match (environment("CNI_CONTAINERID"), environment("CNI_IFNAME")) {
            (Some(container), Some(interface)) if verb.has_attachment() => Some((
                container.parse().map_err(|e| invalid(format!("CNI_CONTAINERID: {e}")))?,
                interface.parse().map_err(|e| invalid(format!("CNI_IFNAME: {e}")))?,
            )),
            _ => None,
        };
        let text = environment("CNI_ARGS").unwrap_or_default();
        let pairs = text.split(';').filter(|pair| !pair.trim().is_empty());
        let mut arguments = Vec::new();
        for pair in pairs {
            match pair.split_once('=') {
                Some((key, value)) => arguments.push((key.trim().to_owned(), value.to_owned())),
                None if verb == Verb::Del => {}
                None => return Err(invalid(format!("CNI_ARGS: {pair:?} is no pair of key and value"))),
            }
        }
        Ok(Self { verb, attachment, netns: environment("CNI_NETNS"), arguments })
    }

    /// A value of `CNI_ARGS`, unless it is empty.
    pub(super) fn argument(&self, name: &str) -> Option<&str> {
        let found = self.arguments.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    pub(super) fn container(&self) -> Result<(ContainerId, Interface), Failure> {
        self.attachment.clone().ok_or_else(|| Failure::new(Code::Environment, "CNI_CONTAINERID is missing"))
    }

    pub(super) fn attachment(&self, network: &Network) -> Result<Attachment, Failure> {
        let (container, interface) = self.container()?;
        Ok(Attachment { network: network.clone(), container, interface })
    }

    /// Who asks. A runtime that sends a pod's name without its namespace (podman) names no pod.
    pub(super) fn request(&self, network: &Network) -> Result<Request, Failure> {
        let names = self.argument("K8S_POD_NAMESPACE").zip(self.argument("K8S_POD_NAME"));
        let uid: Option<Label> = self.argument("K8S_POD_UID").and_then(|uid| uid.parse().ok());
        Ok(Request {
            attachment: self.attachment(network)?,
            pod: names.and_then(|(namespace, name)| PodName::new(namespace, name).ok()),
            uid,
            netns: self.netns.clone().map(|path| Netns { identity: identity(&path), path }),
            requested: Vec::new(),
        })
    }
}

/// A DEL that cannot get the lock, or whose store is broken, leaves a note and succeeds.
pub(super) fn del_later(store: &corax_pins::Store, own: &Attachment, part: Part, why: &corax_pins::Error) {
    match store.del_later(own, part, super::now()) {
        Ok(()) => super::say(&format!("{why}; the release is left to the next call")),
        Err(error) => {
            super::say(&format!("{why}; nor can a note be left ({error}): freed when its netns is gone"));
        }
    }
}
