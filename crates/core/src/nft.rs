//! The nftables table `inet corax`: sources, both locks, the guard of the overlay, MSS. Never a rule in a chain of
//! others.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::iter;
use std::net::IpAddr;

use sha2::{Digest, Sha256};

use crate::change::{by_set, write_elements};
use crate::object::{ALIAS, Device, FWMARK, Set, VXLAN_PORT};
use crate::prefix::{Family, Prefix};

/// Name of the set that holds one 128-bit value: how the table is known again as the one that Corax made. The upper
/// 64 bits are [`Ruleset::fingerprint`], the lower a checksum of what `nft -s -t list table` printed of it.
pub const CHECKSUM_SET: &str = "checksum";

/// Named counters of what the table drops, with what each means.
pub const DROP_COUNTERS: [(&str, &str); 6] = [
    ("vxlan_stranger", "VXLAN packets whose sender is no member of the domain"),
    ("vxlan_forged", "VXLAN packets to members by pods, which would have come from this node's address"),
    ("overlay_source", "packets out of the overlay with a source that is not of its side"),
    (
        "forward_foreign",
        "packets from another domain or member that would have left to neither Corax nor own pods",
    ),
    ("plaintext_lock", "packets for another domain that would have left outside the overlay and the tunnels"),
    ("icmp_redirect", "ICMP redirects by Corax's devices"),
];

/// What the table's rules depend on. The elements of its sets do not belong to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ruleset {
    /// All devices of Corax on this node, in order.
    pub devices: Vec<Device>,
    /// Largest TCP segment that fits every path, IPv4, in bytes.
    pub mss4: u16,
    /// The same for IPv6.
    pub mss6: u16,
    /// Members' pods are reached over the overlay from here, whoever asks.
    pub mesh: bool,
    /// The node's pod-side addresses, one a family at most.
    pub sources: Vec<IpAddr>,
}

impl Ruleset {
    /// The first 64 bits of the SHA-256 of the ruleset without elements.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let mut text = String::new();
        self.write(&mut text, &[]).expect("writing to a string cannot fail");
        let digest = Sha256::digest(text.as_bytes());
        let (first, _) = digest.split_at(8);
        u64::from_be_bytes(first.try_into().expect("eight bytes"))
    }

    /// Writes the transaction that makes the table, whether or not there is one, for `nft -f -`. `elements` is sorted.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut dyn fmt::Write, elements: &[(Set, Prefix)]) -> fmt::Result {
        writeln!(out, "add table inet {ALIAS}")?;
        writeln!(out, "delete table inet {ALIAS}")?;
        self.write_table(out, elements, &self.chains())
    }

    /// Writes the transaction that makes a table without rules, where there is none: its sets, with elements.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_sets(&self, out: &mut dyn fmt::Write, elements: &[(Set, Prefix)]) -> fmt::Result {
        self.write_table(out, elements, "")
    }

    /// Writes the transaction that adds the rules to that.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_chains(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        write!(out, "table inet {ALIAS} {{\n{}}}", self.chains())
    }

    /// Whether a table of this [`outline`] can be [renewed](Self::write_renewal): it is another by chains and counters alone.
    #[must_use]
    pub fn renews(&self, outline: &BTreeSet<String>) -> bool {
        let apart = |line: &String| line.starts_with("chain ") || line.starts_with("counter ");
        self.outline().symmetric_difference(outline).all(apart)
    }

    /// Writes the transaction that makes the rules of a table that stands anew, and brings its sets from what they hold to
    /// what they are to hold. Unlike [`write`](Self::write) it keeps the counters, and packets under way meet full sets. Only
    /// for a table that it [renews](Self::renews), of which this is the [`outline`].
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_renewal(
        &self,
        out: &mut dyn fmt::Write,
        outline: &BTreeSet<String>,
        delete: &[(Set, Prefix)],
        add: &[(Set, Prefix)],
    ) -> fmt::Result {
        let mut each = |verb: &str, line: &str| {
            writeln!(out, "{verb} {}", line.replacen(' ', &format!(" inet {ALIAS} "), 1))
        };
        each("flush", &format!("set {CHECKSUM_SET}"))?;
        outline.iter().filter(|line| line.starts_with("chain ")).try_for_each(|line| each("flush", line))?;
        let own = self.outline();
        // Chains before counters, once nothing refers to either.
        outline.difference(&own).try_for_each(|line| each("delete", line))?;
        let counters = own.difference(outline).filter(|line| line.starts_with("counter "));
        counters.cloned().try_for_each(|line| each("add", &line))?;
        for (verb, elements) in [("delete", delete), ("add", add)] {
            for (set, group) in by_set(elements) {
                write!(out, "{verb} element inet {ALIAS} {set} {{ ")?;
                write_elements(out, group)?;
                out.write_str(" }\n")?;
            }
        }
        self.write_chains(out)
    }

    /// The [`outline`] of the table.
    #[must_use]
    pub fn outline(&self) -> BTreeSet<String> {
        let mut text = String::new();
        self.write_sets(&mut text, &[])
            .and_then(|()| self.write_chains(&mut text))
            .expect("writing to a string cannot fail");
        outline(&text)
    }

    fn write_table(&self, out: &mut dyn fmt::Write, elements: &[(Set, Prefix)], chains: &str) -> fmt::Result {
        writeln!(out, "table inet {ALIAS} {{")?;
        for (counter, _) in DROP_COUNTERS {
            writeln!(out, "\tcounter {counter} {{ }}")?;
        }
        writeln!(out, "\tset {CHECKSUM_SET} {{ type ipv6_addr; }}")?;
        for set in Set::all() {
            write_set(out, set, elements)?;
        }
        out.write_str(chains)?;
        out.write_str("}")
    }

    fn chains(&self) -> String {
        let mut text = String::new();
        let ours: Vec<String> = self.devices.iter().map(|device| format!("\"{device}\"")).collect();
        let exempt =
            iter::once("\"lo\"").chain(ours.iter().map(String::as_str)).collect::<Vec<_>>().join(", ");
        let ours = ours.join(", ");
        let overlay = Device::Overlay;
        let (mss4, mss6) = (self.mss4, self.mss6);
        let no_member = |ip, set| if self.mesh { format!(" {ip} daddr != @{set}") } else { String::new() };
        let (no_member4, no_member6) = (no_member("ip", "overlay4"), no_member("ip6", "overlay6"));
        // guard: a VXLAN socket hears broadcasts and groups as well. Members believe this node's address, which a CNI gives to what
        // pods send: of VXLAN, a node forwards that of others alone, as of one behind it.
        // transit: untracked because a gateway may see one direction only; VXLAN because a mark that is kept on the outer packet
        // gets it masqueraded.
        // answers: one to a client outside, who came by a NodePort and has a source of this node's since, is to leave by the main
        // table: rule 99. A client in the cluster is answered by our devices, as it came. Both NATs have to be there: a CNI that
        // masquerades alone, while this table is missing, makes no such client of a pod.
        let _ = write!(
            text,
            "	chain guard_prerouting {{
		type filter hook prerouting priority -300; policy accept;
		udp dport {VXLAN_PORT} fib daddr type != unicast jump vxlan_in
		iifname \"{overlay}\" jump overlay_in
		iifname {{ {ours} }} jump transit
	}}
	chain vxlan_in {{
		meta nfproto ipv4 ip saddr != @members4 counter name vxlan_stranger drop
		meta nfproto ipv6 ip6 saddr != @members6 counter name vxlan_stranger drop
		notrack
	}}
	chain overlay_in {{
		meta nfproto ipv4 ip saddr != @overlay4 counter name overlay_source drop
		meta nfproto ipv6 ip6 saddr != @overlay6 counter name overlay_source drop
	}}
	chain transit {{
		meta nfproto ipv4 ip daddr != @own4 fib daddr type != local notrack
		meta nfproto ipv6 ip6 daddr != @own6 fib daddr type != local notrack
	}}
	chain guard_output {{
		type filter hook output priority -300; policy accept;
		udp dport {VXLAN_PORT} notrack
	}}
	chain guard_forward {{
		type filter hook forward priority 0; policy accept;
		udp dport {VXLAN_PORT} jump vxlan_out
	}}
	chain vxlan_out {{
		meta nfproto ipv4 ip daddr @members4 jump forged
		meta nfproto ipv6 ip6 daddr @members6 jump forged
	}}
	chain forged {{
		meta nfproto ipv4 ip saddr @own4 counter name vxlan_forged drop
		meta nfproto ipv6 ip6 saddr @own6 counter name vxlan_forged drop
		fib saddr . iif oif missing counter name vxlan_forged drop
	}}
	chain redirects {{
		type filter hook output priority 0; policy accept;
		oifname {{ {ours} }} icmp type redirect counter name icmp_redirect drop
		oifname {{ {ours} }} icmpv6 type nd-redirect counter name icmp_redirect drop
	}}
	chain mss_in {{
		type filter hook prerouting priority -150; policy accept;
		iifname {{ {ours} }} tcp flags & (syn | rst) == syn jump clamp
	}}
	chain mss_out {{
		type filter hook postrouting priority -150; policy accept;
		oifname {{ {ours} }} tcp flags & (syn | rst) == syn jump clamp
	}}
	chain answers {{
		type filter hook prerouting priority -99; policy accept;
		iifname {{ {ours} }} ct direction reply ct status & snat == snat ct status & dnat == dnat fib daddr type != local jump answer
	}}
	chain answer {{
		meta nfproto ipv4 ip daddr != @own4 ip daddr != @remote4{no_member4} meta mark set {FWMARK:#x}
		meta nfproto ipv6 ip6 daddr != @own6 ip6 daddr != @remote6{no_member6} meta mark set {FWMARK:#x}
	}}
	chain clamp {{
		meta nfproto ipv4 tcp option maxseg size > {mss4} tcp option maxseg size set {mss4}
		meta nfproto ipv6 tcp option maxseg size > {mss6} tcp option maxseg size set {mss6}
	}}
	chain arriving {{
		type filter hook forward priority 0; policy accept;
		iifname {{ {ours} }} oifname != {{ {ours} }} meta mark != {FWMARK:#x} jump arrived
	}}
	chain arrived {{
		meta nfproto ipv4 ip daddr != @own4 counter name forward_foreign drop
		meta nfproto ipv6 ip6 daddr != @own6 counter name forward_foreign drop
	}}
	chain sources {{
		type nat hook postrouting priority 99; policy accept;
		iifname {{ {ours} }} meta nfproto ipv4 ip daddr @own4 ct status & dnat != dnat snat ip to ip saddr
		iifname {{ {ours} }} meta nfproto ipv6 ip6 daddr @own6 ct status & dnat != dnat snat ip6 to ip6 saddr
		oifname {{ {ours} }} jump leaving
	}}
	chain leaving {{
		meta nfproto ipv4 ip saddr @own4 snat ip to ip saddr
		meta nfproto ipv6 ip6 saddr @own6 snat ip6 to ip6 saddr
"
        );
        for source in &self.sources {
            let _ = match Family::of(*source) {
                Family::V4 => writeln!(text, "\t\tmeta nfproto ipv4 snat ip to {source}"),
                Family::V6 => writeln!(text, "\t\tmeta nfproto ipv6 snat ip6 to {source}"),
            };
        }
        let _ = write!(
            text,
            "	}}
	chain lock {{
		type filter hook postrouting priority 1000; policy accept;
		oifname != {{ {exempt} }} jump locked
	}}
	chain locked {{
		meta nfproto ipv4 ip daddr @remote4 counter name plaintext_lock drop
		meta nfproto ipv6 ip6 daddr @remote6 counter name plaintext_lock drop
	}}
"
        );
        // A rule about a device that is somebody else's is left out; nft knows no empty set. The lock stands in any case.
        let is_absent = |line: &str| {
            (self.devices.is_empty() && line.contains("name {  }"))
                || (!self.devices.contains(&overlay) && line.contains(&format!("iifname \"{overlay}\"")))
        };
        let mut kept = String::with_capacity(text.len());
        for line in text.split_inclusive('\n').filter(|line| !is_absent(line)) {
            kept.push_str(line);
        }
        kept
    }
}

/// What a table declares, by its text or nft's listing: kind and name of chains, sets, counters and whatever else stands there.
#[must_use]
pub fn outline(text: &str) -> BTreeSet<String> {
    let declared = text.lines().filter_map(|line| line.strip_prefix('\t'));
    let declared = declared.filter(|line| !line.starts_with(['\t', '}', '#']));
    declared.map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")).collect()
}

fn write_set(out: &mut dyn fmt::Write, set: Set, elements: &[(Set, Prefix)]) -> fmt::Result {
    let kind = match set.family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    };
    let flags = if set.is_interval() { " flags interval;" } else { "" };
    write!(out, "\tset {set} {{ type {kind};{flags}")?;
    let from = elements.partition_point(|(other, _)| *other < set);
    let to = elements.partition_point(|(other, _)| *other <= set);
    if let Some(own) = elements.get(from..to).filter(|own| !own.is_empty()) {
        out.write_str(" elements = { ")?;
        write_elements(out, own)?;
        out.write_str(" };")?;
    }
    out.write_str(" }\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::SetRole;

    fn ruleset() -> Ruleset {
        Ruleset {
            devices: vec![Device::Overlay, Device::WireGuard(0)],
            mss4: 1380,
            mss6: 1360,
            mesh: false,
            sources: vec![IpAddr::from([10, 10, 4, 0])],
        }
    }

    #[test]
    fn the_fingerprint_follows_the_rules_and_not_the_elements() {
        let (one, mut other) = (ruleset(), ruleset());
        assert_eq!(one.fingerprint(), other.fingerprint());
        other.mss4 = 1300;
        assert_ne!(one.fingerprint(), other.fingerprint());
    }

    #[test]
    fn without_a_device_of_ours_the_lock_stands_and_nothing_is_said_of_others_devices() {
        let chains = Ruleset { devices: Vec::new(), ..ruleset() }.chains();
        assert!(chains.contains("oifname != { \"lo\" } jump locked"), "{chains}");
        assert!(!chains.contains("raven") && !chains.contains("{  }"), "{chains}");
        let chains = Ruleset { devices: vec![Device::WireGuard(0)], ..ruleset() }.chains();
        assert!(
            !chains.contains("raven0") && chains.contains("iifname { \"raven-wg0\" } jump transit"),
            "{chains}"
        );
    }

    #[test]
    fn elements_stand_in_their_own_set() {
        let own = Set { role: SetRole::Own, family: Family::V4 };
        let members = Set { role: SetRole::Members, family: Family::V4 };
        let elements = [(members, "192.168.1.1".parse().unwrap()), (own, "10.10.4.0/24".parse().unwrap())];
        let mut text = String::new();
        ruleset().write(&mut text, &elements).unwrap();
        assert!(
            text.contains("set own4 { type ipv4_addr; flags interval; elements = { 10.10.4.0/24 }; }"),
            "{text}"
        );
        assert!(text.contains("set members4 { type ipv4_addr; elements = { 192.168.1.1 }; }"), "{text}");
        assert!(text.contains("set remote4 { type ipv4_addr; flags interval; }"), "{text}");
    }
}
