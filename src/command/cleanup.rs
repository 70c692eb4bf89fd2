//! `corax cleanup`: removes everything of Corax from the node's kernel.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context;
use clap::Args;

use corax_core::change::Change;
use corax_core::desired::Desired;
use corax_core::plan::plan;

use crate::config::StateArgs;
use crate::kernel::Kernel;

/// How often it is looked whether anything is left, at most.
const ROUNDS: usize = 3;

/// How the names of the files begin that Corax puts into its state directory.
const OWN_FILES: [&str; 5] = ["wireguard.key", "snapshot", "pins", "raven-wg", "clock"];

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
    let mut kernel = Kernel::open()?;
    if args.dry_run {
        for change in left(&kernel) {
            println!("{change}");
        }
        return Ok(());
    }
    for _ in 0..ROUNDS {
        let changes = left(&kernel);
        let results = kernel.apply(&changes, &mut |_| Ok(()));
        for (change, result) in changes.iter().zip(results) {
            match result {
                Ok(()) => println!("{change}"),
                Err(error) => eprintln!("corax: {error}"),
            }
        }
    }
    let failed = left(&kernel).len();
    anyhow::ensure!(failed == 0, "{failed} objects are left; is an agent still running?");
    if let Some(unknown) = kernel.observed().unknown.first() {
        anyhow::bail!("{unknown} could not be read, so something of it may be left; run it again");
    }
    if args.state_too {
        remove_state(&args.state.state_dir)?;
    }
    Ok(())
}

/// Removes Corax's own files, and the directory where nothing else is in it: it may be somebody else's too.
fn remove_state(directory: &Path) -> anyhow::Result<()> {
    let cannot = |path: &Path| format!("cannot remove {}", path.display());
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| cannot(directory))?,
    };
    for entry in entries {
        let path = entry.with_context(|| cannot(directory))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if OWN_FILES.iter().any(|own| name.starts_with(own)) {
            let removed =
                if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.with_context(|| cannot(&path))?;
            println!("rm {}", path.display());
        }
    }
    match std::fs::remove_dir(directory) {
        Ok(()) => println!("rmdir {}", directory.display()),
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {
            println!("# {} holds files of others, and stays", directory.display());
        }
        Err(error) => return Err(error).with_context(|| cannot(directory)),
    }
    Ok(())
}

/// What would have to be removed. A tunnel's peers go with its device, a tunnel process ends when its device goes.
fn left(kernel: &Kernel) -> Vec<Change> {
    plan(&Desired::nothing(), kernel.observed())
}
