//! The verbs in a chain, after any main plugin: what it did is recorded and passed on.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use corax_pins::store::Part;
use corax_pins::{Network, Store};
use serde_json::Value;

use super::call::{Call, Verb, del_later};
use super::error::{Code, Failure};
use super::netns::RouteError;
use super::output::{self, Version};
use super::{ipam, now, present, route_mtu, say, tell};
use crate::config::{Config, LEAST_MTU, MOST_MTU};

pub(super) fn run(
    call: &Call,
    version: Version,
    config: &Config,
    network: &Network,
) -> Result<Option<Value>, Failure> {
    match call.verb {
        Verb::Add => add(call, version, config, network).map(Some),
        Verb::Del => del(call, config, network).map(|()| None),
        Verb::Check => check(call, config, network).map(|()| None),
        Verb::Gc => gc(config, network).map(|()| None),
        Verb::Status => status(config, network).map(|()| None),
        Verb::Version => Ok(None),
    }
}

fn add(call: &Call, version: Version, config: &Config, network: &Network) -> Result<Value, Failure> {
    let Some(mut result) = config.prev_result.clone().filter(Value::is_object) else {
        let message = "no prevResult and no ipam section for corax-cni: put it behind a main plugin, or below it as ipam";
        return Err(Failure::new(Code::Config, message));
    };
    let addresses = output::addresses(&result);
    let mtu = mtu(config, &addresses)?;
    if !addresses.is_empty() {
        let request = call.request(network)?;
        let store = store(config, network, config.places.deadline());
        let mut transaction = store.begin(now())?;
        let outcome = transaction.observe(&request, &addresses);
        tell(&mut transaction);
        if let (Some(before), Some(pod)) = (outcome?.before, &request.pod) {
            say(&format!("pod {pod} on network {network} is pinned to {before:?} but got {addresses:?}"));
        }
    }
    if let (Some(mtu), Some(netns)) = (mtu, &call.netns) {
        let (_, interface) = call.container()?;
        route_mtu::set(netns, interface.as_str(), mtu).map_err(route_failure)?;
        if version.has_route_metrics() {
            put_mtu(&mut result, mtu);
        }
    }
    if let Value::Object(result) = &mut result {
        result.insert("cniVersion".into(), version.to_string().into());
    }
    Ok(result)
}

fn store(config: &Config, network: &Network, deadline: Duration) -> Store {
    super::store(&config.places, deadline, Some((network, Part::Seen)))
}

/// The MTU for the routes of a pod with these addresses: what the configuration says, else what the agent does.
fn mtu(config: &Config, addresses: &[IpAddr]) -> Result<Option<u32>, Failure> {
    let said = config.route_mtu(addresses.iter().any(IpAddr::is_ipv6))?;
    Ok(said.or_else(|| read_mtu(&config.places.run())))
}

fn read_mtu(run: &Path) -> Option<u32> {
    let mtu = std::fs::read_to_string(run.join(crate::MTU)).ok()?.trim().parse().ok();
    mtu.filter(|mtu| (LEAST_MTU..=MOST_MTU).contains(mtu))
}

/// A result says of its routes what the kernel has.
fn put_mtu(result: &mut Value, mtu: u32) {
    let routes = result.get_mut("routes").and_then(Value::as_array_mut);
    for route in routes.into_iter().flatten().filter_map(Value::as_object_mut) {
        if route.get("mtu").and_then(Value::as_u64).is_none_or(|own| own == 0 || own > u64::from(mtu)) {
            route.insert("mtu".into(), mtu.into());
        }
    }
}

fn route_failure(error: RouteError) -> Failure {
    Failure::new(Code::Route, error.to_string())
}

fn del(call: &Call, config: &Config, network: &Network) -> Result<(), Failure> {
    let own = call.attachment(network)?;
    let store = store(config, network, config.places.deadline().min(ipam::DEL_TIMEOUT));
    let freed = store.begin(now()).and_then(|mut transaction| {
        let freed = transaction.del(&own, Part::Seen, None);
        tell(&mut transaction);
        freed
    });
    if let Err(error) = freed {
        del_later(&store, &own, Part::Seen, &error);
    }
    Ok(())
}

fn check(call: &Call, config: &Config, network: &Network) -> Result<(), Failure> {
    let Some(result) = &config.prev_result else {
        return Err(Failure::new(Code::Config, "CHECK without prevResult"));
    };
    let own = call.attachment(network)?;
    let said = output::addresses(result);
    let mtu = mtu(config, &said)?;
    if !said.is_empty() {
        let store = store(config, network, config.places.deadline());
        let mut transaction = store.begin(now())?;
        let outcome = transaction.check(&own, &said);
        tell(&mut transaction);
        outcome?;
    }
    let Some(netns) = &call.netns else { return Ok(()) };
    let missing = present::missing(netns, result).map_err(|error| match error {
        // A namespace that cannot be entered has nothing of what the result says.
        RouteError::Netns { .. } => Failure::new(Code::Check, error.to_string()),
        RouteError::Netlink { .. } => route_failure(error),
    })?;
    if let Some(missing) = missing {
        return Err(Failure::new(Code::Check, format!("{missing} is not in netns {netns} any more")));
    }
    let Some(mtu) = mtu else { return Ok(()) };
    match route_mtu::larger(netns, own.interface.as_str(), mtu).map_err(route_failure)? {
        None => Ok(()),
        Some(route) => {
            Err(Failure::new(Code::Check, format!("route {route} of the pod has an MTU above {mtu}")))
        }
    }
}

fn gc(config: &Config, network: &Network) -> Result<(), Failure> {
    let Some(valid) = config.valid() else { return Ok(()) };
    let store = store(config, network, config.places.deadline());
    let mut transaction = store.begin(now())?;
    let outcome = transaction.gc(network, &valid, Part::Seen, None);
    tell(&mut transaction);
    outcome?;
    Ok(())
}

fn status(config: &Config, network: &Network) -> Result<(), Failure> {
    config.route_mtu(false)?;
    let store = store(config, network, config.places.deadline());
    let outcome = store.begin(now()).and_then(|mut transaction| {
        let outcome = transaction.status(network, None, None);
        tell(&mut transaction);
        outcome
    });
    outcome.map_err(ipam::unavailable)
}
