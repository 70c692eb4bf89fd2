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
    /// A problem of an object. Each text is one line, and what a terminal would obey is written out: parts of them are others'.
    pub fn new(object: impl Into<String>, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { object: plain(object.into()), what: plain(what.into()), remedy: plain(remedy.into()) }
    }
}

/// A text with its control characters as Rust writes them.
fn plain(text: String) -> String {
    if !text.contains(char::is_control) {
        return text;
    }
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => plain.extend(character.escape_default()),
            false => plain.push(character),
        }
    }
    plain
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {} ({})", self.object, self.what, self.remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_line_and_tells_a_terminal_nothing() {
        let problem = Problem::new("Gateway \u{1b}[31m", "kind\nip link del eth0\u{9b}", "\tremove «it»");
        assert_eq!(problem.to_string(), r"Gateway \u{1b}[31m: kind\nip link del eth0\u{9b} (\tremove «it»)");
    }
}
