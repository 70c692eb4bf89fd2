//! The commands that `corax` takes in: `corax cni` and `corax pins`.

mod cni;
pub mod conflist;
pub mod install;
mod pins;
mod watch;

use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use corax_pins::{Store, hostlocal, runtime, store};

pub use cni::CniCommand;
pub use pins::PinsCommand;

/// How a command answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Prints a line to standard output. Whoever reads may stop reading.
///
/// # Errors
/// Where it does not take the line for another reason.
pub fn print_line(line: impl Display) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{line}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("standard output"),
    }
}

/// A duration in seconds, as people say it.
#[must_use]
pub fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Where pins and holds are.
#[derive(Debug, Clone, Args)]
pub struct Places {
    /// Directory of the pins
    #[arg(long, value_name = "DIR", default_value = store::STATE)]
    pub state_dir: PathBuf,
    /// Directory of the holds
    #[arg(long, value_name = "DIR", default_value = store::RUN)]
    pub run_dir: PathBuf,
    /// The runtime's CNI cache
    #[arg(long, value_name = "DIR", default_value = runtime::CACHE)]
    pub cache_dir: PathBuf,
}

impl Places {
    fn store(&self) -> Store {
        Store::new(&self.state_dir, &self.run_dir, &crate::boot(), Duration::from_secs(10))
            .with_runtime(&self.cache_dir, None)
    }
}

/// Where host-local keeps what it knows.
#[derive(Debug, Clone, Args)]
pub struct Others {
    /// host-local's directory; a `dataDir` in the configuration goes before it
    #[arg(long, value_name = "DIR", default_value = hostlocal::DATA)]
    pub host_local_dir: PathBuf,
}

fn print_table<const N: usize>(
    head: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> anyhow::Result<()> {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(head);
    rows.for_each(|row| {
        table.add_row(row);
    });
    print_line(table.trim_fmt())
}

fn addresses(all: &[std::net::IpAddr]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
