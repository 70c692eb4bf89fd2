//! One call of the plugin.

mod call;
mod chain;
mod dns;
mod error;
mod ipam;
mod netns;
mod output;
mod present;
mod route_mtu;

use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use corax_pins::store::Part;
use corax_pins::{Network, Store, Transaction};

use crate::config::{Config, Places};
pub use call::{Call, Verb};
pub use error::{Code, Failure};
pub use output::{SUPPORTED, Version};

/// Configurations are shorter than this, mostly.
const INPUT: usize = 4 << 10;

/// Reads the environment and standard input, does what they say, and answers on standard output.
pub fn main() -> ExitCode {
    let own_name = std::env::args_os().next().map(std::path::PathBuf::from);
    let own_name = own_name.as_deref().and_then(|path| path.file_name()?.to_str()).unwrap_or(crate::TYPE);
    if std::env::var_os("CNI_COMMAND").is_none() && std::io::stdin().is_terminal() {
        eprintln!("{} {}: a CNI plugin, run by container runtimes", crate::TYPE, env!("CARGO_PKG_VERSION"));
        eprintln!("CNI versions: {}", SUPPORTED.join(", "));
        return ExitCode::SUCCESS;
    }
    let mut input = Vec::with_capacity(INPUT);
    let outcome = match std::io::stdin().read_to_end(&mut input) {
        Ok(_) => run(own_name, |name| std::env::var(name).ok().filter(|v| !v.is_empty()), &input),
        Err(error) => Err(Failure::new(Code::Io, format!("standard input cannot be read: {error}"))),
    };
    let (text, code) = match outcome {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(result)) => (result.to_string(), ExitCode::SUCCESS),
        Err(failure) => (failure.json(&input).to_string(), ExitCode::FAILURE),
    };
    // A runtime that does not read what it asked for cannot be told so.
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Does what environment and configuration say.
///
/// # Errors
/// An error of the specification, with its code.
pub fn run(
    own_name: &str,
    environment: impl Fn(&str) -> Option<String>,
    input: &[u8],
) -> Result<Option<serde_json::Value>, Failure> {
    let verb = Verb::parse(environment("CNI_COMMAND"))?;
    if verb == Verb::Version {
        return Ok(Some(output::versions(input)));
    }
    let call = Call::parse(verb, environment)?;
    let config = match serde_json::from_slice::<Config>(input) {
        Ok(config) => config,
        // A container must be able to go even where its configuration is lost.
        Err(error) if verb == Verb::Del => return ipam::del_unknown(&call, &error.to_string()),
        Err(error) => {
            return Err(Failure::new(
                Code::Decode,
                format!("network configuration cannot be decoded: {error}"),
            ));
        }
    };
    let version = match Version::of(&config) {
        Ok(version) if verb == Verb::Del || version.knows(verb) => version,
        Ok(version) => {
            let message = format!("CNI version {version} does not know {}", verb.name());
            return Err(Failure::new(Code::Incompatible, message));
        }
        Err(_) if verb == Verb::Del => Version::newest(),
        Err(failure) => return Err(failure),
    };
    let network = match config.network() {
        Ok(network) => network,
        Err(error) if verb == Verb::Del => return ipam::del_unknown(&call, &error.to_string()),
        Err(error) => return Err(Failure::new(Code::Config, error.to_string())),
    };
    match config.ipam(own_name) {
        Some(ipam) => ipam::run(&call, version, &config, ipam, &network),
        None => chain::run(&call, version, &config, &network),
    }
}

fn store(places: &Places, deadline: Duration, network: Option<(&Network, Part)>) -> Store {
    Store::new(&places.state(), &places.run(), &crate::boot(), deadline)
        .with_runtime(&places.cache(), network.map(|(network, part)| (network.clone(), part)))
}

/// Unix time in seconds, for people to read.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// What the store had to say goes where runtimes log it.
fn tell(transaction: &mut Transaction<'_>) {
    for note in transaction.notes() {
        say(&note);
    }
}

fn say(note: &str) {
    let _ = writeln!(std::io::stderr(), "{}: {note}", crate::TYPE);
}
