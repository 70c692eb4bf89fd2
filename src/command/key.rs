//! `corax key`: the public key of this node's tunnel.

use clap::Args;

use crate::cli::print_line;
use crate::config::StateArgs;
use crate::{state, wireguard};

/// Options of `corax key`.
#[derive(Args, Debug)]
pub(crate) struct KeyArgs {
    /// Where the key is.
    #[command(flatten)]
    state: StateArgs,
}

/// Prints it, and makes the key where there is none. One that was damaged is made anew, with a word on standard error.
///
/// # Errors
/// Where there is no key and none can be kept.
pub(crate) fn run(args: &KeyArgs) -> anyhow::Result<()> {
    for problem in state::prepare(&args.state.state_dir)? {
        eprintln!("corax: {problem}");
    }
    let loaded = wireguard::key::load_or_create(&args.state.state_dir, || {
        wireguard::running_key(wireguard::DEFAULT_DEVICE)
    });
    match loaded.problem {
        Some(problem @ wireguard::key::Error::SetAside { .. }) => eprintln!("corax: {problem}"),
        Some(problem) => return Err(problem.into()),
        None => {}
    }
    print_line(loaded.key.public())?;
    Ok(())
}
