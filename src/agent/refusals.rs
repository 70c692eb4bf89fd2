//! What failed, told by its cause: a change that failed for want of what another was to make is counted with that one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use corax_core::change::Change;
use corax_core::object::{Address, Device, NexthopId, Via};
use corax_core::observed::Backend;
use corax_core::problem::Problem;

use super::node::Done;
use crate::kernel::{ApplyError, Lack};

/// What others need; what it needs itself comes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    Table,
    Link(Device),
    Address(Device, IpAddr),
    Nexthop(NexthopId),
}

/// Why something is not there.
enum Cause<'a> {
    Unread(&'a Problem),
    Refused(&'a ApplyError),
}

/// What is told of one cause.
#[derive(Clone, Debug)]
pub(super) struct Told {
    /// The problem, with how much waits for it.
    pub(super) problem: Problem,
    /// What is wrong, without a count: the same as long as the cause is.
    cause: String,
}

impl Told {
    /// Whether both tell of one cause.
    pub(super) fn is_of(&self, other: &Self) -> bool {
        (&self.problem.object, &self.cause) == (&other.problem.object, &other.cause)
    }
}

impl From<Problem> for Told {
    fn from(problem: Problem) -> Self {
        Self { cause: problem.what.clone(), problem }
    }
}

/// What is told of a run in which some changes failed, and some of the kernel could not be read. Of causes that are refused
/// changes, at most so many are told.
pub(super) fn told(done: &[Done], unread: &[(Backend, Problem)], most: usize) -> Vec<Told> {
    let mut causes: Vec<(Cause<'_>, usize)> = Vec::new();
    let mut lacking: BTreeMap<Thing, usize> = BTreeMap::new();
    for (number, (backend, problem)) in unread.iter().enumerate() {
        causes.push((Cause::Unread(problem), 0));
        if *backend == Backend::Nft {
            lacking.insert(Thing::Table, number);
        }
    }
    let failed = done.iter().filter_map(|step| Some((&step.change, step.error.as_ref()?)));
    let mut failed: Vec<_> = failed.collect();
    failed.sort_by_key(|(change, _)| (made_by(change).is_none(), made_by(change)));
    for (change, error) in failed {
        let needs = needs(change, error.lack).into_iter().flatten();
        let cause = needs.filter_map(|thing| lacking.get(&thing)).next().copied();
        let cause = match cause {
            Some(cause) => {
                if let Some((_, waiting)) = causes.get_mut(cause) {
                    *waiting += 1;
                }
                cause
            }
            None => {
                causes.push((Cause::Refused(error), 0));
                causes.len() - 1
            }
        };
        if let Some(thing) = made_by(change) {
            lacking.entry(thing).or_insert(cause);
        }
    }
    let more = causes.len().saturating_sub(unread.len() + most);
    let first = causes.iter().take(unread.len() + most).map(|(cause, count)| {
        let mut problem = match cause {
            Cause::Unread(problem) => (*problem).clone(),
            Cause::Refused(error) => error.problem(),
        };
        let so = match count {
            0 => return Told::from(problem),
            1 => "a change that needs it waits".to_owned(),
            count => format!("{count} changes that need it wait"),
        };
        let what = format!("{}; {so}", problem.what);
        Told { cause: std::mem::replace(&mut problem.what, what), problem }
    });
    let rest = (more > 0).then(|| {
        let remedy = "see to those that are told first; all are tried again";
        let problem = Problem::new("changes", format!("{more} more were refused"), remedy);
        Told { cause: "more were refused".to_owned(), problem }
    });
    first.chain(rest).collect()
}

/// What a change makes that others need.
const fn made_by(change: &Change) -> Option<Thing> {
    match change {
        Change::ReplaceTable(..) => Some(Thing::Table),
        Change::AddLink(device, _) | Change::SetLink(device, _) => Some(Thing::Link(*device)),
        Change::PutAddress(Address { device, address, .. }, _) => Some(Thing::Address(*device, *address)),
        Change::PutNexthop(id, _) => Some(Thing::Nexthop(*id)),
        _ => None,
    }
}

/// What a change that failed may have failed for want of, the likeliest first. What is refused for its own sake needs
/// nothing, whatever else failed.
fn needs(change: &Change, lack: Lack) -> [Option<Thing>; 2] {
    match lack {
        Lack::Nothing => return [None, None],
        Lack::Table => return [Some(Thing::Table), None],
        Lack::Absent => {}
    }
    let thing = match change {
        Change::ChangeElements { .. } => Thing::Table,
        Change::AddLink(device, _)
        | Change::SetLink(device, _)
        | Change::PutSysctl(device, ..)
        | Change::SetTunnel(device, _)
        | Change::SetPeer(device, ..)
        | Change::DeletePeer(device, _) => Thing::Link(*device),
        Change::PutAddress(address, _) => Thing::Link(address.device),
        Change::PutFdb(..) | Change::PutNeighbour(..) | Change::PutNexthop(..) => {
            Thing::Link(Device::Overlay)
        }
        Change::PutRoute(_, route) => {
            let (device, way) = match route.via {
                Via::Device(device) => (device, Thing::Link(device)),
                Via::Nexthop(id) => (Device::Overlay, Thing::Nexthop(id)),
                Via::Unreachable | Via::Other => return [None, None],
            };
            return [route.source.map(|source| Thing::Address(device, source)), Some(way)];
        }
        _ => return [None, None],
    };
    [Some(thing), None]
}

#[cfg(test)]
mod tests {
    use corax_core::mac::Mac;
    use corax_core::object::{Address, Link, LinkKind, Route, RouteKey, Scope, Table};

    use super::*;

    const ID: NexthopId = NexthopId(0x4000_0001);

    fn link(device: Device) -> Change {
        let kind = LinkKind::Tun;
        Change::AddLink(device, Link { kind, mac: None, mtu: 1420, up: true, owned: true })
    }

    fn route(via: Via) -> Change {
        let prefix = "10.1.0.0/24".parse().unwrap();
        Change::PutRoute(RouteKey { table: Table::Remote, prefix, metric: 0 }, Route { via, source: None })
    }

    fn on(device: Device) -> Vec<Change> {
        let address = Address { device, address: "10.1.0.0".parse().unwrap(), length: 32 };
        let mut changes = vec![link(device), Change::PutAddress(address, Scope::Global)];
        if device == Device::Overlay {
            changes.push(Change::PutFdb(Mac([2; 6]), "10.0.0.2".parse().unwrap()));
            changes.push(Change::PutNexthop(ID, "240.0.0.2".parse().unwrap()));
            changes.push(route(Via::Nexthop(ID)));
        } else {
            changes.push(route(Via::Device(device)));
        }
        changes
    }

    fn done(change: Change, error: fn(&Change, &str) -> ApplyError, why: &str) -> Done {
        Done { error: Some(Box::new(error(&change, why))), change }
    }

    fn own(change: &Change, why: &str) -> ApplyError {
        ApplyError::new(change, why)
    }

    fn absent(change: &Change, why: &str) -> ApplyError {
        ApplyError::absent(change, why)
    }

    /// What comes of changes the first of which is refused, and the rest for want of it.
    fn refused(changes: Vec<Change>, why: &str) -> Vec<Done> {
        let mut error: fn(&Change, &str) -> ApplyError = own;
        let refuse = |change| done(change, std::mem::replace(&mut error, absent), why);
        changes.into_iter().map(refuse).collect()
    }

    fn whats(told: &[Told]) -> Vec<&str> {
        told.iter().map(|told| told.problem.what.as_str()).collect()
    }

    #[test]
    fn a_link_that_cannot_be_made_is_told_once_with_how_much_waits_for_it() {
        let mut done = refused(on(Device::Overlay), "no");
        done.extend(refused(on(Device::WireGuard(0)), "never"));
        done.push(Done { change: route(Via::Unreachable), error: None });
        done.extend(refused(vec![route(Via::Unreachable)], "alone"));
        let problems = told(&done, &[], 50);
        assert_eq!(
            whats(&problems),
            ["no; 4 changes that need it wait", "never; 2 changes that need it wait", "alone"]
        );
        assert!(problems[0].problem.object.starts_with("corax tunnel raven0"), "{problems:?}");
    }

    #[test]
    fn an_overlay_that_waits_for_the_table_is_the_tables_whether_it_is_refused_or_not_read() {
        let ruleset = corax_core::nft::Ruleset::default();
        let mut done = refused(on(Device::Overlay), "");
        done[0].error = Some(Box::new(ApplyError::unguarded(&done[0].change)));
        let unread = Problem::new("the nftables table", "could not be read", "");
        assert_eq!(
            whats(&told(&done, &[(Backend::Nft, unread)], 50)),
            ["could not be read; 5 changes that need it wait"]
        );
        let table = Change::ReplaceTable(Box::new(ruleset), Vec::new());
        done.extend(refused(vec![table], "refused"));
        assert_eq!(whats(&told(&done, &[], 50)), ["refused; 5 changes that need it wait"]);
        // With a reason of its own it is a cause of its own.
        done.retain(|step| !matches!(step.change, Change::AddLink(..)));
        done.extend(refused(vec![link(Device::Overlay)], "taken"));
        assert_eq!(whats(&told(&done, &[], 50)), ["refused", "taken; 4 changes that need it wait"]);
    }

    #[test]
    fn of_many_causes_the_first_are_told_and_the_rest_counted() {
        let unread = || [(Backend::WireGuard, Problem::new("WireGuard", "could not be read", ""))];
        let done: Vec<_> = (0..5).map(|_| done(route(Via::Unreachable), own, "no")).collect();
        assert_eq!(
            whats(&told(&done, &unread(), 3)),
            ["could not be read", "no", "no", "no", "2 more were refused"]
        );
        assert_eq!(told(&done, &unread(), 5).len(), 6);
    }

    #[test]
    fn what_is_refused_for_its_own_sake_is_a_cause_of_its_own_beside_a_device_that_is_refused() {
        let [_, address, fdb, ..] = &on(Device::Overlay)[..] else { panic!("five changes") };
        let Change::AddLink(device, wanted) = link(Device::Overlay) else { panic!("a link") };
        let set = Change::SetLink(device, wanted);
        let steps = [
            done(set, own, "no such MTU"),
            done(fdb.clone(), own, "no memory"),
            done(address.clone(), absent, "there is no such device"),
        ];
        assert_eq!(whats(&told(&steps, &[], 50)), ["no such MTU; a change that needs it waits", "no memory"]);
    }

    #[test]
    fn a_route_waits_for_the_address_of_the_device_that_it_goes_by() {
        let by = |device| {
            let Change::PutRoute(key, via) = route(Via::Device(device)) else { panic!("a route") };
            Change::PutRoute(key, Route { source: Some("10.1.0.0".parse().unwrap()), ..via })
        };
        let steps = [
            done(on(Device::Overlay).swap_remove(1), own, "no address"),
            done(by(Device::Overlay), absent, "invalid"),
            done(by(Device::WireGuard(0)), absent, "not so"),
        ];
        assert_eq!(whats(&told(&steps, &[], 50)), ["no address; a change that needs it waits", "not so"]);
    }

    #[test]
    fn a_cause_for_which_more_waits_than_before_is_the_same_cause() {
        let some = |members: usize, why| {
            let mut steps = refused(on(Device::Overlay), why);
            steps.extend((0..members).map(|_| done(route(Via::Nexthop(ID)), absent, why)));
            told(&steps, &[], 50).remove(0)
        };
        assert_ne!(some(1, "taken").problem, some(2, "taken").problem);
        assert!(some(1, "taken").is_of(&some(2, "taken")));
        assert!(!some(1, "taken").is_of(&some(1, "no memory")));
        let more = |count: usize| {
            let steps: Vec<_> = (0..count).map(|_| done(route(Via::Unreachable), own, "no")).collect();
            told(&steps, &[], 1).remove(1)
        };
        assert!(more(3).is_of(&more(4)) && more(3).problem != more(4).problem);
    }
}
