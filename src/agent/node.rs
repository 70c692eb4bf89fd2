//! One node: what it should have, what it has, and the way from one to the other. Shared by the agent and `corax plan`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::Instant;

use corax_core::change::Change;
use corax_core::desired::{Desired, Options};
use corax_core::facts::Facts;
use corax_core::kept::{self, Kept};
use corax_core::key::{PresharedKey, PublicKey};
use corax_core::name::NodeName;
use corax_core::object::{Device, LinkKind, TUNNEL_PORT, VXLAN_PORT};
use corax_core::observed::{Backend, Observed};
use corax_core::plan::plan;
use corax_core::prefix::{Family, Prefix};
use corax_core::problem::Problem;
use corax_core::raven::Gate;
use corax_core::topology::{Local, Role, Topology};
use corax_core::view::{Domain, View};
use tracing::warn;

use crate::config::{NodeArgs, TunnelStart, WireguardMode};
use crate::kernel::{ApplyError, FactsQuery, Kernel, UdpPort, port_taken};
use crate::source::Known;
use crate::wireguard::key::PrivateKey;
use crate::wireguard::userspace::Userspace;
use crate::wireguard::{self, Driver, process};

/// How often a plan is made anew after it was carried out, at most: a link that was made has more to be set on it.
const ROUNDS: usize = 6;

/// How many members are asked for by which address the node speaks to them, at most.
const ASKED: usize = 8;

/// A node's kernel, and whose WireGuard it uses.
pub(crate) struct Node {
    args: NodeArgs,
    kernel: Kernel,
    driver: Box<dyn Driver>,
    options: Options,
    /// The node's public key, if it has one yet.
    own: Option<PublicKey>,
    /// It was in no domain when all was known, and had nothing of one when it started.
    blank: bool,
    /// The endpoint of each peer that was wanted first.
    asked: BTreeMap<(Device, PublicKey), SocketAddr>,
}

/// What a node should have, and why.
#[derive(Debug, Default)]
pub(crate) struct Decision {
    /// What the view means here.
    pub topology: Topology,
    /// The kernel objects that should be.
    pub desired: Desired,
    /// What the node itself says.
    pub facts: Facts,
    /// What is not known, if not all is.
    pub incomplete: Option<Problem>,
    /// Nothing may be changed for it.
    pub held: bool,
    /// Others are told another key than the node's own.
    pub wrong_key: Option<Problem>,
}

impl Decision {
    /// All that is wrong with the view, and with what was decided of it.
    pub(crate) fn problems(&self, view: Option<&View>) -> Vec<Problem> {
        let view = view.into_iter().flat_map(|view| &view.problems);
        let topology = self.topology.problems.iter().filter(|_| !self.held);
        let own = view.chain(topology).chain(&self.facts.problems).chain(&self.incomplete).cloned();
        own.chain(self.foreign_links().map(|(problem, _)| problem)).chain(self.wrong_key.clone()).collect()
    }

    /// Devices of somebody else that have a name of ours, and whether the node lacks its own for it.
    pub(crate) fn foreign_links(&self) -> impl Iterator<Item = (Problem, bool)> {
        let role = self.topology.role;
        let foreign = self.facts.foreign_links.iter().filter(move |_| role != Role::Outside);
        foreign.map(move |(device, why)| {
            let problem = Problem::new(
                format!("link {device}"),
                format!("is not Corax's ({why}) and is left alone; nothing is sent by it"),
                format!("remove it with `ip link del {device}`, or stop what makes it"),
            );
            (problem, *device == Device::Overlay || role == Role::Gateway)
        })
    }
}

/// What came of making the kernel be as desired.
pub(crate) struct Converged {
    /// Everything that was changed, or could not be.
    pub done: Vec<Done>,
    /// When the last of it was.
    pub last: Option<Instant>,
    /// What of the kernel could not be read.
    pub unread: Vec<(Backend, Problem)>,
    /// Why the kernel may still not be so, where no change failed.
    pub unsure: Option<Problem>,
}

/// What came of a change.
pub(crate) struct Done {
    /// The change.
    pub change: Change,
    /// Why it failed, if it did.
    pub error: Option<Box<ApplyError>>,
}

impl Node {
    /// Opens the kernel's interfaces in this thread's network namespace, and reads all that is ours. A node without a key is
    /// planned for with one that is made up.
    ///
    /// # Errors
    /// Where a capability or a part of the kernel is missing.
    pub(crate) fn open(args: NodeArgs, key: Option<PrivateKey>) -> anyhow::Result<Self> {
        let own = key.as_ref().map(PrivateKey::public);
        let key = key.unwrap_or_else(PrivateKey::generate);
        let kernel = Kernel::open()?;
        let kernel_wireguard = match args.wireguard {
            WireguardMode::Userspace => false,
            WireguardMode::Kernel => {
                anyhow::ensure!(
                    wireguard::probe()?,
                    "the kernel has no WireGuard: load the module wireguard, or use --wireguard userspace"
                );
                true
            }
            WireguardMode::Auto => wireguard::probe()?,
        };
        let options = Options {
            userspace: !kernel_wireguard,
            listen: args.vpn_bind_port,
            key: key.public(),
            preshared: args.preshared(),
        };
        let driver: Box<dyn Driver> = if kernel_wireguard {
            Box::new(wireguard::kernel::Kernel::open(key)?)
        } else {
            Box::new(Userspace::new(key))
        };
        Ok(Self { args, kernel, driver, options, own, blank: false, asked: BTreeMap::new() })
    }

    /// The kernel.
    pub(crate) const fn kernel(&mut self) -> &mut Kernel {
        &mut self.kernel
    }

    /// Readable when the kernel has something to say; see [`Kernel::drain`].
    pub(crate) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.kernel.fds()
    }

    /// See [`Kernel::look_at`].
    pub(crate) fn look_at(&self) -> Option<Instant> {
        self.kernel.look_at()
    }

    /// What the kernel has of ours.
    pub(crate) fn observed(&self) -> &Observed {
        self.kernel.observed()
    }

    /// What the node says now.
    pub(crate) fn facts(&mut self, view: &View) -> Facts {
        let member = view.member(&self.args.identity.node_name);
        let gateway = member.is_some_and(|(_, domain, member)| {
            domain.gateway().is_some_and(|gateway| gateway.node == member.node)
        });
        let own = member.map(|(name, ..)| name);
        let others = view.domains.iter().filter(|(name, _)| gateway && Some(*name) != own);
        let endpoints: BTreeSet<IpAddr> =
            others.filter_map(|(_, domain)| domain.gateway()?.address).collect();
        let spoken_to = member.map(|(_, domain, member)| {
            let all = self.args.mesh || gateway;
            spoken_to(domain, &member.node, all, &self.kernel.networks())
        });
        let query = FactsQuery {
            underlay: member.map(|(_, _, member)| member.underlay),
            members: spoken_to.unwrap_or_default(),
            endpoints: endpoints.into_iter().collect(),
            ports: self.ports(view),
        };
        let mut facts = self.kernel.facts(&query);
        let six =
            || view.domains.values().flat_map(Domain::prefixes).any(|prefix| prefix.family() == Family::V6);
        facts.problems.retain(|problem| !problem.object.starts_with("net.ipv6.") || six());
        facts
    }

    /// UDP ports that the node speaks by: VXLAN's where there are other members, and a gateway's tunnel's.
    fn ports(&self, view: &View) -> Vec<UdpPort> {
        let Some((_, domain, member)) = view.member(&self.args.identity.node_name) else { return Vec::new() };
        let overlay = (domain.members.len() > 1).then_some(UdpPort {
            family: Family::of(member.underlay),
            number: VXLAN_PORT,
            spoken_to: true,
        });
        let own = domain.gateway().filter(|gateway| gateway.node == member.node);
        let tunnel = own.map(|gateway| UdpPort {
            family: Family::of(gateway.address.unwrap_or(member.underlay)),
            number: self.options.listen.or(gateway.listen).unwrap_or(TUNNEL_PORT),
            spoken_to: !gateway.under_nat,
        });
        overlay.into_iter().chain(tunnel).collect()
    }

    /// What a view asks of the node. While the view may not be complete, what is there and no domain's stays, and what was
    /// asked for `before` too. `once`: see [`Sourced`](crate::source::Sourced).
    pub(crate) fn decide(
        &mut self,
        view: &View,
        facts: Facts,
        known: Known,
        once: Option<&NodeName>,
        before: Desired,
    ) -> Decision {
        let kept = (!self.knows(known)).then(|| {
            self.read_tunnels();
            Kept::of(self.kernel.observed(), &before)
        });
        let identity = &self.args.identity;
        let local = Local {
            node: &identity.node_name,
            identity: identity.identity(),
            mesh: self.args.mesh,
            nat_traversal: self.args.nat_traversal,
            facts: &facts,
            api_servers: &self.args.api_server,
            kept: kept.as_ref(),
            steered: kept.as_ref().map(|kept| &kept.prefixes),
        };
        let mut topology = Topology::of(view, &local);
        if topology.refuses && kept.is_none() {
            let steered = kept::steered(self.kernel.observed(), &before);
            topology = Topology::of(view, &Local { steered: Some(&steered), ..local });
        }
        // The new one takes its memory.
        drop(before);
        let desired = Desired::of(&topology, &facts, &self.options);
        // Whether a Gateway names this node cannot be told; or Raven leads where nobody else would, and by one route.
        let links = &self.kernel.observed().links;
        let raven =
            links.iter().any(|(device, link)| !link.owned && !facts.foreign_links.contains_key(device));
        let outside = topology.role == Role::Outside;
        if known == Known::Once && outside && !self.blank {
            // Nothing came since. What comes of ours from now on is no view's.
            let observed = self.kernel.observed();
            self.blank = observed.unknown.is_empty() && plan(&desired, observed).is_empty();
        }
        let complete = self.knows(known);
        let held = once.is_some() || (!complete && (outside || raven));
        let incomplete = (!complete || once.is_some()).then(|| {
            if let Some(once) = once {
                let what = format!("is a member of no Gateway, and this node was one as {once}, which still is: what it has stays");
                let remedy = format!(
                    "start the agent with --node-name {once}; where it is another node now, run `corax cleanup` first, and take {once} out of its Gateway"
                );
                return Problem::new(format!("node {}", identity.node_name), what, remedy);
            }
            if outside {
                let what = "is a member of no Gateway that is known, and not every file of --source has been good: what it has stays";
                let remedy = "correct the files, or name the node in a Gateway";
                return Problem::new(format!("node {}", identity.node_name), what, remedy);
            }
            let then = if held {
                "nothing is changed on this node"
            } else {
                "nothing that is not known is deleted, and no lock keeps packets for domains that were never known from leaving in plaintext"
            };
            let what =
                format!("is incomplete, as a file of --source was never good or there is none: {then}");
            Problem::new("the view", what, "correct the files")
        });
        let wrong_key = self.own.and_then(|own| wrong_key(view, &identity.node_name, own));
        Decision { topology, desired, facts, incomplete, held, wrong_key }
    }

    /// Whether the view is complete for this node.
    fn knows(&self, known: Known) -> bool {
        match known {
            Known::All => true,
            Known::Once => self.blank,
            Known::Part => false,
        }
    }

    /// Reads the tunnels, of which no event tells.
    pub(crate) fn read_tunnels(&mut self) {
        let Self { kernel, driver, asked, .. } = self;
        let observed = kernel.observed_mut();
        observed.unknown.remove(&Backend::WireGuard);
        let devices: Vec<Device> =
            observed.links.keys().copied().filter(|device| matches!(device, Device::WireGuard(_))).collect();
        observed.tunnels.retain(|device, _| devices.contains(device));
        for device in devices {
            match driver.read(device) {
                Ok(Some(mut tunnel)) => {
                    for (key, peer) in &mut tunnel.peers {
                        peer.configured = peer.configured.or_else(|| asked.get(&(device, *key)).copied());
                    }
                    observed.tunnels.insert(device, tunnel);
                }
                Ok(None) => {
                    observed.tunnels.remove(&device);
                }
                Err(error) => {
                    warn!(%device, %error, "the tunnel could not be read");
                    observed.unknown.insert(Backend::WireGuard);
                }
            }
        }
    }

    /// Takes the preshared key that the tunnel's peers have for the cluster's, where theirs is another; true where it is. The
    /// tunnels have to be read.
    pub(crate) fn adopt_preshared(&mut self) -> bool {
        let Self { kernel, options, .. } = self;
        let peers = kernel.observed().tunnels.values().flat_map(|tunnel| tunnel.peers.values());
        let none = PresharedKey::from_bytes([0; 32]);
        let mut keys = peers.map(|peer| &peer.peer.preshared).filter(|key| **key != none);
        let Some(other) = keys.find(|key| **key != options.preshared) else { return false };
        options.preshared = other.clone();
        true
    }

    /// Remembers the endpoint that was wanted of each peer first: one that an agent before this one set is known by that, and
    /// another that is wanted later is news.
    fn remember_endpoints(&mut self, desired: &Desired) {
        let peers = desired.tunnels.iter().flat_map(|(device, tunnel)| {
            tunnel.peers.iter().map(move |(key, peer)| ((*device, *key), peer.endpoint))
        });
        let wanted = peers.filter_map(|(peer, endpoint)| Some((peer, endpoint?)));
        let before = std::mem::take(&mut self.asked);
        self.asked = wanted.map(|(peer, endpoint)| (peer, *before.get(&peer).unwrap_or(&endpoint))).collect();
    }

    /// Makes the kernel be as desired.
    pub(crate) fn converge(&mut self, desired: &Desired) -> Converged {
        self.remember_endpoints(desired);
        let mut done: Vec<Done> = Vec::new();
        let mut last = None;
        let mut settled = false;
        let mut resynced = false;
        let mut just_done = 0;
        for _ in 0..ROUNDS {
            self.read_tunnels();
            self.kernel.take_in();
            let changes = self.kernel.changes(desired);
            if changes.is_empty() {
                settled = true;
                break;
            }
            let done_before = done.iter().rev().take(just_done).rev().map(|step| &step.change);
            if !resynced && done_before.eq(&changes) {
                // A dump may miss what the kernel is moving meanwhile, and what is so already makes no event.
                resynced = true;
                if let Err(error) = self.kernel.resync() {
                    warn!(%error, "reading the kernel's state anew failed");
                }
                continue;
            }
            let round = self.apply(changes);
            just_done = round.len();
            last = Some(self.kernel.written());
            let stuck = round.iter().all(|step| step.error.is_some());
            // What failed before and went well now is no failure.
            done.retain(|step| step.error.is_none());
            join(&mut done, round);
            // What was refused may have been overtaken by an event that has come since.
            if stuck && !self.kernel.has_changed() {
                break;
            }
        }
        self.kernel.forget_past();
        let unknown = &self.kernel.observed().unknown;
        let unread = unknown.iter().map(|backend| {
            let remedy = match backend {
                Backend::WireGuard if self.options.userspace => {
                    "see that the process of the tunnel runs and is not stopped: `pgrep -a -f raven-wg`"
                }
                _ => "see the agent's log for why; it is tried again",
            };
            (*backend, Problem::new(backend.to_string(), "could not be read, and stays as it is", remedy))
        });
        let unread = unread.collect();
        let unsettled = !settled && done.iter().all(|step| step.error.is_none());
        let unsure = unsettled.then(|| {
            let what = format!("is not as it should be after {ROUNDS} rounds: somebody else changes it too");
            Problem::new("the kernel", what, "see who does: `ip monitor`, `nft monitor`")
        });
        Converged { done, last, unread, unsure }
    }

    /// Carries changes out in order. A tunnel process that was started has its device seen before more is done with it,
    /// so what follows such a start is left to the next round. One that cannot start costs no more than itself. What of
    /// Raven's is a path still stays where something before it failed.
    fn apply(&mut self, mut rest: Vec<Change>) -> Vec<Done> {
        let (mut done, mut gate) = (Vec::new(), Gate::default());
        while let Some(first) = rest.first() {
            let guarded = Gate::guards(first);
            let end = rest.iter().position(|change| starts_tunnel(change) || Gate::guards(change) != guarded);
            let end =
                end.map_or(rest.len(), |end| end + usize::from(rest.get(end).is_some_and(starts_tunnel)));
            let after = rest.split_off(end);
            let stage: Vec<Change> = rest.into_iter().filter(|change| gate.lets(change)).collect();
            let round = if stage.is_empty() { Vec::new() } else { self.carry_out(stage) };
            round.iter().filter(|step| step.error.is_some()).for_each(|step| gate.failed(&step.change));
            let started =
                round.last().is_some_and(|last| last.error.is_none() && starts_tunnel(&last.change));
            join(&mut done, round);
            if started {
                break;
            }
            rest = after;
        }
        done
    }

    fn carry_out(&mut self, changes: Vec<Change>) -> Vec<Done> {
        let Self { kernel, driver, args, .. } = self;
        let results = kernel.apply(&changes, &mut |change| {
            apply_tunnel(driver.as_mut(), args, change).map_err(|error| match &error {
                TunnelError::Driver(cause) if cause.is_absence() => {
                    ApplyError::absent(change, error.to_string())
                }
                _ => ApplyError::new(change, error.to_string()),
            })
        });
        changes
            .into_iter()
            .zip(results)
            .map(|(change, result)| Done { change, error: result.err() })
            .collect()
    }
}

/// Appends; where nothing comes before, nothing is copied.
fn join(done: &mut Vec<Done>, mut more: Vec<Done>) {
    if done.is_empty() {
        *done = more;
    } else {
        done.append(&mut more);
    }
}

/// Members that a node speaks to over the overlay: its gateway, or, where it speaks to `all`, one in each of the node's own
/// `networks` and one beyond them, as each of these may be left by another address. The gateway comes before others.
fn spoken_to(
    domain: &Domain,
    node: &NodeName,
    all: bool,
    networks: &BTreeMap<Prefix, String>,
) -> Vec<(NodeName, IpAddr)> {
    let mut longest: Vec<&Prefix> = networks.keys().collect();
    longest.sort_by_key(|network| Reverse(network.length()));
    let gateway = domain.gateway().and_then(|gateway| domain.member(&gateway.node));
    let rest = domain.members.iter().filter(|_| all);
    let mut first = vec![None; longest.len() + 1];
    let mut left = first.len();
    for other in gateway.into_iter().chain(rest).filter(|other| other.node != *node) {
        let within = longest.iter().position(|network| network.contains(other.underlay));
        let place = &mut first[within.unwrap_or(longest.len())];
        if place.is_none() {
            *place = Some(other);
            left -= 1;
        }
        if left == 0 {
            break;
        }
    }
    let found = first.into_iter().rev().flatten();
    found.take(ASKED).map(|other| (other.node.clone(), other.underlay)).collect()
}

/// The key that others are told of is not the node's own: no handshake can succeed.
fn wrong_key(view: &View, node: &NodeName, own: PublicKey) -> Option<Problem> {
    let (name, domain, _) = view.member(node)?;
    let published = domain.gateway().filter(|gateway| gateway.node == *node)?.key?;
    let object = format!("Gateway {name}, endpoint {node}");
    let what = format!("publishes the public key {published}, this node's is {own}: no tunnel comes up");
    let remedy = "set config.publicKey to what `corax key` prints here";
    (published != own).then(|| Problem::new(object, what, remedy))
}

/// Whether a change starts the process of a tunnel.
fn starts_tunnel(change: &Change) -> bool {
    matches!(change, Change::AddLink(_, link) if link.kind == LinkKind::Tun)
}

/// Carries out a change of a tunnel.
fn apply_tunnel(driver: &mut dyn Driver, args: &NodeArgs, change: &Change) -> Result<(), TunnelError> {
    match change {
        Change::AddLink(device, _) => return start_tunnel(*device, args),
        Change::SetTunnel(device, update) => {
            driver.set_tunnel(*device, update).map_err(|error| match update.port {
                Some(port) if error.is_port_taken() => TunnelError::PortTaken { error, port },
                _ => TunnelError::Driver(error),
            })?;
        }
        Change::SetPeer(device, key, update) => driver.set_peer(*device, *key, update)?,
        Change::DeletePeer(device, key) => driver.delete_peer(*device, *key)?,
        _ => {}
    }
    Ok(())
}

fn start_tunnel(device: Device, args: &NodeArgs) -> Result<(), TunnelError> {
    if args.tunnel == TunnelStart::External {
        return Err(TunnelError::External(device));
    }
    let log = args.state.state_dir.join(process::log_name(device));
    Ok(process::spawn(device, &log)?)
}

/// Why a tunnel is not as it should be.
#[derive(Debug, thiserror::Error)]
enum TunnelError {
    /// Its driver says so.
    #[error(transparent)]
    Driver(#[from] wireguard::Error),
    /// Somebody else has its port.
    #[error("{error}; {}; --vpn-bind-port names another", port_taken(*.port))]
    PortTaken {
        /// What its driver says.
        error: wireguard::Error,
        /// The port.
        port: u16,
    },
    /// Somebody else is to start it, and has not.
    #[error("nobody answers for {0}: start `corax tunnel {0}` beside the agent")]
    External(Device),
}

#[cfg(test)]
mod tests;
