//! Connections that began before their destination was steered, or while it was (`linux/netfilter/nfnetlink_conntrack.h`). A
//! CNI had given them a source for the outside, or Corax none, and they keep what they have for as long as packets come: they
//! are forgotten, and begin anew.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use corax_core::change::Change;
use corax_core::object::{Action, RouteKey, Rule, Set, SetRole, Table};
use corax_core::observed::{Backend, Observed};
use corax_core::prefix::{Family, Prefix, apart};
use corax_core::raven::is_catch_all;
use nix::errno::Errno;
use tracing::{info, warn};

use super::error::Failure;
use super::mirror::Mirror;
use super::nft::{NETLINK_NETFILTER, elements_of};
use super::socket::Socket;
use super::wire::{Attribute, Attributes, Message, NLM_F_ACK, Writer};

const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;

/// What is to be forgotten, by a thread that ends when all is: there may be hundreds of thousands to look through. Whoever drops
/// this waits for it.
#[derive(Default)]
pub(super) struct Connections {
    /// What was steered before that changed, until it is known what is now; and whether by a table that was made anew.
    before: Option<(Sides, bool)>,
    work: Arc<Mutex<Work>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Work {
    next: Option<Past>,
    /// A thread is at it, and takes `next` before it ends.
    running: bool,
}

/// Which prefixes are steered, and whose. Both are [`apart`].
struct Sides {
    /// What is steered, to other domains and in mesh to the members of the node's own: there nobody is known by an address of the
    /// outside.
    steered: Vec<Prefix>,
    /// What keeps its source there: the node's pods and extra networks.
    own: Vec<Prefix>,
}

impl Sides {
    fn of(observed: &Observed) -> Self {
        let elements = |role| {
            Family::ALL
                .into_iter()
                .flat_map(move |family| elements_of(observed, Set { role, family }))
                .copied()
        };
        let mesh = observed.rules.keys().any(is_mesh);
        let least = RouteKey { table: Table::Domain, prefix: Prefix::least(), metric: 0 };
        let members = observed.routes.range(least..).map(|(key, _)| key);
        let members = members.take_while(|key| mesh && key.table == Table::Domain);
        // Raven's default route leads nobody to members.
        let members = members.filter(|key| !is_catch_all(key)).map(|key| key.prefix);
        let steered = elements(SetRole::Remote).chain(members).collect();
        Self { steered: apart(steered), own: apart(elements(SetRole::Own).collect()) }
    }
}

/// Whether it is by a change that packets of this node and its pods are steered, or keep their source, or no more.
fn steers(change: &Change) -> bool {
    let steering = |(set, _): &(Set, Prefix)| matches!(set.role, SetRole::Remote | SetRole::Own);
    match change {
        Change::ReplaceTable(..) | Change::DeleteTable => true,
        Change::ChangeElements { delete, add } => delete.iter().chain(add).any(steering),
        Change::PutRoute(key, _) | Change::DeleteRoute(key) => key.table == Table::Domain,
        Change::PutRule(rule) | Change::DeleteRule(rule) => is_mesh(rule),
        _ => false,
    }
}

/// Whether a rule steers what this node and its pods send to the members of their own domain.
fn is_mesh(rule: &Rule) -> bool {
    rule.input.is_none() && rule.action == Action::Lookup(Table::Domain)
}

/// What is to be looked for. All prefixes are [`apart`].
struct Past {
    /// What is steered, and was not, or by a table that was not there.
    begun: Vec<Prefix>,
    /// What was steered.
    ended: Vec<Prefix>,
    /// What was the node's own.
    was_own: Vec<Prefix>,
    now: Sides,
    /// Every address of the node.
    local: Vec<Prefix>,
}

/// The addresses of a tracked connection.
#[derive(Clone, Copy)]
struct Ends {
    /// Who began it, before any NAT.
    from: IpAddr,
    /// What it was begun to, before any NAT.
    to: IpAddr,
    /// Who answers.
    far: IpAddr,
    /// Whom the answers go to.
    near: IpAddr,
}

impl Past {
    /// `anew`: there may have been no rules for what is steered.
    fn between(before: Sides, now: Sides, anew: bool, local: Vec<Prefix>) -> Self {
        let anew = anew || now.own != before.own;
        let missing = |prefixes: &[Prefix], prefix: &Prefix| prefixes.binary_search(prefix).is_err();
        let begun = now.steered.iter().filter(|is| anew || missing(&before.steered, is)).copied().collect();
        let ended = before.steered.into_iter().filter(|was| missing(&now.steered, was)).collect();
        Self { begun, ended, was_own: before.own, now, local }
    }

    /// Looks for what `earlier` does too.
    fn with(self, earlier: Self) -> Self {
        let both = |mut now: Vec<_>, before| {
            now.extend(before);
            apart(now)
        };
        Self {
            begun: both(self.begun, earlier.begun),
            ended: both(self.ended, earlier.ended),
            was_own: both(self.was_own, earlier.was_own),
            ..self
        }
    }

    /// Whether a connection is of a way that it has no more.
    fn has(&self, ends: Ends) -> bool {
        let Ends { from, to, far, near } = ends;
        let steered = |end| is_within(&self.now.steered, end);
        let own = |end| is_within(&self.now.own, end);
        let begun = |end| is_within(&self.begun, end) && steered(end);
        // A pod as somebody else, or anybody as who they are outside.
        let leaves = || begun(far) && if own(from) { near != from } else { !own(near) };
        // To a pod as somebody else. What passes through is not tracked. By a NodePort both are right.
        let comes = || match own(far) {
            _ if !begun(from) => false,
            true => near != from && to == far,
            false => !is_within(&self.local, far) && (near == from || to == far),
        };
        let ended = || is_within(&self.was_own, near) && is_within(&self.ended, far) && !steered(far);
        leaves() || comes() || ended()
    }
}

impl Connections {
    /// Remembers what is steered, where one of the changes that are about to be made changes that.
    pub(super) fn remember(&mut self, changes: &[Change], observed: &Observed) {
        if changes.iter().any(steers) {
            let (_, anew) = self.before.get_or_insert_with(|| (Sides::of(observed), false));
            // There may have been no rules for what is steered.
            *anew |= changes.iter().any(|change| matches!(change, Change::ReplaceTable(..)));
        }
    }

    /// Has connections forgotten whose way was another before the changes, once it is known what it is now; soon, in the network
    /// namespace of the caller's thread.
    pub(super) fn forget_past(&mut self, mirror: &Mirror) {
        let observed = &mirror.observed;
        if !(observed.knows(Backend::Routes) && observed.knows(Backend::Nft)) {
            return;
        }
        let Some((before, anew)) = self.before.take() else { return };
        let local = mirror.addresses.keys().map(|held| Prefix::host(held.address)).collect();
        let mut past = Past::between(before, Sides::of(observed), anew, apart(local));
        if past.begun.is_empty() && past.ended.is_empty() {
            return;
        }
        let mut work = lock(&self.work);
        // What comes while the thread is at it is looked for in one pass.
        if let Some(earlier) = work.next.take() {
            past = past.with(earlier);
        }
        work.next = Some(past);
        if !work.running {
            let shared = Arc::clone(&self.work);
            let thread = thread::Builder::new().name("connections".into()).spawn(move || run(&shared));
            self.thread = thread.map_err(|error| tell(&error)).ok();
            work.running = self.thread.is_some();
        }
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(work: &Mutex<Work>) -> MutexGuard<'_, Work> {
    work.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is to be looked for next; without any the thread is to end.
fn next(work: &Mutex<Work>) -> Option<Past> {
    let mut work = lock(work);
    let next = work.next.take();
    work.running = next.is_some();
    next
}

fn run(work: &Mutex<Work>) {
    while let Some(past) = next(work) {
        let begun = Instant::now();
        let socket = Socket::open(NETLINK_NETFILTER, false).map_err(|error| tell(&error));
        let Ok(mut socket) = socket else { continue };
        match forget(&mut socket, &past) {
            Ok(Forgotten { count: 0, refused: None }) => {}
            Ok(Forgotten { count, refused: None }) => {
                info!(count, "connections whose way is another now begin anew");
            }
            Ok(Forgotten { count, refused: Some(error) }) => {
                warn!(count, %error, "connections whose way is another now begin anew, but not all");
            }
            Err(error) => tell(&error),
        }
        // While members join by ones, half of a core is enough.
        thread::sleep(begun.elapsed());
    }
}

fn tell(error: &dyn std::fmt::Display) {
    warn!(%error, "connections whose way is another now are not looked for");
}

/// Whether one of `prefixes`, which are [`apart`], has the address.
fn is_within(prefixes: &[Prefix], address: IpAddr) -> bool {
    let next = prefixes.partition_point(|prefix| *prefix <= Prefix::host(address));
    next.checked_sub(1).is_some_and(|at| prefixes[at].contains(address))
}

const fn kind(message: u16) -> u16 {
    NFNL_SUBSYS_CTNETLINK << 8 | message
}

const fn header(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

/// How many were, and the first error of those that could not be: kernels before 5.10 let none of a flowtable be deleted.
struct Forgotten {
    count: usize,
    refused: Option<Failure>,
}

/// One that is to be forgotten: its family, and the attributes that name it.
struct Found(u8, Vec<(u16, Vec<u8>)>);

/// Forgets connections that have another way now: their sources are for the one that they had.
fn forget(socket: &mut Socket, past: &Past) -> Result<Forgotten, Failure> {
    let each = |into: &mut Vec<Found>, message: &Message<'_>| {
        let mut fields = message.fields();
        let Some([family, ..]) = fields.array::<4>() else { return };
        let ends = |kind| fields.attributes().find(|attribute| attribute.kind == kind).and_then(ends);
        let Some(((from, to), (far, near))) = ends(CTA_TUPLE_ORIG).zip(ends(CTA_TUPLE_REPLY)) else { return };
        if !past.has(Ends { from, to, far, near }) {
            return;
        }
        let names = |attribute: &Attribute<'_>| [CTA_TUPLE_ORIG, CTA_ID, CTA_ZONE].contains(&attribute.kind);
        let named = fields.attributes().filter(names);
        into.push(Found(family, named.map(|attribute| (attribute.kind, attribute.value.to_vec())).collect()));
    };
    let found = socket.dump(kind(IPCTNL_MSG_CT_GET), &header(0), |_| {}, Vec::new, each)?;
    let mut forgotten = Forgotten { count: 0, refused: None };
    for Found(family, named) in &found {
        let put = |writer: &mut Writer| {
            for (attribute, value) in named {
                match *attribute {
                    CTA_TUPLE_ORIG => writer.nest(*attribute, |writer| put_all(writer, Attributes(value))),
                    _ => writer.attribute(*attribute, value),
                }
            }
        };
        match socket.ask(kind(IPCTNL_MSG_CT_DELETE), NLM_F_ACK, &header(*family), put, |_| None::<()>) {
            // It ended by itself.
            Err(failure) if failure.errno == Errno::ENOENT => {}
            Err(failure) => drop(forgotten.refused.get_or_insert(failure)),
            Ok(_) => forgotten.count += 1,
        }
    }
    Ok(forgotten)
}

/// A tuple is a nest of nests, which the kernel wants marked as such.
fn put_all(writer: &mut Writer, attributes: Attributes<'_>) {
    for attribute in attributes {
        writer.nest(attribute.kind, |writer| {
            for part in attribute.nest() {
                writer.attribute(part.kind, part.value);
            }
        });
    }
}

/// Source and destination of a tuple.
fn ends(tuple: Attribute<'_>) -> Option<(IpAddr, IpAddr)> {
    let addresses = tuple.nest().find(|attribute| attribute.kind == CTA_TUPLE_IP)?;
    let (mut source, mut destination) = (None, None);
    for attribute in addresses.nest() {
        match attribute.kind {
            CTA_IP_V4_SRC | CTA_IP_V6_SRC => source = attribute.address(),
            CTA_IP_V4_DST | CTA_IP_V6_DST => destination = attribute.address(),
            _ => {}
        }
    }
    Some((source?, destination?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_that_began_or_ended_makes_a_connection_past() {
        let prefixes = |texts: &[&str]| apart(texts.iter().map(|text| text.parse().unwrap()).collect());
        let past = Past {
            begun: prefixes(&["10.1.0.0/16", "10.7.0.0/16"]),
            ended: prefixes(&["10.2.0.0/16", "10.3.0.0/24"]),
            was_own: prefixes(&["10.8.0.0/16", "10.9.0.0/16"]),
            now: Sides {
                steered: prefixes(&["10.1.0.0/16", "10.3.0.0/16"]),
                own: prefixes(&["10.9.0.0/16"]),
            },
            local: prefixes(&["192.168.1.1/32"]),
        };
        let is_past = |ends: [&str; 4]| {
            let [from, to, far, near] = ends.map(|text| text.parse().unwrap());
            past.has(Ends { from, to, far, near })
        };
        let begun_by_near = |from, far, near| is_past([from, far, far, near]);
        for (far, near, past) in [
            ("10.1.0.1", "192.168.1.1", true),
            ("10.1.0.1", "10.9.0.1", false),
            ("10.2.0.1", "10.9.0.1", true),
            ("10.2.0.1", "192.168.1.1", false),
            // A wider prefix has it now.
            ("10.3.0.1", "10.9.0.1", false),
            ("10.4.0.1", "10.9.0.1", false),
            // It was a pod's when that was steered; and what began has ended since.
            ("10.2.0.1", "10.8.0.1", true),
            ("10.7.0.1", "192.168.1.1", false),
        ] {
            assert_eq!(begun_by_near(near, far, near), past, "{far}, {near}");
        }
        // A pod has the node's address there; who has another is a process of the node.
        assert!(begun_by_near("10.9.0.1", "10.1.0.1", "10.9.0.0"));
        assert!(!begun_by_near("192.168.1.1", "10.1.0.1", "10.9.0.0"));
        assert!(!begun_by_near("10.9.0.1", "10.4.0.1", "10.9.0.0"));
        // Who comes from there has it here; by a NodePort rightly so.
        assert!(is_past(["10.1.0.1", "10.9.0.1", "10.9.0.1", "10.9.0.0"]));
        assert!(!is_past(["10.1.0.1", "10.9.0.0", "10.9.0.1", "10.9.0.0"]));
        assert!(!is_past(["10.4.0.1", "10.9.0.1", "10.9.0.1", "10.9.0.0"]));
        // What passes through, from there as well; not by a NodePort, and not what ends here, at a pod or the node.
        assert!(is_past(["10.1.0.1", "10.5.0.1", "10.5.0.1", "10.1.0.1"]));
        assert!(!is_past(["10.1.0.1", "10.9.0.1", "10.9.0.1", "10.1.0.1"]));
        assert!(is_past(["10.1.0.1", "10.5.0.1", "10.5.0.1", "10.9.0.0"]));
        assert!(!is_past(["10.1.0.1", "192.168.1.1", "10.5.0.1", "10.9.0.0"]));
        assert!(!is_past(["10.1.0.1", "192.168.1.1", "192.168.1.1", "10.1.0.1"]));
    }

    #[test]
    fn an_address_is_found_in_the_prefix_that_has_it() {
        let texts = [
            "fd00::/64",
            "10.0.3.0/24",
            "10.0.0.0/24",
            "10.0.2.0/23",
            "10.0.0.0/24",
            "10.0.2.7/32",
            "10.0.4.1/32",
        ];
        let prefixes = apart(texts.map(|text| text.parse().unwrap()).to_vec());
        assert_eq!(prefixes.len(), 4, "{prefixes:?}");
        for (address, within) in [
            ("9.255.255.255", false),
            ("10.0.0.0", true),
            ("10.0.0.255", true),
            ("10.0.1.0", false),
            ("10.0.3.255", true),
            ("10.0.4.0", false),
            ("10.0.4.1", true),
            ("fcff::", false),
            ("fd00::1", true),
            ("fd00:0:0:1::", false),
        ] {
            assert_eq!(is_within(&prefixes, address.parse().unwrap()), within, "{address}");
        }
    }
}
