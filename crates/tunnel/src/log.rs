//! The log, to standard error.

use std::io::{self, IsTerminal};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Whether what is said on standard error is wanted, by a process that nobody watches.
pub(crate) fn is_wanted() -> bool {
    std::env::var_os("LOG_LEVEL").is_some_and(|level| level != "silent")
}

/// Logs from now on, unless somebody in this process does already.
pub(crate) fn init() {
    // A disk that takes no line must not end the process: to tell of it on standard error would.
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .log_internal_errors(false);
    let own = Targets::new().with_target("corax_tunnel", level());
    drop(tracing_subscriber::registry().with(lines).with(own).try_init());
}

/// The log level that the environment asks for, as wireguard-go reads it: `LOG_LEVEL` of `verbose`, `debug`, `info`, `error`
/// or `silent`; errors and warnings where it is not set, in the foreground and until the one in the background is ready.
fn level() -> LevelFilter {
    match std::env::var("LOG_LEVEL").as_deref() {
        Ok("verbose" | "debug") => LevelFilter::DEBUG,
        Ok("trace") => LevelFilter::TRACE,
        Ok("info") => LevelFilter::INFO,
        Ok("error") => LevelFilter::ERROR,
        Ok("silent") => LevelFilter::OFF,
        _ => LevelFilter::WARN,
    }
}
