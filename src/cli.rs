//! The command line.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage; `corax plan --exit-code` ends with 3 where something would change.

use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
pub(crate) use corax_cni::cli::{Output, print_line};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::agent::AgentArgs;
use crate::command;

/// Joins the isolated networks of one Kubernetes cluster
#[derive(Parser, Debug)]
#[command(name = "corax", version, max_term_width = 110)]
pub(crate) struct Cli {
    /// How it logs.
    #[command(flatten)]
    log: LogArgs,
    #[command(subcommand)]
    command: Command,
}

/// What is logged, to standard error, and how.
#[derive(clap::Args, Clone, Debug)]
struct LogArgs {
    /// What is logged: error, warn, info, debug, trace or off, or a comma list of MODULE=LEVEL
    #[arg(long = "log", env = "CORAX_LOG", value_name = "LEVEL", value_parser = parse_log, global = true, hide_env_values = true)]
    filter: Option<String>,
    /// Form of the log
    #[arg(
        long,
        env = "CORAX_LOG_FORMAT",
        value_name = "FORM",
        value_enum,
        default_value = "text",
        global = true,
        hide_env_values = true
    )]
    log_format: LogFormat,
}

/// How the log is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// An object a line.
    Json,
}

/// Checks what is to be logged. To [`EnvFilter`] a mistyped level is a module's name, and silences everything else.
fn parse_log(text: &str) -> Result<String, String> {
    let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
    for word in words {
        let level = word.rsplit_once('=').map_or(word, |(_, level)| level);
        if level.parse::<LevelFilter>().is_err() {
            return Err(format!("{level:?} is no level: error, warn, info, debug, trace or off"));
        }
    }
    EnvFilter::try_new(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

/// Form of the output.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(crate) struct OutputArgs {
    /// Form of the output
    #[arg(short, long, value_name = "FORM", value_enum, default_value = "table")]
    pub output: Output,
}

const ENVIRONMENT: &str = "\
Environment:
  VPN_CONNECTION_PSK  The cluster's secret, of which the preshared key is made; the same on all gateway nodes";

#[derive(Subcommand, Debug)]
enum Command {
    /// Keep this node's network as the Gateways ask
    #[command(after_help = ENVIRONMENT)]
    Agent(Box<AgentArgs>),
    /// Show what the agent would change, as lines of iproute2, nft and wg
    #[command(after_help = ENVIRONMENT)]
    Plan(Box<command::plan::PlanArgs>),
    /// Show what a running agent says of itself
    Status(command::status::StatusArgs),
    /// Remove everything of Corax, and what Raven left, from this node's kernel
    Cleanup(command::cleanup::CleanupArgs),
    /// Print the public key of this node's tunnel; make the key if there is none
    Key(command::key::KeyArgs),
    /// Show the hardware address of a node's VTEP
    Identity(command::identity::IdentityCommand),
    /// Which address belongs to which pod
    #[command(subcommand)]
    Pins(corax_cni::cli::PinsCommand),
    /// Install or uninstall the CNI plugin that pins pods' addresses
    #[command(subcommand)]
    Cni(corax_cni::cli::CniCommand),
    /// Run WireGuard in user space; a stand-in for wireguard-go
    Tunnel(corax_tunnel::Options),
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

impl Cli {
    /// Parses the command line. Called by a name that ends in `corax-tunnel`, it is `corax tunnel`.
    pub(crate) fn parse_as_called() -> Self {
        let mut words: Vec<_> = std::env::args_os().collect();
        let called = words.first().map(|word| Path::new(word).file_name().unwrap_or_default().to_owned());
        let asks = |word: &std::ffi::OsString| word == "--version" || word == "-V";
        if called.is_some_and(|name| name == "corax-tunnel") && !words.get(1).is_some_and(asks) {
            words.insert(1, "tunnel".into());
        }
        Self::parse_from(words)
    }

    /// Does what was asked.
    pub(crate) fn run(self) -> ExitCode {
        let init_log = |default| init_log(&self.log, default);
        let result = match self.command {
            Command::Tunnel(options) => {
                return match corax_tunnel::run(&options) {
                    Ok(()) => ExitCode::SUCCESS,
                    Err(error) => fail(&error.into()),
                };
            }
            Command::Agent(args) => {
                init_log("info");
                crate::agent::run(*args).map(|()| ExitCode::SUCCESS)
            }
            Command::Plan(args) => {
                init_log("error");
                command::plan::run(*args)
            }
            Command::Cleanup(args) => {
                init_log("warn");
                command::cleanup::run(&args).map(|()| ExitCode::SUCCESS)
            }
            Command::Status(args) => command::status::run(&args).map(|()| ExitCode::SUCCESS),
            Command::Key(args) => {
                init_log("warn");
                command::key::run(&args).map(|()| ExitCode::SUCCESS)
            }
            Command::Identity(args) => command::identity::run(&args).map(|()| ExitCode::SUCCESS),
            Command::Pins(command) => command.run().map(|()| ExitCode::SUCCESS),
            Command::Cni(command) => command.run().map(|()| ExitCode::SUCCESS),
            Command::Completion { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Self::command(), "corax", &mut script);
                print_line(String::from_utf8_lossy(&script).trim_end()).map(|()| ExitCode::SUCCESS)
            }
        };
        result.unwrap_or_else(|error| fail(&error))
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("corax: {error:#}");
    ExitCode::FAILURE
}

/// Logs to standard error.
fn init_log(args: &LogArgs, default: &str) {
    let filter =
        EnvFilter::new(args.filter.as_deref().filter(|filter| !filter.is_empty()).unwrap_or(default));
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    if args.log_format == LogFormat::Json {
        log.json().init();
    } else {
        log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init();
    }
}
