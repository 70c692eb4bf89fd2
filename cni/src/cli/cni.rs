//! `corax cni`: install, uninstall.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use corax_pins::Network;
use nix::poll::PollTimeout;
use nix::sys::inotify::{InitFlags, Inotify};

use super::conflist::Mode;
use super::install::{Installation, Report};
use super::pins::print_imported;
use super::{Others, Output, Places, print_line, print_table, watch};

/// How long after a failure it is tried again, milliseconds.
const RETRY: u16 = 60_000;

/// The CNI plugin on this node
#[derive(Debug, Clone, Subcommand)]
pub enum CniCommand {
    /// Put the plugin into this node's pod network; running pods keep their addresses
    Install {
        /// The plugin to install; by default corax-cni beside this program
        #[arg(long, value_name = "FILE")]
        plugin: Option<PathBuf>,
        /// As IPAM, in the chain, or both
        #[arg(long, value_enum, default_value_t)]
        mode: Mode,
        /// Stay, and do it again whenever another tool rewrites the configuration
        #[arg(long)]
        watch: bool,
        /// Where the runtime keeps things
        #[command(flatten)]
        node: Node,
    },
    /// Take the plugin out; live pods' addresses are written back for host-local first
    Uninstall {
        /// Where the runtime keeps things
        #[command(flatten)]
        node: Node,
    },
}

/// Where the runtime keeps things.
#[derive(Debug, Clone, Args)]
pub struct Node {
    /// The runtime's plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,
    /// The runtime's network configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    conf_dir: PathBuf,
    /// Only this network; by default, of install the first configuration's, of uninstall each that has the plugin
    #[arg(long)]
    network: Option<Network>,
    /// Table for people, JSON for programs
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    others: Others,
    #[command(flatten)]
    places: Places,
}

impl Node {
    fn installation(&self, mode: Mode) -> Installation {
        let Self { bin_dir, conf_dir, network, others, places, .. } = self.clone();
        Installation { bin_dir, conf_dir, network, mode, places, others }
    }

    fn print(&self, reports: &[Report]) -> anyhow::Result<()> {
        if self.output == Output::Json {
            for report in reports {
                print_line(serde_json::to_string(report)?)?;
            }
            return Ok(());
        }
        let row = |r: &Report| {
            let back = if r.written_back > 0 { r.written_back.to_string() } else { String::new() };
            [r.file.display().to_string(), r.network.to_string(), r.outcome.to_owned(), back]
        };
        print_table(["FILE", "NETWORK", "OUTCOME", "WRITTEN BACK"], reports.iter().map(row))?;
        let imported: Vec<_> =
            reports.iter().flat_map(|r| r.imported.iter().map(|i| (r.network.clone(), i.clone()))).collect();
        if !imported.is_empty() {
            print_imported(&imported)?;
        }
        Ok(())
    }
}

impl CniCommand {
    /// Does it.
    ///
    /// # Errors
    /// What is in the way, in a sentence.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Install { plugin, mode, watch, node } => install(plugin, mode, watch, &node),
            Self::Uninstall { node } => uninstall(&node),
        }
    }
}

fn install(plugin: Option<PathBuf>, mode: Mode, watch: bool, node: &Node) -> anyhow::Result<()> {
    let plugin = match plugin {
        Some(plugin) => plugin,
        None => std::env::current_exe()?.with_file_name(crate::TYPE),
    };
    let installation = node.installation(mode);
    let _watching = watch.then(|| watch::begin(&node.places.run_dir)).transpose()?;
    // Before the first look, so that nothing is missed between it and the first event.
    let watched = [&*node.conf_dir, &*node.bin_dir];
    let events = watch.then(|| Inotify::init(InitFlags::IN_CLOEXEC)).transpose()?;
    if let Some(events) = &events {
        watch::listen(events, &watched)?;
    }
    installation.binary(&plugin)?;
    let mut outcome = installation.configure();
    let Some(events) = events else {
        return node.print(&[outcome?]);
    };
    // The error that was told last; at first none was, and a success is news.
    let mut told = Some(String::new());
    loop {
        told = match outcome {
            Ok(report) => {
                if report.changed || told.is_some() {
                    node.print(&[report])?;
                }
                None
            }
            Err(error) => {
                let error = format!("{error:#}");
                if told.as_ref() != Some(&error) {
                    eprintln!("{error}");
                }
                Some(error)
            }
        };
        // Half written, or gone for now: the next event comes. A full disk has none.
        let most = if told.is_some() { RETRY.into() } else { PollTimeout::NONE };
        watch::await_change(&events, most).context("watching the configurations")?;
        watch::listen(&events, &watched)?;
        outcome = installation.binary(&plugin).and_then(|_| installation.configure());
    }
}

fn uninstall(node: &Node) -> anyhow::Result<()> {
    let _unwatched = watch::keep_out(&node.places.run_dir)?;
    let installation = node.installation(Mode::Auto);
    let reports = installation.remove()?;
    let plugin = node.bin_dir.join(crate::TYPE);
    if node.output == Output::Table {
        node.print(&reports)?;
    }
    let stays = installation.remove_binary()?;
    if node.output == Output::Json {
        let plugin = serde_json::json!({ "file": plugin, "removed": stays.is_none(), "stays": stays });
        print_line(serde_json::json!({ "networks": reports, "plugin": plugin }))?;
    } else if let Some(why) = stays {
        eprintln!("{} stays: {why}", plugin.display());
    }
    Ok(())
}
