//! Agents as child processes of the built binary.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::await_::{eventually, patience};
use crate::space::{Process, Space};

/// The binary under test.
pub const CORAX: &str = env!("CARGO_BIN_EXE_corax");

/// The cluster's secret in these tests.
pub const SECRET: &str = "secret-of-the-tests";

/// How long an agent may take for what a user would call at once. Generous: machines that run tests are busy.
pub const SOON: Duration = Duration::from_secs(30);

/// A running agent.
pub struct Agent {
    process: Process,
}

impl Agent {
    /// Starts one, of the binary under test or a copy of it.
    pub fn start(
        space: &Space,
        binary: &Path,
        node: &str,
        source: &Path,
        log: &Path,
        options: &[String],
    ) -> Self {
        let (binary, source) = (binary.display().to_string(), source.display().to_string());
        let mut words = vec![&*binary, "agent", "--node-name", node, "--source", &source];
        words.extend(options.iter().map(String::as_str));
        let process = space.spawn(&words, |command| {
            let log = File::options().create(true).append(true).open(log).expect("the log can be written");
            command.env("VPN_CONNECTION_PSK", SECRET).env("NO_COLOR", "1");
            command.stdout(log.try_clone().expect("a file may be shared")).stderr(log);
        });
        Self { process }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Processor time that it has used.
    pub fn used(&self) -> Duration {
        self.process.used()
    }

    /// Ends it by a signal.
    pub fn end(self, signal: Signal) {
        self.process.end(signal);
    }
}

/// Asks the agent of a space: status code and body.
pub fn ask(space: &Space, path: &str) -> Result<(u16, String), String> {
    space.enter(|| {
        let limit = patience(Duration::from_secs(5));
        let mut stream =
            TcpStream::connect_timeout(&([127, 0, 0, 1], 10265).into(), limit).map_err(|e| e.to_string())?;
        stream.set_read_timeout(Some(limit)).map_err(|e| e.to_string())?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).map_err(|e| e.to_string())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(|e| e.to_string())?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP")?;
        let code =
            head.split_whitespace().nth(1).and_then(|code| code.parse().ok()).ok_or("no HTTP status")?;
        Ok((code, body.to_owned()))
    })
}

/// Takes the tunnel's session from a node: its process, or the kernel's device.
pub fn lose_tunnel(space: &Space) {
    space.sh("kill -9 $(pgrep -f '[c]orax tunnel') 2>/dev/null || ip link del raven-wg0");
}

/// Waits until the agent says that this view is applied.
#[track_caller]
pub fn await_ready(space: &Space) {
    eventually(&format!("the agent of {} is ready", space.name), SOON, || match ask(space, "/readyz") {
        Ok((200, _)) => Ok(()),
        Ok((code, body)) => Err(format!("{code} {body}")),
        Err(why) => Err(why),
    });
}

/// What `corax status -o json` says. An agent that was started just now answers soon.
#[track_caller]
pub fn status(space: &Space) -> Value {
    let ask = || space.try_run(&format!("{CORAX} status -o json"));
    let text = eventually(&format!("the agent of {} tells its status", space.name), SOON, ask);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}: {text}", space.name))
}

/// Problems that the agent reports, as one text.
#[track_caller]
pub fn problems(space: &Space) -> String {
    status(space)["problems"].to_string()
}

/// Samples of `/metrics`, by name with labels.
#[track_caller]
pub fn metrics(space: &Space) -> BTreeMap<String, f64> {
    let (code, text) = eventually(&format!("the agent of {} tells its metrics", space.name), SOON, || {
        ask(space, "/metrics")
    });
    assert_eq!(code, 200, "{text}");
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        })
        .collect()
}

/// Sum of the samples of a metric whose labels contain all of `labels`.
#[track_caller]
pub fn metric(space: &Space, name: &str, labels: &[&str]) -> f64 {
    let all = metrics(space);
    let matching = all.iter().filter(|(key, _)| {
        (key.as_str() == name || key.starts_with(&format!("{name}{{")))
            && labels.iter().all(|label| key.contains(label))
    });
    matching.fold(0.0, |sum, (_, value)| sum + value)
}

/// Does what an agent must answer by itself, by what it was told: the full reading of each minute may fall between, not twice.
#[track_caller]
pub fn by_events<T>(space: &Space, what: &str, act: impl Fn() -> T) -> T {
    let readings = || metric(space, "corax_resyncs_total", &[]);
    for _ in 0..2 {
        let before = readings();
        let done = act();
        if readings() == before {
            return done;
        }
    }
    panic!("{what} on {}: it took a full reading", space.name);
}

/// Whose WireGuard agents are to have that are not told otherwise, if these tests are of one: `CORAX_WIREGUARD`.
pub fn wireguard_asked() -> Option<String> {
    std::env::var("CORAX_WIREGUARD").ok()
}

/// Whose WireGuard the tunnel of a space is, as `--wireguard` names it.
#[track_caller]
pub fn wireguard(space: &Space) -> &'static str {
    let link = space.json("ip -j -d link show raven-wg0");
    match link[0]["linkinfo"]["info_kind"].as_str() {
        Some("wireguard") => "kernel",
        Some("tun") => "userspace",
        _ => panic!("{}: {link}", space.name),
    }
}

/// The last lines of a log.
pub fn tail(log: &PathBuf, lines: usize) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}
