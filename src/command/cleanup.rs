//! `corax cleanup`: removes everything of Corax from the node's kernel.

use anyhow::Context;
use clap::Args;

use corax_core::change::Change;
use corax_core::desired::Desired;
use corax_core::plan::plan;

use crate::config::StateArgs;
use crate::kernel::Kernel;

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
    if args.state_too {
        let directory = &args.state.state_dir;
        match std::fs::remove_dir_all(directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", directory.display()));
            }
            _ => println!("rm -r {}", directory.display()),
        }
    }
    Ok(())
}

/// What would have to be removed. A tunnel's peers go with its device, a tunnel process ends when its device goes.
fn left(kernel: &Kernel) -> Vec<Change> {
    plan(&Desired::nothing(), kernel.observed())
}
