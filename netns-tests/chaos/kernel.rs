//! What a node's kernel must have, for what its agent must know; and what of others must be there as it was.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::world::World;
use crate::lab::{Lab, Node};
use crate::objects::everything;
use crate::space::Space;

/// Objects of others on every node: in our tables, our range of ids, near our names and priorities.
pub const FOREIGN: &str = "
    set -e
    ip link add raven1 type bridge
    ip link set raven1 alias corax-like up
    ip address add 10.250.1.1/24 dev raven1
    ip tuntap add raven-wgx mode tun
    ip neigh add 10.250.1.7 lladdr aa:0f:f0:00:00:07 dev raven1 nud permanent
    bridge fdb add aa:0f:f0:00:00:07 dev pod master static
    ip route add 10.251.0.0/16 via 10.250.1.7 dev raven1 table 4711
    ip route add 10.252.0.0/16 dev raven1 table 9028
    ip -6 route add unreachable fd99:1::/64 table 9027
    ip route add 10.253.0.0/16 dev raven1
    mkdir -p /var/lib/corax && chmod 700 /var/lib/corax && echo mine >/var/lib/corax/notes
    mkdir -p /run/other && echo mine >/run/other/corax";

/// Those of others that a flush of everybody's takes along, to be made again by whoever flushes.
pub const FOREIGN_RULES: &str = "
    ip rule add prio 102 from 10.9.9.9 lookup 4711
    ip rule add prio 100 fwmark 0x77/0xff lookup 4711
    ip -6 rule add prio 101 from fd99:9::/64 lookup 4711";
pub const FOREIGN_NEXTHOPS: &str = "
    ip nexthop add id 7 via 10.250.1.7 dev raven1
    ip nexthop add id 1073741900 via 10.250.1.8 dev raven1
    ip route add 10.254.0.0/16 nhid 7 table 4711";
pub const FOREIGN_NFT: &str = "
table inet corax-other {
    set members4 { type ipv4_addr; elements = { 10.9.9.9 }; }
    chain lock { type filter hook postrouting priority 10; policy accept; ip daddr @members4 counter drop; }
}
table ip corax { chain guard { ip saddr 10.9.9.9 drop; }; }";

/// What of others a node has, a line each.
pub fn foreign(space: &Space) -> BTreeSet<String> {
    let own = |line: &str| {
        let marks = ["raven0", "raven-wg0", "proto 90", "/run/corax/", "/run/wireguard/raven-wg0.sock"];
        let files = ["wireguard.key", "snapshot", "clock", "raven-wg0.log", "pins"];
        marks.iter().any(|mark| line.contains(mark))
            || files.iter().any(|name| line.starts_with(&format!("file:/var/lib/corax/{name}")))
            || ["process:", "nft:"].iter().any(|kind| line.starts_with(kind))
    };
    let mut lines = everything(space);
    lines.retain(|line| !own(line));
    let tables = space.sh("nft list tables | grep -v '^table inet corax$' | while read -r _ table; do nft -s list table $table; done");
    lines.insert(tables);
    lines
}

/// SHA-256 of the agents' secret, by sha256sum and base64.
const PRESHARED: &str = "4EeyU4/SOUDSfqDOy9+BIpoW3qu5t2BW2erN9OUu4Rg=";

/// What of Corax's is on a node, of each class by what tells it from others.
struct Found(BTreeMap<String, Value>);

impl Found {
    fn read(space: &Space) -> Self {
        let text = space.sh("
            show() { name=$1; shift; echo \"=== $name\"; \"$@\" 2>/dev/null; }
            show links ip -j link show
            show rules4 ip -j -4 rule show; show rules6 ip -j -6 rule show
            show nexthops ip -j nexthop show
            show fdb bridge -j fdb show dev raven0
            for table in 9027 9028 9029; do
                show $table-4 ip -j -4 route show table $table
                show $table-6 ip -j -6 route show table $table
            done
            show members4 nft -j list set inet corax members4
            show allowed sh -c 'wg show raven-wg0 allowed-ips | cut -f 2 | jq -Rc \"split(\\\" \\\") | .[]\" | jq -sc .'
            show preshared sh -c 'wg show raven-wg0 preshared-keys | cut -f 2 | jq -R . | jq -sc .'
            show port sh -c 'wg show raven-wg0 listen-port | jq -R . | jq -sc .'
            true");
        let mut found = BTreeMap::new();
        // Of a table that is not there `ip` prints nothing, or the begin of a list.
        for part in text.split("=== ").skip(1) {
            let (name, json) = part.split_once('\n').unwrap_or((part, ""));
            let value = if ["", "["].contains(&json.trim()) {
                Value::Array(Vec::new())
            } else {
                serde_json::from_str(json)
                    .unwrap_or_else(|error| panic!("{}: {name}: {error}: {json}", space.name))
            };
            found.insert(name.to_owned(), value);
        }
        Self(found)
    }

    fn list(&self, name: &str) -> impl Iterator<Item = &Value> {
        self.0.get(name).and_then(Value::as_array).into_iter().flatten()
    }

    fn ours(&self, name: &str) -> impl Iterator<Item = &Value> {
        self.list(name).filter(|object| object["protocol"] == "90" || object["protocol"] == 90)
    }

    fn texts<'a>(objects: impl Iterator<Item = &'a Value>, key: &str) -> BTreeSet<String> {
        objects.filter_map(|object| Some(object.get(key)?.as_str()?.to_owned())).collect()
    }

    fn has_link(&self, name: &str) -> bool {
        self.list("links").any(|link| link["ifname"] == name)
    }

    fn members4(&self) -> BTreeSet<String> {
        let elements = self.0["members4"].pointer("/nftables/1/set/elem").and_then(Value::as_array);
        elements.into_iter().flatten().filter_map(|element| Some(element.as_str()?.to_owned())).collect()
    }
}

/// What is not as it must be on a node.
pub fn complaints(world: &World, node: &Node) -> Vec<String> {
    let found = Found::read(&node.space);
    let mesh = world.mesh.contains(node.domain);
    let gateway = world.is_gateway(&node.name);
    let mut wrong = doubled(&found, mesh && !gateway);
    let Some((own, domain)) = world.domain_of(&node.name) else {
        let left: Vec<&str> =
            ["raven0", "raven-wg0"].into_iter().filter(|name| found.has_link(name)).collect();
        let count = ["rules4", "rules6", "nexthops", "9027-4", "9028-4", "9028-6", "9029-4", "members4"]
            .map(|name| found.ours(name).count() + usize::from(name == "members4") * found.members4().len());
        if !left.is_empty() || count.iter().sum::<usize>() > 0 {
            wrong.push(format!("is in no domain, and has {left:?}, {count:?}"));
        }
        return wrong;
    };
    // Of the tunnel in user space no event tells.
    if gateway {
        for (what, should) in [("preshared", PRESHARED), ("port", "4500")] {
            let odd: Vec<_> = found.list(what).filter(|is| **is != should).collect();
            if !odd.is_empty() {
                wrong.push(format!("raven-wg0: {what} {odd:?}"));
            }
        }
    }
    let mut same = |what: &str, found: BTreeSet<String>, should: BTreeSet<String>| {
        if found != should {
            let lacks: Vec<_> = should.difference(&found).collect();
            let more: Vec<_> = found.difference(&should).collect();
            wrong.push(format!("{what}: lacks {lacks:?}, has {more:?} too"));
        }
    };
    let others = || domain.members.iter().filter(|(name, _)| **name != node.name);
    let spoken = others().filter(|(name, _)| gateway || mesh || domain.gateway() == Some(*name));
    same(
        "fdb",
        Found::texts(found.list("fdb"), "dst"),
        spoken.map(|(_, member)| member.address.clone()).collect(),
    );
    same("members", found.members4(), others().map(|(_, member)| member.address.clone()).collect());
    for (family, six) in [("4", false), ("6", true)] {
        let of_family = |prefix: &&String| prefix.contains(':') == six;
        let prefixes =
            |name: &String| world.known[name].prefixes().filter(of_family).cloned().collect::<Vec<_>>();
        let remote: BTreeSet<String> =
            world.known.keys().filter(|name| *name != own).flat_map(prefixes).collect();
        let reached: BTreeSet<String> = match gateway {
            true => world.reached(own).flat_map(prefixes).collect(),
            false if domain.gateway().is_some() => remote.clone(),
            false => BTreeSet::new(),
        };
        let is_twin = |route: &&Value| route["type"] == "unreachable";
        let table = |name: &str| format!("{name}-{family}");
        let (remotes, domains) = (table("9028"), table("9027"));
        same(
            &format!("twins of IPv{family}"),
            Found::texts(found.ours(&remotes).filter(is_twin), "dst"),
            remote,
        );
        let paths = Found::texts(found.ours(&remotes).filter(|route| !is_twin(route)), "dst");
        same(&format!("paths of IPv{family}"), paths, reached.clone());
        if gateway {
            let allowed =
                found.list("allowed").filter_map(Value::as_str).filter(|text| text.contains(':') == six);
            same(&format!("allowed IPs of IPv{family}"), allowed.map(ToOwned::to_owned).collect(), reached);
        }
        if gateway || mesh {
            let inside =
                others().flat_map(|(_, member)| &member.prefixes).filter(of_family).cloned().collect();
            same(&format!("domain's own of IPv{family}"), Found::texts(found.ours(&domains), "dst"), inside);
        }
    }
    if found.has_link("raven-wg0") != gateway {
        wrong.push(format!("is {}a gateway, and raven-wg0 is not so", if gateway { "" } else { "not " }));
    }
    wrong
}

/// Objects of ours of which there is one too many. A member in mesh has two nexthops to its gateway: as the way to other
/// domains, and to the gateway's own pods.
fn doubled(found: &Found, two_ways: bool) -> Vec<String> {
    let mut doubled = Vec::new();
    let kinds = ["rules4", "rules6", "nexthops", "9027-4", "9028-4", "9029-4", "9027-6", "9028-6", "9029-6"];
    for name in kinds {
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for object in found.ours(name) {
            let mut object = object.clone();
            // Two with one way are one too many, whatever their numbers.
            for key in ["id", "priority"] {
                object.as_object_mut().map(|object| object.remove(key));
            }
            *seen.entry(object.to_string()).or_default() += 1;
        }
        let most = if name == "nexthops" && two_ways { 2 } else { 1 };
        doubled.extend(
            seen.iter()
                .filter(|(_, count)| **count > most)
                .map(|(object, _)| format!("{name}: again {object}")),
        );
    }
    let mut seen = BTreeSet::new();
    for entry in found.list("fdb") {
        if !seen.insert((entry["mac"].to_string(), entry["dst"].to_string())) {
            doubled.push(format!("FDB: again {entry}"));
        }
    }
    doubled
}

/// What Corax keeps on every node.
pub fn ours_of_all(lab: &Lab) -> BTreeMap<String, BTreeSet<String>> {
    on_each(lab, |node| ours(&node.space))
}

/// What Corax keeps on a node. Whether the kernel gives a link-local address or Corax does, it is the same: once IPv6 was off
/// for want of MTU, the kernel does.
pub fn ours(space: &Space) -> BTreeSet<String> {
    let lines = crate::objects::ours(space).into_iter();
    lines.map(|line| line.replace("addrgenmode eui64", "addrgenmode none")).collect()
}

/// Asks something of every node, several at a time.
pub fn on_each<T: Send>(lab: &Lab, ask: impl Fn(&Node) -> T + Sync) -> BTreeMap<String, T> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = lab.nodes().iter().map(|node| (node, scope.spawn(|| ask(node)))).collect();
        let answer = |thread: std::thread::ScopedJoinHandle<'_, T>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(|(node, thread)| (node.name.clone(), answer(thread))).collect()
    })
}
