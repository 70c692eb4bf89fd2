//! The commands that `corax` takes in: `corax cni` and `corax pins`.

mod cni;
pub mod conflist;
pub mod install;
mod pins;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

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

fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(head);
    rows.for_each(|row| {
        table.add_row(row);
    });
    println!("{}", table.trim_fmt());
}

fn addresses(all: &[std::net::IpAddr]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// A time of day in seconds, as people say how long ago that was.
fn ago(at: u64, now: u64) -> String {
    match now.saturating_sub(at) {
        s @ 0..120 => format!("{s}s"),
        s @ 120..7_200 => format!("{}m", s / 60),
        s @ 7_200..172_800 => format!("{}h", s / 3_600),
        s => format!("{}d", s / 86_400),
    }
}
