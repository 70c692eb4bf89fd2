//! What Raven leaves on a node beside what Corax goes on with: its policy rules, its marking in iptables, its ipsets.
//!
//! Its devices, routes, neighbours and FDB are observed, and replaced or removed, like Corax's own. These have no
//! counterpart, and are taken away once Corax's own path stands.

use std::fmt;
use std::net::IpAddr;

use crate::change::{Change, put_rule};
use crate::mac::Mac;
use crate::object::{Action, Device, RouteKey, Rule, Table};
use crate::observed::Backend;
use crate::prefix::Family;

/// The rule that leads what Raven marked to table 9027.
pub const MARK_RULE: Rule =
    Rule { priority: 100, mark: Some(0x40), action: Action::Lookup(Table::Domain), ..TUNNEL_RULE };

/// The rule of Raven's gateways that leads everything to table 9028.
pub const TUNNEL_RULE: Rule = Rule {
    priority: 101,
    family: Family::V4,
    input: None,
    mark: None,
    destination: None,
    action: Action::Lookup(Table::Remote),
};

/// Preference of the filter that clears the mark of what leaves by the overlay.
pub const FILTER_PREFERENCE: u16 = 20000;

/// Something that Raven left. They are taken away in their order: what leads packets first, then what marks them, and
/// sets after the rules that use them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leftover {
    /// The rule that leads marked packets to table 9027, with its protocol number.
    MarkRule(u8),
    /// The rule that leads all packets to table 9028, with its protocol number.
    TunnelRule(u8),
    /// A destination of the overlay for every hardware address that the FDB does not name.
    Flood(IpAddr),
    /// A jump to one of its chains.
    Jump(Jump),
    /// One of its chains, with what is in it.
    Chain(Tables, Chain),
    /// The filter that clears the mark of what leaves by the overlay. The qdisc that holds it stays, empty, until the
    /// overlay goes: to remove it the kernel would stop the device for a moment, and drop packets.
    Filter,
    /// One of its ipsets.
    Set(Set),
}

/// A rule that jumps to one of Raven's chains.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Jump {
    /// Where it stands.
    pub tables: Tables,
    /// The chain that it leads to.
    pub to: Chain,
    /// The chain that it stands in: one of [`Chain::hooks`].
    pub from: &'static str,
    /// Which one it is there: its handle in nftables, its words in legacy tables.
    pub rule: Box<str>,
}

/// Which iptables it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tables {
    /// `iptables-nft`, whose tables are nftables'.
    Nft,
    /// `iptables-legacy`.
    Legacy,
}

/// A chain of Raven's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Chain {
    /// Marks what is for other domains (on a member) or comes from them (on a gateway).
    Mark,
    /// Keeps what enters a tunnel from being masqueraded.
    Postrouting,
}

impl Chain {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Mark, Self::Postrouting];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mark => "RAVEN-MARK-CHAIN",
            Self::Postrouting => "RAVEN-POSTROUTING",
        }
    }

    /// The table that it stands in, of IPv4.
    #[must_use]
    pub const fn table(self) -> &'static str {
        match self {
            Self::Mark => "mangle",
            Self::Postrouting => "nat",
        }
    }

    /// The chains that Raven jumps to it from.
    #[must_use]
    pub const fn hooks(self) -> &'static [&'static str] {
        match self {
            Self::Mark => &["PREROUTING", "OUTPUT"],
            Self::Postrouting => &["POSTROUTING"],
        }
    }
}

/// An ipset of Raven's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    /// Networks of other domains.
    Mark,
    /// Pairs of networks that are not masqueraded.
    SkipNat,
}

impl Set {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Mark, Self::SkipNat];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mark => "raven-mark-set",
            Self::SkipNat => "raven-skip-nat-set",
        }
    }
}

impl Leftover {
    /// The part of the kernel that it is in.
    #[must_use]
    pub const fn backend(&self) -> Backend {
        match self {
            Self::MarkRule(_) | Self::TunnelRule(_) | Self::Flood(_) | Self::Filter => Backend::Routes,
            Self::Jump(_) | Self::Chain(..) | Self::Set(_) => Backend::Nft,
        }
    }

    /// Its class, for counting.
    #[must_use]
    pub const fn class(&self) -> &'static str {
        match self {
            Self::MarkRule(_) | Self::TunnelRule(_) => "rule",
            Self::Flood(_) => "fdb",
            Self::Jump(_) => "iptables_rule",
            Self::Chain(..) => "iptables_chain",
            Self::Filter => "filter",
            Self::Set(_) => "ipset",
        }
    }
}

/// The line that takes it away.
impl fmt::Display for Leftover {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let overlay = Device::Overlay;
        match self {
            Self::MarkRule(protocol) => put_rule(out, "del", &MARK_RULE, *protocol),
            Self::TunnelRule(protocol) => put_rule(out, "del", &TUNNEL_RULE, *protocol),
            Self::Flood(to) => write!(out, "bridge fdb del {} dev {overlay} dst {to} self", Mac([0; 6])),
            Self::Jump(Jump { tables, to, from, rule }) => match tables {
                Tables::Nft => write!(out, "nft delete rule ip {} {from} handle {rule}", to.table()),
                Tables::Legacy => write!(out, "iptables-legacy -t {} -D {from} {rule}", to.table()),
            },
            Self::Chain(tables, chain) => {
                let (table, name) = (chain.table(), chain.name());
                match tables {
                    Tables::Nft => {
                        write!(out, "nft flush chain ip {table} {name}\nnft delete chain ip {table} {name}")
                    }
                    Tables::Legacy => write!(
                        out,
                        "iptables-legacy -t {table} -F {name}\niptables-legacy -t {table} -X {name}"
                    ),
                }
            }
            Self::Filter => write!(
                out,
                "tc filter del dev {overlay} egress protocol ip pref {FILTER_PREFERENCE} matchall"
            ),
            Self::Set(set) => write!(out, "ipset destroy {}", set.name()),
        }
    }
}

/// Whether a route is a member's `default` in table 9027: Raven's, as Corax makes none.
#[must_use]
pub fn is_catch_all(key: &RouteKey) -> bool {
    key.table == Table::Domain && key.prefix.length() == 0
}

/// Holds back, while a plan is carried out, what may only be done once all before it went well: what Raven left is a path
/// that packets still go by where Corax's does not stand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gate {
    failed: bool,
    /// Raven's catch-all route is still there.
    kept: bool,
}

impl Gate {
    /// Whether it has to be known how all before a change went.
    #[must_use]
    pub fn guards(change: &Change) -> bool {
        match change {
            Change::TakeAway(_) => true,
            Change::DeleteRoute(key) => is_catch_all(key),
            _ => false,
        }
    }

    /// Whether a change may be carried out now. One that may not is planned again later.
    pub fn lets(&mut self, change: &Change) -> bool {
        let lets = match change {
            Change::PutRule(Rule { action: Action::Lookup(Table::Domain), .. }) => !self.kept,
            change => !(self.failed && Self::guards(change)),
        };
        self.kept |= !lets && matches!(change, Change::DeleteRoute(_));
        lets
    }

    /// Takes in that a change failed.
    pub fn failed(&mut self, change: &Change) {
        self.failed = true;
        self.kept |= matches!(change, Change::DeleteRoute(key) if is_catch_all(key));
    }
}

#[cfg(test)]
mod tests;
