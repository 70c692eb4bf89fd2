//! Anything may happen, in any order: views, restarts, drift, links, power. After each of it everyone who should reach
//! another does, and nobody else; each node has what it must have, once; what is others' is as it was; nobody is busy
//! with nothing. In the end nothing is left.
//!
//! `scripts/soak chaos N` runs it for as long as one likes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::agent::{CORAX, SOON, ask, await_ready, metric, wireguard, wireguard_asked};
use crate::await_::{emulated, eventually};
use crate::chance::Chance;
use crate::lab::{Lab, Plan};
use crate::objects::{difference, everything};
use crate::space::Space;
use kernel::{FOREIGN, FOREIGN_NEXTHOPS, FOREIGN_RULES, foreign, on_each, ours_of_all};
use operation::{KINDS, Operation};
use reach::{Answerers, Askers, From, Way};
use world::{Site, World};

mod drift;
mod kernel;
mod operation;
mod reach;
mod world;

/// Operations of the run that belongs to the tests.
const SHORT: usize = 8;

/// How long everything may take to be as it should. A tunnel whose other end forgot everything is made anew 15 s after it
/// was used last, and a gateway behind a NAT may have to be heard of first.
const SETTLED: Duration = Duration::from_secs(75);

/// How long it is watched whether anybody is still at work.
fn watched() -> Duration {
    Duration::from_millis(if emulated() { 2000 } else { 250 })
}

const PLANS: [Plan; 4] =
    [Plan::public("cloud", 2), Plan::nat("site", 2).mesh(), Plan::nat("box", 1), Plan::public("dock", 1)];

/// Those of a guest, in which each process counts.
const FEW: [Plan; 2] = [Plan::public("cloud", 1), Plan::nat("site", 2).mesh()];

fn plans() -> &'static [Plan] {
    if emulated() { &FEW } else { &PLANS }
}

struct Chaos {
    lab: Lab,
    world: World,
    _answerers: Answerers,
    askers: Askers,
    /// What of others each node has.
    foreign: BTreeMap<String, BTreeSet<String>>,
    /// What each node must have again, once what changes nothing for long is over.
    ours: BTreeMap<String, BTreeSet<String>>,
    /// What each node had before Corax.
    before: BTreeMap<String, BTreeSet<String>>,
    /// Where each node was at first.
    addresses: BTreeMap<String, IpAddr>,
}

#[test]
fn whatever_happens_in_any_order_everyone_reaches_who_should_be_reached_and_nothing_of_others_is_touched() {
    let operations = std::env::var("CORAX_OPERATIONS").map_or(SHORT, |text| text.parse().expect("a number"));
    let mut chance = Chance::new();
    let seed = chance.seed;
    let mut happened = Vec::new();
    let result = catch_unwind(AssertUnwindSafe(|| run(operations, &mut chance, &mut happened)));
    if let Err(panic) = result {
        eprintln!("\nwhat happened:");
        for (number, text) in happened.iter().enumerate() {
            eprintln!("{:4} {text}", number + 1);
        }
        let again = if emulated() {
            format!("CORAX_OPERATIONS={operations} CORAX_SEED={seed} netns-tests/vm/run chaos")
        } else {
            format!("scripts/soak chaos {operations} --seed {seed}")
        };
        eprintln!("again: {again}");
        resume_unwind(panic);
    }
}

fn run(operations: usize, chance: &mut Chance, happened: &mut Vec<String>) {
    let mut chaos = Chaos::start();
    let begun = Instant::now();
    // At first one of each kind, in any order.
    let mut kinds = KINDS.to_vec();
    for number in 1..=operations {
        let first = match kinds.len() {
            0 => Operation::choose(chance, &chaos.world, &chaos.lab),
            left => {
                let kind = kinds.swap_remove(chance.below(left));
                Operation::of(kind, chance, &chaos.world, &chaos.lab)
            }
        };
        let mut all = vec![first];
        while chance.below(3) == 0 {
            all.push(Operation::disturbance(chance, &chaos.world, &chaos.lab));
        }
        let texts: Vec<_> = all.iter().map(ToString::to_string).collect();
        eprint!("{number}/{operations} {}", texts.join(" + "));
        happened.push(texts.join(" + "));
        let at = Instant::now();
        chaos.happen(&all);
        eprintln!(": {:.1} s, {:.1} s in all", at.elapsed().as_secs_f32(), begun.elapsed().as_secs_f32());
    }
    happened.push("the end".to_owned());
    chaos.end();
}

impl Chaos {
    fn start() -> Self {
        let mut lab = Lab::build(plans());
        operation::foreign_nft(&lab);
        for node in lab.nodes() {
            node.space.sh(&format!("{FOREIGN}\n{FOREIGN_RULES}\n{FOREIGN_NEXTHOPS}"));
        }
        // Each node that may be a gateway is known outside by ports of its own; they may change by a hundred.
        for domain in plans().iter().filter(|plan| !plan.nat).map(|plan| plan.name) {
            for node in lab.nodes().iter().filter(|node| node.domain == domain) {
                let number = node.name.bytes().last().expect("a name") - b'0';
                let to = format!("udp dport {{ 450{number}, 460{number} }} dnat to {}:4500", node.address);
                lab.router(domain).run(&format!("nft insert rule ip nat prerouting iifname wan {to}"));
            }
        }
        lab.nodes().iter().for_each(|node| await_link_local(&node.space));
        let before = on_each(&lab, |node| everything(&node.space));
        let sites = plans().iter().map(|plan| Site {
            name: plan.name,
            nodes: lab
                .nodes()
                .iter()
                .filter(|node| node.domain == plan.name)
                .map(|node| node.name.clone())
                .collect(),
            nat: plan.nat,
            overlay: plan.mesh,
        });
        let sites = sites.collect();
        let foreign = on_each(&lab, |node| foreign(&node.space));
        let world = World::new(&lab, sites);
        lab.start_agents();
        if let Some(whose) = wireguard_asked() {
            assert_eq!(wireguard(&lab.node("cloud-1").space), whose);
        }
        let (answerers, askers) = (Answerers::start(&lab), Askers::new(&lab));
        let addresses = lab.nodes().iter().map(|node| (node.name.clone(), node.address)).collect();
        let ours = BTreeMap::new();
        let mut chaos = Self { lab, world, _answerers: answerers, askers, foreign, ours, before, addresses };
        chaos.settle();
        chaos.ours = ours_of_all(&chaos.lab);
        chaos
    }

    fn happen(&mut self, all: &[Operation]) {
        for operation in all {
            operation.act(&mut self.world, &mut self.lab);
            self.rebase(operation);
        }
        self.settle();
        if all.iter().any(Operation::changes) {
            self.ours = ours_of_all(&self.lab);
            return;
        }
        eventually("each node has what it had", SETTLED, || {
            let now = ours_of_all(&self.lab);
            let differ = |(name, was): (&String, &BTreeSet<String>)| {
                (was != &now[name]).then(|| format!("{name}:\n{}", difference(was, &now[name])))
            };
            let differing: Vec<_> = self.ours.iter().filter_map(differ).collect();
            if differing.is_empty() { Ok(()) } else { Err(differing.join("\n")) }
        });
    }

    /// The laboratory's own changes of a node's uplink are no harm done to others.
    fn rebase(&mut self, operation: &Operation) {
        let nodes: Vec<String> = match operation {
            Operation::Down(node) | Operation::Up(node) | Operation::Moved(node) => vec![node.clone()],
            Operation::Mtu(domain, _) => self.world.site_of(&format!("{domain}-1")).nodes.clone(),
            Operation::Frozen(_, _, what) | Operation::Away(_, what) => return self.rebase(what),
            _ => return,
        };
        for name in nodes {
            let space = &self.lab.node(&name).space;
            if matches!(operation, Operation::Up(_)) {
                await_link_local(space);
            }
            let uplink = |line: &&String| line.contains("eth0");
            let before = self.foreign.get_mut(&name).expect("every node's");
            let now = foreign(space);
            before.retain(|line| !uplink(&line));
            before.extend(now.iter().filter(uplink).cloned());
        }
    }

    /// Waits until everything is as it should be.
    #[track_caller]
    fn settle(&self) {
        eventually("everything is as it should be", SETTLED, || {
            let mut wrong = self.unreached();
            if wrong.is_empty() {
                wrong = self.unlike();
            }
            if wrong.is_empty() {
                wrong = self.busy();
            }
            if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
        });
    }

    /// Who does not reach whom it should, and who does whom it should not.
    fn unreached(&self) -> Vec<String> {
        let Self { lab, world, .. } = self;
        let should = |way: &Way| world.reaches(lab, way);
        let answered = self.askers.ask_all(lab, should);
        let mut wrong = Vec::new();
        for from in lab.nodes() {
            for to in lab.nodes().iter().filter(|to| to.name != from.name) {
                for (who, six) in
                    [(From::Pod, false), (From::Pod, true), (From::Node, false), (From::Node, true)]
                {
                    let way = Way { from: from.name.clone(), who, to: to.name.clone(), six };
                    let kind =
                        format!("{who:?} of {} to {}, IPv{}", from.name, to.name, if six { 6 } else { 4 });
                    match (answered.get(&way), should(&way)) {
                        (None, true) => wrong.push(format!("{kind}: no answer")),
                        (Some(_), false) => wrong.push(format!("{kind}: an answer, where there is no way")),
                        (Some(source), true) if who == From::Pod => {
                            let own = if six { from.pod6() } else { from.pod4() };
                            if *source != own {
                                wrong.push(format!("{kind}: seen as {source}"));
                            }
                        }
                        (Some(source), true)
                            if from.domain != to.domain && !six && *source != from.side4() =>
                        {
                            wrong.push(format!("{kind}: seen as {source}"));
                        }
                        _ => {}
                    }
                }
            }
        }
        wrong
    }

    /// What is not as it must be in the kernels, what agents do not tell, and what became of others' objects.
    fn unlike(&self) -> Vec<String> {
        let Self { lab, world, .. } = self;
        let told = world.told();
        let wrong = on_each(lab, |node| {
            let mut wrong = kernel::complaints(world, node);
            match ask(&node.space, "/readyz") {
                Ok((200, _)) => {}
                other => wrong.push(format!("is not ready: {other:?}")),
            }
            match ask(&node.space, "/status") {
                Ok((200, status)) => {
                    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
                    let problems: Vec<String> = status["problems"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .map(ToString::to_string)
                        .collect();
                    let is_told = |words: &&Vec<String>| {
                        problems.iter().any(|problem| words.iter().all(|word| problem.contains(word)))
                    };
                    let untold = told.iter().filter(|words| !is_told(words));
                    wrong.extend(untold.map(|words| format!("does not tell of {words:?}")));
                }
                other => wrong.push(format!("has no status: {other:?}")),
            }
            let (was, is) = (&self.foreign[&node.name], foreign(&node.space));
            if *was != is {
                wrong.push(format!("something of others is not as it was:\n{}", difference(was, &is)));
            }
            wrong
        });
        wrong
            .into_iter()
            .flat_map(|(name, wrong)| wrong.into_iter().map(move |what| format!("{name}: {what}")))
            .collect()
    }

    /// Which agents still work, where there is nothing to do.
    fn busy(&self) -> Vec<String> {
        let work = || {
            on_each(&self.lab, |node| {
                let agent = &self.lab.agents[&node.name];
                (
                    metric(&node.space, "corax_changes_total", &[]),
                    metric(&node.space, "corax_reconciles_total", &[]),
                    agent.used(),
                )
            })
        };
        let before = work();
        let watched = watched();
        std::thread::sleep(watched);
        let mut busy = Vec::new();
        for (name, (changes, turns, used)) in work() {
            let (more, again, time) =
                (changes - before[&name].0, turns - before[&name].1, used - before[&name].2);
            if more > 0.0 || again > 5.0 || time > watched / 2 {
                busy.push(format!("{name} is busy: {more} changes, {again} turns, {time:?} in {watched:?}"));
            }
        }
        busy
    }

    /// Everything is taken away: nothing of it is left.
    fn end(mut self) {
        if let Some(node) = self.world.down.clone() {
            self.lab.bring_up(&node);
        }
        for plan in plans() {
            Operation::Mtu(plan.name.to_owned(), 1500).act(&mut self.world, &mut self.lab);
        }
        for (name, address) in self.addresses {
            if self.lab.node(&name).address != address {
                self.lab.move_node(&name, address);
            }
        }
        let names: Vec<String> = self.before.keys().cloned().collect();
        for name in &names {
            await_ready(&self.lab.node(name).space);
            self.lab.end_agent(name, Signal::SIGTERM);
            self.lab.node(name).space.run(&format!("{CORAX} cleanup --state"));
        }
        for (name, was) in &self.before {
            let space = &self.lab.node(name).space;
            eventually(&format!("{name} is as it was before Corax"), SOON, || {
                let is = everything(space);
                if *was == is { Ok(()) } else { Err(difference(was, &is)) }
            });
        }
    }
}

/// Waits until the kernel has made what it makes of an uplink by itself, after that is up.
fn await_link_local(space: &Space) {
    eventually("the uplink has its link-local address", SOON, || {
        let address = space.run("ip -6 address show dev eth0 scope link");
        let routes = space.run("ip -6 route show table local dev eth0");
        let is_made = !address.contains("tentative") && routes.contains("local fe80:");
        if is_made { Ok(()) } else { Err(address + &routes) }
    });
}
