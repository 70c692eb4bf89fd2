//! The verbs as IPAM: under bridge, ptp, flannel's delegate or any other main plugin.

use std::time::Duration;

use corax_pins::hostlocal::HostLocal;
use corax_pins::store::Part;
use corax_pins::{Error, Network, Store};
use serde_json::Value;

use super::call::{Call, Verb, del_later};
use super::error::{Code, Failure};
use super::output::{self, Version};
use super::{dns, now, say, tell};
use crate::config::{Config, Ipam, Places};

/// A DEL waits no longer than this for the lock: it can leave a note.
pub(super) const DEL_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) fn run(
    call: &Call,
    version: Version,
    config: &Config,
    ipam: &Ipam,
    network: &Network,
) -> Result<Option<Value>, Failure> {
    match call.verb {
        Verb::Add => add(call, version, config, ipam, network).map(Some),
        Verb::Del => del(call, ipam, network).map(|()| None),
        Verb::Check => check(call, config, ipam, network).map(|()| None),
        Verb::Gc => gc(config, ipam, network).map(|()| None),
        Verb::Status => status(config, ipam, network).map(|()| None),
        Verb::Version => Ok(None),
    }
}

fn host_local(ipam: &Ipam, network: &Network) -> HostLocal {
    HostLocal::new(&ipam.data(), network, &ipam.places.cache())
}

fn store(ipam: &Ipam, network: &Network, deadline: Duration) -> Store {
    super::store(&ipam.places, deadline, Some((network, Part::Given)))
}

fn add(
    call: &Call,
    version: Version,
    config: &Config,
    ipam: &Ipam,
    network: &Network,
) -> Result<Value, Failure> {
    let ranges = config.ranges(ipam)?;
    ipam.check_routes()?;
    let mut request = call.request(network)?;
    request.requested = config.requested(call.argument("IP"))?;
    let dns = ipam.resolv_conf.as_deref().filter(|path| !path.as_os_str().is_empty());
    let dns = dns.map(dns::read).transpose()?.unwrap_or_default();

    let store = store(ipam, network, ipam.places.deadline());
    let mut transaction = store.begin(now())?;
    let outcome = transaction.add(&ranges, &request, Some(&host_local(ipam, network)));
    tell(&mut transaction);
    let answer = outcome?;
    if let (Some(before), Some(pod)) = (&answer.before, &request.pod) {
        say(&format!(
            "pod {pod} on network {network} was at {before:?} and is at {:?} now",
            answer.addresses
        ));
    }
    Ok(output::ipam_result(version, &ranges, &answer.addresses, &ipam.routes, dns))
}

fn del(call: &Call, ipam: &Ipam, network: &Network) -> Result<(), Failure> {
    let own = call.attachment(network)?;
    let store = store(ipam, network, ipam.places.deadline().min(DEL_TIMEOUT));
    let before = host_local(ipam, network);
    let freed = store.begin(now()).and_then(|mut transaction| {
        let freed = transaction.del(&own, Part::Given, Some(&before));
        tell(&mut transaction);
        freed
    });
    if let Err(error) = freed {
        before.remove(&own, None);
        del_later(&store, &own, Part::Given, &error);
    }
    Ok(())
}

/// DEL of a container whose configuration cannot be read: whatever it holds, in the usual places.
pub(super) fn del_unknown(call: &Call, why: &str) -> Result<Option<Value>, Failure> {
    let (container, interface) = call.container()?;
    say(&format!("{why}; freeing what container {container} holds by {interface} on any network"));
    let store = super::store(&Places::default(), DEL_TIMEOUT, None);
    let freed = store.begin(now()).and_then(|mut transaction| {
        let freed = transaction.del_everywhere(&container, &interface);
        tell(&mut transaction);
        freed
    });
    if let Err(error) = freed {
        say(&format!("{error}; freed when its netns is gone"));
    }
    Ok(None)
}

fn check(call: &Call, config: &Config, ipam: &Ipam, network: &Network) -> Result<(), Failure> {
    config.ranges(ipam)?;
    let own = call.attachment(network)?;
    let said = config.prev_result.as_ref().map(output::addresses).unwrap_or_default();
    let store = store(ipam, network, ipam.places.deadline());
    let mut transaction = store.begin(now())?;
    let outcome = transaction.check(&own, &said);
    tell(&mut transaction);
    Ok(outcome?)
}

fn gc(config: &Config, ipam: &Ipam, network: &Network) -> Result<(), Failure> {
    // Without a list nothing is known to be stale.
    let Some(valid) = config.valid() else { return Ok(()) };
    let store = store(ipam, network, ipam.places.deadline());
    let mut transaction = store.begin(now())?;
    let outcome = transaction.gc(network, &valid, Part::Given, Some(&host_local(ipam, network)));
    tell(&mut transaction);
    outcome?;
    Ok(())
}

fn status(config: &Config, ipam: &Ipam, network: &Network) -> Result<(), Failure> {
    let ranges = config.ranges(ipam)?;
    let store = store(ipam, network, ipam.places.deadline());
    let outcome = store.begin(now()).and_then(|mut transaction| {
        let outcome = transaction.status(network, Some(&ranges), Some(&host_local(ipam, network)));
        tell(&mut transaction);
        outcome
    });
    outcome.map_err(unavailable)
}

pub(super) fn unavailable(error: Error) -> Failure {
    let code = match error {
        Error::NotHeld { .. } | Error::Io { .. } => Code::Limited,
        _ => Code::NotAvailable,
    };
    Failure::new(code, error.to_string())
}
