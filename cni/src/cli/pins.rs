//! `corax pins`: list, release, export, import.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Subcommand;
use corax_pins::hostlocal::HostLocal;
use corax_pins::import::{self, Imported, Outcome};
use corax_pins::{Interface, Network, Pin, PinId, PinState, PodName, Snapshot, store};

use super::{Others, Output, Places, addresses, age, print_line, print_table};
use crate::plugin;

/// Pinned pod addresses
#[derive(Debug, Clone, Subcommand)]
pub enum PinsCommand {
    /// List pins: whose each address is, and whether a sandbox holds it
    List {
        /// Only this network
        #[arg(long)]
        network: Option<Network>,
        /// Only this namespace
        #[arg(short, long)]
        namespace: Option<String>,
        /// Table for people, JSON for programs
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
        /// Where pins and holds are
        #[command(flatten)]
        places: Places,
    },
    /// Release a pin: its address is free for others
    Release {
        /// The pod, as NAMESPACE/NAME
        pod: PodName,
        /// Its network; not needed where the pod has pins of one network only
        #[arg(long)]
        network: Option<Network>,
        /// Its interface
        #[arg(long, default_value = "eth0")]
        interface: Interface,
        /// Even while the pod runs: it then keeps the address until its sandbox goes
        #[arg(long)]
        force: bool,
        /// Where pins and holds are
        #[command(flatten)]
        places: Places,
    },
    /// Write all pins as JSON, or live holds as host-local's files
    Export {
        /// Write live holds into this directory as host-local's files, a directory a network
        #[arg(long, value_name = "DIR")]
        host_local: Option<PathBuf>,
        /// Where pins and holds are
        #[command(flatten)]
        places: Places,
    },
    /// Take over what host-local gave running pods, or pins that `export` wrote
    Import {
        /// Pins as `export` writes them, instead of host-local's directory
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
        /// Only this network; by default each that host-local's directory has
        #[arg(long)]
        network: Option<Network>,
        /// Table for people, JSON for programs
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
        /// Where others keep what they know
        #[command(flatten)]
        others: Others,
        /// Where pins and holds are
        #[command(flatten)]
        places: Places,
    },
}

impl PinsCommand {
    /// Does it.
    ///
    /// # Errors
    /// What is in the way, in a sentence.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::List { network, namespace, output, places } => list(network, namespace, output, &places),
            Self::Release { pod, network, interface, force, places } => {
                release(pod, network, interface, force, &places)
            }
            Self::Export { host_local, places } => export(host_local, &places),
            Self::Import { from: Some(file), output, places, .. } => import_pins(&file, output, &places),
            Self::Import { from: None, network, output, others, places } => {
                import_host_local(network, output, &others, &places)
            }
        }
    }
}

/// An empty list has to mean that there are no pins.
fn read(places: &Places) -> anyhow::Result<Snapshot> {
    // Another directory that is not there is a mistake; the usual one is made by the first pod.
    if places.state_dir == std::path::Path::new(store::STATE) && !places.state_dir.exists() {
        return Ok(Snapshot::default());
    }
    Snapshot::try_read(&places.store()).context("the pins cannot be read")
}

fn list(
    network: Option<Network>,
    namespace: Option<String>,
    output: Output,
    places: &Places,
) -> anyhow::Result<()> {
    let mut snapshot = read(places)?;
    snapshot.pins.retain(|pin| network.as_ref().is_none_or(|n| *n == pin.network));
    snapshot.pins.retain(|pin| namespace.as_ref().is_none_or(|n| n == pin.namespace.as_str()));
    if snapshot.damaged > 0 {
        eprintln!("{} damaged records are passed over; the next ADD clears them away", snapshot.damaged);
    }
    if output == Output::Json {
        return print_line(serde_json::to_string_pretty(&snapshot.pins)?);
    }
    let now = plugin::now();
    let head = ["NAMESPACE", "POD", "INTERFACE", "NETWORK", "ADDRESSES", "STATE", "SINCE", "CONTAINER"];
    let row = |pin: Pin| {
        let state = match pin.state {
            PinState::Held => "held",
            PinState::Free => "free",
            PinState::Gone => "gone",
        };
        let container = pin.container.as_ref().map(|c| c.as_str().chars().take(13).collect());
        [
            pin.namespace.to_string(),
            pin.pod.to_string(),
            pin.interface.to_string(),
            pin.network.to_string(),
            addresses(&pin.addresses),
            format!("{state}{}", if pin.seen { " (seen)" } else { "" }),
            age(now.saturating_sub(pin.since)),
            container.unwrap_or_default(),
        ]
    };
    print_table(head, snapshot.pins.into_iter().map(row))
}

fn release(
    pod: PodName,
    network: Option<Network>,
    interface: Interface,
    force: bool,
    places: &Places,
) -> anyhow::Result<()> {
    let store = places.store();
    let network = match network {
        Some(network) => network,
        None => {
            let pins = read(places)?.pins.into_iter();
            let mut networks: Vec<_> =
                pins.filter(|pin| pin.id().pod == pod).map(|pin| pin.network).collect();
            networks.dedup();
            match &networks[..] {
                [one] => one.clone(),
                [] => bail!("pod {pod} has no pin"),
                _ => bail!("pod {pod} has pins of several networks: say which by --network"),
            }
        }
    };
    let id = PinId { network, pod, interface };
    let mut transaction = store.begin(plugin::now())?;
    transaction.release(&id, force).context("not released")?;
    print_line(format_args!("pod {} on network {}: released", id.pod, id.network))?;
    Ok(())
}

fn export(host_local: Option<PathBuf>, places: &Places) -> anyhow::Result<()> {
    let store = places.store();
    let snapshot = read(places)?;
    let Some(directory) = host_local else {
        return print_line(serde_json::to_string_pretty(&snapshot.pins)?);
    };
    let mut networks: Vec<_> = snapshot.holds.iter().map(|hold| hold.attachment.network.clone()).collect();
    networks.dedup();
    let transaction = store.begin(plugin::now())?;
    for network in networks {
        let written = super::install::write_back(&transaction, &network, &directory)?;
        print_line(format_args!(
            "network {network}: {written} addresses written to {}",
            directory.display()
        ))?;
    }
    Ok(())
}

fn import_pins(file: &std::path::Path, output: Output, places: &Places) -> anyhow::Result<()> {
    let text = std::fs::read(file).with_context(|| file.display().to_string())?;
    let pins: Vec<Pin> = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not what `corax pins export` writes", file.display()))?;
    let store = places.store();
    let mut transaction = store.begin(plugin::now())?;
    let done = import::pins(&mut transaction, &pins)?;
    if output == Output::Json {
        return print_line(serde_json::to_string_pretty(&done)?);
    }
    print_line(format_args!("{} of {} pins are new", done.new, done.pins))?;
    for refused in &done.refused {
        let import::RefusedPin { network, pod, interface, reason } = refused;
        print_line(format_args!("refused: {interface} of pod {pod} on network {network}: {reason}"))?;
    }
    Ok(())
}

fn import_host_local(
    network: Option<Network>,
    output: Output,
    others: &Others,
    places: &Places,
) -> anyhow::Result<()> {
    let networks = match network {
        Some(network) if !others.host_local_dir.join(network.as_str()).is_dir() => {
            bail!("host-local has no network {network} in {}", others.host_local_dir.display())
        }
        Some(network) => vec![network],
        None => {
            let entries = std::fs::read_dir(&others.host_local_dir)
                .with_context(|| format!("host-local's directory {}", others.host_local_dir.display()))?;
            let mut all: Vec<Network> =
                entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
            all.sort();
            all
        }
    };
    let store = places.store();
    let mut transaction = store.begin(plugin::now())?;
    let mut all: Vec<(Network, Imported)> = Vec::new();
    for network in networks {
        let before = HostLocal::new(&others.host_local_dir, &network, &places.cache_dir);
        let imported = import::host_local(&mut transaction, &network, &before)?;
        all.extend(imported.into_iter().map(|i| (network.clone(), i)));
    }
    if output == Output::Json {
        let all: Vec<_> =
            all.iter().map(|(network, i)| serde_json::json!({ "network": network, "import": i })).collect();
        print_line(serde_json::to_string_pretty(&all)?)?;
    } else {
        print_imported(&all)?;
    }
    Ok(())
}

/// What an import did, as a table.
pub(super) fn print_imported(all: &[(Network, Imported)]) -> anyhow::Result<()> {
    let row = |(network, i): &(Network, Imported)| {
        let outcome = match i.outcome {
            Outcome::PinnedAndHeld => "pinned, held".to_owned(),
            Outcome::Held => "held, names no pod".to_owned(),
            Outcome::Pinned => "pinned, its container is gone".to_owned(),
            Outcome::Refused => format!("not pinned: {}", i.refused.as_deref().unwrap_or_default()),
            Outcome::Known => "known already".to_owned(),
            Outcome::Unknown => "unknown to the runtime, stays reserved".to_owned(),
            Outcome::Leak => "leaked, now free".to_owned(),
        };
        let container = i.container.chars().take(13).collect();
        [network.to_string(), addresses(&i.addresses), container, i.pod.clone().unwrap_or_default(), outcome]
    };
    print_table(["NETWORK", "ADDRESSES", "CONTAINER", "POD", "OUTCOME"], all.iter().map(row))
}
