//! User-space WireGuard by itself: `corax-tunnel [-f] INTERFACE-NAME`.

use std::process::ExitCode;

use clap::Parser;

/// WireGuard in user space, a stand-in for wireguard-go
#[derive(Parser)]
#[command(version)]
struct Command {
    #[command(flatten)]
    options: corax_tunnel::Options,
}

fn main() -> ExitCode {
    let command = Command::parse();
    match corax_tunnel::run(&command.options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("corax-tunnel: {error}");
            ExitCode::FAILURE
        }
    }
}
