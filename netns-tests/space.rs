//! Namespaces that live as long as this process, and no longer: each has a holder that ends when the pipe to it does, and
//! everything that runs inside is in the holder's process namespace.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::await_::eventually;

/// Which Debian package a program is in.
const PACKAGES: [(&str, &str); 14] = [
    ("bridge", "iproute2"),
    ("conntrack", "conntrack"),
    ("ip", "iproute2"),
    ("ip6tables-restore", "iptables"),
    ("iperf3", "iperf3"),
    ("ipset", "ipset"),
    ("iptables-restore", "iptables"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("ping", "iputils-ping"),
    ("tcpdump", "tcpdump"),
    ("unshare", "util-linux"),
    ("wg", "wireguard-tools"),
    ("wireguard-go", "wireguard-go"),
];

/// What the holder does: addresses are at once what they are, daemons have directories of their own, and whoever is
/// orphaned inside is buried. It ends with its standard input.
const HOLDER: &str = "
set -e
ip link set lo up
for scope in all default; do echo 0 >/proc/sys/net/ipv6/conf/$scope/accept_dad; done
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
mount -t sysfs sysfs /sys
trap : CHLD
echo up
while read -r _; do :; done
";

/// A network, mount and process namespace.
pub struct Space {
    /// What it stands for.
    pub name: String,
    holder: Child,
    input: Option<ChildStdin>,
}

impl Space {
    /// Makes one.
    pub fn new(name: &str) -> Self {
        let mut holder = Command::new("unshare")
            .args([
                "--net",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "--propagation",
                "private",
            ])
            .args(["bash", "-c", HOLDER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run unshare (Debian package util-linux): {error}"));
        let input = holder.stdin.take();
        let mut line = String::new();
        let output = holder.stdout.take().expect("it is piped");
        BufReader::new(output).read_line(&mut line).expect("the holder speaks");
        assert_eq!(line, "up\n", "no namespaces for {name}: these tests need root");
        Self { name: name.to_owned(), holder, input }
    }

    /// Path of the network namespace, as a link's `netns`.
    pub fn net(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.holder.id()))
    }

    fn inside(&self) -> Command {
        let pid = self.holder.id();
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/proc/{pid}/ns/net"))
            .arg(format!("--mount=/proc/{pid}/ns/mnt"))
            .arg(format!("--pid=/proc/{pid}/ns/pid_for_children"))
            .arg("--");
        command
    }

    /// Runs lines of `ip`, as `ip -batch` reads them.
    #[track_caller]
    pub fn ip(&self, lines: &str) {
        let mut batch = Command::new("nsenter")
            .arg(format!("--net={}", self.net().display()))
            .args(["--", "ip", "-batch", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("nsenter runs");
        batch.stdin.take().expect("it is piped").write_all(lines.as_bytes()).expect("ip reads");
        let output = batch.wait_with_output().expect("ip ends");
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {why}of:\n{lines}", self.name);
    }

    /// Feeds a program's standard input.
    #[track_caller]
    pub fn feed(&self, words: &[&str], input: &str) -> String {
        let mut child = self
            .inside()
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("nsenter runs");
        child.stdin.take().expect("it is piped").write_all(input.as_bytes()).expect("it reads");
        self.checked(words, child.wait_with_output().expect("it ends"))
    }

    /// Loads nftables rules.
    #[track_caller]
    pub fn nft(&self, rules: &str) {
        self.feed(&["nft", "-f", "-"], rules);
    }

    /// Runs a command, words between blanks, and gives what it printed. Panics where it fails.
    #[track_caller]
    pub fn run(&self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        self.checked(&words, self.output(&words))
    }

    /// Runs a command that may fail.
    pub fn try_run(&self, line: &str) -> Result<String, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let output = self.output(&words);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        present(&words, &why);
        if output.status.success() { Ok(text) } else { Err(text + &why) }
    }

    /// Runs a shell script.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        let words = ["bash", "-c", script];
        self.checked(&words, self.output(&words))
    }

    fn output(&self, words: &[&str]) -> Output {
        self.inside().args(words).stdin(Stdio::null()).output().expect("nsenter runs")
    }

    #[track_caller]
    fn checked(&self, words: &[&str], output: Output) -> String {
        let why = String::from_utf8_lossy(&output.stderr);
        present(words, &why);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{}: `{}`: {}\n{text}{why}",
            self.name,
            words.join(" "),
            output.status
        );
        text.into_owned()
    }

    /// Runs a command that prints JSON.
    #[track_caller]
    pub fn json(&self, line: &str) -> Value {
        let text = self.run(line);
        // `ip -j` prints nothing at all where there is nothing.
        if text.trim().is_empty() {
            return Value::Array(Vec::new());
        }
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{}: `{line}` printed no JSON: {error}\n{text}", self.name))
    }

    /// Sets a sysctl below `net`.
    #[track_caller]
    pub fn set(&self, key: &str, value: &str) {
        self.sh(&format!("echo {value} >/proc/sys/net/{key}"));
    }

    /// Starts a command that runs until it is ended.
    pub fn spawn(&self, words: &[&str], adjust: impl FnOnce(&mut Command)) -> Process {
        let mut command = self.inside();
        command.args(words).stdin(Stdio::null());
        adjust(&mut command);
        let outer = command.spawn().expect("nsenter runs");
        let name = format!("{}: {}", self.name, words.first().expect("a command"));
        let pid = child_of(&outer, &name);
        Process { name, outer, pid }
    }

    /// Runs a function on a thread that has entered the network namespace. Sockets that it opens belong there.
    pub fn enter<T: Send>(&self, function: impl FnOnce() -> T + Send) -> T {
        let net = File::open(self.net()).expect("the namespace is held");
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(net, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
                function()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

#[track_caller]
fn present(words: &[&str], why: &str) {
    if why.contains("failed to execute") {
        let tool = words.first().expect("a command");
        let package = PACKAGES.iter().find(|(name, _)| name == tool).map_or(*tool, |(_, package)| *package);
        panic!("cannot run {tool}: apt-get install {package}");
    }
}

/// The process that `nsenter` forked into the process namespace.
fn child_of(outer: &Child, name: &str) -> Pid {
    let list = format!("/proc/{0}/task/{0}/children", outer.id());
    eventually(name, Duration::from_secs(5), || {
        let text = std::fs::read_to_string(&list).map_err(|error| error.to_string())?;
        let first = text.split_whitespace().next().ok_or("not started")?;
        first.parse().map(Pid::from_raw).map_err(|error: std::num::ParseIntError| error.to_string())
    })
}

/// A running command.
pub struct Process {
    name: String,
    outer: Child,
    pid: Pid,
}

impl Process {
    /// Sends a signal to the command itself. One that is stopped has stopped when this returns.
    pub fn signal(&self, signal: Signal) {
        if signal == Signal::SIGCONT {
            // `nsenter` stops along with what it runs.
            let _ = kill(Pid::from_raw(self.outer.id().cast_signed()), signal);
        }
        kill(self.pid, signal).unwrap_or_else(|error| panic!("{}: {signal}: {error}", self.name));
        if signal == Signal::SIGSTOP {
            eventually(&format!("{} stops", self.name), Duration::from_secs(5), || self.stopped());
        }
    }

    fn stopped(&self) -> Result<(), String> {
        let tasks =
            std::fs::read_dir(format!("/proc/{}/task", self.pid)).map_err(|error| error.to_string())?;
        for task in tasks.flatten() {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            // After the name, which may hold blanks.
            if !stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T')) {
                return Err(stat);
            }
        }
        Ok(())
    }

    /// Processor time that the command itself has used.
    pub fn used(&self) -> Duration {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        // Fields after the name, which may hold blanks: user and system time are the 12th and 13th, in hundredths.
        let (_, fields) = text.rsplit_once(") ").unwrap_or_default();
        let ticks = |at| fields.split(' ').nth(at).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        Duration::from_millis(10 * (ticks(11) + ticks(12)))
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.outer.try_wait(), Ok(None))
    }

    /// Sends a signal, and waits for the end.
    pub fn end(mut self, signal: Signal) {
        if self.runs() {
            self.signal(signal);
        }
        self.outer.wait().expect("it is our child");
    }

    /// Waits for the end, and gives what it printed, which was piped.
    pub fn output(mut self) -> String {
        let mut text = String::new();
        let mut output = self.outer.stdout.take().expect("it is piped");
        output.read_to_string(&mut text).expect("it prints text");
        self.outer.wait().expect("it is our child");
        text
    }

    /// Its standard error, where that was piped.
    pub fn stderr(&mut self) -> Option<std::process::ChildStderr> {
        self.outer.stderr.take()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.runs() {
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = self.outer.wait();
        }
    }
}
