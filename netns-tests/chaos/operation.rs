//! What happens: chosen by chance among what can happen now, and done.

use std::fmt;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::drift;
use super::kernel::FOREIGN_NFT;
use super::world::{File, World, member};
use crate::agent::{CORAX, await_ready};
use crate::chance::Chance;
use crate::lab::Lab;

/// Something that happens to the cluster, or to a node of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    // Views.
    Join(String),
    Leave(String),
    Elect(String, Option<String>),
    Prefix(String, String),
    Malformed(String),
    Thief(Option<String>),
    File(String, File),
    Directory(bool),
    Keyed(String),
    Port(String),
    // Agents.
    Mesh(String),
    Restart(String, Signal),
    KilledWhileItStarts(String, u64),
    Frozen(String, u64, Box<Self>),
    Away(String, Box<Self>),
    TunnelKilled(String),
    Rebuilt(String),
    // Drift.
    Drift(String, &'static str, usize),
    // Links.
    Down(String),
    Up(String),
    Flap(String),
    Mtu(String, u16),
    Moved(String),
    Rebound(String, u16),
    // Power.
    Power(String, bool),
}

use Operation::*;

impl fmt::Display for Operation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Join(node) => write!(out, "{node} joins its domain"),
            Leave(node) => write!(out, "{node} leaves its domain"),
            Elect(domain, Some(node)) => write!(out, "{node} is elected gateway of {domain}"),
            Elect(domain, None) => write!(out, "{domain} has no active endpoint"),
            Prefix(node, prefix) => write!(out, "{prefix} of {node} comes or goes"),
            Malformed(node) => write!(out, "a malformed prefix of {node} comes or goes"),
            Thief(Some(node)) => write!(out, "another Gateway wants {node} and its pods"),
            Thief(None) => write!(out, "the Gateway that wanted more goes"),
            File(domain, file) => write!(out, "the file of {domain} is {file:?}"),
            Directory(true) => write!(out, "the directory is filled"),
            Directory(false) => write!(out, "the directory is emptied"),
            Keyed(domain) => write!(out, "the endpoint of {domain} loses its key or has it again"),
            Port(domain) => write!(out, "the endpoint of {domain} has another port"),
            Mesh(domain) => write!(out, "{domain} turns mesh off or on"),
            Restart(node, signal) => write!(out, "{node}: agent ended by {signal} and started"),
            KilledWhileItStarts(node, after) => {
                write!(out, "{node}: agent killed, killed again {after} ms after its start, and started")
            }
            Frozen(node, time, what) => write!(out, "{node}: agent stopped for {time} ms, meanwhile: {what}"),
            Away(node, what) => write!(out, "{node}: agent killed, meanwhile: {what}; then started"),
            TunnelKilled(node) => write!(out, "{node}: the tunnel's process killed"),
            Rebuilt(node) => write!(out, "{node}: agent ended, corax cleanup, agent started"),
            Drift(node, name, number) => write!(out, "{node}: {name} ({number})"),
            Down(node) => write!(out, "{node}: uplink down"),
            Up(node) => write!(out, "{node}: uplink up"),
            Flap(node) => write!(out, "{node}: uplink down and up"),
            Mtu(domain, mtu) => write!(out, "underlay of {domain} with an MTU of {mtu}"),
            Moved(node) => write!(out, "{node} has another address"),
            Rebound(domain, port) => {
                write!(out, "the NAT of {domain} forgets its mappings, new ones from {port}")
            }
            Power(node, true) => {
                write!(out, "{node}: power cut; boots with nobody to ask, later with its manifests")
            }
            Power(node, false) => write!(out, "{node}: power cut; boots"),
        }
    }
}

/// What can happen of a kind now, if anything of it can.
pub type Kind = fn(&mut Chance, &World, &Lab) -> Option<Operation>;

/// All kinds: views, agents, drift, links, power.
pub const KINDS: [Kind; 5] = [view, agent, drift, link, power];

impl Operation {
    /// Whether what agents must make of it differs from before.
    pub fn changes(&self) -> bool {
        match self {
            Frozen(_, _, what) | Away(_, what) => what.changes(),
            Restart(..)
            | KilledWhileItStarts(..)
            | TunnelKilled(_)
            | Rebuilt(_)
            | Drift(..)
            | Flap(_)
            | Rebound(..)
            | Power(..) => false,
            _ => true,
        }
    }

    /// Something that can happen now.
    pub fn choose(chance: &mut Chance, world: &World, lab: &Lab) -> Self {
        loop {
            let chosen = match chance.below(10) {
                0..=3 => view(chance, world, lab),
                4 | 5 => agent(chance, world, lab),
                6 | 7 => disturbance(chance, world, lab),
                8 => link(chance, world, lab),
                _ => power(chance, world, lab),
            };
            if let Some(operation) = chosen {
                return operation;
            }
        }
    }

    /// Something of a kind.
    pub fn of(kind: Kind, chance: &mut Chance, world: &World, lab: &Lab) -> Self {
        loop {
            if let Some(operation) = kind(chance, world, lab) {
                return operation;
            }
        }
    }

    /// Something that changes nothing for long, on top of what else happens.
    pub fn disturbance(chance: &mut Chance, world: &World, lab: &Lab) -> Self {
        Self::of(disturbance, chance, world, lab)
    }

    /// Does it.
    pub fn act(&self, world: &mut World, lab: &mut Lab) {
        match self {
            Join(node) => {
                let domain = world.site_of(node).name;
                let member = member(lab.node(node));
                world.asked.get_mut(domain).expect("asked").members.insert(node.clone(), member);
            }
            Leave(node) => {
                let domain = world.site_of(node).name;
                world.asked.get_mut(domain).expect("asked").members.remove(node);
            }
            Elect(domain, node) => world.asked.get_mut(domain).expect("asked").active.clone_from(node),
            Prefix(node, prefix) => {
                let prefixes = &mut member_of(world, node).prefixes;
                if !prefixes.remove(prefix) {
                    prefixes.insert(prefix.clone());
                }
            }
            Malformed(node) => member_of(world, node).malformed ^= true,
            Thief(victim) => world.thief.clone_from(victim),
            File(domain, file) => drop(world.files.insert(domain.clone(), *file)),
            Directory(filled) => world.filled = *filled,
            Keyed(domain) => world.asked.get_mut(domain).expect("asked").keyed ^= true,
            Port(domain) => {
                let gateway = world.asked.get_mut(domain).expect("asked");
                gateway.port = if gateway.port == 4500 { 4600 } else { 4500 };
            }
            Mesh(domain) => {
                let on = !world.mesh.remove(domain) && world.mesh.insert(domain.clone());
                lab.set_mesh(domain, on);
                for node in world.site_of(&format!("{domain}-1")).nodes.clone() {
                    restart(lab, &node, Signal::SIGTERM);
                }
            }
            Restart(node, signal) => restart(lab, node, *signal),
            KilledWhileItStarts(node, after) => {
                restart(lab, node, Signal::SIGKILL);
                std::thread::sleep(Duration::from_millis(*after));
                restart(lab, node, Signal::SIGKILL);
            }
            Frozen(node, time, what) => {
                lab.agents[node].signal(Signal::SIGSTOP);
                what.act(world, lab);
                std::thread::sleep(Duration::from_millis(*time));
                lab.agents[node].signal(Signal::SIGCONT);
            }
            Away(node, what) => {
                lab.end_agent(node, Signal::SIGKILL);
                what.act(world, lab);
                lab.start_agent(node, &[]);
            }
            TunnelKilled(node) => kill_tunnel(lab, node),
            Rebuilt(node) => {
                lab.end_agent(node, Signal::SIGTERM);
                lab.node(node).space.run(&format!("{CORAX} cleanup"));
                lab.start_agent(node, &[]);
            }
            Drift(node, name, number) => drop(lab.node(node).space.sh(&drift::script(name, *number))),
            Down(node) => {
                lab.node(node).space.ip("link set eth0 down");
                world.down = Some(node.clone());
            }
            Up(node) => {
                lab.bring_up(node);
                world.down = None;
            }
            Flap(node) => {
                lab.node(node).space.ip("link set eth0 down");
                lab.bring_up(node);
            }
            Mtu(domain, mtu) => {
                lab.router(domain).ip(&format!("link set lan mtu {mtu}"));
                for node in lab.nodes().iter().filter(|node| node.domain == *domain) {
                    node.space.ip(&format!("link set eth0 mtu {mtu}"));
                }
            }
            Moved(node) => {
                let Some(std::net::IpAddr::V4(now)) = Some(lab.node(node).address) else { return };
                let [a, b, c, d] = now.octets();
                let next = [a, b, c, if d > 100 { d - 100 } else { d + 100 }];
                lab.move_node(node, next.into());
                member_of(world, node).address = lab.node(node).address.to_string();
            }
            Rebound(domain, port) => lab.rebind(domain, *port),
            Power(node, alone) => {
                lab.end_agent(node, Signal::SIGKILL);
                kill_tunnel(lab, node);
                power_cut(lab, node);
                if *alone {
                    let nowhere = lab.scratch().join("nowhere");
                    lab.start_agent_from(node, &nowhere, &[]);
                    await_ready(&lab.node(node).space);
                    restart(lab, node, Signal::SIGTERM);
                } else {
                    lab.start_agent(node, &[]);
                }
            }
        }
        let view = matches!(
            self,
            Join(_)
                | Leave(_)
                | Elect(..)
                | Prefix(..)
                | Malformed(_)
                | Thief(_)
                | File(..)
                | Directory(_)
                | Keyed(_)
                | Port(_)
                | Moved(_)
        );
        if view {
            world.write(lab);
        }
    }
}

fn member_of<'a>(world: &'a mut World, node: &str) -> &'a mut super::world::Member {
    let domain = world.site_of(node).name;
    world.asked.get_mut(domain).and_then(|gateway| gateway.members.get_mut(node)).expect("it is a member")
}

fn restart(lab: &mut Lab, node: &str, signal: Signal) {
    lab.end_agent(node, signal);
    lab.start_agent(node, &[]);
}

fn kill_tunnel(lab: &Lab, node: &str) {
    lab.node(node).space.sh("for pid in $(pgrep -f '[c]orax tunnel'); do kill -9 $pid; done");
}

/// All of Corax's that does not outlive the kernel goes; the rest of the node is as its boot makes it.
fn power_cut(lab: &Lab, node: &str) {
    let space = &lab.node(node).space;
    space.sh("ip link del raven-wg0 2>/dev/null; ip link del raven0 2>/dev/null
        for f in -4 -6; do ip $f rule flush protocol 90; ip $f route flush table all protocol 90; done
        ip nexthop flush protocol 90; nft delete table inet corax 2>/dev/null
        rm -rf /run/corax /run/wireguard; conntrack -F 2>/dev/null; true");
}

/// What of others is made by nft, on a node that has none of it yet.
pub fn foreign_nft(lab: &Lab) {
    for node in lab.nodes() {
        node.space.nft(FOREIGN_NFT);
    }
}

fn node(chance: &mut Chance, lab: &Lab) -> String {
    let at = chance.below(lab.nodes().len());
    lab.nodes()[at].name.clone()
}

/// A change of what the Gateways say.
fn view(chance: &mut Chance, world: &World, lab: &Lab) -> Option<Operation> {
    if !world.filled {
        return Some(Directory(true));
    }
    let node = node(chance, lab);
    let site = world.site_of(&node);
    let domain = site.name.to_owned();
    let gateway = &world.asked[&domain];
    let member = gateway.members.get(&node);
    let file = world.files[&domain];
    // Who is wanted by another stays as it is, and so does what nobody can read.
    let settled =
        file == File::Good && world.thief.as_ref().is_none_or(|victim| world.site_of(victim).name != domain);
    let chosen = match chance.below(13) {
        0 if file != File::Good => File(domain, File::Good),
        1 if settled => File(domain, *chance.of(&[File::Torn, File::Gone])),
        2 => Directory(false),
        3 if world.thief.is_some() => Thief(None),
        4 if settled && world.thief.is_none() && whole(world, &node) => Thief(Some(node)),
        _ if !settled => return None,
        5 | 6 if member.is_none() => Join(node),
        5 if chance.below(2) == 0 => Leave(node),
        7 | 8 => {
            let nodes: Vec<_> = site.nodes.iter().map(|node| Some(node.clone())).chain([None]).collect();
            let elected = chance.of(&nodes).clone();
            (elected != gateway.active).then_some(Elect(domain, elected))?
        }
        9 if member.is_some() => {
            let lab_node = lab.node(&node);
            let more = format!(
                "10.150.{}.0/24",
                lab_node
                    .side4()
                    .to_string()
                    .split('.')
                    .nth(1)
                    .and_then(|part| part.parse::<u8>().ok())
                    .expect("of the laboratory")
            );
            let more = more
                .replace(".0/24", &format!(".{}/26", 64 * (lab_node.name.bytes().last().unwrap_or(0) % 4)));
            let prefix = chance.of(&[lab_node.pods4(), lab_node.pods6(), more.clone(), more]).clone();
            Prefix(node, prefix)
        }
        10 if member.is_some() => Malformed(node),
        11 => Keyed(domain),
        12 if !gateway.nat => Port(domain),
        _ => return None,
    };
    Some(chosen)
}

/// Whether a node has its pods, as far as agents know.
fn whole(world: &World, node: &str) -> bool {
    let asked = world.asked[world.site_of(node).name].members.get(node);
    let known = world.domain_of(node).map(|(_, gateway)| &gateway.members[node]);
    asked.is_some_and(|member| !member.malformed && Some(member) == known && !member.prefixes.is_empty())
}

/// What becomes of an agent, or of its tunnel.
fn agent(chance: &mut Chance, world: &World, lab: &Lab) -> Option<Operation> {
    let node = node(chance, lab);
    let meanwhile = |chance: &mut Chance| match chance.below(2) {
        0 => view(chance, world, lab),
        _ => Some(Drift(node.clone(), drift::choose(chance, world.is_gateway(&node)), chance.below(1000))),
    };
    Some(match chance.below(8) {
        0 => Restart(node, *chance.of(&[Signal::SIGTERM, Signal::SIGKILL])),
        1 => KilledWhileItStarts(node, chance.below(300) as u64),
        2 | 3 => Frozen(node.clone(), 100 + chance.below(900) as u64, Box::new(meanwhile(chance)?)),
        4 | 5 => Away(node.clone(), Box::new(meanwhile(chance)?)),
        6 => Rebuilt(node),
        _ => {
            let overlay: Vec<_> = world.sites.iter().filter(|site| site.overlay).collect();
            Mesh(chance.of(&overlay).name.to_owned())
        }
    })
}

/// What changes nothing for long.
fn disturbance(chance: &mut Chance, world: &World, lab: &Lab) -> Option<Operation> {
    let node = node(chance, lab);
    let gateway = world.is_gateway(&node);
    Some(match chance.below(12) {
        0 => Restart(node, *chance.of(&[Signal::SIGTERM, Signal::SIGKILL])),
        1 if gateway => TunnelKilled(node),
        2 if world.down.as_ref() != Some(&node) => Flap(node),
        3.. => return drift(chance, world, lab),
        _ => return None,
    })
}

fn drift(chance: &mut Chance, world: &World, lab: &Lab) -> Option<Operation> {
    let node = node(chance, lab);
    let name = drift::choose(chance, world.is_gateway(&node));
    Some(Drift(node, name, chance.below(1000)))
}

fn link(chance: &mut Chance, world: &World, lab: &Lab) -> Option<Operation> {
    if let Some(node) = world.down.clone() {
        return Some(Up(node));
    }
    let node = node(chance, lab);
    let site = world.site_of(&node);
    let settled = world.filled && world.files[site.name] == File::Good && world.thief.is_none();
    Some(match chance.below(5) {
        0 => Down(node),
        1 => Flap(node),
        2 => Mtu(site.name.to_owned(), *chance.of(&[1400, 1450, 1500])),
        // In the others it is the CNI's routes that would have to follow.
        3 if site.overlay && settled && world.asked[site.name].members.contains_key(&node) => Moved(node),
        4 if site.nat => Rebound(site.name.to_owned(), 20_000 + 200 * chance.below(100) as u16),
        _ => return None,
    })
}

fn power(chance: &mut Chance, world: &World, lab: &Lab) -> Option<Operation> {
    let node = node(chance, lab);
    let up = world.down.as_ref() != Some(&node);
    up.then(|| Power(node, chance.below(2) == 0))
}
