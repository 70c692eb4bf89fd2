//! What daemons of the host take along comes back each time, and how soon.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use crate::agent::{SOON, await_ready, by_events, metric};
use crate::await_::{emulated, eventually};
use crate::figure;
use crate::lab::{Lab, Plan};
use crate::objects::{concerns, difference, ours};
use crate::space::{Process, Space};

/// How often each is done to each node; `CORAX_TIMES` says otherwise.
const TIMES: usize = 20;

/// What systemd-networkd does at each reload to what it does not know: rules and routes by protocol, nexthops.
const RELOAD: &str =
    "for f in -4 -6; do ip $f rule flush protocol 90; ip $f route flush table all proto 90; done >/dev/null
    ip nexthop flush >/dev/null";
/// What udev does to a device whose name it knows another address for.
const UDEV: &str = "ip link set raven0 address 02:00:00:00:99:99";
/// An uplink that goes and comes, with the routes that it takes along.
const UPLINK: &str = "ip link set eth0 down; ip link set eth0 up; ip route add default via 192.168.1.254
    ip route add default via fe80::1 dev eth0";

#[test]
fn what_a_network_daemon_udev_or_a_flapping_uplink_takes_along_comes_back_each_time() {
    let mut lab = Lab::start(&[Plan::public("cloud", 2), Plan::nat("site", 2).mesh()]);
    lab.serve();
    lab.await_tunnels();
    // Nothing of Corax goes with an uplink: what counts is the first answer of another domain.
    let flaps = format!(
        "for flap in 1 2 3 4 5; do {UPLINK}; done
         begun=$EPOCHREALTIME; ping -n -q -i 0.01 -c 1 -w 30 {} >/dev/null && echo $begun $EPOCHREALTIME",
        lab.node("cloud-2").pod4()
    );
    let kinds = [("a reload", RELOAD), ("another MAC", UDEV), ("an uplink that flaps", &flaps)];
    let repairs = std::env::var("CORAX_TIMES").map_or(TIMES, |text| text.parse().expect("a number"));
    for (name, role) in [("site-1", "gateway"), ("site-2", "member")] {
        let space = &lab.node(name).space;
        let changes = Changes::listen(space, lab.scratch());
        for (what, script) in kinds {
            let (all, routing) = (ours(space), routing(space));
            let repaired = || {
                let told = changes.read_on(space).len();
                let said = space.sh(script);
                eventually(&format!("{what} on {name}: routing is as it was"), SOON, || {
                    same(&routing, &self::routing(space))
                });
                let seconds = |text: &str| text.trim().parse::<f64>().expect("a time");
                match said.split_once(' ') {
                    Some((begun, answered)) => seconds(answered) - seconds(begun),
                    None => changes.span(space, told),
                }
            };
            let times = (0..repairs).map(|_| by_events(space, what, repaired)).collect();
            eventually(&format!("{what} on {name}: repaired"), SOON, || same(&all, &ours(space)));
            tell(&format!("{what}, {role}"), times);
        }
    }
    lab.everyone_reaches_everyone();
}

/// udev by a rule, or a person, gives the uplink another address: while it is up, while it is down, and before the agent of a boot
/// that has nobody to ask.
#[test]
fn an_uplink_with_another_mac_leaves_all_as_it_was_in_a_boot_too() {
    let mut lab = Lab::start(&[Plan::public("cloud", 1), Plan::nat("site", 2).mesh()]);
    lab.serve();
    lab.await_tunnels();
    let nowhere = lab.scratch().join("nowhere");
    for (name, last) in [("site-1", 1), ("site-2", 2)] {
        let before = ours(&lab.node(name).space);
        let changed = |lab: &Lab, what: &str| {
            eventually(&format!("{name}, {what}: all is as it was"), SOON, || {
                same(&before, &ours(&lab.node(name).space))
            });
            // Who spoke last is known by its new address.
            for other in lab.nodes().iter().filter(|other| other.name != name) {
                eventually(&format!("{name}, {what}: reaches {}", other.name), SOON, || {
                    lab.node(name).pod.try_run(&format!("ping -n -q -c 1 -W 1 {}", other.pod4()))
                });
            }
        };
        let changes = |lab: &Lab| metric(&lab.node(name).space, "corax_changes_total", &[]);
        let quiet = changes(&lab);
        lab.node(name).space.run(&format!("ip link set eth0 address 02:00:00:00:97:0{last}"));
        changed(&lab, "another MAC");
        assert_eq!(changes(&lab), quiet, "{name}: nothing had to be repaired");
        lab.node(name).space.ip(&format!(
            "link set eth0 down
             link set eth0 address 02:00:00:00:98:0{last}"
        ));
        lab.bring_up(name);
        changed(&lab, "another MAC while it was down");
        lab.lose_power(name);
        lab.node(name).space.run(&format!("ip link set eth0 address 02:00:00:00:99:0{last}"));
        lab.start_agent_from(name, &nowhere, &[]);
        await_ready(&lab.node(name).space);
        changed(&lab, "a boot with another MAC");
    }
    lab.everyone_reaches_everyone();
}

/// What the damages are about, read in two processes.
fn routing(space: &Space) -> BTreeSet<String> {
    let common = "rule show\nroute show table all\n";
    let mut text = space.feed(
        &["ip", "-o", "-batch", "-"],
        &format!("{common}nexthop show\nlink show raven0\naddress show raven0"),
    );
    text += &space.feed(&["ip", "-6", "-o", "-batch", "-"], common);
    text.lines().filter(|line| concerns(line)).map(ToOwned::to_owned).collect()
}

fn same(before: &BTreeSet<String>, after: &BTreeSet<String>) -> Result<(), String> {
    if before == after { Ok(()) } else { Err(difference(before, after)) }
}

/// Prints how the times are distributed. Those of an emulated machine say nothing of how long a real one takes.
fn tell(what: &str, mut times: Vec<f64>) {
    times.sort_unstable_by(f64::total_cmp);
    let part = |hundredths: usize| 1000.0 * times[(times.len() * hundredths).div_ceil(100).max(1) - 1];
    let line = format!(
        "repaired after {what}: {} times, min {:.1} ms, p50 {:.1}, p90 {:.1}, max {:.1}",
        times.len(),
        part(0),
        part(50),
        part(90),
        part(100)
    );
    if emulated() { eprintln!("{line}") } else { figure::print(&line) }
}

/// The kernel's word for each change of a node's objects, with its time.
struct Changes {
    _monitor: Process,
    file: PathBuf,
}

impl Changes {
    fn listen(space: &Space, directory: &Path) -> Self {
        let file = directory.join(format!("{}.changes", space.name));
        let output = File::create(&file).expect("the directory can be written");
        let kinds = "link address route neigh rule nexthop";
        let words = format!("stdbuf -oL ip -ts -o monitor {kinds}");
        let words: Vec<&str> = words.split(' ').collect();
        let monitor = space.spawn(&words, |command| {
            command.stdout(output);
        });
        let changes = Self { _monitor: monitor, file };
        changes.read_on(space);
        changes
    }

    /// All that was told until now.
    fn read_on(&self, space: &Space) -> String {
        let read = || std::fs::read_to_string(&self.file).expect("there is a file");
        let marks = |text: &str| text.matches("192.0.2.99").count();
        let before = marks(&read());
        // Changes are told in their order: what was before the mark is there when the mark is.
        eventually("the mark is told", SOON, || {
            space.ip(
                "route add blackhole 192.0.2.99/32 table 4242\nroute del blackhole 192.0.2.99/32 table 4242",
            );
            let text = read();
            if marks(&text) > before { Ok(text) } else { Err("silence") }
        })
    }

    /// Seconds from the first change of what is Corax's, which is the damage, to the last, which is the repair; of what was told
    /// after so many bytes.
    #[track_caller]
    fn span(&self, space: &Space, told: usize) -> f64 {
        let text = self.read_on(space);
        // What the kernel keeps for itself beside a device comes when it likes.
        let kept = text[told..].lines().filter(|line| concerns(line) && !line.contains("NOARP"));
        let times: Vec<f64> = kept.filter_map(time_of_day).collect();
        let (Some(first), Some(last)) = (times.first(), times.last()) else { panic!("no change was told") };
        // Over midnight as well.
        (last - first).rem_euclid(86_400.0)
    }
}

/// Seconds of the day of a line like `[2026-01-02T03:04:05.678901] …`.
fn time_of_day(line: &str) -> Option<f64> {
    let (_, time) = line.strip_prefix('[')?.split_once(']')?.0.split_once('T')?;
    let parts = time.split(':').map(str::parse::<f64>);
    parts.into_iter().try_fold(0.0, |sum, part| Some(sum * 60.0 + part.ok()?))
}
