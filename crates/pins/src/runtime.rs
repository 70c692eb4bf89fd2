//! The runtime's CNI cache: one JSON file an attachment, written by libcni (`libcni/api.go`, `cniCacheV1`), which
//! containerd, CRI-O and podman all use.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::names::{Attachment, ContainerId, Interface, Label, Network, PodName};

/// Where libcni keeps it unless it is told otherwise.
pub const CACHE: &str = "/var/lib/cni";

/// What the runtime knows of one attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    /// Which.
    pub attachment: Attachment,
    /// The pod, where the runtime said both names.
    pub pod: Option<PodName>,
    /// `K8S_POD_UID`.
    pub uid: Option<Label>,
    /// `CNI_NETNS` at the time: what the file says, or the result's sandbox, where libcni of old wrote no more.
    pub netns: Option<String>,
    /// Addresses of the result.
    pub addresses: Vec<IpAddr>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    kind: String,
    container_id: ContainerId,
    if_name: Interface,
    network_name: Network,
    netns: Option<String>,
    #[serde(default)]
    cni_args: Vec<(String, String)>,
    #[serde(default)]
    result: CachedResult,
}

#[derive(Deserialize, Default)]
struct CachedResult {
    #[serde(default)]
    ips: Vec<CachedIp>,
    #[serde(default)]
    interfaces: Vec<CachedInterface>,
}

#[derive(Deserialize)]
struct CachedInterface {
    #[serde(default)]
    name: String,
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct CachedIp {
    address: String,
}

fn results(cache: &Path) -> PathBuf {
    cache.join("results")
}

/// The cached attachment, if the runtime has it.
pub fn cached(cache: &Path, attachment: &Attachment) -> Option<Cached> {
    let Attachment { network, container, interface } = attachment;
    parse(&std::fs::read(results(cache).join(format!("{network}-{container}-{interface}"))).ok()?)
}

/// All cached attachments of a network, those that cannot be read left out.
pub fn all(cache: &Path, network: &Network) -> Vec<Cached> {
    let entries = std::fs::read_dir(results(cache)).into_iter().flatten().flatten();
    let mut all: Vec<_> = entries
        .filter_map(|entry| parse(&std::fs::read(entry.path()).ok()?))
        .filter(|cached| cached.attachment.network == *network)
        .collect();
    all.sort_by(|a, b| a.attachment.cmp(&b.attachment));
    all
}

fn parse(bytes: &[u8]) -> Option<Cached> {
    let file: File = serde_json::from_slice(bytes).ok()?;
    if file.kind != "cniCacheV1" {
        return None;
    }
    let argument = |name| file.cni_args.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let names = argument("K8S_POD_NAMESPACE").zip(argument("K8S_POD_NAME"));
    let own = file.if_name.as_str();
    let inside = |interface: &&CachedInterface| !interface.sandbox.is_empty() && interface.name == own;
    let sandbox = file.result.interfaces.iter().find(inside).map(|interface| interface.sandbox.clone());
    let address = |ip: &CachedIp| ip.address.split('/').next()?.parse().ok();
    Some(Cached {
        pod: names.and_then(|(namespace, name)| PodName::new(namespace, name).ok()),
        uid: argument("K8S_POD_UID").and_then(|uid| uid.parse().ok()),
        netns: file.netns.filter(|path| !path.is_empty()).or(sandbox),
        addresses: file.result.ips.iter().filter_map(address).collect(),
        attachment: Attachment {
            network: file.network_name,
            container: file.container_id,
            interface: file.if_name,
        },
    })
}
