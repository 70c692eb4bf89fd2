//! What a record says: words between spaces, the same five first in every record, then its subject.
//!
//! ```text
//! <number> <kind> <unix seconds> <value> <subject…>
//! ```
//!
//! In the pins log the number counts records and survives compaction; the subject is network, namespace, pod and
//! interface. In the holds log the subject begins with network, container and interface.

use std::net::IpAddr;

/// Nothing to say in this place.
pub(crate) const NONE: &str = "-";

/// One record, its words still text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    pub(crate) number: u64,
    pub(crate) kind: &'a str,
    /// Unix time in seconds. For people to read; no decision depends on it.
    pub(crate) at: u64,
    pub(crate) value: &'a str,
    pub(crate) subject: &'a str,
}

impl<'a> Line<'a> {
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let mut words = text.splitn(5, ' ');
        Some(Self {
            number: words.next()?.parse().ok()?,
            kind: words.next()?,
            at: words.next()?.parse().ok()?,
            value: words.next()?,
            subject: words.next()?,
        })
    }

    pub(crate) fn text(&self) -> String {
        let Self { number, kind, at, value, subject } = self;
        format!("{number} {kind} {at} {value} {subject}")
    }
}

/// Kinds of the pins log.
pub(crate) mod pin {
    /// Head of a log; value: the log's identity, subject: version of the form.
    pub(crate) const LOG: &str = "log";
    /// A pod has these addresses, given by the plugin as IPAM.
    pub(crate) const PIN: &str = "pin";
    /// A pod has these addresses, given by somebody else and seen in a chain.
    pub(crate) const SEEN: &str = "seen";
    /// Its sandbox is gone.
    pub(crate) const FREE: &str = "free";
    /// A sandbox has it again.
    pub(crate) const TAKE: &str = "take";
    /// The pin is no more: its address went to another pod, or someone released it.
    pub(crate) const END: &str = "end";
    /// The holds began anew; value: their epoch.
    pub(crate) const EPOCH: &str = "epoch";
}

/// Kinds of the holds log.
pub(crate) mod hold {
    /// Head; value: the boot's identity, subject: the epoch.
    pub(crate) const EPOCH: &str = "epoch";
    /// A container has these addresses.
    pub(crate) const HOLD: &str = "hold";
    /// It has them no more.
    pub(crate) const FREE: &str = "free";
    /// The addresses that a network gave out last.
    pub(crate) const LAST: &str = "last";
    /// A network is handed over to another IPAM: value "on" or "off".
    pub(crate) const RETIRED: &str = "retired";
    /// The pins log is on disk up to here; value: its inode, subject: its length in bytes.
    pub(crate) const SYNCED: &str = "synced";
}

pub(crate) fn addresses_text(addresses: &[IpAddr]) -> String {
    if addresses.is_empty() {
        return NONE.to_owned();
    }
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
}

pub(crate) fn addresses(text: &str) -> Option<Vec<IpAddr>> {
    if text == NONE {
        return Some(Vec::new());
    }
    text.split(',').map(|a| a.parse().ok()).collect()
}

/// A word that may hold anything, as one without white space, '%' and control characters.
pub(crate) fn escape(word: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(word.len());
    for byte in word.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02x}").expect("writing to memory does not fail");
        }
    }
    if out == NONE { "%2d".to_owned() } else { out }
}

pub(crate) fn unescape(word: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((plain, coded)) = rest.split_once('%') {
        bytes.extend(plain.as_bytes());
        let (code, behind) = coded.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(code, 16).ok()?);
        rest = behind;
    }
    bytes.extend(rest.as_bytes());
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_word_survives_escaping() {
        for word in ["/var/run/netns/cni-1", "a b%c\n\u{e4}\u{1f40c}", "-", "%", "%2"] {
            let coded = escape(word);
            assert!(coded.bytes().all(|b| b.is_ascii_graphic()), "{coded}");
            assert_ne!(coded, NONE);
            assert_eq!(unescape(&coded).as_deref(), Some(word));
        }
        assert_eq!(unescape("%zz"), None);
        assert_eq!(unescape("%2"), None);
    }

    #[test]
    fn a_line_is_five_words_and_its_subject_may_have_more() {
        let line =
            Line { number: 7, kind: "pin", at: 9, value: "10.0.0.2,fd00::2", subject: "net ns pod eth0" };
        assert_eq!(Line::parse(&line.text()), Some(line));
        assert_eq!(Line::parse("7 pin 9 10.0.0.2"), None);
        assert_eq!(Line::parse("x pin 9 10.0.0.2 net"), None);
        assert_eq!(addresses("10.0.0.2,fd00::2").unwrap().len(), 2);
        assert_eq!(addresses("10.0.0.2,nonsense"), None);
        assert_eq!(addresses(&addresses_text(&[])), Some(vec![]));
    }
}
