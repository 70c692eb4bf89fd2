//! Versions, and results in each of them.

use std::fmt;
use std::net::IpAddr;

use corax_pins::Ranges;
use serde_json::{Map, Value, json};

use super::call::Verb;
use super::error::{Code, Failure};
use crate::config::Config;

/// The versions of the specification we speak, oldest first.
pub const SUPPORTED: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// One of [`SUPPORTED`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(usize);

impl Version {
    /// 1.1.0.
    pub fn newest() -> Self {
        Self(SUPPORTED.len() - 1)
    }

    pub(super) fn of(config: &Config) -> Result<Self, Failure> {
        // A configuration without a version means 0.1.0.
        let wanted = config.cni_version.as_deref().filter(|v| !v.is_empty()).unwrap_or("0.1.0");
        SUPPORTED.iter().position(|&v| v == wanted).map(Self).ok_or_else(|| {
            let all = SUPPORTED.join(", ");
            Failure::new(Code::Incompatible, format!("cniVersion is {wanted:?}; supported are {all}"))
        })
    }

    /// Whether the version has a verb.
    pub(super) fn knows(self, verb: Verb) -> bool {
        match verb {
            Verb::Add | Verb::Del | Verb::Version => true,
            Verb::Check => self >= Self(2),
            Verb::Gc | Verb::Status => self.has_route_metrics(),
        }
    }

    /// From 1.1.0 routes have MTU, advertised MSS, priority, table and scope.
    pub(super) fn has_route_metrics(self) -> bool {
        self >= Self(4)
    }

    /// Up to 0.4.0 an address says its family.
    fn says_family(self) -> bool {
        self < Self(3)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SUPPORTED.get(self.0).copied().unwrap_or_default())
    }
}

/// The answer to VERSION.
pub(super) fn versions(input: &[u8]) -> Value {
    let asked = serde_json::from_slice::<Config>(input).ok().and_then(|config| config.cni_version);
    let newest = Version::newest().to_string();
    json!({ "cniVersion": asked.unwrap_or(newest), "supportedVersions": SUPPORTED })
}

/// The abbreviated result of an IPAM plugin.
pub(super) fn ipam_result(
    version: Version,
    ranges: &Ranges,
    addresses: &[IpAddr],
    routes: &[Value],
    dns: Map<String, Value>,
) -> Value {
    let ip = |address: &IpAddr| {
        let mut ip = Map::new();
        if version.says_family() {
            ip.insert("version".into(), if address.is_ipv4() { "4" } else { "6" }.into());
        }
        let range = ranges.sets().iter().find_map(|set| set.range_of(*address));
        let prefix = range.map_or(if address.is_ipv4() { 32 } else { 128 }, |range| range.subnet().prefix());
        ip.insert("address".into(), format!("{address}/{prefix}").into());
        if let Some(range) = range {
            ip.insert("gateway".into(), range.gateway().to_string().into());
        }
        Value::Object(ip)
    };
    let route = |route: &Value| match route {
        Value::Object(route) if !version.has_route_metrics() => {
            let known = |key: &str| matches!(key, "dst" | "gw");
            Value::Object(
                route.iter().filter(|(k, _)| known(k)).map(|(k, v)| (k.clone(), v.clone())).collect(),
            )
        }
        other => other.clone(),
    };
    let mut result = Map::new();
    result.insert("cniVersion".into(), version.to_string().into());
    result.insert("ips".into(), addresses.iter().map(ip).collect());
    if !routes.is_empty() {
        result.insert("routes".into(), routes.iter().map(route).collect());
    }
    result.insert("dns".into(), Value::Object(dns));
    Value::Object(result)
}

/// The addresses of a result that are in the container.
pub(super) fn addresses(result: &Value) -> Vec<IpAddr> {
    let none = Vec::new();
    let interfaces = result.get("interfaces").and_then(Value::as_array).unwrap_or(&none);
    let in_container = |ip: &&Value| {
        let at = ip.get("interface").and_then(Value::as_u64).and_then(|at| usize::try_from(at).ok());
        let interface = at.and_then(|at| interfaces.get(at));
        let sandbox = interface.and_then(|i| i.get("sandbox")).and_then(Value::as_str);
        interface.is_none() || sandbox.is_some_and(|sandbox| !sandbox.is_empty())
    };
    let ips = result.get("ips").and_then(Value::as_array).unwrap_or(&none).iter();
    ips.filter(in_container)
        .filter_map(|ip| ip.get("address")?.as_str()?.split('/').next()?.parse().ok())
        .collect()
}
