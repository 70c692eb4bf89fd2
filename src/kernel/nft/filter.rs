//! Filters of others: which of their chains let nothing through that no rule accepts, and what their rules name.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use super::wire::{
    self, NFPROTO_UNSPEC, NFT_MSG_GETCHAIN, NFT_MSG_GETRULE, NFT_MSG_GETSET, NFT_MSG_GETSETELEM, header, kind,
};
use crate::kernel::error::Failure;
use crate::kernel::socket::Socket;
use crate::kernel::wire::{Attribute, Attributes, Message};

/// How the names of Corax's devices begin. A table that has a rule for them knows what it does.
const DEVICES: &[u8] = b"raven";

const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NF_INET_PRE_ROUTING: u32 = 0;
const NF_INET_LOCAL_IN: u32 = 1;
const NF_INET_FORWARD: u32 = 2;
const NF_INET_LOCAL_OUT: u32 = 3;
const NF_DROP: u32 = 0;
const NFT_JUMP: u32 = -3_i32 as u32;
const NFT_GOTO: u32 = -4_i32 as u32;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
/// Of `cmp` and `range` alike: the operation; then the value, or the first and the last.
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFTA_RANGE_TO_DATA: u16 = 4;
const NFT_CMP_EQ: u32 = 0;
const NFT_CMP_LTE: u32 = 3;
const NFT_CMP_GTE: u32 = 5;
/// Of a match or target of iptables: its name, and its own data.
const NFTA_MATCH_NAME: u16 = 1;
const NFTA_MATCH_INFO: u16 = 3;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_FLAGS: u16 = 3;
const NFT_SET_ELEM_INTERVAL_END: u32 = 1;
/// nft's own numbers of what a set holds.
const TYPE_INET_SERVICE: u32 = 13;
const TYPE_IFNAME: u32 = 41;

/// Where packets pass a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// Before anything is decided.
    Prerouting,
    /// On the way to the node itself.
    Input,
    /// On the way through the node.
    Forward,
    /// On the way from the node itself.
    Output,
}

/// A chain of somebody else at which packets are looked at.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    /// Number of its family.
    pub(super) family: u8,
    /// Its table.
    pub(super) table: String,
    /// Its name.
    pub(super) name: String,
    /// Where it is.
    pub(super) hook: Hook,
    /// Its policy is drop.
    drops: bool,
}

/// What becomes of a packet that no rule of a chain accepts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum End {
    /// The chain's policy, or whoever jumped there, decides.
    #[default]
    Open,
    /// The last rule drops or rejects it.
    Closed,
    /// The last rule hands it on to this chain.
    By(String),
}

/// The rules of a table, as far as they are understood.
#[derive(Debug, Default)]
pub(super) struct Rules {
    ends: BTreeMap<String, End>,
    /// A rule names a device of Corax.
    pub(super) devices: bool,
    /// UDP or TCP ports that rules name.
    ports: Vec<RangeInclusive<u16>>,
    /// Chains that look up the way back, and those that name a device of Corax.
    backwards: BTreeSet<String>,
    naming: BTreeSet<String>,
}

impl Rules {
    /// Rules that name these.
    pub(super) fn naming(devices: bool, ports: Vec<RangeInclusive<u16>>) -> Self {
        Self { devices, ports, ..Self::default() }
    }

    /// Whether a chain lets nothing through that no rule accepts.
    pub(super) fn closes(&self, chain: &Chain) -> bool {
        let mut at = &chain.name;
        // A chain that is in a loop is none that the kernel takes.
        loop {
            match self.ends.get(at) {
                Some(End::Closed) => return true,
                Some(End::By(next)) => at = next,
                _ => return chain.drops,
            }
        }
    }

    /// Whether a rule names a port.
    pub(super) fn names(&self, port: u16) -> bool {
        self.ports.iter().any(|range| range.contains(&port))
    }

    /// Whether a chain drops by the way back to a source, whatever device of Corax it came in by.
    pub(super) fn looks_back(&self, chain: &Chain) -> bool {
        self.backwards.contains(&chain.name) && !self.naming.contains(&chain.name)
    }

    fn take(&mut self, message: &Message<'_>) {
        let mut fields = message.fields();
        fields.u32();
        let (mut chain, mut expressions) = ("", Attributes(&[]));
        for attribute in fields.attributes() {
            match attribute.kind {
                NFTA_RULE_CHAIN => chain = attribute.text().unwrap_or_default(),
                NFTA_RULE_EXPRESSIONS => expressions = attribute.nest(),
                _ => {}
            }
        }
        if holds(message.payload) {
            self.devices = true;
            self.naming.insert(chain.to_owned());
        }
        let (mut end, mut always, mut from, mut back) = (End::Open, true, 0, false);
        for expression in expressions {
            let (name, data) = parts(expression, NFTA_EXPR_NAME, NFTA_EXPR_DATA);
            match name {
                "counter" | "log" => {}
                "immediate" => end = verdict(data),
                "reject" => end = End::Closed,
                "target" | "match" => {
                    let (name, info) = parts_of(data, NFTA_MATCH_NAME, NFTA_MATCH_INFO);
                    match name {
                        "REJECT" | "DROP" => end = End::Closed,
                        "LOG" | "comment" => {}
                        "multiport" => self.ports.extend(multiport(info.0)),
                        _ => always = false,
                    }
                    always &= name != "multiport";
                }
                "cmp" | "range" => {
                    always = false;
                    match compared(data) {
                        Some((NFT_CMP_EQ, first, last)) => self.ports.push(first..=last),
                        Some((NFT_CMP_GTE, first, _)) => from = first,
                        Some((NFT_CMP_LTE, last, _)) => self.ports.push(from..=last),
                        _ => {}
                    }
                }
                other => {
                    always = false;
                    back |= other == "fib";
                }
            }
        }
        if back && end == End::Closed {
            self.backwards.insert(chain.to_owned());
        }
        // Each rule in turn: the last one's end is the chain's.
        self.ends.insert(chain.to_owned(), if always { end } else { End::Open });
    }
}

/// Ports of a set's elements, in any order: a begin holds until the end that follows, if one does before the next begin.
fn paired(mut elements: Vec<(u16, bool)>) -> Vec<RangeInclusive<u16>> {
    elements.sort_unstable_by_key(|(port, ends)| (*port, !ends));
    let next = elements.iter().skip(1).map(Some).chain([None]);
    let pairs = elements.iter().zip(next).filter(|((_, ends), _)| !ends);
    pairs
        .map(|((port, _), next)| match next {
            Some((end, true)) => *port..=end - 1,
            _ => *port..=*port,
        })
        .collect()
}

/// Chains of others at hooks that matter here.
pub(super) fn chains(socket: &mut Socket) -> Result<Vec<Chain>, Failure> {
    let each = |into: &mut Vec<Chain>, message: &Message<'_>| {
        let mut fields = message.fields();
        let Some([family, ..]) = fields.array::<4>() else { return };
        let (mut table, mut name, mut hook, mut policy) = (None, None, None, None);
        for attribute in fields.attributes() {
            match attribute.kind {
                wire::NFTA_TABLE => table = attribute.text(),
                NFTA_CHAIN_NAME => name = attribute.text(),
                NFTA_CHAIN_HOOK => {
                    let number = attribute.nest().find(|value| value.kind == NFTA_HOOK_HOOKNUM);
                    hook = number.and_then(|number| number.be32());
                }
                NFTA_CHAIN_POLICY => policy = attribute.be32(),
                _ => {}
            }
        }
        let hook = match hook {
            Some(NF_INET_PRE_ROUTING) => Hook::Prerouting,
            Some(NF_INET_LOCAL_IN) => Hook::Input,
            Some(NF_INET_FORWARD) => Hook::Forward,
            Some(NF_INET_LOCAL_OUT) => Hook::Output,
            _ => return,
        };
        if let (Some(table), Some(name)) = (table, name) {
            let (table, name) = (table.to_owned(), name.to_owned());
            into.push(Chain { family, table, name, hook, drops: policy == Some(NF_DROP) });
        }
    };
    socket.dump(kind(NFT_MSG_GETCHAIN), &header(NFPROTO_UNSPEC, 0), |_| {}, Vec::new, each)
}

/// The rules of a table.
pub(super) fn rules(socket: &mut Socket, family: u8, table: &str) -> Result<Rules, Failure> {
    let header = header(family, 0);
    let of_table = |writer: &mut crate::kernel::wire::Writer| writer.text(wire::NFTA_TABLE, table);
    let mut rules = socket.dump(
        kind(NFT_MSG_GETRULE),
        &header,
        of_table,
        Rules::default,
        |rules: &mut Rules, message| {
            // The filter is a hint: an old kernel gives the rules of all tables.
            let mut fields = message.fields();
            fields.u32();
            let named = fields.attributes().find(|attribute| attribute.kind == wire::NFTA_TABLE);
            if named.and_then(|name| name.text()) == Some(table) {
                rules.take(message);
            }
        },
    )?;
    // Ports and devices may stand in a set: `udp dport { 4472, 4500 }`.
    let sets = socket.dump(
        kind(NFT_MSG_GETSET),
        &header,
        of_table,
        Vec::new,
        |sets: &mut Vec<String>, message| {
            let mut fields = message.fields();
            fields.u32();
            let (mut name, mut what) = (None, None);
            for attribute in fields.attributes() {
                match attribute.kind {
                    NFTA_SET_NAME => name = attribute.text(),
                    NFTA_SET_KEY_TYPE => what = attribute.be32(),
                    _ => {}
                }
            }
            if let (Some(name), Some(TYPE_INET_SERVICE | TYPE_IFNAME)) = (name, what) {
                sets.push(name.to_owned());
            }
        },
    )?;
    for set in sets {
        let of_set = |writer: &mut crate::kernel::wire::Writer| {
            of_table(writer);
            writer.text(wire::NFTA_SET_ELEM_LIST_SET, &set);
        };
        let (devices, elements) = socket.dump(
            kind(NFT_MSG_GETSETELEM),
            &header,
            of_set,
            || (false, Vec::new()),
            |(devices, elements), message| {
                *devices |= holds(message.payload);
                let mut fields = message.fields();
                fields.u32();
                let lists = fields.attributes().filter(|list| list.kind == NFTA_SET_ELEM_LIST_ELEMENTS);
                elements.extend(lists.flat_map(|list| list.nest()).filter_map(element));
            },
        )?;
        rules.devices |= devices;
        rules.ports.extend(paired(elements));
    }
    Ok(rules)
}

fn holds(bytes: &[u8]) -> bool {
    bytes.windows(DEVICES.len()).any(|part| part == DEVICES)
}

fn parts(attribute: Attribute<'_>, name: u16, data: u16) -> (&str, Attributes<'_>) {
    parts_of(attribute.nest(), name, data)
}

/// A name, and what belongs to it.
fn parts_of(attributes: Attributes<'_>, name: u16, data: u16) -> (&str, Attributes<'_>) {
    let (mut found, mut belongs) = ("", Attributes(&[]));
    for attribute in attributes {
        if attribute.kind == name {
            found = attribute.text().unwrap_or_default();
        } else if attribute.kind == data {
            belongs = attribute.nest();
        }
    }
    (found, belongs)
}

fn verdict(data: Attributes<'_>) -> End {
    let mut data =
        data.filter(|attribute| attribute.kind == NFTA_IMMEDIATE_DATA).flat_map(|data| data.nest());
    let Some(verdict) = data.find(|value| value.kind == NFTA_DATA_VERDICT) else { return End::Open };
    let (mut code, mut chain) = (None, None);
    for attribute in verdict.nest() {
        match attribute.kind {
            NFTA_VERDICT_CODE => code = attribute.be32(),
            NFTA_VERDICT_CHAIN => chain = attribute.text(),
            _ => {}
        }
    }
    match (code, chain) {
        (Some(NF_DROP), _) => End::Closed,
        (Some(NFT_JUMP | NFT_GOTO), Some(chain)) => End::By(chain.to_owned()),
        _ => End::Open,
    }
}

/// How a rule compares two bytes, such as a port, and with what.
fn compared(data: Attributes<'_>) -> Option<(u32, u16, u16)> {
    let (mut operation, mut first, mut last) = (None, None, None);
    for attribute in data {
        let value = || attribute.nest().find(|value| value.kind == NFTA_DATA_VALUE)?.be16();
        match attribute.kind {
            NFTA_CMP_OP => operation = attribute.be32(),
            NFTA_CMP_DATA => first = value(),
            NFTA_RANGE_TO_DATA => last = value(),
            _ => {}
        }
    }
    Some((operation?, first?, last.or(first)?))
}

/// Ports of an iptables match (`xt_multiport_v1`): flags, how many, the ports, and of each whether it begins a range.
fn multiport(info: &[u8]) -> Vec<RangeInclusive<u16>> {
    let [_, count, rest @ ..] = info else { return Vec::new() };
    let port = |at: usize| {
        let bytes = rest.get(2 * at..2 * at + 2)?;
        Some(u16::from_ne_bytes(bytes.try_into().ok()?))
    };
    let begins = |at: usize| rest.get(30 + at) == Some(&1);
    let ports = 0..usize::from(*count);
    ports.filter_map(|at| Some(port(at)?..=if begins(at) { port(at + 1)? } else { port(at)? })).collect()
}

/// The port of a set's element, and whether it ends an interval.
fn element(element: Attribute<'_>) -> Option<(u16, bool)> {
    let (mut port, mut ends) = (None, false);
    for attribute in element.nest() {
        match attribute.kind {
            NFTA_SET_ELEM_KEY => {
                port = attribute
                    .nest()
                    .find(|value| value.kind == NFTA_DATA_VALUE)
                    .and_then(|value| value.be16());
            }
            NFTA_SET_ELEM_FLAGS => {
                ends = attribute.be32().is_some_and(|flags| flags & NFT_SET_ELEM_INTERVAL_END != 0);
            }
            _ => {}
        }
    }
    Some((port?, ends))
}
