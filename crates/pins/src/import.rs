//! Taking over: host-local's reservations joined with the runtime's cache, or a list that `export` wrote.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;

use crate::error::Error;
use crate::holds::{Hold, Netns};
use crate::hostlocal::HostLocal;
use crate::names::{Interface, Network};
use crate::runtime::{self, Cached};
use crate::snapshot::Pin;
use crate::store::{Transaction, identity, is_namespace};

/// What became of one attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its container.
    pub container: String,
    /// Its pod, if the runtime knows it.
    pub pod: Option<String>,
    /// What was done, in words.
    pub outcome: Outcome,
    /// Why its pod was not pinned, where it could not be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// What became of a list of pins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ImportedPins {
    /// How many the list had.
    pub pins: usize,
    /// How many of them were not known before.
    pub new: usize,
    /// Those that could not be had. The others were known already.
    pub refused: Vec<RefusedPin>,
}

/// A pin of a list that could not be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefusedPin {
    /// Its network.
    pub network: Network,
    /// Its pod.
    pub pod: String,
    /// The pod's interface.
    pub interface: Interface,
    /// Why not.
    pub reason: String,
}

/// What was done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Pinned, and held by its live container.
    PinnedAndHeld,
    /// Held by its live container; the runtime names no pod.
    Held,
    /// Pinned; its container is dead.
    Pinned,
    /// Not pinned, for a reason that is said; held, where its container lives.
    Refused,
    /// Nothing to do: known already.
    Known,
    /// The runtime does not know the container. Its address stays reserved as long as host-local's file is there.
    Unknown,
    /// Its container is dead and no pod is known: host-local's file is a leak and was removed.
    Leak,
}

/// Imports one network's reservations. host-local's files stay, those of containers known to be dead apart.
///
/// # Errors
/// When a pin cannot be made durable or a hold not be written; what was imported before stays.
pub fn host_local(
    transaction: &mut Transaction<'_>,
    network: &Network,
    before: &HostLocal,
) -> Result<Vec<Imported>, Error> {
    let cached = runtime::all(&before.cache, network);
    let reservations = before.reservations();
    let mut out = Vec::new();
    for entry in &cached {
        let of_entry = |container: &str, interface: Option<&str>| {
            container == entry.attachment.container.as_str()
                && interface.is_none_or(|i| i == entry.attachment.interface.as_str())
        };
        let reserved: Vec<_> = reservations
            .iter()
            .filter(|r| of_entry(&r.container, r.interface.as_deref()))
            .map(|r| r.address)
            .collect();
        if !reserved.is_empty() {
            out.push(attachment(transaction, entry, in_result_order(entry, reserved), before)?);
        }
    }
    for r in &reservations {
        let known = cached.iter().any(|entry| r.container == entry.attachment.container.as_str());
        if !known {
            let (addresses, container) = (vec![r.address], r.container.clone());
            out.push(Imported { addresses, container, pod: None, outcome: Outcome::Unknown, refused: None });
        }
    }
    Ok(out)
}

/// The reserved addresses, as the result orders them: in the order of the range sets.
fn in_result_order(entry: &Cached, mut reserved: Vec<IpAddr>) -> Vec<IpAddr> {
    let place = |address: &IpAddr| entry.addresses.iter().position(|a| a == address).unwrap_or(usize::MAX);
    reserved.sort_by_key(place);
    reserved
}

fn attachment(
    transaction: &mut Transaction<'_>,
    entry: &Cached,
    addresses: Vec<IpAddr>,
    before: &HostLocal,
) -> Result<Imported, Error> {
    let alive = entry.netns.as_deref().is_none_or(is_namespace);
    let hold = Hold {
        attachment: entry.attachment.clone(),
        pod: entry.pod.clone(),
        uid: entry.uid.clone(),
        netns: entry.netns.as_ref().map(|path| Netns { path: path.clone(), identity: identity(path) }),
        addresses: addresses.clone(),
        since: transaction.now(),
        seen: false,
    };
    let pin = hold.pin().map(|id| (id, addresses.clone(), false));
    let pinned = pin.is_some();
    let (news, refused) = transaction.adopt(pin, alive.then_some(hold))?;
    let outcome = match (pinned, alive) {
        _ if refused.is_some() => Outcome::Refused,
        (false, false) => Outcome::Leak,
        _ if !news => Outcome::Known,
        (true, true) => Outcome::PinnedAndHeld,
        (true, false) => Outcome::Pinned,
        (false, true) => Outcome::Held,
    };
    if !alive {
        addresses.iter().for_each(|&address| before.forget(address));
    }
    let container = entry.attachment.container.to_string();
    Ok(Imported { addresses, container, pod: entry.pod.as_ref().map(ToString::to_string), outcome, refused })
}

/// Imports pins that `export` wrote.
///
/// # Errors
/// When a pin cannot be made durable; what was imported before stays.
pub fn pins(transaction: &mut Transaction<'_>, pins: &[Pin]) -> Result<ImportedPins, Error> {
    let mut networks = BTreeMap::<Network, Vec<_>>::new();
    for pin in pins {
        networks.entry(pin.network.clone()).or_default().push((pin.id(), pin.addresses.clone(), pin.seen));
    }
    let mut done = ImportedPins { pins: pins.len(), ..ImportedPins::default() };
    for (network, pins) in networks {
        let (new, refused) = transaction.adopt_pins(&network, pins)?;
        done.new += new;
        done.refused.extend(refused.into_iter().map(|(id, reason)| RefusedPin {
            network: id.network,
            pod: id.pod.to_string(),
            interface: id.interface,
            reason,
        }));
    }
    Ok(done)
}
