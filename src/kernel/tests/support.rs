//! A namespace, iproute2, and a model domain.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::{Command, Output};
use std::thread;

use corax_core::change::Change;
use corax_core::mac::Mac;
use corax_core::nft::Ruleset;
use corax_core::object::{
    Action, Address, Device, FWMARK, Link, LinkKind, NexthopId, Route, RouteKey, Rule, Scope, Set, SetRole,
    Sysctl, TWIN_METRIC, Table, VNI, VXLAN_AGEING, VXLAN_PORT, Via, Vxlan, path_metric,
};
use corax_core::observed::Observed;
use corax_core::prefix::{Family, Prefix};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};

use crate::kernel::{ApplyError, Kernel};

/// Runs a test in a thread with a network namespace of its own, which ends with it.
pub(crate) fn in_namespace<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("tests of the kernel need root, for network namespaces");
        sh("ip link set lo up");
        test()
    });
    match thread.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn shell(line: &str) -> Output {
    Command::new("sh").args(["-ec", line]).output().expect("a shell")
}

/// Runs lines in a shell; they must succeed.
pub(crate) fn sh(lines: &str) -> String {
    let output = shell(lines);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{lines}\n{error}");
    String::from_utf8(output.stdout).expect("text")
}

/// Runs lines in a shell, whether or not they succeed.
pub(super) fn try_sh(lines: &str) -> bool {
    shell(lines).status.success()
}

pub(super) fn json(line: &str) -> Vec<serde_json::Value> {
    let text = sh(line);
    match serde_json::from_str(text.trim()) {
        Ok(serde_json::Value::Array(values)) => {
            values.into_iter().filter(|value| *value != serde_json::json!({})).collect()
        }
        Ok(value) => vec![value],
        Err(error) if text.trim().is_empty() => {
            let _ = error;
            Vec::new()
        }
        Err(error) => panic!("{line}: {error}: {text}"),
    }
}

/// No change of these is anybody else's.
pub(super) fn nowhere(change: &Change) -> Result<(), ApplyError> {
    Err(ApplyError::new(change, "not for the kernel shell"))
}

/// Applies changes, all of which must succeed.
pub(super) fn apply(kernel: &mut Kernel, changes: &[Change]) {
    for result in kernel.apply(changes, &mut nowhere) {
        result.expect("the change is taken");
    }
}

/// Does what a change does with the line that it prints.
pub(super) fn by_hand(change: &Change) {
    match change {
        // The program `sysctl` is not everywhere.
        Change::PutSysctl(device, sysctl, value) => {
            sh(&format!("echo {value} > /proc/sys/{}", sysctl.path(*device)));
        }
        Change::ReplaceTable(..) => {
            sh(&format!("nft -f - <<'END'\n{change}\nEND"));
        }
        Change::ChangeElements { .. } => {
            sh(&change.to_string().replace("{ ", "'{ ").replace(" }", " }'"));
        }
        // The kernel's own link-local address is off where Corax makes the link.
        Change::AddLink(device, _) => {
            let quiet = format!("\nip link set {device} addrgenmode none\nip link set");
            sh(&change.to_string().replace("\nip link set", &quiet));
        }
        _ => {
            sh(&change.to_string());
        }
    }
}

/// What takes away what a put made; none where that goes with something else.
pub(super) fn opposite(change: &Change) -> Option<Change> {
    Some(match change {
        Change::AddLink(device, _) => Change::DeleteLink(*device),
        Change::PutAddress(address, _) => Change::DeleteAddress(*address),
        Change::PutFdb(mac, to) => Change::DeleteFdb(*mac, *to),
        Change::PutNeighbour(address, _) => Change::DeleteNeighbour(*address),
        Change::PutNexthop(id, _) => Change::DeleteNexthop(*id),
        Change::PutRoute(key, _) => Change::DeleteRoute(*key),
        Change::PutRule(rule) => Change::DeleteRule(*rule),
        Change::ReplaceTable(..) => Change::DeleteTable,
        _ => return None,
    })
}

/// The mirror after events alone equals what a fresh one reads, once the last event is in.
pub(super) fn assert_mirror_is_fresh(kernel: &mut Kernel, after: &str) {
    loop {
        let drained = kernel.drain();
        assert!(drained.errors.is_empty(), "{after}: {:?}", drained.errors);
        let fresh = Kernel::open().expect("a second one");
        if kernel.observed() == fresh.observed() {
            return;
        }
        // An IPv6 address that others add is announced later.
        if !more_to_come(kernel) {
            return assert_same(kernel.observed(), fresh.observed(), after);
        }
    }
}

/// Waits for an event; false where none comes, and what a test waits for never will.
pub(super) fn more_to_come(kernel: &Kernel) -> bool {
    let fds = kernel.fds();
    let mut polled: Vec<PollFd<'_>> = fds.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    poll(&mut polled, PollTimeout::from(60_000_u16)) != Ok(0)
}

/// Two mirrors are the same, or the test fails with what differs.
pub(super) fn assert_same(mirror: &Observed, fresh: &Observed, after: &str) {
    if mirror != fresh {
        let (mirror, fresh) = (lines(mirror), lines(fresh));
        let stale: Vec<_> = mirror.difference(&fresh).collect();
        let missing: Vec<_> = fresh.difference(&mirror).collect();
        panic!("after {after}: only in the mirror {stale:#?}, only in the kernel {missing:#?}");
    }
}

fn lines(observed: &Observed) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    lines.extend(observed.links.iter().map(|item| format!("link {item:?}")));
    lines.extend(observed.sysctls.iter().map(|item| format!("sysctl {item:?}")));
    lines.extend(observed.addresses.iter().map(|item| format!("address {item:?}")));
    lines.extend(observed.fdb.iter().map(|item| format!("fdb {item:?}")));
    lines.extend(observed.neighbours.iter().map(|item| format!("neighbour {item:?}")));
    lines.extend(observed.nexthops.iter().map(|item| format!("nexthop {item:?}")));
    lines.extend(observed.routes.iter().map(|item| format!("route {item:?}")));
    lines.extend(observed.rules.keys().map(|item| format!("rule {item:?}")));
    lines.extend(observed.elements.keys().map(|item| format!("element {item:?}")));
    lines.insert(format!("nft {:?} unknown {:?}", observed.nft, observed.unknown));
    lines
}

pub(super) fn overlay(mac: Mac) -> Link {
    Link {
        kind: LinkKind::Vxlan(Vxlan {
            vni: VNI,
            port: VXLAN_PORT,
            learning: false,
            ageing: VXLAN_AGEING,
            underlay: Family::V4,
            local: None,
        }),
        mac: Some(mac),
        mtu: 1420,
        up: true,
        owned: true,
    }
}

pub(super) fn mac(number: u32) -> Mac {
    let [a, b, c, d] = number.to_be_bytes();
    Mac([0xaa, 0x0f, a, b, c, d])
}

pub(super) fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(super) fn prefix(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

pub(super) fn put_overlay() -> Change {
    Change::AddLink(Device::Overlay, overlay(mac(1)))
}

pub(super) fn own_address() -> Address {
    Address { device: Device::Overlay, address: address("10.10.4.0"), length: 32 }
}

/// What stands for member `number`: FDB, neighbours, nexthops and routes of both families.
pub(super) fn member(number: u32) -> Vec<Change> {
    let [_, high, low, _] = (number << 8).to_be_bytes();
    let underlay = IpAddr::from([172, 16, high, low]);
    let (v4, v6) = (IpAddr::from([240, 0, high, low]), IpAddr::from(mac(number).link_local()));
    let mut changes = vec![
        Change::PutFdb(mac(number), underlay),
        Change::PutNeighbour(v4, mac(number)),
        Change::PutNeighbour(v6, mac(number)),
    ];
    let prefixes = [
        Prefix::new(IpAddr::from([10, high, low, 0]), 24),
        Prefix::new(IpAddr::from([0xfd00, 0, 0, u16::from_be_bytes([high, low]), 0, 0, 0, 0]), 64),
    ];
    for (offset, gateway, prefix) in [(0, v4, prefixes[0]), (0x10_0000, v6, prefixes[1])] {
        let id = NexthopId(NexthopId::FIRST + offset + number);
        let key = RouteKey { table: Table::Domain, prefix, metric: path_metric(prefix.family()) };
        changes.push(Change::PutNexthop(id, gateway));
        changes.push(Change::PutRoute(key, Route { via: Via::Nexthop(id), source: None }));
    }
    changes
}

pub(super) fn ruleset() -> Ruleset {
    Ruleset {
        devices: vec![Device::Overlay],
        mss4: 1380,
        mss6: 1360,
        mesh: true,
        sources: vec![address("10.10.4.0")],
    }
}

pub(super) fn set(role: SetRole, family: Family) -> Set {
    Set { role, family }
}

/// One change or more of every class, in an order in which each is possible.
pub(super) fn every_class() -> Vec<Change> {
    let mut changes = vec![
        put_overlay(),
        Change::PutSysctl(Device::Overlay, Sysctl::RpFilter, 2),
        Change::PutSysctl(Device::Overlay, Sysctl::SendRedirects, 0),
        Change::PutAddress(own_address(), Scope::Global),
        Change::PutAddress(
            Address { address: address("240.0.0.1"), length: 8, ..own_address() },
            Scope::Link,
        ),
        Change::PutAddress(
            Address { address: mac(1).link_local().into(), length: 64, ..own_address() },
            Scope::Link,
        ),
        Change::PutAddress(
            Address { address: address("fd00::ff"), length: 128, ..own_address() },
            Scope::Global,
        ),
    ];
    changes.extend(member(2));
    changes.extend(member(3));
    for family in Family::ALL {
        let (remote, source) = match family {
            Family::V4 => (prefix("10.20.0.0/16"), address("10.10.4.0")),
            Family::V6 => (prefix("fd00:20::/32"), address("fd00::ff")),
        };
        let twin = RouteKey { table: Table::Remote, prefix: remote, metric: TWIN_METRIC };
        changes.push(Change::PutRoute(twin, Route { via: Via::Unreachable, source: None }));
        let path = RouteKey { metric: path_metric(family), ..twin };
        let route = Route { via: Via::Device(Device::Overlay), source: Some(source) };
        changes.push(Change::PutRoute(path, route));
        let rule =
            Rule { priority: 101, family, input: None, mark: None, destination: None, action: Action::Main };
        changes.push(Change::PutRule(Rule { priority: 99, mark: Some(FWMARK), ..rule }));
        changes.push(Change::PutRule(Rule { action: Action::Lookup(Table::Remote), ..rule }));
        let input = Some(Device::Overlay);
        let own = Rule { priority: 102, input, destination: Some(remote), ..rule };
        changes.push(Change::PutRule(own));
        changes.push(Change::PutRule(Rule { action: Action::MainWithoutDefault, ..own }));
        changes.push(Change::PutRule(Rule { priority: 103, input, action: Action::Unreachable, ..rule }));
    }
    let elements = vec![
        (set(SetRole::Members, Family::V4), prefix("172.16.0.2/32")),
        (set(SetRole::Members, Family::V6), prefix("fd01::2/128")),
        (set(SetRole::Own, Family::V4), prefix("10.10.4.0/24")),
        (set(SetRole::Remote, Family::V6), prefix("fd00:20::/32")),
    ];
    changes.push(Change::ReplaceTable(Box::new(ruleset()), elements));
    changes.push(Change::ChangeElements {
        delete: vec![(set(SetRole::Own, Family::V4), prefix("10.10.4.0/24"))],
        add: vec![
            (set(SetRole::Own, Family::V4), prefix("10.10.4.0/23")),
            (set(SetRole::Remote, Family::V4), prefix("10.20.0.0/16")),
            (set(SetRole::Remote, Family::V4), prefix("10.21.0.0/16")),
        ],
    });
    changes
}
