//! Isolated networks to test in: routers, nodes, pods, and what other software would do there.
//!
//! ```text
//!                internet
//!        198.18.0.1 │ │ 198.18.1.1
//!                   │ └──────────────┐
//!   cloud 1:1 to -1 │           site │ NAT
//!    172.16.0.0/24 ─┤    192.168.1.0/24      every NATed domain has these addresses
//!  cloud-1 cloud-2 …      site-1 site-2 …
//!    .11     .12           .11    .12        each with a pod behind a bridge
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::agent::{Agent, CORAX, await_ready, tail, wireguard_asked};
use crate::await_::eventually;
use crate::manifests;
use crate::space::Space;
use crate::traffic::{PORT, Server, fetch};

/// What a domain should look like.
#[derive(Clone)]
pub struct Plan {
    /// The domain's name.
    pub name: &'static str,
    nodes: u8,
    /// Whether it is behind a NAT.
    pub nat: bool,
    /// Whether members reach each other's pods over the overlay alone.
    pub mesh: bool,
    ipv6: bool,
}

impl Plan {
    /// A domain whose gateway, its first node, has a public address.
    pub const fn public(name: &'static str, nodes: u8) -> Self {
        Self { name, nodes, nat: false, mesh: false, ipv6: false }
    }

    /// A domain behind a NAT.
    pub const fn nat(name: &'static str, nodes: u8) -> Self {
        Self { name, nodes, nat: true, mesh: false, ipv6: false }
    }

    /// Members reach each other's pods over the overlay.
    pub const fn mesh(mut self) -> Self {
        self.mesh = true;
        self
    }

    /// The underlay is IPv6, routed and without NAT.
    pub const fn over_ipv6(mut self) -> Self {
        self.ipv6 = true;
        self
    }
}

/// A node and its pod.
pub struct Node {
    /// Name of the Node object.
    pub name: String,
    /// Name of its domain.
    pub domain: &'static str,
    /// The node itself.
    pub space: Space,
    /// Its pod.
    pub pod: Space,
    /// Its address on the underlay.
    pub address: IpAddr,
    mesh: bool,
    network: u8,
    number: u8,
    server: Option<Server>,
}

impl Node {
    /// The pod's IPv4 address.
    pub const fn pod4(&self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 100 + self.network, self.number, 10))
    }

    /// The pod's IPv6 address.
    pub fn pod6(&self) -> IpAddr {
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, self.network.into(), self.number.into(), 0, 0, 0, 0x10))
    }

    /// Pods of the node, IPv4.
    pub fn pods4(&self) -> String {
        format!("10.{}.{}.0/24", 100 + self.network, self.number)
    }

    /// Pods of the node, IPv6.
    pub fn pods6(&self) -> String {
        format!("fd00:10:{:x}:{:x}::/64", self.network, self.number)
    }

    /// The address of the bridge that the pod is behind.
    pub const fn bridge4(&self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 100 + self.network, self.number, 1))
    }

    /// The node's pod-side IPv4 address: the first of its pods.
    pub const fn side4(&self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 100 + self.network, self.number, 0))
    }

    fn mac(&self) -> String {
        format!("02:00:00:00:00:{}", 10 + self.number)
    }

    fn link_local(&self) -> String {
        format!("fe80::ff:fe00:{}", 10 + self.number)
    }
}

/// The whole of it. Falls with the value, or with the process.
pub struct Lab {
    /// Gateway objects by name, as they are to be written.
    pub gateways: BTreeMap<String, Value>,
    /// Agents by node.
    pub agents: BTreeMap<String, Agent>,
    /// The program that agents are started from.
    pub binary: PathBuf,
    nodes: Vec<Node>,
    routers: BTreeMap<&'static str, Space>,
    internet: Space,
    directory: TempDir,
    plans: Vec<Plan>,
}

impl Lab {
    /// Builds networks and pods; no Gateway is written and no agent runs.
    pub fn build(plans: &[Plan]) -> Self {
        let internet = Space::new("internet");
        internet.set("ipv4/ip_forward", "1");
        internet.set("ipv6/conf/all/forwarding", "1");
        let mut lab = Self {
            gateways: BTreeMap::new(),
            agents: BTreeMap::new(),
            binary: PathBuf::from(CORAX),
            nodes: Vec::new(),
            routers: BTreeMap::new(),
            internet,
            directory: TempDir::with_prefix("corax-netns-").expect("a directory for the test"),
            plans: plans.to_vec(),
        };
        std::fs::create_dir(lab.source()).expect("an empty directory");
        for (network, plan) in (0..).zip(plans) {
            lab.build_domain(network, plan);
        }
        lab
    }

    /// Builds, writes the Gateways, starts an agent on every node and waits until all are ready.
    pub fn start(plans: &[Plan]) -> Self {
        let mut lab = Self::build(plans);
        lab.declare();
        lab.write();
        lab.start_agents();
        lab
    }

    /// Starts an agent on every node and waits until all are ready.
    pub fn start_agents(&mut self) {
        for name in self.names() {
            self.start_agent(&name, &[]);
        }
        for node in &self.nodes {
            await_ready(&node.space);
        }
    }

    /// Starts agents on some nodes; waits for none.
    pub fn start_agents_of(&mut self, names: &[&str]) {
        for name in names {
            self.start_agent(name, &[]);
        }
    }

    /// Starts the agent of a node with further options.
    pub fn start_agent(&mut self, name: &str, options: &[&str]) {
        self.start_agent_from(name, &self.source(), options);
    }

    /// As [`Lab::start_agent`], with Gateways of another directory.
    pub fn start_agent_from(&mut self, name: &str, source: &Path, options: &[&str]) {
        let node = self.node(name);
        let mut all: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        if node.mesh {
            all.push("--mesh".to_owned());
        }
        if let Some(whose) = wireguard_asked().filter(|_| !options.contains(&"--wireguard")) {
            all.extend(["--wireguard".to_owned(), whose]);
        }
        all.extend(
            ["--service-cidr", "10.96.0.0/16", "--service-cidr", "fd00:10:96::/112"].map(str::to_owned),
        );
        let agent = Agent::start(&node.space, &self.binary, name, source, &self.log(name), &all);
        self.agents.insert(name.to_owned(), agent);
    }

    /// Ends the agent of a node.
    pub fn end_agent(&mut self, name: &str, signal: nix::sys::signal::Signal) {
        self.agents.remove(name).expect("it runs").end(signal);
    }

    /// Takes from a node what a power cut does: its agent, and all that Corax has in the kernel.
    pub fn lose_power(&mut self, name: &str) {
        self.end_agent(name, nix::sys::signal::Signal::SIGKILL);
        self.node(name).space.sh("for pid in $(pgrep -f '[c]orax tunnel'); do kill -9 $pid; done
             ip link del raven0; ip link del raven-wg0 2>/dev/null; nft delete table inet corax
             for t in 9026 9027 9028 9029; do ip route flush table $t; ip -6 route flush table $t; done 2>/dev/null
             for f in -4 -6; do ip $f rule flush; ip $f rule add lookup main prio 32766; done
             ip nexthop flush; ip rule add lookup default prio 32767; rm -rf /run/wireguard/*");
    }

    /// Sends a signal to the agent of a node.
    pub fn signal_agent(&self, name: &str, signal: nix::sys::signal::Signal) {
        self.agents.get(name).expect("it runs").signal(signal);
    }

    /// What is made while a node has no table of ours: its agent is held meanwhile.
    pub fn without_table<T>(&self, name: &str, make: impl FnOnce() -> T) -> T {
        self.signal_agent(name, nix::sys::signal::Signal::SIGSTOP);
        self.node(name).space.run("nft delete table inet corax");
        let made = make();
        self.signal_agent(name, nix::sys::signal::Signal::SIGCONT);
        made
    }

    /// Whether the agents of a domain are started with `--mesh`.
    pub fn set_mesh(&mut self, domain: &str, mesh: bool) {
        for node in self.nodes.iter_mut().filter(|node| node.domain == domain) {
            node.mesh = mesh;
        }
    }

    /// Gives a node another address, as DHCP may. Nobody else knows.
    pub fn move_node(&mut self, name: &str, address: IpAddr) {
        let node = self.nodes.iter_mut().find(|node| node.name == name).expect("a node");
        node.space.ip(&format!("address flush dev eth0 scope global\naddress add {address}/24 dev eth0"));
        node.address = address;
        self.bring_up(name);
    }

    /// Brings a node's uplink up, with the routes that it took along when it went down.
    pub fn bring_up(&self, name: &str) {
        let node = self.node(name);
        let plan = self.plans.iter().find(|plan| plan.name == node.domain).expect("a domain");
        node.space.ip("link set eth0 up\nroute replace default via fe80::1 dev eth0");
        if let IpAddr::V4(address) = node.address {
            let [a, b, c, _] = address.octets();
            node.space.ip(&format!("route replace default via {a}.{b}.{c}.254"));
        }
        if !plan.mesh {
            for other in self.nodes.iter().filter(|other| other.domain == node.domain && other.name != name) {
                route_between(node, other);
            }
        }
    }

    /// A domain's NAT forgets whom it knows by which port, and gives ports from another one on.
    pub fn rebind(&self, domain: &str, port: u16) {
        self.router(domain).sh(&format!(
            "set -e
             nft 'flush chain ip nat postrouting
                  add rule ip nat postrouting oifname wan meta l4proto udp masquerade to :{port}-{}
                  add rule ip nat postrouting oifname wan masquerade'
             conntrack -F 2>/dev/null",
            port + 100
        ));
    }

    /// Makes the Gateways that a controller would.
    pub fn declare(&mut self) {
        for plan in self.plans.clone() {
            let gateway = self.gateway(&plan);
            self.gateways.insert(plan.name.to_owned(), gateway);
        }
    }

    fn gateway(&self, plan: &Plan) -> Value {
        let first = self.node(&format!("{}-1", plan.name));
        let mut endpoint = json!({
            "nodeName": first.name,
            "type": "tunnel",
            "port": 4500,
            "config": { "publicKey": first.space.run(&format!("{CORAX} key")).trim() },
        });
        if plan.nat {
            endpoint["underNAT"] = true.into();
            endpoint["natType"] = "Symmetric NAT".into();
        } else {
            endpoint["publicIP"] = self.public(plan.name).to_string().into();
        }
        let nodes: Vec<Value> = self
            .nodes
            .iter()
            .filter(|node| node.domain == plan.name)
            .map(|node| {
                json!({
                    "nodeName": node.name,
                    "privateIP": node.address.to_string(),
                    "subnets": [node.pods4(), node.pods6()],
                })
            })
            .collect();
        manifests::gateway(plan.name, &endpoint, &nodes)
    }

    /// Writes the Gateways into the directory of the agents, each in a file of its own, whole.
    pub fn write(&self) {
        for (name, gateway) in &self.gateways {
            self.write_file(&format!("{name}.json"), &gateway.to_string());
        }
    }

    /// Writes a file of the agents' directory, whole.
    pub fn write_file(&self, name: &str, text: &str) {
        let beside = self.directory.path().join("beside");
        std::fs::write(&beside, text).expect("the directory can be written");
        std::fs::rename(&beside, self.source().join(name)).expect("on the same filesystem");
    }

    /// Takes all files of the agents' directory away.
    pub fn empty(&self) {
        for file in std::fs::read_dir(self.source()).expect("the directory is there") {
            std::fs::remove_file(file.expect("it can be read").path()).expect("it was there");
        }
    }

    /// The agents' directory of Gateways.
    pub fn source(&self) -> PathBuf {
        self.directory.path().join("gateways")
    }

    /// Where captures and logs go.
    pub fn scratch(&self) -> &Path {
        self.directory.path()
    }

    /// The log of a node's agents.
    pub fn log(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.log"))
    }

    /// A node.
    pub fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|node| node.name == name).unwrap_or_else(|| panic!("no node {name}"))
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    fn names(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.name.clone()).collect()
    }

    /// The router of a domain: `lan` is a bridge, `wan` leads to the internet.
    pub fn router(&self, domain: &str) -> &Space {
        self.routers.get(domain).unwrap_or_else(|| panic!("no domain {domain}"))
    }

    /// What is between the routers; each domain's link has its name.
    pub const fn internet(&self) -> &Space {
        &self.internet
    }

    /// The address by which the internet knows a domain's gateway.
    pub fn public(&self, domain: &str) -> IpAddr {
        let (network, plan) = (0..)
            .zip(&self.plans)
            .find(|(_, plan)| plan.name == domain)
            .unwrap_or_else(|| panic!("no domain {domain}"));
        if plan.ipv6 {
            return self.node(&format!("{domain}-1")).address;
        }
        IpAddr::from([198, 18, network, 2])
    }

    /// Serves on every pod.
    pub fn serve(&mut self) {
        for node in &mut self.nodes {
            node.server.get_or_insert_with(|| Server::start(&node.pod));
        }
    }

    /// Every pod reaches every other, IPv4 and IPv6, and is known by its own address there.
    #[track_caller]
    pub fn everyone_reaches_everyone(&mut self) {
        self.serve();
        self.await_tunnels();
        let mut failures = Vec::new();
        for from in &self.nodes {
            for to in self.nodes.iter().filter(|to| to.name != from.name) {
                for (own, other) in [(from.pod4(), to.pod4()), (from.pod6(), to.pod6())] {
                    match fetch(&from.pod, SocketAddr::new(other, PORT), 100_000) {
                        Ok(seen) if seen == own => {}
                        Ok(seen) => failures.push(format!("{own} to {other}: seen as {seen}")),
                        Err(why) => failures.push(format!("{own} to {other}: {why}")),
                    }
                }
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }

    /// Waits until domains behind NATs have reached those that are not. They begin: nobody else knows where they are, and
    /// a tunnel whose other end forgot everything is made anew once what was sent by it has had no answer for 15 s.
    #[track_caller]
    pub fn await_tunnels(&self) {
        let gateways = |nat: bool| self.plans.iter().filter(move |plan| plan.nat == nat && !plan.ipv6);
        for from in gateways(true).map(|plan| self.node(&format!("{}-1", plan.name))) {
            for to in gateways(false).map(|plan| self.node(&format!("{}-1", plan.name))) {
                eventually(
                    &format!("a tunnel from {} to {}", from.name, to.name),
                    Duration::from_secs(60),
                    || from.pod.try_run(&format!("ping -n -q -c 1 -W 1 {}", to.pod4())),
                );
            }
        }
    }

    fn build_domain(&mut self, network: u8, plan: &Plan) {
        let router = Space::new(&format!("{} router", plan.name));
        router.set("ipv4/ip_forward", "1");
        router.set("ipv6/conf/all/forwarding", "1");
        let lan = if plan.nat { "192.168.1".to_owned() } else { format!("172.16.{network}") };
        self.internet.ip(&format!(
            "link add {name} type veth peer name wan netns {net}
             address add 198.18.{network}.1/30 dev {name}
             address add fd00:18:{network:x}::1/126 dev {name} nodad
             link set {name} up
             route add fd00:16:{network:x}::/64 via fd00:18:{network:x}::2",
            name = plan.name,
            net = router.net().display(),
        ));
        router.ip(&format!(
            "link add lan type bridge
             address add {lan}.254/24 dev lan
             address add fe80::1/64 dev lan nodad
             address add fd00:16:{network:x}::fe/64 dev lan nodad
             address add 198.18.{network}.2/30 dev wan
             address add fd00:18:{network:x}::2/126 dev wan nodad
             link set lan up
             link set wan up
             route add default via 198.18.{network}.1
             route add default via fd00:18:{network:x}::1",
        ));
        let one_to_one = format!(
            "chain prerouting {{
                 type nat hook prerouting priority dstnat
                 ip daddr 198.18.{network}.2 dnat to {lan}.11
             }}"
        );
        router.nft(&format!(
            "table ip nat {{
                 {}
                 chain postrouting {{
                     type nat hook postrouting priority srcnat
                     oifname wan masquerade
                 }}
             }}",
            if plan.nat { "" } else { &one_to_one }
        ));
        for number in 1..=plan.nodes {
            let node = build_node(network, number, plan, &router, &lan);
            self.nodes.push(node);
        }
        if !plan.mesh {
            let domain: Vec<&Node> = self.nodes.iter().filter(|node| node.domain == plan.name).collect();
            for node in &domain {
                for other in domain.iter().filter(|other| other.name != node.name) {
                    route_between(node, other);
                }
            }
        }
        self.routers.insert(plan.name, router);
    }
}

fn build_node(network: u8, number: u8, plan: &Plan, router: &Space, lan: &str) -> Node {
    let name = format!("{}-{number}", plan.name);
    let (space, pod) = (Space::new(&name), Space::new(&format!("pod of {name}")));
    let address = if plan.ipv6 {
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0x16, network.into(), 0, 0, 0, 0, 0x10 + u16::from(number)))
    } else {
        format!("{lan}.{}", 10 + number).parse().expect("an address")
    };
    let node =
        Node { name, domain: plan.name, space, pod, address, mesh: plan.mesh, network, number, server: None };
    router.ip(&format!(
        "link add node{number} type veth peer name eth0 netns {}
         link set node{number} master lan up",
        node.space.net().display()
    ));
    let nodad = if plan.ipv6 { " nodad" } else { "" };
    let (length, gateway) = if plan.ipv6 { (64, "fe80::1 dev eth0") } else { (24, &*format!("{lan}.254")) };
    let (bridge4, bridge6) = (node.bridge4(), node.pods6().replace("::/64", "::1"));
    node.space.ip(&format!(
        "link set eth0 address {mac} up
         address add {address}/{length} dev eth0{nodad}
         route add default via {gateway}
         link add cni0 type bridge
         address add {bridge4}/24 dev cni0
         address add {bridge6}/64 dev cni0 nodad
         link set cni0 up
         link add pod type veth peer name eth0 netns {net}
         link set pod master cni0 up",
        mac = node.mac(),
        net = node.pod.net().display(),
    ));
    if !plan.ipv6 {
        node.space.ip("route add default via fe80::1 dev eth0");
    }
    node.pod.ip(&format!(
        "address add {}/24 dev eth0
         address add {}/64 dev eth0 nodad
         link set eth0 up
         route add default via {bridge4}
         route add default via {bridge6}",
        node.pod4(),
        node.pod6()
    ));
    node.space.set("ipv4/ip_forward", "1");
    node.space.set("ipv6/conf/all/forwarding", "1");
    masquerade(&node, plan);
    node
}

/// The source of what leaves the domain replaced, as CNIs do.
fn masquerade(node: &Node, plan: &Plan) {
    let (inside4, inside6) = if plan.mesh {
        (node.pods4(), node.pods6())
    } else {
        (format!("10.{}.0.0/16", 100 + node.network), format!("fd00:10:{:x}::/48", node.network))
    };
    node.space.nft(&format!(
        "table inet cni {{
             chain postrouting {{
                 type nat hook postrouting priority srcnat
                 ip saddr {} ip daddr != {{ {inside4}, 224.0.0.0/4 }} masquerade
                 ip6 saddr {} ip6 daddr != {{ {inside6}, ff00::/8 }} masquerade
             }}
         }}",
        node.pods4(),
        node.pods6()
    ));
}

/// A CNI's route to another node of the domain. IPv6 pods over IPv4 nodes: by link-local addresses.
fn route_between(node: &Node, other: &Node) {
    let side = node.pods6().replace("::/64", "::1");
    let via4 = if other.address.is_ipv4() {
        format!("via {}", other.address)
    } else {
        format!("via inet6 {} dev eth0", other.link_local())
    };
    node.space.ip(&format!(
        "route replace {} {via4}
         route replace {} via {} dev eth0 src {side}",
        other.pods4(),
        other.pods6(),
        other.link_local()
    ));
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in self.names() {
                let text = tail(&self.log(&name), 12);
                if !text.is_empty() {
                    eprintln!("--- log of the agent on {name}\n{text}");
                }
            }
        }
    }
}
