//! User-space WireGuard by itself: `corax-tunnel [-f] INTERFACE-NAME`.

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// WireGuard in user space, a stand-in for wireguard-go
#[derive(Parser)]
#[command(version)]
struct Command {
    #[command(flatten)]
    options: corax_tunnel::Options,
}

fn main() -> ExitCode {
    let command = Command::parse();
    let level = corax_tunnel::log_level();
    tracing_subscriber::registry()
        .with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr))
        .with(Targets::new().with_target("corax_tunnel", level))
        .init();
    match corax_tunnel::run(&command.options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("corax-tunnel: {error}");
            ExitCode::FAILURE
        }
    }
}
