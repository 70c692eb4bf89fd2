//! Full dumps, class by class, into the mirror.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use corax_core::object::{Device, NexthopId, Table};
use corax_core::prefix::Family;
use nix::errno::Errno;

use super::address::{self, family_number};
use super::error::{Error, Failure};
use super::link;
use super::mirror::{Mirror, Routes, Stale};
use super::neighbour;
use super::nexthop;
use super::route;
use super::rule;
use super::socket::Socket;
use super::sysctl;
use super::wire::{Message, Writer};

/// Index of `lo` in every network namespace.
const LOOPBACK: u32 = 1;

/// The error of what cannot be read.
pub(super) fn read(what: &'static str) -> impl Fn(Failure) -> Error {
    move |failure| Error::Read { what, failure }
}

/// Whether a message is of a family. A kernel without the one that was asked for answers with those it has.
fn is_of(message: &Message<'_>, family: Family) -> bool {
    message.payload.first() == Some(&family_number(family))
}

/// Everything over rtnetlink.
pub(super) fn all(socket: &mut Socket, mirror: &mut Mirror) -> Result<(), Error> {
    links(socket, mirror)?;
    mirror.stale = Stale::ALL;
    stale(socket, mirror)
}

/// What is stale of the mirror.
pub(super) fn stale(socket: &mut Socket, mirror: &mut Mirror) -> Result<(), Error> {
    let stale = std::mem::take(&mut mirror.stale);
    let result = stale_parts(socket, mirror, stale);
    if result.is_err() {
        mirror.stale = stale;
    }
    result
}

fn stale_parts(socket: &mut Socket, mirror: &mut Mirror, stale: Stale) -> Result<(), Error> {
    if stale == Stale::default() {
        return Ok(());
    }
    barrier(socket).map_err(read("links"))?;
    if stale.addresses {
        addresses(socket, mirror)?;
    }
    if stale.sysctls {
        sysctls(mirror);
    }
    if stale.rules {
        rules(socket, mirror).map_err(read("rules"))?;
    }
    if stale.nexthops {
        nexthops(socket, mirror).map_err(read("nexthops"))?;
    }
    if stale.routes {
        routes(socket, mirror).map_err(read("routes"))?;
    }
    if stale.fdb {
        fdb(socket, mirror).map_err(read("forwarding database"))?;
    }
    if stale.neighbours {
        neighbours(socket, mirror).map_err(read("neighbours"))?;
    }
    Ok(())
}

/// Waits until the kernel is through with what it sent the last event about. The event that a link is down, or an
/// address gone, comes before the routes are flushed, and dumps of routes wait for no lock; this request does.
fn barrier(socket: &mut Socket) -> Result<(), Failure> {
    socket.get(link::RTM_GETLINK, &link::header(LOOPBACK, 0, 0), link::without_counters, |_| Some(()))?;
    Ok(())
}

fn links(socket: &mut Socket, mirror: &mut Mirror) -> Result<(), Error> {
    let found = socket
        .dump(link::RTM_GETLINK, &link::header(0, 0, 0), link::without_counters, Vec::new, |into, message| {
            into.extend(link::decode(message));
        })
        .map_err(read("links"))?;
    let (mut links, mut devices, mut own) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    mirror.remote = None;
    for link::Decoded { index, interface, ours, remote } in found {
        links.insert(index, interface);
        if let Some((device, link)) = ours {
            if device == Device::Overlay {
                mirror.remote = remote;
            }
            devices.insert(device, index);
            own.insert(device, link);
        }
    }
    mirror.changed |= own != mirror.observed.links || devices != mirror.devices;
    mirror.facts |= links != mirror.links || own != mirror.observed.links;
    mirror.observed.links = own;
    mirror.devices = devices;
    mirror.links = links;
    mirror.set_flood();
    Ok(())
}

/// One link, by name: a link that is down changes its alias without an event.
pub(super) fn link(socket: &mut Socket, mirror: &mut Mirror, device: Device) -> Result<(), Error> {
    let put = |writer: &mut Writer| {
        link::put_name(writer, device);
        link::without_counters(writer);
    };
    match socket.get(link::RTM_GETLINK, &link::header(0, 0, 0), put, link::decode) {
        Ok(Some(decoded)) => mirror.put_link(decoded),
        Ok(None) => {}
        // An event tells that it is gone.
        Err(failure) if failure.errno == Errno::ENODEV => {}
        Err(failure) => return Err(read("links")(failure)),
    }
    Ok(())
}

fn addresses(socket: &mut Socket, mirror: &mut Mirror) -> Result<(), Error> {
    let found = socket
        .dump(
            address::RTM_GETADDR,
            &[0; 8],
            |_| {},
            BTreeMap::new,
            |into, message| {
                into.extend(address::decode(message).and_then(|(held, scope)| Some((held, scope?))));
            },
        )
        .map_err(read("addresses"))?;
    mirror.facts |= found != mirror.addresses;
    mirror.addresses = found;
    let own = mirror.own_addresses();
    mirror.changed |= own != mirror.observed.addresses;
    mirror.observed.addresses = own;
    Ok(())
}

fn sysctls(mirror: &mut Mirror) {
    let found = sysctl::read(mirror.devices.keys().copied());
    mirror.changed |= found != mirror.observed.sysctls;
    mirror.observed.sysctls = found;
}

fn rules(socket: &mut Socket, mirror: &mut Mirror) -> Result<(), Failure> {
    let mut rules = Vec::new();
    for family in Family::ALL {
        rules.extend(socket.dump(
            rule::RTM_GETRULE,
            &rule::dump_header(family),
            |_| {},
            Vec::new,
            |into, message| {
                into.extend(Some(message).filter(|message| is_of(message, family)).and_then(rule::decode));
            },
        )?);
    }
    mirror.set_rules(rules);
    Ok(())
}

fn nexthops(socket: &mut Socket, mirror: &mut Mirror) -> Result<(), Failure> {
    let overlay = mirror.overlay();
    let (ours, foreign) = socket.dump(
        nexthop::RTM_GETNEXTHOP,
        &nexthop::plain_header(),
        |_| {},
        || (BTreeMap::new(), BTreeSet::<NexthopId>::new()),
        |(ours, foreign), message| {
            let Some(decoded) = nexthop::decode(message) else { return };
            if decoded.owned {
                ours.insert(decoded.id, decoded.on(overlay));
            } else if decoded.id.is_ours() {
                foreign.insert(decoded.id);
            }
        },
    )?;
    mirror.changed |= ours != mirror.observed.nexthops;
    mirror.facts |= foreign != mirror.foreign_nexthops;
    mirror.observed.nexthops = ours;
    mirror.foreign_nexthops = foreign;
    Ok(())
}

fn routes(socket: &mut Socket, mirror: &mut Mirror) -> Result<(), Failure> {
    let mut routes = Routes::default();
    for family in Family::ALL {
        for table in Table::ALL {
            let found = socket.dump(
                route::RTM_GETROUTE,
                &route::dump_header(family),
                |writer| route::put_table(writer, table),
                Routes::default,
                |into, message| {
                    if let Some(route::Decoded::Ours(found)) = route::decode(message)
                        && found.key.table == table
                        && is_of(message, family)
                    {
                        into.add(&found, &mirror.devices);
                    }
                },
            );
            match found {
                Ok(found) => routes.extend(found),
                // A table without routes is none.
                Err(failure) if failure.errno == Errno::ENOENT => {}
                Err(failure) => return Err(failure),
            }
        }
    }
    mirror.set_routes(routes);
    Ok(())
}

fn fdb(socket: &mut Socket, mirror: &mut Mirror) -> Result<(), Failure> {
    let overlay = mirror.overlay();
    let (found, flood) = match overlay {
        None => Default::default(),
        Some(index) => socket.dump(
            neighbour::RTM_GETNEIGH,
            &neighbour::fdb_dump_header(index),
            |_| {},
            <(BTreeMap<_, _>, BTreeSet<_>)>::default,
            |(into, flood), message| match neighbour::decode(message) {
                Some((link, neighbour::Decoded::Flood(to))) if link == index => {
                    flood.insert(to);
                }
                Some((link, neighbour::Decoded::Fdb(mac, to))) if link == index => {
                    into.insert(mac, to);
                }
                Some((link, neighbour::Decoded::BareFdb(mac))) if link == index => {
                    into.insert(mac, Ipv4Addr::UNSPECIFIED.into());
                }
                _ => {}
            },
        )?,
    };
    mirror.changed |= found != mirror.observed.fdb;
    mirror.observed.fdb = found;
    mirror.flood = flood;
    mirror.set_flood();
    Ok(())
}

fn neighbours(socket: &mut Socket, mirror: &mut Mirror) -> Result<(), Failure> {
    let overlay = mirror.overlay();
    let found = match overlay {
        None => BTreeMap::new(),
        Some(index) => socket.dump(
            neighbour::RTM_GETNEIGH,
            &neighbour::dump_header(),
            |writer| neighbour::put_link(writer, index),
            BTreeMap::new,
            |into, message| match neighbour::decode(message) {
                Some((link, neighbour::Decoded::Neighbour(address, Some(mac)))) if link == index => {
                    into.insert(address, mac);
                }
                _ => {}
            },
        )?,
    };
    mirror.changed |= found != mirror.observed.neighbours;
    mirror.observed.neighbours = found;
    Ok(())
}
