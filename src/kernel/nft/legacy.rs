//! Filters of iptables' old kind, which nftables does not show: read as `iptables-legacy-save` prints them.

use std::ops::RangeInclusive;

use crate::kernel::program;

/// A table `filter` of a family.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    /// Its chains INPUT, FORWARD and OUTPUT that let nothing through that no rule accepts.
    pub(super) closed: Vec<String>,
    /// A rule names a device of Corax.
    pub(super) devices: bool,
    /// Ports that rules name.
    pub(super) ports: Vec<RangeInclusive<u16>>,
}

/// The table of a family (`ip`, `ip6`) whose save program this is; none where the kernel has none.
///
/// # Errors
/// Where the program does not print it.
pub(super) fn read(family: &str, program: &str) -> Option<Result<Filter, String>> {
    let names = std::fs::read_to_string(format!("/proc/thread-self/net/{family}_tables_names")).ok()?;
    if !names.lines().any(|name| name == "filter") {
        return None;
    }
    let Some(found) = program::find(program) else { return Some(Err("there is no such program".to_owned())) };
    let printed = program::run(&found, &["-t", "filter"], "", "-t filter");
    Some(printed.map(|text| parse(&text)).map_err(|error| error.to_string()))
}

fn parse(text: &str) -> Filter {
    let mut filter = Filter::default();
    for chain in ["INPUT", "FORWARD", "OUTPUT"] {
        let rules = |line: &&str| line.starts_with(&format!("-A {chain} "));
        let ends = [" -j DROP", " -j REJECT"].map(|end| format!("-A {chain}{end}"));
        let last = text.lines().rfind(rules).unwrap_or_default();
        let drops = text.lines().any(|line| line.starts_with(&format!(":{chain} DROP")));
        if drops || ends.iter().any(|end| last.starts_with(end)) {
            filter.closed.push(chain.to_owned());
        }
    }
    for line in text.lines() {
        let mut words = line.split_whitespace();
        while let Some(word) = words.next() {
            match word {
                "-i" | "-o" => filter.devices |= words.next().is_some_and(|name| name.starts_with("raven")),
                "--dport" | "--dports" | "--ports" | "--sport" | "--sports" => {
                    filter
                        .ports
                        .extend(words.next().into_iter().flat_map(|list| list.split(',')).filter_map(ports));
                }
                _ => {}
            }
        }
    }
    filter
}

/// `4500`, or `4000:5000`.
fn ports(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_and_a_last_rule_close_a_chain_and_named_ports_are_found() {
        let filter = parse(
            "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n\
             -A INPUT -p udp -m udp --dport 4000:4472 -j ACCEPT\n\
             -A INPUT -p udp -m multiport --dports 53,4500 -j ACCEPT\n\
             -A INPUT -j REJECT --reject-with icmp-port-unreachable\nCOMMIT\n",
        );
        assert_eq!(filter.closed, ["INPUT", "FORWARD"]);
        assert_eq!(parse(":OUTPUT DROP [0:0]\n").closed, ["OUTPUT"]);
        assert_eq!(filter.ports, [4000..=4472, 53..=53, 4500..=4500]);
        assert!(!filter.devices);
        let open = parse(":INPUT ACCEPT [0:0]\n-A INPUT -j DROP\n-A INPUT -i raven0 -j ACCEPT\n");
        assert_eq!(open, Filter { devices: true, ..Filter::default() });
    }
}
