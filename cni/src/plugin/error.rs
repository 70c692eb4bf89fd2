//! Errors as the specification wants them (CNI 1.1, section 5).

use serde_json::{Value, json};

use super::output::Version;
use crate::config::ConfigError;

/// The numbers an error is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The configuration's version is none we speak, or does not know the verb.
    Incompatible = 1,
    /// An environment variable is missing or wrong.
    Environment = 4,
    /// A file or standard input cannot be read or written.
    Io = 5,
    /// The configuration is no JSON, or not of its form.
    Decode = 6,
    /// The configuration is decoded, and wrong.
    Config = 7,
    /// Try again later.
    Again = 11,
    /// STATUS: no pod can be added.
    NotAvailable = 50,
    /// STATUS: no pod can be added, and what live pods hold is not guarded.
    Limited = 51,
    /// No address is left.
    Exhausted = 100,
    /// A new pin cannot be made durable.
    NotDurable = 101,
    /// A requested address cannot be had.
    Requested = 102,
    /// CHECK: what should be there is not.
    Check = 103,
    /// The pod's routes cannot be read or changed.
    Route = 104,
}

/// An error to answer with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Its number.
    pub code: Code,
    /// What happened, and what helps.
    pub message: String,
}

impl Failure {
    /// An error with a number.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// As JSON, in the version the input asks for where that can be told.
    pub(super) fn json(&self, input: &[u8]) -> Value {
        let config = serde_json::from_slice(input).unwrap_or_default();
        let version = Version::of(&config).unwrap_or(Version::newest());
        json!({ "cniVersion": version.to_string(), "code": self.code as u32, "msg": self.summary(), "details": self.message })
    }

    fn summary(&self) -> &'static str {
        match self.code {
            Code::Incompatible => "incompatible CNI version",
            Code::Environment => "invalid environment variables",
            Code::Io => "I/O failure",
            Code::Decode => "decoding failure",
            Code::Config => "invalid network configuration",
            Code::Again => "try again later",
            Code::NotAvailable => "no pod can be added",
            Code::Limited => "no pod can be added, and live pods' addresses are not guarded",
            Code::Exhausted => "no address is left",
            Code::NotDurable => "the pin cannot be made durable",
            Code::Requested => "the requested address cannot be had",
            Code::Check => "check failed",
            Code::Route => "the pod's routes cannot be set",
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Code::Config, error.to_string())
    }
}

impl From<corax_pins::Error> for Failure {
    fn from(error: corax_pins::Error) -> Self {
        use corax_pins::Error as E;
        let code = match &error {
            _ if error.passes() => Code::Again,
            E::Exhausted { .. } => Code::Exhausted,
            E::NotInRanges { .. } | E::SameSet(..) | E::Pinned { .. } => Code::Requested,
            E::NotDurable { .. } => Code::NotDurable,
            E::NoHold { .. } | E::Differs { .. } => Code::Check,
            _ => Code::Io,
        };
        Self::new(code, error.to_string())
    }
}
