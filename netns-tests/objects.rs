//! The kernel's objects as text, to be compared, and the kernel's own word for every change of them.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::await_::eventually;
use crate::space::{Process, Space};

/// Everything that a user could find in the namespace, a line each. Two of them are equal where nothing was left.
pub fn everything(space: &Space) -> BTreeSet<String> {
    let script = r"
        ip -o link show | sed -E 's/^[0-9]+: //; s/ qlen [0-9]+//; s/@if[0-9]+//; s/ state [A-Z]+//'
        ip -o address show | sed -E 's/^[0-9]+: //'
        for family in -4 -6; do
            ip $family route show table all | grep -v cache | sed s/^/route$family:/
            ip $family rule show | sed s/^/rule$family:/
        done
        ip nexthop show | sed s/^/nexthop:/
        ip neigh show nud permanent | sed s/^/neighbour:/
        bridge fdb show | grep permanent | sed s/^/fdb:/
        nft -s list ruleset | sed s/^/nft:/
        # As far as the kernel has them.
        { iptables-legacy-save; ip6tables-legacy-save; } 2>/dev/null |
            sed -E '/^#/d; s/ \[[0-9:]+\]$//; s/^/legacy:/'
        ipset list -n 2>/dev/null | sed s/^/ipset:/
        tc qdisc show | sed -E 's/@if[0-9]+//; s/^/qdisc:/'
        cd /proc/sys/net
        # The kernel's WireGuard turns this off for good, when a device of it goes up.
        [[ ${CORAX_WIREGUARD-} == userspace ]] || turned=ipv4/conf/all/send_redirects
        grep -r . ipv4/conf ipv6/conf ipv4/ip_forward 2>/dev/null |
            grep -v -e stable_secret -e mc_forwarding -e ${turned-stable_secret}
        find /run /var/lib ! -type d | sed s/^/file:/
        ps -e -o args= | grep '[c]orax ' | sed s/^/process:/
        true
    ";
    lines(&space.sh(script))
}

/// What Corax keeps in the kernel of a node, without what traffic moves.
pub fn ours(space: &Space) -> BTreeSet<String> {
    let script = r#"
        # mark TEXT COMMAND…: what it prints, each line behind the text. In an emulated guest each process counts.
        mark() {
            local text
            text=$("${@:2}" 2>/dev/null)
            [[ ! $text ]] || printf '%s\n' "$1${text//$'\n'/$'\n'$1}"
        }
        for device in raven0 raven-wg0; do
            ip -o -d link show $device
            ip -o address show dev $device
        done 2>/dev/null |
            sed -E 's/^[0-9]+: //; s/ gso_[a-z_0-9]+ [0-9]+//g; s/ tso_[a-z_]+ [0-9]+//g; s/ gro_[a-z_0-9]+ [0-9]+//g; s/ num[tr]xqueues [0-9]+//g; s/ qlen [0-9]+//'
        for device in raven0 raven-wg0; do
            for key in rp_filter forwarding send_redirects; do
                echo $key $device $(</proc/sys/net/ipv4/conf/$device/$key)
            done
        done 2>/dev/null
        for family in -4 -6; do
            mark neighbour: ip $family neigh show nud permanent
            ip $family route show table all | grep -E ' table 902[6-9]( |$)'
            mark rule$family: ip $family rule show | grep -v -e lookup.local -e 'from all lookup main$' -e lookup.default
        done
        mark fdb: bridge fdb show dev raven0
        mark nexthop: ip nexthop show
        mark nft: nft -s list table inet corax
        printf 'wg:%s\n' $(wg show raven-wg0 allowed-ips 2>/dev/null)
        for what in fwmark listen-port public-key preshared-keys; do
            wg show raven-wg0 $what 2>/dev/null
        done
        true
    "#;
    lines(&space.sh(script))
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(ToOwned::to_owned).collect()
}

/// What one has and the other has not, as a diff.
pub fn difference(before: &BTreeSet<String>, after: &BTreeSet<String>) -> String {
    let gone = before.difference(after).map(|line| format!("- {line}"));
    let new = after.difference(before).map(|line| format!("+ {line}"));
    gone.chain(new).collect::<Vec<_>>().join("\n")
}

/// Writes down every change of the kernel's objects, as `ip monitor`, `bridge monitor` and `nft monitor` tell them.
pub struct Monitor {
    processes: Vec<Process>,
    files: Vec<PathBuf>,
}

impl Monitor {
    /// Starts one; it tells of everything from now on.
    pub fn start(space: &Space, directory: &std::path::Path) -> Self {
        let kinds: [(&str, &[&str], &str, &str); 3] = [
            (
                "ip",
                &["ip", "monitor", "link", "address", "route", "neigh", "rule", "nexthop"],
                "ip route add blackhole 192.0.2.99/32 table 4242",
                "ip route del blackhole 192.0.2.99/32 table 4242",
            ),
            (
                "bridge",
                &["bridge", "monitor", "fdb"],
                "bridge fdb add 02:99:99:99:99:99 dev cni0 self",
                "bridge fdb del 02:99:99:99:99:99 dev cni0 self",
            ),
            ("nft", &["nft", "monitor"], "nft add table ip marker", "nft delete table ip marker"),
        ];
        let (mut processes, mut files) = (Vec::new(), Vec::new());
        for (kind, words, mark, unmark) in kinds {
            let file = directory.join(format!("{}-{kind}-{}.monitor", space.name, std::process::id()));
            let output = File::create(&file).expect("the directory can be written");
            // Line by line, whatever it writes to.
            let mut all = vec!["stdbuf", "-oL"];
            all.extend(words);
            processes.push(space.spawn(&all, |command| {
                command.stdout(output);
            }));
            eventually(&format!("`{}` listens", words.join(" ")), Duration::from_secs(10), || {
                let marked = space.try_run(mark);
                space.try_run(unmark)?;
                marked?;
                let text = std::fs::read_to_string(&file).unwrap_or_default();
                if is_marked(&text) { Ok(()) } else { Err("silence".to_owned()) }
            });
            files.push(file);
        }
        Self { processes, files }
    }

    /// Ends it: what was told that concerns Corax's objects.
    pub fn end(self) -> Vec<String> {
        // What is under way to the monitors has its time.
        std::thread::sleep(Duration::from_millis(300));
        for process in self.processes {
            process.end(Signal::SIGTERM);
        }
        let texts = self.files.iter().map(|file| std::fs::read_to_string(file).unwrap_or_default());
        let mut told = Vec::new();
        for text in texts {
            told.extend(text.lines().filter(|line| concerns(line)).map(ToOwned::to_owned));
        }
        told
    }
}

fn is_marked(text: &str) -> bool {
    ["192.0.2.99", "02:99:99:99:99:99", "marker"].iter().any(|mark| text.contains(mark))
}

/// The kernel resolves neighbours and learns addresses by itself; what is Corax's carries its names or numbers.
pub fn concerns(line: &str) -> bool {
    if is_marked(line) || line.starts_with("# new generation") {
        return false;
    }
    ["raven", "table 902", "lookup 902", "proto 90", "protocol 90", "corax", "nhid"]
        .iter()
        .any(|mark| line.contains(mark))
}
