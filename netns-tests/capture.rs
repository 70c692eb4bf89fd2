//! What is on a link, as tcpdump sees it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::space::{Process, Space};

/// A capture that runs.
pub struct Capture {
    tcpdump: Process,
    file: PathBuf,
}

impl Capture {
    /// Starts one on a device of a space: packets that match `filter`, in a file below `directory`.
    pub fn start(space: &Space, device: &str, direction: &str, filter: &str, directory: &Path) -> Self {
        let file = directory.join(format!("{}-{device}.pcap", space.name));
        let name = file.display().to_string();
        let words = [
            "tcpdump",
            "-n",
            "-i",
            device,
            "-Q",
            direction,
            "-U",
            "--immediate-mode",
            "-Z",
            "root",
            "-s",
            "0",
            "-w",
            &name,
            filter,
        ];
        let mut tcpdump = space.spawn(&words, |command| {
            command.stderr(Stdio::piped());
        });
        let mut errors = BufReader::new(tcpdump.stderr().expect("it is piped"));
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            let read = errors.read_line(&mut line).expect("tcpdump speaks");
            assert!(read > 0, "tcpdump ended (Debian package tcpdump): {line}");
        }
        // Whoever closes its pipe ends a writer.
        std::thread::spawn(move || for _ in errors.lines() {});
        Self { tcpdump, file }
    }

    /// The packets until now that match `filter`, a line each.
    pub fn seen(&self, filter: &str) -> Vec<String> {
        read(&self.file, filter)
    }

    /// Ends it: the packets that match `filter`, a line each.
    pub fn end(self, filter: &str) -> Vec<String> {
        self.tcpdump.end(Signal::SIGTERM);
        read(&self.file, filter)
    }
}

fn read(file: &Path, filter: &str) -> Vec<String> {
    let output = Command::new("tcpdump").args(["-n", "-r"]).arg(file).arg(filter).output();
    let output =
        output.unwrap_or_else(|error| panic!("cannot run tcpdump: apt-get install tcpdump: {error}"));
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(ToOwned::to_owned).collect()
}
