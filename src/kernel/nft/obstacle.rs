//! Chains of others that stand in the way: they let nothing through that no rule of theirs accepts, as Docker, ufw,
//! firewalld and many a hardening guide make them. Corax never writes a rule into a chain of others; it says what to write.

use std::collections::BTreeMap;
use std::sync::Arc;

use corax_core::object::{ALIAS, VXLAN_PORT};
use corax_core::prefix::Family;
use corax_core::problem::Problem;

use super::super::error::Failure;
use super::super::facts::UdpPort;
use super::super::socket::Socket;
use super::filter::{self, Chain, Hook, Rules};
use super::legacy;

const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// A chain that may drop what Corax needs to have let through.
#[derive(Clone, Debug)]
pub(super) struct Obstacle {
    /// Its family, as nft calls it.
    family: &'static str,
    table: String,
    name: String,
    hook: Hook,
    /// The program of iptables that it is kept with.
    program: Option<&'static str>,
    rules: Arc<Rules>,
}

/// Chains of others that may drop what is on its way between domains, or to this node.
pub(super) fn obstacles(socket: &mut Socket) -> Result<Vec<Obstacle>, Failure> {
    let mut tables = BTreeMap::new();
    let mut obstacles = Vec::new();
    for chain in filter::chains(socket)? {
        let family = match chain.family {
            NFPROTO_INET => "inet",
            NFPROTO_IPV4 => "ip",
            NFPROTO_IPV6 => "ip6",
            _ => continue,
        };
        if (family, &*chain.table) == ("inet", ALIAS) {
            continue;
        }
        let key = (chain.family, chain.table.clone());
        let rules = match tables.get(&key) {
            Some(rules) => Arc::clone(rules),
            None => {
                let rules = Arc::new(filter::rules(socket, chain.family, &chain.table)?);
                tables.insert(key, rules.clone());
                rules
            }
        };
        let stands = match chain.hook {
            Hook::Prerouting => rules.looks_back(&chain),
            Hook::Forward => rules.closes(&chain) && !rules.devices,
            Hook::Input | Hook::Output => rules.closes(&chain),
        };
        if stands {
            let program = program(family, &chain);
            let Chain { table, name, hook, .. } = chain;
            obstacles.push(Obstacle { family, table, name, hook, program, rules });
        }
    }
    Ok(obstacles)
}

/// The same of iptables' old kind, and why that could not be read.
pub(super) fn legacy() -> (Vec<Obstacle>, Vec<Problem>) {
    let (mut obstacles, mut unread) = (Vec::new(), Vec::new());
    for (family, save, program) in [
        ("ip", "iptables-legacy-save", "iptables-legacy"),
        ("ip6", "ip6tables-legacy-save", "ip6tables-legacy"),
    ] {
        let filter = match legacy::read(family, save) {
            None => continue,
            Some(Ok(filter)) => filter,
            Some(Err(why)) => {
                let what =
                    format!("may drop what is on its way between domains; {save}, which would tell: {why}");
                let remedy = format!("put {save} where the agent finds it, or see to the rules yourself");
                unread.push(Problem::new(format!("table filter of {program}"), what, remedy));
                continue;
            }
        };
        let rules = Arc::new(Rules::naming(filter.devices, filter.ports));
        for name in filter.closed {
            let hook = match &*name {
                "INPUT" => Hook::Input,
                "OUTPUT" => Hook::Output,
                _ => Hook::Forward,
            };
            if hook != Hook::Forward || !filter.devices {
                let (table, rules) = ("filter".to_owned(), rules.clone());
                obstacles.push(Obstacle { family, table, name, hook, program: Some(program), rules });
            }
        }
    }
    (obstacles, unread)
}

/// The program that a chain of iptables is kept with.
fn program(family: &str, chain: &Chain) -> Option<&'static str> {
    let known = chain.table == "filter" && ["INPUT", "FORWARD", "OUTPUT"].contains(&chain.name.as_str());
    match family {
        "ip" if known => Some("iptables"),
        "ip6" if known => Some("ip6tables"),
        _ => None,
    }
}

impl Obstacle {
    /// What it is to a node that speaks by these UDP ports, if anything.
    pub(super) fn problem(&self, ports: &[UdpPort]) -> Option<Problem> {
        let devices = |which| format!("{which} 'raven*' accept");
        match self.hook {
            Hook::Forward => {
                let what = "drops what no rule of it accepts, and none names Corax's devices: packets between domains may end here";
                let rules = match self.program {
                    Some(_) => ["-i raven+ -j ACCEPT".to_owned(), "-o raven+ -j ACCEPT".to_owned()],
                    None => ["iifname", "oifname"].map(devices),
                };
                Some(self.say(what.to_owned(), &rules))
            }
            Hook::Prerouting => {
                let what = "drops by the way back to a source, which for what leaves a tunnel or the overlay may be another one";
                Some(self.say(what.to_owned(), &[devices("iifname")]))
            }
            Hook::Input | Hook::Output => {
                let concerns = |family| match self.family {
                    "ip" => family == Family::V4,
                    "ip6" => family == Family::V6,
                    _ => true,
                };
                let mut missing: Vec<u16> = (ports.iter())
                    .filter(|port| self.hook == Hook::Output || port.spoken_to)
                    .filter(|port| concerns(port.family) && !self.rules.names(port.number))
                    .map(|port| port.number)
                    .collect();
                missing.sort_unstable();
                missing.dedup();
                let named = |port: &u16| {
                    format!("UDP port {port} ({})", if *port == VXLAN_PORT { "VXLAN" } else { "the tunnel" })
                };
                let ports: Vec<String> = missing.iter().map(named).collect();
                let what = format!(
                    "drops what no rule of it accepts, and none names {}: {}",
                    ports.join(" and "),
                    match self.hook {
                        Hook::Input => "other nodes may not reach this one",
                        _ => "this node may not reach others",
                    }
                );
                let rules = missing.iter().map(|port| {
                    // A tunnel sends from its own port to those of others.
                    let own = self.hook == Hook::Output && *port != VXLAN_PORT;
                    let end = if own { "sport" } else { "dport" };
                    match self.program {
                        Some(_) => format!("-p udp --{end} {port} -j ACCEPT"),
                        None => format!("udp {end} {port} accept"),
                    }
                });
                let rules: Vec<String> = rules.collect();
                (!rules.is_empty()).then(|| self.say(what, &rules))
            }
        }
    }

    fn say(&self, what: String, rules: &[String]) -> Problem {
        let Self { family, table, name, .. } = self;
        let lines = rules.iter().map(|rule| match self.program {
            Some(program) => format!("{program} -I {name} {rule}"),
            None => format!("nft insert rule {family} {table} {name} {rule}"),
        });
        let remedy = lines.collect::<Vec<_>>().join("; ");
        let object = match self.program {
            Some(program) if program.ends_with("legacy") => format!("chain {name} of {program}"),
            _ => format!("chain {name} of nftables table {family} {table}"),
        };
        Problem::new(object, what + "; the firewall that made it should be told as well", remedy)
    }
}
