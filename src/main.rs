//! Corax, the network agent for the edge: joins the isolated networks of one Kubernetes cluster.

mod admin;
mod agent;
mod cli;
mod clock;
mod command;
mod config;
mod kernel;
mod memory;
mod metrics;
mod problem;
mod source;
mod state;
mod wireguard;

fn main() -> std::process::ExitCode {
    cli::Cli::parse_as_called().run()
}
