//! What is wrong, of which object, and what to do about it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A part of the input, or of the node, that Corax does without.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Problem {
    /// The object, with its kind: `Gateway site, node s1`.
    pub object: String,
    /// What is wrong with it, and what Corax does instead.
    pub what: String,
    /// What a person can do.
    pub remedy: String,
}

impl Problem {
    /// A problem of an object.
    pub fn new(object: impl Into<String>, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { object: object.into(), what: what.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {} ({})", self.object, self.what, self.remedy)
    }
}
