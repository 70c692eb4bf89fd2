//! What the agent tells of itself: `/status`, `corax status`, and most of `/metrics`.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use corax_core::change::Change;
use corax_core::mac::Mac;
use corax_core::name::{DomainName, NodeName};
use corax_core::problem::Problem;
use corax_core::topology::{RemoteDomain, Role};
use serde::{Deserialize, Serialize};

use crate::kernel;

/// The state of an agent. Times are seconds since the epoch.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    /// Corax's version.
    pub version: String,
    /// When the agent started.
    pub started: u64,
    /// The node.
    pub node: String,
    /// What it is to its domain.
    pub role: Role,
    /// Its domain.
    pub domain: Option<DomainName>,
    /// The domain's gateway node.
    pub gateway: Option<NodeName>,
    /// Whether members reach each other over the overlay.
    pub mesh: bool,
    /// Its underlay address.
    pub underlay: Option<IpAddr>,
    /// Hardware address of its VTEP.
    pub vtep: Option<Mac>,
    /// Its tunnel's public key.
    pub public_key: String,
    /// Its own pods' prefixes and those it answers for.
    pub prefixes: Vec<String>,
    /// The view.
    pub view: ViewReport,
    /// The other domains.
    pub domains: Vec<DomainReport>,
    /// Devices.
    pub devices: Vec<DeviceReport>,
    /// Tunnels.
    pub tunnels: Vec<TunnelReport>,
    /// Kernel objects of ours, by class.
    pub objects: BTreeMap<String, usize>,
    /// What the nftables table dropped.
    pub drops: Vec<DropReport>,
    /// The last changes to the kernel, the newest last.
    pub last_changes: VecDeque<ChangeReport>,
    /// All that is wrong, what `view.failed` says included.
    pub problems: Vec<Problem>,
}

/// How far a view is applied.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ViewReport {
    /// Counts up with each view read.
    pub revision: u64,
    /// When this one was read.
    pub since: u64,
    /// Nothing of the source is unknown; else nothing that is not known is deleted.
    #[serde(default)]
    pub complete: bool,
    /// The kernel is as this view asks.
    pub applied: bool,
    /// Why it is not, at the last try: of the problems those that stand in the way of this view.
    pub failed: Vec<String>,
}

/// Another domain.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DomainReport {
    /// Name, path, gateway and relay.
    #[serde(flatten)]
    pub remote: RemoteDomain,
    /// How many prefixes it has.
    pub prefixes: usize,
}

/// A device.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeviceReport {
    /// Its name.
    pub name: String,
    /// `vxlan`, `wireguard` or `tun`.
    pub kind: String,
    /// Its MTU, bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
}

/// A tunnel to another domain's gateway.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TunnelReport {
    /// The device.
    pub device: String,
    /// The domain at the other end.
    pub domain: DomainName,
    /// Its gateway node.
    pub node: NodeName,
    /// Its public key.
    pub key: String,
    /// Where it was last heard, or is said to be.
    pub endpoint: Option<String>,
    /// Seconds since the last handshake.
    pub handshake_age: Option<u64>,
    /// Bytes received.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
}

/// One reason to drop, and how often it was.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DropReport {
    /// The counter's name.
    pub reason: String,
    /// Packets dropped.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A change that was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ChangeReport {
    /// When.
    pub at: u64,
    /// As a line of iproute2, nft or wg.
    pub line: String,
    /// Why it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Report {
    /// How many of the last changes are kept.
    pub(crate) const KEPT: usize = 50;

    /// Characters that are kept of a change: of one with ten thousand prefixes, the begin.
    const LINE: usize = 400;

    /// A change as it is shown: on one line, of a whole table its name.
    pub(crate) fn line(change: &Change) -> String {
        let mut line = kernel::line(change);
        if let Some((at, _)) = line.char_indices().nth(Self::LINE) {
            line.truncate(at);
            line.push('…');
        }
        line
    }

    /// Remembers a change, and forgets the oldest.
    pub(crate) fn remember(&mut self, change: ChangeReport) {
        if self.last_changes.len() == Self::KEPT {
            self.last_changes.pop_front();
        }
        self.last_changes.push_back(change);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_one_line_and_a_table_its_name() {
        let ruleset = corax_core::nft::Ruleset::default();
        let change = Change::ReplaceTable(Box::new(ruleset), Vec::new());
        assert_eq!(Report::line(&change), "nft -f - (table inet corax)");
    }
}
