//! The model: what the Gateways say, what an agent that has read them must know, and who must reach whom then. It knows
//! nothing of how Corax does it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::reach::Way;
use crate::agent::CORAX;
use crate::lab::{Lab, Node};

/// The domain that exists on paper: each view has another prefix there, so that it can be seen which is applied.
const PAPER: &str = "paper";

/// A member as a Gateway gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub address: String,
    pub prefixes: BTreeSet<String>,
    /// One of its prefixes is no prefix.
    pub malformed: bool,
}

/// A Gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    pub members: BTreeMap<String, Member>,
    /// The node of its active endpoint.
    pub active: Option<String>,
    /// Whether the endpoint has its key.
    pub keyed: bool,
    /// What the port by which the internet knows the endpoint is beyond the number of its node.
    pub port: u16,
    pub nat: bool,
}

impl Gateway {
    /// The node that carries the domain's traffic.
    pub fn gateway(&self) -> Option<&String> {
        self.active.as_ref().filter(|node| self.members.contains_key(*node))
    }

    /// Whether a tunnel can lead to it.
    fn usable(&self) -> bool {
        self.keyed && self.gateway().is_some()
    }

    /// Prefixes of all members.
    pub fn prefixes(&self) -> impl Iterator<Item = &String> {
        self.members.values().flat_map(|member| &member.prefixes)
    }
}

/// How a file of the directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    Good,
    Torn,
    Gone,
}

/// What a domain of the laboratory always is.
pub struct Site {
    pub name: &'static str,
    pub nodes: Vec<String>,
    pub nat: bool,
    /// Its nodes reach each other's pods by Corax alone.
    pub overlay: bool,
}

pub struct World {
    pub sites: Vec<Site>,
    /// What is asked for, by domain.
    pub asked: BTreeMap<String, Gateway>,
    pub files: BTreeMap<String, File>,
    /// The directory holds its files.
    pub filled: bool,
    /// What an agent that saw everything knows.
    pub known: BTreeMap<String, Gateway>,
    /// A Gateway on paper wants this node's pods too, and the node itself.
    pub thief: Option<String>,
    /// Domains whose agents run with `--mesh`.
    pub mesh: BTreeSet<String>,
    /// The node whose uplink is down.
    pub down: Option<String>,
    keys: BTreeMap<String, String>,
    view: u16,
}

impl World {
    pub fn new(lab: &Lab, sites: Vec<Site>) -> Self {
        let keys = lab
            .nodes()
            .iter()
            .map(|node| (node.name.clone(), node.space.run(&format!("{CORAX} key")).trim().to_owned()));
        let mut world = Self {
            asked: BTreeMap::new(),
            files: BTreeMap::new(),
            filled: true,
            known: BTreeMap::new(),
            thief: None,
            mesh: BTreeSet::new(),
            down: None,
            keys: keys.collect(),
            view: 0,
            sites: Vec::new(),
        };
        for site in sites {
            let members = site.nodes.iter().map(|name| (name.clone(), member(lab.node(name)))).collect();
            let active = site.nodes.first().cloned();
            let gateway = Gateway { members, active, keyed: true, port: 4500, nat: site.nat };
            world.asked.insert(site.name.to_owned(), gateway);
            world.files.insert(site.name.to_owned(), File::Good);
            if site.overlay {
                world.mesh.insert(site.name.to_owned());
            }
            world.sites.push(site);
        }
        world.write(lab);
        world
    }

    pub fn site_of(&self, node: &str) -> &Site {
        self.sites
            .iter()
            .find(|site| site.nodes.iter().any(|name| name == node))
            .expect("every node has a site")
    }

    /// Whether a node is a member of its domain, as far as agents know.
    pub fn is_member(&self, node: &str) -> bool {
        self.domain_of(node).is_some()
    }

    /// The domain of a node, as far as agents know.
    pub fn domain_of(&self, node: &str) -> Option<(&String, &Gateway)> {
        self.known.iter().find(|(_, gateway)| gateway.members.contains_key(node))
    }

    pub fn is_gateway(&self, node: &str) -> bool {
        self.domain_of(node)
            .is_some_and(|(_, gateway)| gateway.gateway().is_some_and(|active| active == node))
    }

    /// Writes the directory as it is asked for, the paper's file last, and takes in what becomes of it.
    pub fn write(&mut self, lab: &Lab) {
        self.view += 1;
        if !self.filled {
            return lab.empty();
        }
        let mut changed = BTreeMap::new();
        for (name, gateway) in &self.asked {
            let file = lab.source().join(format!("{name}.json"));
            let text = self.manifest(name, gateway).to_string();
            match self.files[name] {
                File::Good => {
                    lab.write_file(&format!("{name}.json"), &text);
                    changed.insert(name.clone(), known(gateway, self.known.get(name)));
                }
                File::Torn => {
                    std::fs::write(&file, &text[..text.len() / 2]).expect("the directory can be written");
                    changed.extend(self.known.get(name).map(|known| (name.clone(), known.clone())));
                }
                File::Gone => drop(std::fs::remove_file(&file)),
            }
        }
        let thief = lab.source().join("thief.json");
        match &self.thief {
            Some(victim) => {
                let gateway = self.thiefs(victim);
                lab.write_file("thief.json", &self.manifest("thief", &gateway).to_string());
                let mut known = gateway;
                known.members.remove(victim);
                let honest = |prefix: &String| prefix.starts_with("10.160.");
                known.members.values_mut().for_each(|member| member.prefixes.retain(honest));
                changed.insert("thief".to_owned(), known);
            }
            None => drop(std::fs::remove_file(&thief)),
        }
        let paper = on_paper(PAPER, &[format!("10.200.{}.0/24", self.view)]);
        lab.write_file("paper.json", &self.manifest(PAPER, &paper).to_string());
        changed.insert(PAPER.to_owned(), paper);
        self.known = changed;
    }

    fn thiefs(&self, victim: &str) -> Gateway {
        let site = &self.asked[self.site_of(victim).name];
        let mut prefixes: Vec<String> = site.members[victim].prefixes.iter().cloned().collect();
        prefixes.push("10.160.1.0/24".to_owned());
        // Of the Services.
        prefixes.push("10.96.5.0/24".to_owned());
        let mut gateway = on_paper("thief", &prefixes);
        gateway.members.insert(
            victim.to_owned(),
            Member { address: "10.77.0.9".to_owned(), ..site.members[victim].clone() },
        );
        gateway
    }

    fn manifest(&self, name: &str, gateway: &Gateway) -> Value {
        let nodes: Vec<Value> = gateway
            .members
            .iter()
            .map(|(node, member)| {
                let mut subnets: Vec<&str> = member.prefixes.iter().map(String::as_str).collect();
                if member.malformed {
                    subnets.push("10.300.0.0/24");
                }
                json!({ "nodeName": node, "privateIP": member.address, "subnets": subnets })
            })
            .collect();
        let endpoints: Vec<Value> = gateway
            .active
            .iter()
            .map(|node| {
                let mut endpoint = json!({ "nodeName": node, "type": "tunnel", "underNAT": gateway.nat });
                if gateway.nat {
                    endpoint["natType"] = "Symmetric NAT".into();
                } else {
                    endpoint["publicIP"] = self.public(name).into();
                    let number = node.bytes().last().expect("a name") - b'0';
                    endpoint["publicPort"] = (gateway.port + u16::from(number)).into();
                }
                if let (true, Some(key)) = (gateway.keyed, self.keys.get(node)) {
                    endpoint["config"] = json!({ "publicKey": key });
                }
                endpoint
            })
            .collect();
        json!({
            "apiVersion": "raven.openyurt.io/v1beta1",
            "kind": "Gateway",
            "metadata": { "name": name },
            "spec": {},
            "status": { "nodes": nodes, "activeEndpoints": endpoints },
        })
    }

    fn public(&self, name: &str) -> String {
        let at = self.sites.iter().position(|site| site.name == name).expect("a domain of the laboratory");
        format!("198.18.{at}.2")
    }

    /// Domains that a node's domain has a way to, as far as the Gateways allow it.
    pub fn reached<'a>(&'a self, own: &'a str) -> impl Iterator<Item = &'a String> {
        self.known.keys().filter(move |other| *other != own && self.route(own, other).is_some())
    }

    /// The gateways between two domains, of the first, of the second, and of a relay.
    fn route(&self, from: &str, to: &str) -> Option<Vec<&String>> {
        let (one, other) = (self.known.get(from)?, self.known.get(to)?);
        let mut gateways = vec![one.gateway()?, other.gateway()?];
        if !other.usable() {
            return None;
        }
        if one.nat && other.nat {
            gateways.push(self.relay()?);
        }
        Some(gateways)
    }

    /// Raven's: of the public gateways the last by node name.
    fn relay(&self) -> Option<&String> {
        self.known
            .values()
            .filter(|gateway| !gateway.nat && gateway.usable())
            .filter_map(Gateway::gateway)
            .max()
    }

    /// Whether a packet, and the answer to it, must arrive.
    pub fn reaches(&self, lab: &Lab, way: &Way) -> bool {
        let (from, to) = (lab.node(&way.from), lab.node(&way.to));
        let is_up = |node: &str| self.down.as_deref() != Some(node);
        if !is_up(&way.from) || !is_up(&way.to) {
            return false;
        }
        if from.domain == to.domain && !self.site_of(&way.from).overlay {
            // By the CNI's routes, whatever Corax is told.
            return true;
        }
        let known = |node: &Node| {
            let prefix = if way.six { node.pods6() } else { node.pods4() };
            self.domain_of(&node.name)
                .filter(|(_, gateway)| gateway.members[&node.name].prefixes.contains(&prefix))
        };
        let (Some((one, _)), Some((other, _))) = (known(from), known(to)) else { return false };
        if one == other {
            return self.mesh.contains(from.domain);
        }
        let both = [(one, other), (other, one)];
        both.into_iter().all(|(from, to)| {
            self.route(from, to).is_some_and(|gateways| gateways.into_iter().all(|gateway| is_up(gateway)))
        })
    }

    /// What problems of every agent must be told of, in these words.
    pub fn told(&self) -> Vec<Vec<String>> {
        if !self.filled {
            return vec![vec!["holds no *.yaml".to_owned()]];
        }
        let mut told = Vec::new();
        for (name, gateway) in &self.asked {
            match self.files[name] {
                File::Good => told.extend(gateway.members.iter().filter(|(_, member)| member.malformed).map(
                    |(node, _)| vec![format!("Gateway {name}, node {node}"), "10.300.0.0/24".to_owned()],
                )),
                File::Torn => told.push(vec![format!("{name}.json")]),
                File::Gone => {}
            }
        }
        if let Some(victim) = &self.thief {
            told.push(vec![
                "Gateway thief, node thief-1, subnet 10.96.5.0/24".to_owned(),
                "Service CIDR".to_owned(),
            ]);
            if self.is_member(victim) {
                told.push(vec![format!("Gateway thief, node {victim}"), "left out here".to_owned()]);
            }
        }
        told
    }
}

/// A node as its Gateway gives it at first.
pub fn member(node: &Node) -> Member {
    Member {
        address: node.address.to_string(),
        prefixes: [node.pods4(), node.pods6()].into(),
        malformed: false,
    }
}

/// A domain of one node that nobody hears of, behind a NAT, so that it relays for nobody.
fn on_paper(name: &str, prefixes: &[String]) -> Gateway {
    let member = Member {
        address: "10.77.0.1".to_owned(),
        prefixes: prefixes.iter().cloned().collect(),
        malformed: false,
    };
    let node = format!("{name}-1");
    Gateway { members: [(node.clone(), member)].into(), active: Some(node), keyed: false, port: 0, nat: true }
}

/// What is known of a Gateway that is whole: a member without prefixes, or with one that is none, keeps those from before, an
/// endpoint without a key its key, and a Gateway without members all.
fn known(asked: &Gateway, before: Option<&Gateway>) -> Gateway {
    let mut known = asked.clone();
    if let Some(before) = before {
        if asked.members.is_empty() {
            return before.clone();
        }
        known.keyed |= before.keyed && before.active == asked.active;
    }
    let lacks = |member: &Member| member.malformed || member.prefixes.is_empty();
    for (node, member) in known.members.iter_mut().filter(|(_, member)| lacks(member)) {
        let before = before.and_then(|gateway| gateway.members.get(node));
        member.prefixes.extend(before.into_iter().flat_map(|member| member.prefixes.iter().cloned()));
    }
    known
}
