//! Connections that began before their destination was steered, or while it was (`linux/netfilter/nfnetlink_conntrack.h`). A
//! CNI had given them a source for the outside, or Corax none, and they keep what they have for as long as packets come: they
//! are forgotten, and begin anew.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use corax_core::prefix::{Prefix, apart};
use nix::errno::Errno;
use tracing::{info, warn};

use super::error::Failure;
use super::nft::NETLINK_NETFILTER;
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

/// What is to be forgotten, by a thread that ends when all is: there may be hundreds of thousands to look through.
#[derive(Default)]
pub(super) struct Connections(Arc<Mutex<Work>>);

#[derive(Default)]
struct Work {
    next: Option<Steered>,
    /// A thread is at it, and takes `next` before it ends.
    begun: bool,
}

/// What is steered otherwise from now on.
pub(super) struct Steered {
    /// By Corax, or again: whoever has a source that is not for this way has it from before.
    pub(super) begun: Vec<Prefix>,
    /// No more, unless they are in `now`.
    pub(super) ended: Vec<Prefix>,
    /// All that is steered now.
    pub(super) now: Vec<Prefix>,
    /// The node's pods.
    pub(super) own: Vec<Prefix>,
    /// Its addresses, and those of its pods in its network namespace.
    pub(super) local: Vec<Prefix>,
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

impl Steered {
    /// Whether a connection is of a way that it has no more.
    fn is_past(&self, ends: Ends) -> bool {
        let Ends { from, to, far, near } = ends;
        let own = |end| is_within(&self.own, end);
        let begun = |end| is_within(&self.begun, end);
        // Who comes by a NodePort may have got the node's address.
        let came_as_another = from != near && to == far && begun(from) && own(far);
        let has_ended = || is_within(&self.ended, far) && !is_within(&self.now, far);
        let went_as_node = || from != near && own(from) && begun(far);
        // What passes through is not to be tracked.
        let passes = || begun(near) && !own(far) && !is_within(&self.local, far);
        came_as_another || if own(near) { has_ended() || went_as_node() } else { begun(far) || passes() }
    }
}

impl Connections {
    /// Has connections forgotten whose way is another now, soon, in the network namespace of the caller's thread.
    pub(super) fn forget(&mut self, steered: Steered) {
        let mut work = lock(&self.0);
        let Steered { mut begun, mut ended, now, own, local } = steered;
        // What comes while the thread is at it is looked for in one pass.
        if let Some(next) = work.next.take() {
            begun.extend(next.begun);
            ended.extend(next.ended);
        }
        let [begun, ended, now, own, local] = [begun, ended, now, own, local].map(apart);
        work.next = Some(Steered { begun, ended, now, own, local });
        if !work.begun {
            let shared = Arc::clone(&self.0);
            let begun = thread::Builder::new().name("connections".into()).spawn(move || run(&shared));
            work.begun = begun.map_err(|error| tell(&error)).is_ok();
        }
    }
}

fn lock(work: &Mutex<Work>) -> MutexGuard<'_, Work> {
    work.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is to be looked for next; without any the thread is to end.
fn next(work: &Mutex<Work>) -> Option<Steered> {
    let mut work = lock(work);
    let next = work.next.take();
    work.begun = next.is_some();
    next
}

fn run(work: &Mutex<Work>) {
    while let Some(steered) = next(work) {
        let socket = Socket::open(NETLINK_NETFILTER, false).map_err(|error| tell(&error));
        let Ok(mut socket) = socket else { continue };
        match forget(&mut socket, &steered) {
            Ok(Forgotten { count: 0, refused: None }) => {}
            Ok(Forgotten { count, refused: None }) => {
                info!(count, "connections whose way is another now begin anew");
            }
            Ok(Forgotten { count, refused: Some(error) }) => {
                warn!(count, %error, "connections whose way is another now begin anew, but not all");
            }
            Err(error) => tell(&error),
        }
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
fn forget(socket: &mut Socket, steered: &Steered) -> Result<Forgotten, Failure> {
    let each = |into: &mut Vec<Found>, message: &Message<'_>| {
        let mut fields = message.fields();
        let Some([family, ..]) = fields.array::<4>() else { return };
        let ends = |kind| fields.attributes().find(|attribute| attribute.kind == kind).and_then(ends);
        let Some(((from, to), (far, near))) = ends(CTA_TUPLE_ORIG).zip(ends(CTA_TUPLE_REPLY)) else { return };
        if !steered.is_past(Ends { from, to, far, near }) {
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
        let steered = Steered {
            begun: prefixes(&["10.1.0.0/16"]),
            ended: prefixes(&["10.2.0.0/16", "10.3.0.0/24"]),
            now: prefixes(&["10.1.0.0/16", "10.3.0.0/16"]),
            own: prefixes(&["10.9.0.0/16"]),
            local: prefixes(&["192.168.1.1/32"]),
        };
        let is_past = |ends: [&str; 4]| {
            let [from, to, far, near] = ends.map(|text| text.parse().unwrap());
            steered.is_past(Ends { from, to, far, near })
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
        // What passes through, from there as well; not what ends here, at a pod or the node.
        assert!(is_past(["10.1.0.1", "10.5.0.1", "10.5.0.1", "10.1.0.1"]));
        assert!(!is_past(["10.1.0.1", "10.9.0.1", "10.9.0.1", "10.1.0.1"]));
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
