//! The agent: its threads, and what it does at start and end.
//!
//! Three threads: one reads manifests, one reconciles, one answers HTTP and signals. The kernel's part has helpers of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::Args;
use corax_core::problem::Problem;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{debug, info};

use crate::admin::Admin;
use crate::clock::{self, Clock};
use crate::config::{AdminAddress, AdminArgs, NodeArgs};
use crate::metrics::Metrics;
use crate::source::Source;
use crate::source::snapshot::Snapshot;
use crate::{memory, problem, state, wireguard};

pub(crate) mod alone;
mod files;
pub(crate) mod inbox;
mod mtu;
pub(crate) mod node;
mod reconciler;
mod refusals;
pub(crate) mod report;
mod silence;
mod summary;

use files::Files;
use inbox::Inbox;
use node::Node;
use reconciler::Reconciler;
use report::Report;

/// How often an admin address that cannot be had is asked for again.
const RETRY: Duration = Duration::from_secs(2);

/// Options of `corax agent`.
#[derive(Args, Debug)]
pub(crate) struct AgentArgs {
    /// What decides the node's state.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Where it answers.
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// When the loop last turned, in seconds since the process began: a clock that is set says nothing of it.
#[derive(Clone)]
pub(crate) struct Heartbeat {
    begun: Instant,
    last: Arc<AtomicU64>,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self { begun: Instant::now(), last: Arc::default() }
    }
}

impl Heartbeat {
    /// The longest that the loop waits.
    pub(crate) const MOST: Duration = Duration::from_secs(60);

    /// Says that the loop turns.
    pub(crate) fn beat(&self) {
        self.last.store(self.begun.elapsed().as_secs(), Ordering::Relaxed);
    }

    /// The same, so much later.
    #[cfg(test)]
    pub(crate) fn later(&self, by: Duration) -> Self {
        Self {
            begun: self.begun.checked_sub(by).expect("a clock goes back so far"),
            last: Arc::clone(&self.last),
        }
    }

    /// Whether it turned of late.
    pub(crate) fn is_fresh(&self) -> bool {
        self.begun.elapsed().as_secs().saturating_sub(self.last.load(Ordering::Relaxed))
            < 2 * Self::MOST.as_secs()
    }
}

/// Seconds since the epoch; zero for a clock before it.
pub(crate) fn epoch() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Keeps the node's kernel as the Gateways ask, until a signal ends it. What is in the kernel then stays.
///
/// # Errors
/// Where it cannot start: no capability, no netlink, the state directory in a container's own layer.
pub(crate) fn run(args: AgentArgs) -> anyhow::Result<()> {
    let AgentArgs { node: args, admin } = args;
    memory::share();
    let claimed = Files::claim()?;
    let mut standing = state::prepare(&args.state.state_dir)?;
    if let Err(error) = more_files() {
        debug!(%error, "the number of open files stays as it is");
    }
    standing.extend(args.problems());
    // Before a tunnel starts: one in user space asks the clock once.
    let (clock, behind) = Clock::step_up(&args.state.state_dir, epoch(), clock::set);
    standing.extend(behind);
    let loaded = wireguard::key::load_or_create(&args.state.state_dir, || {
        wireguard::running_key(wireguard::DEFAULT_DEVICE)
    });
    standing.iter().for_each(problem::warn);
    let public_key = loaded.key.public().to_string();
    info!(node = %args.identity.node_name, public_key, key_from = ?loaded.origin, version = env!("CARGO_PKG_VERSION"), "the agent starts");
    let first = Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started: epoch(),
        node: args.identity.node_name.to_string(),
        public_key,
        ..Report::default()
    };
    let inbox = Inbox::new().context("no eventfd")?;
    let (reports, watched) = watch::channel(Arc::new(first));
    let heartbeat = Heartbeat::default();
    heartbeat.beat();
    let metrics = Arc::new(Metrics::new(watched.clone()));
    let node = Node::open(args.clone(), Some(loaded.key.clone()))?;
    let files = Files::new(claimed, &args.state.state_dir, loaded);
    let source = Source::open(
        args.source.clone(),
        Snapshot::new(&args.state.state_dir),
        args.settings(),
        args.identity.node_name.clone(),
    );
    let reconciler = Reconciler::new(
        node,
        Arc::clone(&inbox),
        reports,
        Arc::clone(&metrics),
        heartbeat.clone(),
        standing,
        files,
    );
    let to = Arc::clone(&inbox);
    std::thread::Builder::new()
        .name("source".to_owned())
        .spawn(move || source.follow(clock, |sourced| to.put(sourced.clone())))
        .context("cannot start the thread that reads manifests")?;
    let turning = std::thread::Builder::new()
        .name("reconciler".to_owned())
        .spawn(move || reconciler.run())
        .context("cannot start the thread that reconciles")?;
    let answers = Admin { reports: watched, metrics, inbox: Arc::clone(&inbox), heartbeat };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(admin.admin, answers))?;
    inbox.stop();
    turning.join().map_err(|_| anyhow::anyhow!("the reconciling thread panicked"))
}

/// Listens at `address` as soon as it can be had. Whoever has it, be it anybody on the node, keeps nothing from being
/// forwarded.
async fn listen(address: AdminAddress) -> std::net::TcpListener {
    let mut told: Option<Problem> = None;
    loop {
        match address.listen() {
            Ok(listener) => {
                told.iter().for_each(problem::over);
                return listener;
            }
            Err(error) => {
                let what = format!("cannot be listened on: {error}; it is tried again, and all else goes on");
                let remedy = "end what listens there (Raven's agent, where it still runs), or name another --admin, an address of this \
                              node and a port that is free";
                let problem = Problem::new(format!("admin address {address}"), what, remedy);
                if told.as_ref() != Some(&problem) {
                    problem::warn(&problem);
                }
                told = Some(problem);
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Lets the process hold as many files open as its supervisor allows at most, and not only by default.
fn more_files() -> nix::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)
}

/// Answers at `address` until a signal comes.
async fn serve(address: AdminAddress, admin: Admin) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let answer = async { admin.serve(listen(address).await).await };
    tokio::select! {
        served = answer => served,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}
