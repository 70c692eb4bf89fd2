//! Changes become messages: several a send, one acknowledgement a send.

use std::net::IpAddr;

use corax_core::change::Change;
use corax_core::object::{Address, Device, Link, LinkKind, Route, RouteKey, Rule, Scope, TWIN_METRIC, Via};
use corax_core::raven::{Leftover, MARK_RULE, TUNNEL_RULE};
use nix::errno::Errno;

use super::address;
use super::error::Failure;
use super::leftovers::{self, RTM_DELTFILTER};
use super::link;
use super::mirror::Mirror;
use super::neighbour;
use super::nexthop;
use super::route;
use super::rule;
use super::socket::{Socket, failure};
use super::wire::{Messages, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLMSG_ERROR, Writer};

/// Messages a send: more acknowledgements than this could overflow a small socket.
pub(super) const BATCH: usize = 128;

/// What a removal may be answered where nothing is left to remove.
const GONE: &[Errno] = &[Errno::ENOENT, Errno::ESRCH, Errno::ENODEV, Errno::EADDRNOTAVAIL];
/// A device without IPv6 needs no IPv6 setting.
const NO_FAMILY: &[Errno] = &[Errno::EAFNOSUPPORT];

/// Messages that are sent together.
#[derive(Default)]
pub(super) struct Batch {
    writer: Writer,
    pending: Vec<Pending>,
}

struct Pending {
    sequence: u32,
    /// Index of the change it belongs to.
    change: usize,
    tolerated: &'static [Errno],
}

/// What a message asks for.
#[derive(Clone, Copy)]
struct Verb {
    kind: u16,
    flags: u16,
    tolerated: &'static [Errno],
}

impl Verb {
    /// Make it, or make it be so.
    const fn put(kind: u16) -> Self {
        Self { kind, flags: NLM_F_CREATE | NLM_F_REPLACE, tolerated: &[] }
    }

    /// Make it, where it is not there.
    const fn make(kind: u16) -> Self {
        Self { kind, flags: NLM_F_CREATE | NLM_F_EXCL, tolerated: &[] }
    }

    /// Change what is there.
    const fn set(kind: u16) -> Self {
        Self { kind, flags: 0, tolerated: &[] }
    }

    /// Remove it; gone already will do.
    const fn delete(kind: u16) -> Self {
        Self { kind, flags: 0, tolerated: GONE }
    }
}

/// A change cannot be told to the kernel as things are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Impossible {
    /// A device that it refers to is not there.
    Missing(Device),
    /// Something of somebody else is in its place.
    InItsPlace(String),
}

impl Batch {
    pub(super) fn is_full(&self) -> bool {
        self.pending.len() >= BATCH
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Sends what is queued and gives each failure to `failed`, with the index of its change.
    pub(super) fn send(&mut self, socket: &mut Socket, mut failed: impl FnMut(usize, Failure)) {
        if self.is_empty() {
            return;
        }
        self.writer.acknowledge_last();
        let result = socket.send(&self.writer).and_then(|()| self.read_answers(socket, &mut failed));
        if let Err(failure) = result {
            for pending in &self.pending {
                failed(pending.change, failure.clone());
            }
        }
        self.writer.clear();
        self.pending.clear();
    }

    /// Errors come by themselves, and the last message is acknowledged in any case.
    fn read_answers(
        &self,
        socket: &mut Socket,
        failed: &mut impl FnMut(usize, Failure),
    ) -> Result<(), Failure> {
        let last = self.pending.last().map(|pending| pending.sequence);
        loop {
            for message in Messages(socket.receive()?).filter(|message| message.kind == NLMSG_ERROR) {
                let found = self.pending.iter().find(|pending| pending.sequence == message.sequence);
                if let (Some(pending), Some(failure)) = (found, failure(&message))
                    && !pending.tolerated.contains(&failure.errno)
                {
                    failed(pending.change, failure);
                }
                if Some(message.sequence) == last {
                    return Ok(());
                }
            }
        }
    }

    fn push(
        &mut self,
        socket: &mut Socket,
        change: usize,
        verb: Verb,
        header: &[u8],
        attributes: impl FnOnce(&mut Writer),
    ) {
        let sequence = socket.next_sequence();
        self.writer.message(verb.kind, verb.flags, sequence, header, attributes);
        self.pending.push(Pending { sequence, change, tolerated: verb.tolerated });
    }

    /// Queues a change; `number` is its index.
    pub(super) fn queue(
        &mut self,
        socket: &mut Socket,
        mirror: &Mirror,
        number: usize,
        change: &Change,
    ) -> Result<(), Impossible> {
        let overlay = || mirror.overlay().ok_or(Impossible::Missing(Device::Overlay));
        match change {
            Change::AddLink(device, link) => self.add_link(socket, number, *device, link),
            Change::SetLink(device, link) => {
                let index = mirror.index(*device).ok_or(Impossible::Missing(*device))?;
                let held = mirror.observed.links.get(device);
                self.set_link(socket, number, index, held, link);
            }
            Change::DeleteLink(device) => {
                if let Some(index) = mirror.index(*device) {
                    self.push(
                        socket,
                        number,
                        Verb::delete(link::RTM_DELLINK),
                        &link::header(index, 0, 0),
                        |_| {},
                    );
                }
            }
            Change::PutAddress(address, scope) => {
                let index = mirror.index(address.device).ok_or(Impossible::Missing(address.device))?;
                self.put_address(socket, mirror, number, index, address, *scope);
            }
            Change::DeleteAddress(address) => {
                if let Some(index) = mirror.index(address.device) {
                    self.delete_address(socket, number, index, address);
                }
            }
            Change::PutFdb(mac, to) => {
                let header = neighbour::fdb_header(overlay()?);
                self.push(socket, number, Verb::put(neighbour::RTM_NEWNEIGH), &header, |writer| {
                    neighbour::put_fdb(writer, *mac, *to);
                });
            }
            Change::DeleteFdb(mac, to) => {
                if let Some(index) = mirror.overlay() {
                    let header = neighbour::fdb_header(index);
                    self.push(socket, number, Verb::delete(neighbour::RTM_DELNEIGH), &header, |writer| {
                        neighbour::put_fdb(writer, *mac, *to);
                    });
                }
            }
            Change::PutNeighbour(address, mac) => {
                let header = neighbour::neighbour_header(overlay()?, *address);
                self.push(socket, number, Verb::put(neighbour::RTM_NEWNEIGH), &header, |writer| {
                    neighbour::put_neighbour(writer, *address, Some(*mac));
                });
            }
            Change::DeleteNeighbour(address) => {
                if let Some(index) = mirror.overlay() {
                    self.delete_neighbour(socket, number, index, *address);
                }
            }
            Change::PutNexthop(id, gateway) => {
                if mirror.foreign_nexthops.contains(id) {
                    return Err(Impossible::InItsPlace(format!(
                        "nexthop id {} is in use by somebody else",
                        id.0
                    )));
                }
                let overlay = overlay()?;
                let header = nexthop::put_header(*gateway);
                self.push(socket, number, Verb::put(nexthop::RTM_NEWNEXTHOP), &header, |writer| {
                    nexthop::put(writer, *id, *gateway, overlay);
                });
            }
            Change::DeleteNexthop(id) => {
                if mirror.foreign_nexthops.contains(id) {
                    return Err(Impossible::InItsPlace(format!("nexthop id {} is somebody else's", id.0)));
                }
                let header = nexthop::plain_header();
                self.push(socket, number, Verb::delete(nexthop::RTM_DELNEXTHOP), &header, |writer| {
                    nexthop::put_id(writer, *id);
                });
            }
            Change::PutRoute(key, put) => self.put_route(socket, mirror, number, key, put)?,
            Change::DeleteRoute(key) => self.delete_route(socket, mirror, number, key),
            Change::PutRule(rule) => {
                self.push(socket, number, Verb::make(rule::RTM_NEWRULE), &rule::header(rule), |writer| {
                    rule::put(writer, rule);
                });
            }
            Change::DeleteRule(rule) => {
                self.push(socket, number, Verb::delete(rule::RTM_DELRULE), &rule::header(rule), |writer| {
                    rule::put(writer, rule);
                });
            }
            Change::TakeAway(leftover) => self.take_away(socket, mirror, number, leftover),
            Change::PutSysctl(..)
            | Change::SetTunnel(..)
            | Change::SetPeer(..)
            | Change::DeletePeer(..)
            | Change::ReplaceTable(..)
            | Change::ChangeElements { .. }
            | Change::DeleteTable => unreachable!("no message of rtnetlink"),
        }
        Ok(())
    }

    fn take_away(&mut self, socket: &mut Socket, mirror: &Mirror, number: usize, leftover: &Leftover) {
        let mut delete_rule = |rule, protocol| {
            self.push(socket, number, Verb::delete(rule::RTM_DELRULE), &rule::header(rule), |writer| {
                rule::put_of(writer, rule, protocol);
            });
        };
        match leftover {
            Leftover::MarkRule(protocol) => delete_rule(&MARK_RULE, *protocol),
            Leftover::TunnelRule(protocol) => delete_rule(&TUNNEL_RULE, *protocol),
            Leftover::Flood(to) => self.delete_flood(socket, mirror, number, *to),
            Leftover::Filter => self.delete_filter(socket, mirror, number),
            Leftover::Jump(_) | Leftover::Chain(..) | Leftover::Set(_) => {
                unreachable!("no message of rtnetlink")
            }
        }
    }

    /// An entry that the link itself has goes with the link's own setting.
    fn delete_flood(&mut self, socket: &mut Socket, mirror: &Mirror, number: usize, to: IpAddr) {
        let Some(index) = mirror.overlay() else { return };
        let header = neighbour::fdb_header(index);
        self.push(socket, number, Verb::delete(neighbour::RTM_DELNEIGH), &header, |writer| {
            neighbour::put_flood(writer, to);
        });
        if mirror.remote == Some(to) {
            let header = link::header(index, 0, 0);
            self.push(socket, number, Verb::set(link::RTM_NEWLINK), &header, |writer| {
                link::put_kind(writer, "vxlan", link::put_no_remote);
            });
        }
    }

    fn delete_filter(&mut self, socket: &mut Socket, mirror: &Mirror, number: usize) {
        let Some(index) = mirror.overlay() else { return };
        let header = leftovers::filter_header(index);
        self.push(socket, number, Verb::delete(RTM_DELTFILTER), &header, leftovers::put_filter);
    }

    /// Makes a rule even though an equal one of another protocol is there.
    pub(super) fn queue_equal_rule(&mut self, socket: &mut Socket, number: usize, rule: &Rule) {
        self.push(
            socket,
            number,
            Verb { flags: NLM_F_CREATE, ..Verb::set(rule::RTM_NEWRULE) },
            &rule::header(rule),
            |writer| {
                rule::put(writer, rule);
            },
        );
    }

    fn add_link(&mut self, socket: &mut Socket, number: usize, device: Device, link: &Link) {
        self.push(socket, number, Verb::make(link::RTM_NEWLINK), &link::header(0, 0, 0), |writer| {
            link::put_new(writer, device, link);
        });
    }

    /// What a link that was just made needs besides. The alias cannot be given at creation, and addresses must be off before
    /// the link is up.
    pub(super) fn finish_link(&mut self, socket: &mut Socket, number: usize, device: Device, link: &Link) {
        let by_name = link::header(0, 0, 0);
        self.push(
            socket,
            number,
            Verb { tolerated: NO_FAMILY, ..Verb::set(link::RTM_SETLINK) },
            &by_name,
            |writer| {
                link::put_name(writer, device);
                link::put_no_addresses(writer);
            },
        );
        let header = if link.up { link::header_up(0) } else { by_name };
        self.push(socket, number, Verb::set(link::RTM_SETLINK), &header, |writer| {
            link::put_name(writer, device);
            link::put_alias(writer);
        });
    }

    fn set_link(&mut self, socket: &mut Socket, number: usize, index: u32, held: Option<&Link>, link: &Link) {
        let plain = link::header(index, 0, 0);
        if let LinkKind::Vxlan(vxlan) = &link.kind {
            self.push(socket, number, Verb::set(link::RTM_NEWLINK), &plain, |writer| {
                link::put_kind(writer, "vxlan", |writer| link::put_changeable(writer, vxlan));
            });
        }
        self.push(
            socket,
            number,
            Verb { tolerated: NO_FAMILY, ..Verb::set(link::RTM_SETLINK) },
            &plain,
            link::put_no_addresses,
        );
        let header = if link.up { link::header_up(index) } else { plain };
        self.push(socket, number, Verb::set(link::RTM_SETLINK), &header, |writer| {
            link::put_settings(writer, held, link);
        });
    }

    fn put_address(
        &mut self,
        socket: &mut Socket,
        mirror: &Mirror,
        number: usize,
        index: u32,
        address: &Address,
        scope: Scope,
    ) {
        // The kernel replaces everything of an IPv4 address but its scope.
        if mirror.observed.addresses.get(address).is_some_and(|held| *held != scope) {
            self.delete_address(socket, number, index, address);
        }
        let header = address::header(index, address, scope);
        self.push(socket, number, Verb::put(address::RTM_NEWADDR), &header, |writer| {
            address::put(writer, address);
        });
    }

    fn delete_address(&mut self, socket: &mut Socket, number: usize, index: u32, address: &Address) {
        let header = address::header(index, address, Scope::Global);
        self.push(socket, number, Verb::delete(address::RTM_DELADDR), &header, |writer| {
            address::put(writer, address);
        });
    }

    fn delete_neighbour(&mut self, socket: &mut Socket, number: usize, index: u32, address: IpAddr) {
        let header = neighbour::neighbour_header(index, address);
        self.push(socket, number, Verb::delete(neighbour::RTM_DELNEIGH), &header, |writer| {
            neighbour::put_neighbour(writer, address, None);
        });
    }

    fn put_route(
        &mut self,
        socket: &mut Socket,
        mirror: &Mirror,
        number: usize,
        key: &RouteKey,
        put: &Route,
    ) -> Result<(), Impossible> {
        if let Some(protocol) = mirror.foreign_routes.get(key) {
            let (prefix, table) = (key.prefix, key.table.number());
            return Err(Impossible::InItsPlace(format!(
                "a route of protocol {protocol} is in its place: ip route del {prefix} table {table}"
            )));
        }
        let link = match put.via {
            Via::Device(device) => Some(mirror.index(device).ok_or(Impossible::Missing(device))?),
            _ => None,
        };
        if mirror.doubled_routes.contains(key) {
            self.delete_route(socket, mirror, number, key);
        }
        let header = route::put_route_header(key, put.via);
        self.push(socket, number, Verb::put(route::RTM_NEWROUTE), &header, |writer| {
            route::put_route(writer, key, put, link);
        });
        Ok(())
    }

    fn delete_route(&mut self, socket: &mut Socket, mirror: &Mirror, number: usize, key: &RouteKey) {
        // Where it is not there, nothing else is to be taken for it.
        let absent = if key.metric == TWIN_METRIC { Via::Unreachable } else { Via::Device(Device::Overlay) };
        let via = mirror.observed.routes.get(key).map_or(absent, |held| held.via);
        let copies = if mirror.doubled_routes.contains(key) { COPIES } else { 1 };
        for _ in 0..copies {
            self.push(
                socket,
                number,
                Verb::delete(route::RTM_DELROUTE),
                &route::delete_header(key, via),
                |writer| {
                    route::put_key(writer, key);
                },
            );
        }
    }
}

/// How many routes of one key are taken away at once.
const COPIES: usize = 8;
