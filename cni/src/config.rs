//! The network configuration: what the CNI specification says, host-local's ipam section, and four keys of our own.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use corax_pins::range::RangeSpec;
use corax_pins::{
    ContainerId, Interface, Network, Range, RangeError, RangeSet, Ranges, hostlocal, runtime, store,
};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::Value;

/// The smallest MTU in bytes that every IPv4 host has to take (RFC 791: a datagram of 576).
pub const LEAST_MTU: u32 = 576;
/// The smallest MTU in bytes of a link that carries IPv6 (RFC 8200, section 5).
pub const LEAST_MTU6: u32 = 1280;
/// The largest: an IP packet's length is a number of 16 bits.
pub const MOST_MTU: u32 = 65_535;

/// How long a transaction waits for the lock unless the configuration says otherwise.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// A network configuration, as a runtime or a main plugin hands it over.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    /// Version of the specification to speak.
    pub cni_version: Option<String>,
    /// The network's name.
    pub name: Option<String>,
    /// The IPAM section.
    pub ipam: Option<Ipam>,
    /// Result of the plugin before us, or of the ADD.
    pub prev_result: Option<Value>,
    /// What the runtime passes for capabilities.
    pub runtime_config: Option<RuntimeConfig>,
    /// The older way to pass addresses.
    pub args: Option<Args>,
    /// Attachments that are still valid (GC).
    #[serde(rename = "cni.dev/valid-attachments")]
    pub valid_attachments: Option<Vec<ValidAttachment>>,
    /// The same under the name that libcni writes besides.
    #[serde(rename = "cni.dev/attachments")]
    pub attachments: Option<Vec<ValidAttachment>>,
    /// In a chain: see [`Config::route_mtu`]. A main plugin's own `mtu` may be anything, and concerns nobody here.
    pub mtu: Option<Value>,
    /// Where things are kept, in a chain.
    #[serde(flatten)]
    pub places: Places,
}

/// Go writes an empty list or object as null.
fn nullable<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Where things are kept.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Places {
    /// Directory of the pins; `/var/lib/corax`.
    pub state_dir: Option<PathBuf>,
    /// Directory of the holds; `/run/corax`.
    pub run_dir: Option<PathBuf>,
    /// The runtime's CNI cache; `/var/lib/cni`.
    pub cache_dir: Option<PathBuf>,
    /// Milliseconds to wait for the lock; 10,000.
    pub lock_timeout: Option<u64>,
}

impl Places {
    /// The directory of the pins.
    pub fn state(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(|| store::STATE.into())
    }

    /// The directory of the holds.
    pub fn run(&self) -> PathBuf {
        self.run_dir.clone().unwrap_or_else(|| store::RUN.into())
    }

    /// The runtime's cache.
    pub fn cache(&self) -> PathBuf {
        self.cache_dir.clone().unwrap_or_else(|| runtime::CACHE.into())
    }

    /// How long to wait for the lock.
    pub fn deadline(&self) -> Duration {
        self.lock_timeout.map_or(LOCK_TIMEOUT, Duration::from_millis)
    }
}

/// The ipam section: host-local's.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ipam {
    /// The plugin it is for.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// A single range, the older form.
    #[serde(flatten)]
    pub range: RangeConfig,
    /// Range sets: a pod gets an address of each.
    #[serde(deserialize_with = "nullable")]
    pub ranges: Vec<Vec<RangeConfig>>,
    /// Routes to put in the result.
    #[serde(deserialize_with = "nullable")]
    pub routes: Vec<Value>,
    /// A file to take DNS settings from.
    pub resolv_conf: Option<PathBuf>,
    /// host-local's directory, whose reservations count here too; `/var/lib/cni/networks`.
    pub data_dir: Option<PathBuf>,
    /// Where our own things are kept.
    #[serde(flatten)]
    pub places: Places,
}

impl Ipam {
    /// Checks the routes, which go into the result as they are.
    ///
    /// # Errors
    /// When the destination of one is no prefix, or its gateway no address.
    pub fn check_routes(&self) -> Result<(), ConfigError> {
        for route in &self.routes {
            let text = |key: &str| route.get(key).and_then(Value::as_str);
            let to = text("dst").unwrap_or_default();
            if to.parse::<IpNetwork>().is_err() || !to.contains('/') {
                return Err(ConfigError::Prefix(to.to_owned()));
            }
            if let Some(by) = text("gw").filter(|by| !by.is_empty() && by.parse::<IpAddr>().is_err()) {
                return Err(ConfigError::Address(by.to_owned()));
            }
        }
        Ok(())
    }

    /// host-local's directory.
    pub fn data(&self) -> PathBuf {
        self.data_dir.clone().filter(|d| !d.as_os_str().is_empty()).unwrap_or_else(|| hostlocal::DATA.into())
    }
}

/// One range.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RangeConfig {
    /// The subnet.
    pub subnet: Option<String>,
    /// First address to give out.
    pub range_start: Option<String>,
    /// Last address to give out.
    pub range_end: Option<String>,
    /// The gateway.
    pub gateway: Option<String>,
    /// Addresses and prefixes not to give out.
    #[serde(deserialize_with = "nullable")]
    pub exclude: Vec<String>,
}

impl RangeConfig {
    /// The range, of the `at`th set; `exclude` is what the whole section excludes besides.
    fn range(&self, at: usize, exclude: &[String]) -> Result<Range, ConfigError> {
        let address = |text: &Option<String>| match text.as_deref().filter(|text| !text.is_empty()) {
            Some(text) => {
                let address = text.parse::<IpAddr>().map_err(|_| ConfigError::Address(text.to_owned()));
                address.map(|address| Some(address.to_canonical()))
            }
            None => Ok(None),
        };
        let prefix = |text: &String| text.parse::<IpNetwork>().map_err(|_| ConfigError::Prefix(text.clone()));
        let subnet = self.subnet.as_ref().ok_or(ConfigError::NoSubnet(at))?;
        if !subnet.contains('/') {
            return Err(ConfigError::Prefix(subnet.clone()));
        }
        let spec = RangeSpec {
            subnet: prefix(subnet)?,
            start: address(&self.range_start)?,
            end: address(&self.range_end)?,
            gateway: address(&self.gateway)?,
            exclude: self.exclude.iter().chain(exclude).map(prefix).collect::<Result<_, _>>()?,
        };
        Range::new(spec).map_err(|source| ConfigError::Range { set: at, source })
    }
}

/// `runtimeConfig`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuntimeConfig {
    /// The `ips` capability.
    #[serde(deserialize_with = "nullable")]
    pub ips: Vec<String>,
    /// The `ipRanges` capability.
    #[serde(deserialize_with = "nullable")]
    pub ip_ranges: Vec<Vec<RangeConfig>>,
}

/// `args`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Args {
    /// `args.cni`.
    #[serde(deserialize_with = "nullable")]
    pub cni: ArgsCni,
}

/// `args.cni`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ArgsCni {
    /// Addresses to get.
    #[serde(deserialize_with = "nullable")]
    pub ips: Vec<String>,
}

/// One element of `cni.dev/valid-attachments`.
#[derive(Debug, Clone, Deserialize)]
pub struct ValidAttachment {
    /// `CNI_CONTAINERID`.
    #[serde(rename = "containerID")]
    pub container: String,
    /// `CNI_IFNAME`.
    #[serde(rename = "ifname")]
    pub interface: String,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the message is the documentation
pub enum ConfigError {
    #[error("missing network name")]
    NoName,
    #[error(transparent)]
    Name(#[from] corax_pins::names::NameError),
    #[error("range set {set}: {source}")]
    Range { set: usize, source: RangeError },
    #[error("range set {0}: a range has no subnet")]
    NoSubnet(usize),
    #[error(transparent)]
    Ranges(RangeError),
    #[error("{0:?} is no IP address")]
    Address(String),
    #[error("{0:?} is no prefix in CIDR notation")]
    Prefix(String),
    #[error(
        "mtu is {0}: it has to be a number from {LEAST_MTU}, or {LEAST_MTU6} where pods have IPv6, to {MOST_MTU}"
    )]
    Mtu(Value),
}

impl Config {
    /// The network's name.
    ///
    /// # Errors
    /// When it is missing or not a name.
    pub fn network(&self) -> Result<Network, ConfigError> {
        let name = self.name.as_deref().filter(|name| !name.is_empty()).ok_or(ConfigError::NoName)?;
        Ok(name.parse()?)
    }

    /// In a chain: MTU in bytes of the pod's routes; none where it is not said, or 0. `six`: the pod has IPv6.
    ///
    /// # Errors
    /// When it is no number of bytes that an IP network may have.
    pub fn route_mtu(&self, six: bool) -> Result<Option<u32>, ConfigError> {
        let Some(said) = self.mtu.as_ref().filter(|mtu| !mtu.is_null() && mtu.as_u64() != Some(0)) else {
            return Ok(None);
        };
        let least = if six { LEAST_MTU6 } else { LEAST_MTU };
        let mtu = said.as_u64().and_then(|mtu| u32::try_from(mtu).ok());
        let mtu = mtu.filter(|mtu| (least..=MOST_MTU).contains(mtu));
        mtu.map(Some).ok_or_else(|| ConfigError::Mtu(said.clone()))
    }

    /// The IPAM section, if it is for us: for `corax-cni` or the name we were called by.
    pub fn ipam(&self, own_name: &str) -> Option<&Ipam> {
        let ours = |kind: &str| kind == crate::TYPE || kind == own_name;
        self.ipam.as_ref().filter(|ipam| ipam.kind.as_deref().is_some_and(ours))
    }

    /// All range sets, in host-local's order: the `ipRanges` capability, the single range, then `ranges`.
    ///
    /// # Errors
    /// When no pod could use them.
    pub fn ranges(&self, ipam: &Ipam) -> Result<Ranges, ConfigError> {
        let single = ipam.range.subnet.is_some().then(|| vec![ipam.range.clone()]);
        let given = self.runtime_config.iter().flat_map(|r| r.ip_ranges.iter().cloned());
        let all: Vec<Vec<RangeConfig>> = given.chain(single).chain(ipam.ranges.iter().cloned()).collect();
        let sets = all.iter().enumerate().map(|(at, ranges)| {
            let exclude = &ipam.range.exclude;
            let ranges = ranges.iter().map(|range| range.range(at, exclude)).collect::<Result<_, _>>()?;
            RangeSet::new(ranges).map_err(|source| ConfigError::Range { set: at, source })
        });
        Ranges::new(sets.collect::<Result<_, _>>()?).map_err(ConfigError::Ranges)
    }

    /// Addresses the pod must get, by whatever way they were passed; `argument` is IP of `CNI_ARGS`.
    ///
    /// # Errors
    /// When one is no address.
    pub fn requested(&self, argument: Option<&str>) -> Result<Vec<IpAddr>, ConfigError> {
        let args = self.args.iter().flat_map(|args| &args.cni.ips);
        let capability = self.runtime_config.iter().flat_map(|r| &r.ips);
        let texts = argument.into_iter().chain(args.chain(capability).map(String::as_str));
        let mut all = Vec::new();
        for text in texts {
            let plain = text.split('/').next().unwrap_or_default();
            let address = plain.parse().map_err(|_| ConfigError::Address(text.to_owned()))?;
            if !all.contains(&address) {
                all.push(address);
            }
        }
        Ok(all)
    }

    /// The valid attachments, if the runtime said which they are. One that is not a name was never ours.
    pub fn valid(&self) -> Option<std::collections::BTreeSet<(ContainerId, Interface)>> {
        let list = self.valid_attachments.as_ref().or(self.attachments.as_ref())?;
        Some(
            list.iter()
                .filter_map(|a| Some((a.container.parse().ok()?, a.interface.parse().ok()?)))
                .collect(),
        )
    }
}
