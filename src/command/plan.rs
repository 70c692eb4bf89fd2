//! `corax plan`: what the agent would change, as lines of iproute2, nft and wg. Writes nothing.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use corax_core::desired::Desired;
use corax_core::problem::Problem;
use serde::Serialize;

use crate::agent::node::Node;
use crate::cli::{Output, OutputArgs, print_line};
use crate::config::{AdminArgs, NodeArgs};
use crate::source::snapshot::Snapshot;
use crate::source::{Source, Sourced};
use crate::wireguard;

/// Options of `corax plan`.
#[derive(Args, Debug)]
pub(crate) struct PlanArgs {
    /// What decides the node's state.
    #[command(flatten)]
    node: NodeArgs,
    /// End with 3 where something would change
    #[arg(long)]
    exit_code: bool,
    /// How it is printed.
    #[command(flatten)]
    output: OutputArgs,
    /// Taken along, so that the agent's command line is plan's.
    #[command(flatten)]
    _admin: AdminArgs,
}

#[derive(Serialize)]
struct Planned {
    changes: Vec<String>,
    problems: Vec<Problem>,
}

/// Prints it.
///
/// # Errors
/// Where the kernel cannot be read, or there is no Gateway at all.
pub(crate) fn run(args: PlanArgs) -> anyhow::Result<ExitCode> {
    let PlanArgs { node: args, exit_code, output, .. } = args;
    let mut problems = Vec::new();
    let key = wireguard::key::load(&args.state.state_dir)?
        .or_else(|| wireguard::running_key(wireguard::DEFAULT_DEVICE));
    if key.is_none() {
        let what = "is not there yet; the lines name one that the agent will not have";
        problems.push(Problem::new("the WireGuard key", what, "make it with `corax key`"));
    }
    let (directory, state) = (args.source.clone(), args.state.state_dir.clone());
    let mut source =
        Source::open(directory, Snapshot::read_only(state), args.settings(), args.identity.node_name.clone());
    source.read();
    problems.extend(source.current().problems.iter().cloned());
    let view = source.current().view.clone();
    let view = view.with_context(|| match source.current().problems.first() {
        Some(problem) => problem.to_string(),
        None => "there is no Gateway".to_owned(),
    })?;
    let unsaid = (!args.has_secret()).then(|| args.problems());
    let mut node = Node::open(args, key)?;
    node.read_tunnels();
    let adopted = unsaid.is_some() && node.adopt_preshared();
    if adopted {
        let what = "is not given to plan, and the tunnel's peers have a preshared key of another secret: the lines are made with \
                    that key, as by an agent that knows the secret";
        problems.push(Problem::new(
            "VPN_CONNECTION_PSK",
            what,
            "give plan the environment and options of the agent",
        ));
    }
    let facts = node.facts(&view);
    let Sourced { known, once, .. } = source.current();
    let decision = node.decide(&view, facts, *known, once.as_ref(), Desired::nothing());
    problems
        .extend(unsaid.filter(|_| !adopted && !decision.desired.tunnels.is_empty()).into_iter().flatten());
    let changes = match decision.held {
        true => Vec::new(),
        false => node.kernel().changes(&decision.desired),
    };
    problems.extend(decision.problems(Some(&view)));
    let planned = Planned { changes: changes.iter().map(ToString::to_string).collect(), problems };
    match output.output {
        Output::Json => print_line(serde_json::to_string_pretty(&planned)?)?,
        Output::Table => {
            for problem in &planned.problems {
                print_line(format_args!("# {problem}"))?;
            }
            for line in &planned.changes {
                print_line(line)?;
            }
            if planned.changes.is_empty() {
                print_line("# nothing to change")?;
            }
        }
    }
    Ok(if exit_code && !planned.changes.is_empty() { ExitCode::from(3) } else { ExitCode::SUCCESS })
}
