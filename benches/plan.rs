//! Time of the pure part, from the view to the plan, for one node of a large domain in mesh.
//!
//! `cargo bench --bench plan -- [--members N] [--rounds N] [--json FILE]` measures; `--manifest N` prints the Gateways
//! that it measures with, as a manifest for the agent, and nothing else.

use std::time::Instant;

use clap::Parser;
use corax_core::api::Gateway;
use corax_core::desired::{Desired, Options};
use corax_core::facts::Facts;
use corax_core::fake::FakeKernel;
use corax_core::key::PresharedKey;
use corax_core::observed::Observed;
use corax_core::plan::plan;
use corax_core::sample::{key, large};
use corax_core::topology::{Local, Topology};
use corax_core::view::{Settings, View};

#[derive(Parser)]
struct Args {
    /// Members of the domain
    #[arg(long, default_value_t = 10_000)]
    members: u32,
    /// Rounds of which the median counts
    #[arg(long, default_value_t = 21)]
    rounds: usize,
    /// Write the figures there too
    #[arg(long)]
    json: Option<std::path::PathBuf>,
    /// Print a manifest with so many members
    #[arg(long)]
    manifest: Option<u32>,
    /// With IPv6 as well
    #[arg(long)]
    dual: bool,
    /// What `cargo bench` says
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(members) = args.manifest {
        let items = large(members, args.dual);
        let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": items });
        println!("{}", serde_json::to_string(&list)?);
        return Ok(());
    }
    let gateways = large(args.members, args.dual);
    let more = large(args.members + 1, args.dual);
    let (settings, empty) = (Settings::default(), Observed::default());
    let (before, after) = (build(&gateways, &settings), build(&more, &settings));
    let wanted = desire(&before);
    let mut kernel = FakeKernel::default();
    for change in plan(&wanted, &empty) {
        kernel.apply(&change)?;
    }
    let figures = [
        ("view of the Gateways", median(args.rounds, || build(&gateways, &settings))),
        ("desired state of the view", median(args.rounds, || desire(&before))),
        ("plan for an empty kernel", median(args.rounds, || plan(&wanted, &empty))),
        ("plan where nothing differs", median(args.rounds, || plan(&wanted, &kernel.state))),
        ("view to plan, one member more", median(args.rounds, || plan(&desire(&after), &kernel.state))),
    ];
    let objects = plan(&wanted, &empty).len();
    let one_more = plan(&desire(&after), &kernel.state).len();
    println!(
        "{} members in mesh: {objects} changes from nothing, {one_more} for one member more",
        args.members
    );
    for (name, seconds) in figures {
        println!("  {name:<32} {:>8.2} ms", seconds * 1e3);
    }
    if let Some(path) = args.json {
        let seconds: serde_json::Map<_, _> =
            figures.iter().map(|(name, seconds)| ((*name).to_owned(), (*seconds).into())).collect();
        let all = serde_json::json!({
            "members": args.members, "changes": objects, "changesForOneMore": one_more, "seconds": seconds,
        });
        std::fs::write(path, serde_json::to_string_pretty(&all)?)?;
    }
    Ok(())
}

fn build(gateways: &[Gateway], settings: &Settings) -> View {
    View::build(gateways, settings, None)
}

fn desire(view: &View) -> Desired {
    let node = "n1".parse().expect("a name");
    let facts = Facts::default();
    let local = Local { mesh: true, ..Local::new(&node, &facts) };
    let options =
        Options { userspace: true, listen: None, key: key("n1"), preshared: PresharedKey::of_secret("x") };
    Desired::of(&Topology::of(view, &local), &facts, &options)
}

/// Median of the time of `work`, in seconds.
fn median<T>(rounds: usize, mut work: impl FnMut() -> T) -> f64 {
    let mut times: Vec<f64> = (0..rounds.max(1))
        .map(|_| {
            let begun = Instant::now();
            let result = work();
            let took = begun.elapsed().as_secs_f64();
            drop(result);
            took
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or_default()
}
