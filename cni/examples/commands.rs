//! The commands by themselves, as `corax` takes them in: `commands cni install`, `commands pins list`.
#![forbid(unsafe_code)]

use clap::Parser;
use corax_cni::{CniCommand, PinsCommand};

#[derive(Parser)]
enum Command {
    #[command(subcommand)]
    Cni(CniCommand),
    #[command(subcommand)]
    Pins(PinsCommand),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Cni(command) => command.run(),
        Command::Pins(command) => command.run(),
    }
}
