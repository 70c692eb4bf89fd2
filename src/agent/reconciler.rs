//! The loop: something changed, plan, apply, report. It owns the kernel's interfaces and the mirror, in a thread of
//! its own.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use corax_core::facts::Facts;
use corax_core::problem::Problem;
use corax_core::topology::{Role, Topology};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::files::Files;
use super::inbox::Inbox;
use super::mtu::MtuFile;
use super::node::{Converged, Decision, Done, Node};
use super::refusals::{self, Told};
use super::report::{ChangeReport, Report};
use super::silence::Silence;
use super::{Heartbeat, epoch, summary};
use crate::metrics::Metrics;
use crate::problem;
use crate::source::{Known, Sourced};

/// How often everything is read again.
const RESYNC: Duration = Duration::from_secs(60);

/// How often a gateway looks at its tunnels, of which the kernel sends no events.
const TUNNELS: Duration = Duration::from_secs(5);

/// After a turn that changed something, how long the next gathers what comes on its heels.
const GATHER: Duration = Duration::from_millis(20);

/// How long the kernel's events wait after a turn that did not get there: somebody else may be undoing what we do.
const CALM: Duration = Duration::from_secs(1);

/// Bounds of the time until what failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The loop's state.
pub(crate) struct Reconciler {
    node: Node,
    inbox: Arc<Inbox>,
    reports: watch::Sender<Arc<Report>>,
    metrics: Arc<Metrics>,
    heartbeat: Heartbeat,
    report: Report,
    sourced: Option<Sourced>,
    decision: Decision,
    /// Problems of the command line and the state directory.
    standing: Vec<Problem>,
    files: Files,
    silence: Silence,
    mtu: MtuFile,
    /// What the kernel did not take, or may not be as it should be, at the last try.
    failed: Vec<Told>,
    /// Problems that the log has been told of.
    logged: BTreeSet<Problem>,
    times: Times,
}

/// When something is due.
struct Times {
    resync: Instant,
    tunnels: Instant,
    gather: Instant,
    calm: Instant,
    retry: Option<Instant>,
    backoff: Duration,
}

impl Times {
    fn next(&self, gateway: bool, look: Option<Instant>, now: Instant) -> Duration {
        let tunnels = gateway.then_some(self.tunnels);
        let due =
            [Some(self.resync), tunnels, self.retry, look].into_iter().flatten().min().unwrap_or(self.resync);
        due.saturating_duration_since(now)
    }
}

impl Reconciler {
    /// A loop that has not turned yet.
    pub(crate) fn new(
        node: Node,
        inbox: Arc<Inbox>,
        reports: watch::Sender<Arc<Report>>,
        metrics: Arc<Metrics>,
        heartbeat: Heartbeat,
        standing: Vec<Problem>,
        files: Files,
    ) -> Self {
        let report = reports.borrow().as_ref().clone();
        let now = Instant::now();
        let times = Times {
            resync: now + RESYNC,
            tunnels: now + TUNNELS,
            gather: now,
            calm: now,
            retry: None,
            backoff: RETRY.0,
        };
        Self {
            node,
            inbox,
            reports,
            metrics,
            heartbeat,
            report,
            sourced: None,
            decision: Decision::default(),
            standing,
            files,
            silence: Silence::default(),
            mtu: MtuFile::new(Path::new(corax_cni::RUN)),
            failed: Vec::new(),
            logged: BTreeSet::new(),
            times,
        }
    }

    /// Turns until it is told to stop. What is in the kernel stays.
    pub(crate) fn run(mut self) {
        loop {
            self.heartbeat.beat();
            let taken = self.inbox.take();
            if taken.stop {
                info!("the agent stops; the data plane stays as it is");
                return;
            }
            let drained = self.node.kernel().drain();
            if drained.overrun {
                info!("events of the kernel were lost, so all that it has was read again");
                self.metrics.resyncs.inc();
            }
            for error in &drained.errors {
                warn!(%error, "part of the kernel's state is unknown");
            }
            let now = Instant::now();
            let resync = now >= self.times.resync;
            if resync {
                self.resync(now);
            }
            let new_view = taken.sourced.is_some();
            let mut last = None;
            if new_view {
                last = std::mem::replace(&mut self.sourced, taken.sourced);
                self.report.view.since = epoch();
            }
            let look = self.look_at().is_some_and(|at| now >= at);
            let facts = drained.facts || resync || look;
            let retry = self.times.retry.is_some_and(|at| now >= at);
            let tunnels = self.decision.topology.role == Role::Gateway && now >= self.times.tunnels;
            if tunnels {
                self.times.tunnels = now + TUNNELS;
            }
            if new_view || facts || drained.ours || retry || tunnels {
                self.turn(new_view, facts || new_view, now);
            } else if taken.refresh {
                self.node.read_tunnels();
                self.publish();
            }
            // Only now: freeing ten thousand members before the turn would delay it.
            drop(last);
            self.wait();
        }
    }

    /// When the node's facts are to be asked for anew, if a view is there to ask for.
    fn look_at(&self) -> Option<Instant> {
        self.sourced.as_ref()?.view.as_ref()?;
        self.node.look_at()
    }

    fn wait(&mut self) {
        let now = Instant::now();
        // The first change goes at once; those on its heels are gathered.
        if let Some(rest) = self.times.gather.checked_duration_since(now) {
            std::thread::sleep(rest);
        }
        let gateway = self.decision.topology.role == Role::Gateway;
        let most = self.times.next(gateway, self.look_at(), now).min(Heartbeat::MOST);
        let timeout = PollTimeout::try_from(most + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let calm =
            self.times.calm.checked_duration_since(now).and_then(|rest| PollTimeout::try_from(rest).ok());
        // What was heard while changes were made is not heard again.
        let timeout = match calm {
            Some(rest) => rest.min(timeout),
            None if self.node.kernel().has_news() => PollTimeout::ZERO,
            None => timeout,
        };
        let kernel = if calm.is_some() { Vec::new() } else { self.node.fds() };
        let mut fds: Vec<PollFd<'_>> =
            kernel.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
        fds.push(PollFd::new(self.inbox.as_fd(), PollFlags::POLLIN));
        if let Err(error) = poll(&mut fds, timeout)
            && error != nix::errno::Errno::EINTR
        {
            warn!(%error, "waiting for the kernel's events failed");
        }
    }

    fn resync(&mut self, now: Instant) {
        self.times.resync = now + RESYNC;
        self.files.look();
        self.metrics.resyncs.inc();
        if let Err(error) = self.node.kernel().resync() {
            warn!(%error, "reading the kernel's state failed; what did not answer stays as it is");
        }
    }

    /// One turn: decides where view or facts changed, then makes the kernel be as decided.
    fn turn(&mut self, new_view: bool, new_facts: bool, now: Instant) {
        let Some(view) = self.sourced.as_ref().and_then(|sourced| sourced.view.clone()) else {
            // Nothing is known: nothing is deleted.
            self.publish();
            return;
        };
        let begun = Instant::now();
        let known = self.sourced.as_ref().map_or(Known::Part, |sourced| sourced.known);
        // While that is not all, what is in the kernel tells what stays.
        if new_facts || known != Known::All {
            let facts = self.node.facts(&view);
            if new_view || known != Known::All || facts != self.decision.facts {
                self.decide(&view, facts, known);
            }
        }
        if self.decision.held {
            // There is nothing to try again.
            self.failed.clear();
            self.times.retry = None;
            self.publish();
            return;
        }
        self.mtu.leave(&self.decision.desired);
        let Converged { done, last, unread, unsure } = self.node.converge(&self.decision.desired);
        let mut made = done.iter().filter(|step| step.error.is_none());
        if let (false, Some(first)) = (new_view, made.next()) {
            info!(changes = 1 + made.count(), first = Report::line(&first.change), "the kernel was repaired");
        }
        let mut failed = refusals::told(&done, &unread, Report::KEPT);
        failed.extend(unsure.map(Told::from));
        self.record(done, failed);
        self.metrics.turn(begun.elapsed(), last.map(|last| last - begun));
        if last.is_some() {
            self.times.gather = Instant::now() + GATHER;
        }
        if !self.failed.is_empty() {
            self.times.calm = Instant::now() + CALM;
        }
        if self.failed.is_empty() {
            self.times.retry = None;
            self.times.backoff = RETRY.0;
        } else if self.times.retry.is_none_or(|at| now >= at) {
            self.times.retry = Some(now + self.times.backoff);
            self.times.backoff = (self.times.backoff * 2).min(RETRY.1);
        }
        self.publish();
    }

    /// Decides anew.
    fn decide(&mut self, view: &corax_core::view::View, facts: Facts, known: Known) {
        let Decision { topology: Topology { role, gateway, .. }, desired, .. } =
            std::mem::take(&mut self.decision);
        let once = self.sourced.as_ref().and_then(|sourced| sourced.once.as_ref());
        self.decision = self.node.decide(view, facts, known, once, desired);
        let topology = &self.decision.topology;
        if (topology.role, &topology.gateway) != (role, &gateway) {
            info!(
                role = ?topology.role,
                domain = topology.domain.as_ref().map_or("", |name| name.as_str()),
                gateway = topology.gateway.as_ref().map_or("", |name| name.as_str()),
                "this node's role"
            );
        }
    }

    /// Says in the log what came and what went of the node's own problems. The source tells of its own.
    fn log_problems(&mut self) {
        let sourced = self.sourced.as_ref();
        let view = sourced.and_then(|sourced| sourced.view.as_deref());
        let told: BTreeSet<&Problem> = (sourced.into_iter().flat_map(|sourced| &sourced.problems))
            .chain(view.into_iter().flat_map(|view| &view.problems))
            .chain(&self.standing)
            .chain(self.failed_now())
            .collect();
        let now: BTreeSet<Problem> =
            self.report.problems.iter().filter(|problem| !told.contains(problem)).cloned().collect();
        now.difference(&self.logged).for_each(problem::warn);
        self.logged.difference(&now).for_each(problem::over);
        self.logged = now;
    }

    /// Takes in what was done, and what is wrong since.
    fn record(&mut self, done: Vec<Done>, failed: Vec<Told>) {
        let is_new = |told: &&Told| !self.failed.iter().any(|before| before.is_of(told));
        failed.iter().filter(is_new).for_each(|told| problem::error(&told.problem));
        self.failed = failed;
        let at = epoch();
        // Of ten thousand changes only the last are kept, and making a line of each is not free. Of refused ones the first
        // tell more.
        let kept = done.len().saturating_sub(Report::KEPT);
        let mut refused = 0;
        for (number, Done { change, error }) in done.into_iter().enumerate() {
            self.metrics.change(&change, error.is_none());
            debug!(%change, error = error.as_ref().map(tracing::field::display), "change");
            refused += usize::from(error.is_some());
            let told = if error.is_some() { refused <= Report::KEPT } else { number >= kept };
            if told {
                let line = Report::line(&change);
                self.report.remember(ChangeReport { at, line, error: error.map(|error| error.to_string()) });
            }
        }
    }

    /// What failed at the last try.
    fn failed_now(&self) -> impl Iterator<Item = &Problem> {
        self.failed.iter().map(|told| &told.problem)
    }

    fn publish(&mut self) {
        let sourced = self.sourced.as_ref();
        let view = sourced.and_then(|sourced| sourced.view.as_deref());
        self.report.view.revision = sourced.map_or(0, |sourced| sourced.revision);
        let foreign: Vec<(Problem, bool)> = self.decision.foreign_links().collect();
        let lacking = foreign.iter().filter(|(_, lacking)| *lacking).map(|(problem, _)| problem);
        let held = self.decision.incomplete.as_ref().filter(|_| self.decision.held);
        self.report.view.complete = self.decision.incomplete.is_none();
        self.report.view.failed =
            held.into_iter().chain(lacking).chain(self.failed_now()).map(ToString::to_string).collect();
        self.report.view.applied = view.is_some() && self.report.view.failed.is_empty();
        let problems = self
            .standing
            .iter()
            .chain(sourced.into_iter().flat_map(|sourced| &sourced.problems))
            .cloned()
            .chain(self.files.problems())
            .chain(self.decision.problems(view))
            .chain(self.failed_now().cloned());
        self.report.problems = problems.collect();
        match self.node.kernel().drops() {
            Ok(drops) => summary::drops(&mut self.report, drops),
            Err(error) => debug!(%error, "the counters of dropped packets could not be read"),
        }
        summary::fill(&mut self.report, &self.decision, self.node.observed(), view);
        let silent = self.silence.look(&self.report.tunnels, view, Instant::now());
        self.report.problems.extend(silent);
        self.log_problems();
        self.reports.send_replace(Arc::new(self.report.clone()));
    }
}
