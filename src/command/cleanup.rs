//! `corax cleanup`: removes everything of Corax, and what Raven left, from the node's kernel.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use corax_core::change::Change;
use corax_core::desired::Desired;

use crate::agent::alone::{
    Claim,
    Error::{Held, Io},
};
use crate::cli::print_line;
use crate::config::StateArgs;
use crate::kernel::Kernel;
use crate::state;

/// How often it is looked whether anything is left, at most.
const ROUNDS: usize = 3;

/// Options of `corax cleanup`.
#[derive(Args, Debug)]
pub(crate) struct CleanupArgs {
    /// Where the state is.
    #[command(flatten)]
    state: StateArgs,
    /// Remove the state directory too: key, snapshot, pins
    #[arg(long = "state")]
    state_too: bool,
    /// Only print what would be removed
    #[arg(long)]
    dry_run: bool,
}

/// Removes it, and says what.
///
/// # Errors
/// Where something stays.
pub(crate) fn run(args: &CleanupArgs) -> anyhow::Result<()> {
    let _claim = if args.dry_run { None } else { Some(claim()?) };
    let mut kernel = Kernel::open()?;
    if args.dry_run {
        for change in left(&kernel) {
            print_line(change)?;
        }
        if mtu_file().exists() {
            print_line(format_args!("rm {}", mtu_file().display()))?;
        }
        if args.state_too {
            for path in own_files(&args.state.state_dir)? {
                print_line(format_args!("rm {}", path.display()))?;
            }
        }
        return Ok(());
    }
    for _ in 0..ROUNDS {
        let changes = left(&kernel);
        let results = kernel.apply(&changes, &mut |_| Ok(()));
        for (change, result) in changes.iter().zip(results) {
            match result {
                // Whoever reads may have gone; what is removed is not.
                Ok(()) => drop(print_line(change)),
                Err(error) => eprintln!("corax: {error}"),
            }
        }
    }
    kernel.forget_past();
    let stuck = kernel.stuck();
    for problem in &stuck {
        eprintln!("corax: {problem}");
    }
    let failed = left(&kernel).len();
    anyhow::ensure!(stuck.is_empty(), "{} objects are left that are to be removed by hand", stuck.len());
    anyhow::ensure!(failed == 0, "{failed} objects are left; is an agent still running?");
    if let Some(unknown) = kernel.observed().unknown.first() {
        anyhow::bail!("{unknown} could not be read, so something of it may be left; run it again");
    }
    remove_mtu()?;
    if args.state_too {
        remove_state(&args.state.state_dir)?;
    }
    Ok(())
}

/// No agent may begin to make it all anew meanwhile.
fn claim() -> anyhow::Result<Claim> {
    Claim::take(Path::new(corax_cni::RUN), "a cleanup").map_err(|error| match error {
        Held(_) => error.into(),
        Io { .. } => {
            anyhow::anyhow!("whether an agent runs is not known, which would make it all anew: {error}")
        }
    })
}

fn mtu_file() -> PathBuf {
    Path::new(corax_cni::RUN).join(corax_cni::MTU)
}

/// Removes what the agent left for the CNI plugin: without an overlay pods' routes need no MTU.
fn remove_mtu() -> anyhow::Result<()> {
    let path = mtu_file();
    match std::fs::remove_file(&path) {
        Ok(()) => print_line(format_args!("rm {}", path.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", path.display())),
    }
}

/// Removes Corax's own files, and the directory where nothing else was or is in it: it may be somebody else's too.
fn remove_state(directory: &Path) -> anyhow::Result<()> {
    let cannot = |path: &Path| format!("cannot remove {}", path.display());
    let files = own_files(directory)?;
    for path in &files {
        std::fs::remove_file(path).with_context(|| cannot(path))?;
        print_line(format_args!("rm {}", path.display()))?;
    }
    if files.is_empty() && !state::is_ours_by_name(directory) {
        return Ok(());
    }
    let name = directory.display();
    match std::fs::remove_dir(directory) {
        Ok(()) => print_line(format_args!("rmdir {name}")),
        Err(error) => match error.kind() {
            ErrorKind::NotFound => Ok(()),
            ErrorKind::DirectoryNotEmpty if directory.join(corax_cni::ORIGINALS).exists() => {
                let originals = corax_cni::ORIGINALS;
                print_line(format_args!(
                    "# {name}/{originals} holds originals of network configurations, and stays: `corax cni uninstall` puts them back"
                ))
            }
            ErrorKind::DirectoryNotEmpty => {
                print_line(format_args!("# {name} holds files of others, and stays"))
            }
            ErrorKind::ResourceBusy | ErrorKind::NotADirectory => {
                print_line(format_args!("# {name} is a mount or a link, and stays"))
            }
            _ => Err(error).with_context(|| cannot(directory)),
        },
    }
}

fn own_files(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    state::files(directory).with_context(|| format!("cannot read {}", directory.display()))
}

/// What would have to be removed. A tunnel's peers go with its device, a tunnel process ends when its device goes.
fn left(kernel: &Kernel) -> Vec<Change> {
    kernel.changes(&Desired::nothing())
}
