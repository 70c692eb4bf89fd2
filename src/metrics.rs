//! `/metrics`: counters of the loop, and what the newest report says.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use corax_core::change::Change;
use corax_core::topology::Path;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::watch;

use crate::agent::report::Report;

/// Labels of a change: the class of object, what was done, and whether the kernel took it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ChangeLabels {
    object: &'static str,
    verb: &'static str,
    result: &'static str,
}

/// All metrics of an agent.
pub(crate) struct Metrics {
    registry: Registry,
    changes: Family<ChangeLabels, Counter>,
    turns: Counter,
    turns_with_changes: Counter,
    seconds: Histogram,
    programming: Histogram,
    /// Times that everything was read again.
    pub resyncs: Counter,
}

impl Metrics {
    /// Metrics of the agent whose reports these are.
    pub(crate) fn new(reports: watch::Receiver<Arc<Report>>) -> Self {
        let mut registry = Registry::with_prefix("corax");
        let changes = Family::<ChangeLabels, Counter>::default();
        let (turns, turns_with_changes, resyncs) =
            (Counter::default(), Counter::default(), Counter::default());
        let histogram = || Histogram::new(exponential_buckets(0.000_25, 4.0, 9));
        let (seconds, programming) = (histogram(), histogram());
        registry.register("changes", "Changes sent to the kernel", changes.clone());
        registry.register("reconciles", "Turns of the loop", turns.clone());
        registry.register(
            "reconciles_with_changes",
            "Turns that changed something",
            turns_with_changes.clone(),
        );
        registry.register("resyncs", "Full readings of the kernel's state", resyncs.clone());
        registry.register_with_unit("reconcile", "Time of a turn", Unit::Seconds, seconds.clone());
        registry.register_with_unit(
            "programming",
            "From the begin of a turn that changed something to the last change",
            Unit::Seconds,
            programming.clone(),
        );
        registry.register_collector(Box::new(Latest(reports)));
        Self { registry, changes, turns, turns_with_changes, seconds, programming, resyncs }
    }

    /// Counts a change.
    pub(crate) fn change(&self, change: &Change, taken: bool) {
        let (object, verb) = change.label();
        let result = if taken { "ok" } else { "error" };
        self.changes.get_or_create(&ChangeLabels { object, verb, result }).inc();
    }

    /// Counts a turn, which made its last change after `programmed`.
    pub(crate) fn turn(&self, took: Duration, programmed: Option<Duration>) {
        self.turns.inc();
        self.seconds.observe(took.as_secs_f64());
        if let Some(programmed) = programmed {
            self.turns_with_changes.inc();
            self.programming.observe(programmed.as_secs_f64());
        }
    }

    /// All of them, in OpenMetrics text.
    ///
    /// # Errors
    /// Those of formatting.
    pub(crate) fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// What the newest report says.
#[derive(Debug)]
struct Latest(watch::Receiver<Arc<Report>>);

impl Collector for Latest {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let report = Arc::clone(&self.0.borrow());
        let none: [(&str, String); 0] = [];
        let build = [("version", report.version.clone())];
        gauges(&mut encoder, "build_info", "Corax's version", None, [(build, 1)])?;
        let applied = i64::from(report.view.applied);
        gauges(
            &mut encoder,
            "view_applied",
            "The kernel is as the view asks",
            None,
            [(none.clone(), applied)],
        )?;
        let problems = count(report.problems.len());
        gauges(&mut encoder, "problems", "Problems, see /status", None, [(none, problems)])?;
        let objects =
            report.objects.iter().map(|(class, number)| ([("object", class.clone())], count(*number)));
        gauges(&mut encoder, "objects", "Kernel objects of Corax", None, objects)?;
        let reached = report.domains.iter().map(|domain| {
            let labels = [("domain", domain.remote.name.to_string())];
            (labels, i64::from(domain.remote.path != Path::None))
        });
        gauges(&mut encoder, "domain_path", "There is a path to the domain", None, reached)?;
        let reasons = || report.drops.iter().map(|drop| ([("reason", drop.reason.clone())], drop));
        let packets = reasons().map(|(labels, drop)| (labels, drop.packets));
        counters(&mut encoder, "dropped_packets", "Packets dropped by Corax's own rules", None, packets)?;
        let bytes = reasons().map(|(labels, drop)| (labels, drop.bytes));
        counters(&mut encoder, "dropped", "Bytes dropped by Corax's own rules", Some(&Unit::Bytes), bytes)?;
        let peers = || report.tunnels.iter().map(|peer| ([("domain", peer.domain.to_string())], peer));
        let received = peers().map(|(labels, peer)| (labels, peer.received));
        counters(
            &mut encoder,
            "tunnel_received",
            "Bytes received by a tunnel",
            Some(&Unit::Bytes),
            received,
        )?;
        let sent = peers().map(|(labels, peer)| (labels, peer.sent));
        counters(&mut encoder, "tunnel_sent", "Bytes sent by a tunnel", Some(&Unit::Bytes), sent)?;
        let ages =
            peers().filter_map(|(labels, peer)| Some((labels, i64::try_from(peer.handshake_age?).ok()?)));
        gauges(
            &mut encoder,
            "tunnel_handshake_age",
            "Time since a tunnel's last handshake",
            Some(&Unit::Seconds),
            ages,
        )
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn gauges<const N: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    values: impl IntoIterator<Item = ([(&'static str, String); N], i64)>,
) -> fmt::Result {
    let values = values.into_iter().map(|(labels, value)| (labels, ConstGauge::new(value)));
    family(encoder, name, help, unit, values)
}

fn counters<const N: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    values: impl IntoIterator<Item = ([(&'static str, String); N], u64)>,
) -> fmt::Result {
    let values = values.into_iter().map(|(labels, value)| (labels, ConstCounter::new(value)));
    family(encoder, name, help, unit, values)
}

fn family<const N: usize, M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    values: impl Iterator<Item = ([(&'static str, String); N], M)>,
) -> fmt::Result {
    let mut values = values.peekable();
    let Some((_, first)) = values.peek() else { return Ok(()) };
    let kind = first.metric_type();
    let mut encoder = encoder.encode_descriptor(name, help, unit, kind)?;
    for (labels, metric) in values {
        if N == 0 {
            metric.encode(encoder)?;
            break;
        }
        metric.encode(encoder.encode_family(&labels.as_slice())?)?;
    }
    Ok(())
}
