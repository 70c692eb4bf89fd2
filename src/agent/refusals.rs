//! What failed, told by its cause: a change that failed for want of what another was to make is counted with that one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use corax_core::change::Change;
use corax_core::object::{Device, NexthopId, Via};
use corax_core::observed::Backend;
use corax_core::problem::Problem;

use super::node::Done;
use crate::kernel::ApplyError;

/// What others need, what it needs itself before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    Table,
    Link(Device),
    Address(IpAddr),
    Nexthop(NexthopId),
}

/// Why something is not there.
enum Cause<'a> {
    Unread(&'a Problem),
    Refused(&'a ApplyError),
}

/// The problems of a run in which some changes failed, and some of the kernel could not be read. Of causes that are refused
/// changes, at most so many are told.
pub(super) fn told(done: &[Done], unread: &[(Backend, Problem)], most: usize) -> Vec<Problem> {
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
        let needs = needs(change, error).into_iter().flatten();
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
        let problem = match cause {
            Cause::Unread(problem) => (*problem).clone(),
            Cause::Refused(error) => error.problem(),
        };
        let so = match count {
            0 => return problem,
            1 => "a change that needs it waits".to_owned(),
            count => format!("{count} changes that need it wait"),
        };
        Problem { what: format!("{}; {so}", problem.what), ..problem }
    });
    let rest = (more > 0).then(|| {
        let remedy = "see to those that are told first; all are tried again";
        Problem::new("changes", format!("{more} more were refused"), remedy)
    });
    first.chain(rest).collect()
}

/// What a change makes that others need.
const fn made_by(change: &Change) -> Option<Thing> {
    match change {
        Change::ReplaceTable(..) => Some(Thing::Table),
        Change::AddLink(device, _) | Change::SetLink(device, _) => Some(Thing::Link(*device)),
        Change::PutAddress(address, _) => Some(Thing::Address(address.address)),
        Change::PutNexthop(id, _) => Some(Thing::Nexthop(*id)),
        _ => None,
    }
}

/// What a change that failed needs, the likeliest first.
fn needs(change: &Change, error: &ApplyError) -> [Option<Thing>; 2] {
    let thing = match change {
        Change::AddLink(..) | Change::SetLink(..) => error.wants_table().then_some(Thing::Table),
        Change::ChangeElements { .. } => Some(Thing::Table),
        Change::PutSysctl(device, ..)
        | Change::SetTunnel(device, _)
        | Change::SetPeer(device, ..)
        | Change::DeletePeer(device, _) => Some(Thing::Link(*device)),
        Change::PutAddress(address, _) => Some(Thing::Link(address.device)),
        Change::PutFdb(..) | Change::PutNeighbour(..) | Change::PutNexthop(..) => {
            Some(Thing::Link(Device::Overlay))
        }
        Change::PutRoute(_, route) => {
            let way = match route.via {
                Via::Device(device) => Some(Thing::Link(device)),
                Via::Nexthop(id) => Some(Thing::Nexthop(id)),
                Via::Unreachable | Via::Other => None,
            };
            return [way, route.source.map(Thing::Address)];
        }
        _ => None,
    };
    [thing, None]
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

    fn refused(changes: Vec<Change>, why: &str) -> Vec<Done> {
        let refuse = |change: Change| Done { error: Some(ApplyError::new(&change, why)), change };
        changes.into_iter().map(refuse).collect()
    }

    fn whats(problems: &[Problem]) -> Vec<&str> {
        problems.iter().map(|problem| problem.what.as_str()).collect()
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
        assert!(problems[0].object.starts_with("corax tunnel raven0"), "{problems:?}");
    }

    #[test]
    fn an_overlay_that_waits_for_the_table_is_the_tables_whether_it_is_refused_or_not_read() {
        let ruleset = corax_core::nft::Ruleset { devices: vec![], mss4: 1, mss6: 1, sources: vec![] };
        let mut done = refused(on(Device::Overlay), crate::kernel::UNGUARDED);
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
        let done = refused(vec![route(Via::Unreachable); 5], "no");
        assert_eq!(
            whats(&told(&done, &unread(), 3)),
            ["could not be read", "no", "no", "no", "2 more were refused"]
        );
        assert_eq!(told(&done, &unread(), 5).len(), 6);
    }
}
