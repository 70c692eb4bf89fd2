//! Random operations against a model: no address twice, none leaked, no pin lost after its ADD returned.
//!
//! `CORAX_OPERATIONS` sets how many operations each run makes (1,500), `CORAX_SEED` the first seed.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

#[path = "support/node.rs"]
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::net::IpAddr;

use common::{Chance, Node, attachment, ranges};
use corax_pins::{Error, Pin, PodList, PodName, Ranges, Snapshot, import, store::Part};

const PODS: [&str; 11] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "-", "-"];

struct Model {
    node: Node,
    ranges: Ranges,
    chance: Chance,
    /// Container, pod, addresses.
    live: Vec<(String, String, Vec<IpAddr>)>,
    dead: Vec<String>,
    /// What each pod's last ADD returned, while nobody else was given any of it.
    homes: BTreeMap<String, Vec<IpAddr>>,
    listed: BTreeSet<String>,
    /// An export of some time ago.
    exported: Vec<Pin>,
    /// Bytes of the log that an ADD waited for.
    durable: u64,
    made: u64,
    trail: Vec<String>,
}

impl Model {
    fn log(&self) -> u64 {
        fs::metadata(self.node.log()).map_or(0, |m| m.len())
    }

    fn step(&mut self) {
        let before = self.log();
        // Versions of the plugin with and without a table of contents take turns.
        self.node.contents_from = Some(if self.chance.below(4) == 0 { u64::MAX } else { 0 });
        let adding = match self.chance.below(100) {
            0..42 => {
                let pod = *self.chance.of(&PODS);
                self.add(pod);
                true
            }
            42..45 => self.killed_before_the_hold(),
            45..47 => self.release(),
            47..49 => self.import(),
            49..65 => self.del(),
            65..72 => self.die(),
            72..76 => self.again(),
            76..80 => self.gc(),
            80..84 => self.reboot(),
            84..92 => self.list(),
            92..96 => self.tear(),
            _ => self.spool(),
        };
        let after = self.log();
        if (adding && after != before) || after < before {
            self.durable = after;
        }
    }

    fn add(&mut self, pod: &str) {
        self.made += 1;
        let container = format!("c{}", self.made);
        self.trail.push(format!("add {pod} {container}"));
        match self.node.add(&self.ranges, pod, &container) {
            Ok(answer) => self.added(pod, container, answer.addresses),
            Err(Error::Held { address, container, .. }) => {
                let holder = self.live.iter().find(|(c, ..)| *c == container.as_str());
                assert!(
                    holder.is_some_and(|(.., a)| a.contains(&address)),
                    "{container} does not hold {address}"
                );
                assert!(self.homes[pod].contains(&address), "{address} is not {pod}'s");
            }
            Err(Error::Exhausted { .. }) => self.exhausted(pod),
            Err(other) => panic!("{other}"),
        }
    }

    /// An ADD whose process ends between the log and the hold: its answer reached nobody.
    fn killed_before_the_hold(&mut self) -> bool {
        let pod = *self.chance.of(&PODS);
        self.made += 1;
        let container = format!("c{}", self.made);
        self.trail.push(format!("add {pod} {container}, killed"));
        let holds = self.node.run().join("holds");
        let before = fs::read(&holds);
        if let Ok(answer) = self.node.add(&self.ranges, pod, &container) {
            self.rob(pod, &answer.addresses);
            match before {
                Ok(bytes) => fs::write(&holds, bytes).unwrap(),
                Err(_) => fs::remove_file(&holds).unwrap(),
            }
        }
        self.node.kill(&container);
        true
    }

    fn release(&mut self) -> bool {
        let pods: Vec<_> = self.homes.keys().cloned().collect();
        if pods.is_empty() {
            return false;
        }
        let pod = self.chance.of(&pods).clone();
        self.trail.push(format!("release {pod}"));
        let pins = Snapshot::read(&self.node.store()).pins;
        let Some(pin) = pins.iter().find(|pin| pin.pod.as_str() == pod) else {
            panic!("the pin of {pod} is lost");
        };
        let lives = self.live.iter().any(|(_, of, _)| *of == pod);
        match self.node.with(|t| t.release(&pin.id(), false)) {
            Ok(()) => {
                assert!(!lives, "{pod} runs");
                self.homes.remove(&pod);
            }
            Err(Error::Held { .. }) => assert!(lives, "{pod} does not run"),
            Err(other) => panic!("{other}"),
        }
        true
    }

    /// Takes an export of some time ago in, and makes another.
    fn import(&mut self) -> bool {
        let pins = std::mem::replace(&mut self.exported, Snapshot::read(&self.node.store()).pins);
        self.trail.push(format!("import of {} pins", pins.len()));
        let done = self.node.with(|t| import::pins(t, &pins)).unwrap();
        for pin in pins {
            let name = format!("default/{}", pin.pod);
            let refused = done.refused.iter().any(|refused| refused.pod == name);
            // Who lives at the address keeps it, pin or none.
            let free = !self.live.iter().any(|(.., held)| held.iter().any(|a| pin.addresses.contains(a)));
            let pod = pin.pod.to_string();
            if !refused && free && !self.homes.contains_key(&pod) {
                self.homes.insert(pod, pin.addresses);
            }
        }
        true
    }

    fn added(&mut self, pod: &str, container: String, addresses: Vec<IpAddr>) {
        assert_eq!(addresses.len(), self.ranges.sets().len());
        for (holder, _, held) in &self.live {
            assert!(
                !held.iter().any(|a| addresses.contains(a)),
                "{addresses:?} of {container} are held by {holder}"
            );
        }
        if let Some(home) = self.homes.get(pod) {
            assert_eq!(*home, addresses, "{pod} was promised another");
        }
        self.rob(pod, &addresses);
        if pod != "-" {
            self.homes.insert(pod.to_owned(), addresses.clone());
        }
        self.live.push((container, pod.to_owned(), addresses));
    }

    /// Whoever else had one of the addresses has none any more.
    fn rob(&mut self, pod: &str, addresses: &[IpAddr]) {
        let others =
            self.homes.iter().filter(|(p, home)| *p != pod && home.iter().any(|a| addresses.contains(a)));
        let robbed: Vec<_> = others.map(|(p, _)| p.clone()).collect();
        for pod in robbed {
            assert!(!self.listed.contains(&pod), "{pod} is on the node's list and lost its address");
            self.homes.remove(&pod);
        }
    }

    /// Some set has nothing but addresses that are held, or of other pods on the list.
    fn exhausted(&self, pod: &str) {
        let taken: BTreeSet<_> = self.live.iter().flat_map(|(.., a)| a.iter().copied()).collect();
        // Pins that nobody was told of count as well.
        let pins = Snapshot::read(&self.node.store()).pins.into_iter();
        let others = pins.filter(|pin| self.listed.contains(pin.pod.as_str()) && pin.pod.as_str() != pod);
        let protected: BTreeSet<_> = others.flat_map(|pin| pin.addresses).collect();
        let full =
            self.all().into_iter().any(|set| set.iter().all(|a| taken.contains(a) || protected.contains(a)));
        assert!(full, "{pod} was refused, {taken:?} are held and {protected:?} protected");
    }

    fn all(&self) -> Vec<Vec<IpAddr>> {
        let hosts = |n: u128, v4: bool| -> IpAddr {
            if v4 {
                std::net::Ipv4Addr::from_bits(n as u32).into()
            } else {
                std::net::Ipv6Addr::from_bits(n).into()
            }
        };
        let v4 = u128::from("10.0.0.0".parse::<std::net::Ipv4Addr>().unwrap().to_bits());
        let v6 = "fd00::".parse::<std::net::Ipv6Addr>().unwrap().to_bits();
        let sets = self.ranges.sets().iter();
        sets.map(|set| {
            let all = (0..300).flat_map(|n| [hosts(v4 + n, true), hosts(v6 + n, false)]);
            all.filter(|&a| set.range_of(a).is_some()).collect()
        })
        .collect()
    }

    fn take(&mut self) -> Option<String> {
        if self.live.is_empty() {
            return None;
        }
        let at = self.chance.below(self.live.len() as u64) as usize;
        Some(self.live.swap_remove(at).0)
    }

    fn del(&mut self) -> bool {
        if let Some(container) = self.take() {
            self.trail.push(format!("del {container}"));
            self.node.del(&container);
            self.dead.push(container);
        }
        false
    }

    fn spool(&mut self) -> bool {
        if let Some(container) = self.take() {
            self.trail.push(format!("del later {container}"));
            self.node.store().del_later(&attachment(&container), Part::Given, 1).unwrap();
            self.node.kill(&container);
        }
        false
    }

    fn die(&mut self) -> bool {
        if let Some(container) = self.take() {
            self.trail.push(format!("die {container}"));
            self.node.kill(&container);
            self.dead.push(container);
        }
        false
    }

    fn again(&mut self) -> bool {
        if let Some(container) = self.dead.pop() {
            self.trail.push(format!("del again {container}"));
            self.node.del(&container);
        }
        for (container, pod, addresses) in self.live.clone().into_iter().take(1) {
            self.node.renew(&container);
            let again = self.node.add(&self.ranges, &pod, &container);
            // Its namespace file was made anew by `add`; that is the same container all the same.
            assert_eq!(again.unwrap().addresses, addresses);
        }
        false
    }

    fn gc(&mut self) -> bool {
        self.trail.push("gc".into());
        let valid = |(c, ..): &(String, _, _)| (c.parse().unwrap(), "eth0".parse().unwrap());
        let valid = self.live.iter().map(valid).collect();
        self.node.with(|t| t.gc(&"pods".parse().unwrap(), &valid, Part::Given, None)).unwrap();
        for (container, _, addresses) in &self.live {
            self.node.with(|t| t.check(&attachment(container), addresses)).unwrap();
        }
        false
    }

    /// Power goes: what no ADD waited for may be lost, wholly or in part.
    fn reboot(&mut self) -> bool {
        let length = self.log();
        let left = self.durable + self.chance.below(length.saturating_sub(self.durable) + 1);
        self.trail.push(format!("reboot, {left} of {length} bytes left"));
        if length > 0 {
            fs::OpenOptions::new().write(true).open(self.node.log()).unwrap().set_len(left).unwrap();
        }
        self.durable = left;
        self.node.reboot();
        self.live.clear();
        self.dead.clear();
        false
    }

    fn list(&mut self) -> bool {
        if self.chance.below(3) == 0 {
            self.trail.push("no list".into());
            let _ = fs::remove_file(self.node.state().join(PodList::FILE));
            self.listed.clear();
            return false;
        }
        let seen = Snapshot::read(&self.node.store());
        let live = self.live.iter().map(|(_, pod, _)| pod.clone()).filter(|pod| pod != "-");
        let mut listed: BTreeSet<String> = live.collect();
        for _ in 0..self.chance.below(4) {
            listed.insert((*self.chance.of(&PODS[..9])).to_owned());
        }
        self.trail.push(format!("list {listed:?}"));
        let pods: BTreeSet<PodName> =
            listed.iter().map(|p| format!("default/{p}").parse().unwrap()).collect();
        fs::create_dir_all(self.node.state()).unwrap();
        PodList { log: seen.log, highest: seen.highest, pods }.write(&self.node.state(), 1).unwrap();
        self.listed = listed;
        false
    }

    /// A writer was killed in the middle.
    fn tear(&mut self) -> bool {
        self.trail.push("tear".into());
        let record = b"\n0badc0de 99999 pin 1 10.0.0.2 pods default ghost eth0";
        let length = self.chance.below(record.len() as u64) as usize;
        for path in [self.node.log(), self.node.run().join("holds")] {
            if let Ok(mut file) = fs::OpenOptions::new().append(true).open(path) {
                file.write_all(&record[..length]).unwrap();
            }
        }
        false
    }

    /// Everything goes; then every address can be had.
    fn nothing_is_leaked(&mut self) {
        while self.del() || !self.live.is_empty() {}
        let _ = fs::remove_file(self.node.state().join(PodList::FILE));
        self.listed.clear();
        let all = self.all();
        let least = all.iter().map(Vec::len).min().unwrap();
        for n in 0..least {
            let pod = format!("last-{n}");
            self.add(&pod);
            assert!(self.homes.contains_key(&pod), "{n} of {least} addresses could be had");
        }
    }
}

fn run(seed: u64, subnets: &[&str]) {
    let operations = std::env::var("CORAX_OPERATIONS").map_or(1_500, |n| n.parse().unwrap());
    let base: u64 = std::env::var("CORAX_SEED").map_or(0xc0a7, |n| n.parse().unwrap());
    let mut model = Model {
        node: Node::new(),
        ranges: ranges(subnets),
        chance: Chance(base.wrapping_mul(0x9e37_79b9).wrapping_add(seed)),
        live: Vec::new(),
        dead: Vec::new(),
        homes: BTreeMap::new(),
        listed: BTreeSet::new(),
        exported: Vec::new(),
        durable: 0,
        made: 0,
        trail: Vec::new(),
    };
    let mut at = 0;
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        while at < operations {
            model.step();
            at += 1;
        }
        model.nothing_is_leaked();
    }));
    if outcome.is_err() {
        let from = model.trail.len().saturating_sub(40);
        panic!(
            "seed {base}, {subnets:?}, operation {at}; the last ones:\n{}",
            model.trail[from..].join("\n")
        );
    }
}

#[test]
fn ipv4_with_room() {
    run(1, &["10.0.0.0/27"]);
}

#[test]
fn ipv4_crowded() {
    run(2, &["10.0.0.0/28"]);
}

#[test]
fn dual_stack() {
    run(3, &["10.0.0.0/28", "fd00::/124"]);
}

#[test]
fn dual_stack_with_one_family_crowded() {
    run(4, &["10.0.0.0/28", "fd00::/64"]);
}

#[test]
fn two_ranges_of_one_family() {
    run(5, &["10.0.0.0/29", "10.0.0.16/28"]);
}
