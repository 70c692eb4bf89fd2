//! Namespaces that live as long as this process, and no longer: each has a holder that ends when the pipe to it does, and
//! everything that runs inside is in the holder's process namespace.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::await_::eventually;

/// Which Debian package a program is in.
const PACKAGES: [(&str, &str); 13] = [
    ("bridge", "iproute2"),
    ("conntrack", "conntrack"),
    ("ip", "iproute2"),
    ("ip6tables-restore", "iptables"),
    ("iperf3", "iperf3"),
    ("ipset", "ipset"),
    ("iptables-restore", "iptables"),
    ("nft", "nftables"),
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
mount -a -T \"$1\"
echo 0x9 >/sys/class/net/lo/flags # up, a loopback
for scope in all default; do echo 0 >/proc/sys/net/ipv6/conf/$scope/accept_dad; done
trap : CHLD
echo up
while read -r _; do :; done
";

/// File systems of the holder's own; one process mounts all of them.
const FSTAB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/netns-tests/fixtures/space.fstab");

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
            .args(["bash", "-c", HOLDER, "holder", FSTAB])
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

    /// Starts a command from a thread that has entered all namespaces.
    #[track_caller]
    fn inside<T: Send>(&self, words: &[&str], start: impl FnOnce(Command) -> io::Result<T> + Send) -> T {
        let (program, arguments) = words.split_first().expect("a command");
        let kinds = [
            ("net", CloneFlags::CLONE_NEWNET),
            ("mnt", CloneFlags::CLONE_NEWNS),
            ("pid_for_children", CloneFlags::CLONE_NEWPID),
        ];
        let doors = kinds.map(|(name, kind)| {
            let door = File::open(format!("/proc/{}/ns/{name}", self.holder.id()));
            (door.expect("the namespace is held"), kind)
        });
        let started = on_thread(|| {
            // A mount namespace is entered by whoever shares no directories.
            unshare(CloneFlags::CLONE_FS).expect("a thread may have directories of its own");
            for (door, kind) in doors {
                setns(door, kind).expect("root may enter a namespace");
            }
            let mut command = Command::new(program);
            command.args(arguments);
            start(command)
        });
        started.unwrap_or_else(|error| cannot_run(program, &error))
    }

    /// Runs lines of `ip`, as `ip -batch` reads them.
    #[track_caller]
    pub fn ip(&self, lines: &str) {
        let output = self.enter(|| {
            let mut command = Command::new("ip");
            command.args(["-batch", "-"]);
            feed(command, lines)
        });
        let output = output.unwrap_or_else(|error| cannot_run("ip", &error));
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {why}of:\n{lines}", self.name);
    }

    /// Feeds a program's standard input.
    #[track_caller]
    pub fn feed(&self, words: &[&str], input: &str) -> String {
        self.checked(words, self.inside(words, |command| feed(command, input)))
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
        if output.status.success() { Ok(text) } else { Err(text + &why) }
    }

    /// Runs a shell script.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        let words = ["bash", "-c", script];
        self.checked(&words, self.output(&words))
    }

    #[track_caller]
    fn output(&self, words: &[&str]) -> Output {
        self.inside(words, |mut command| command.stdin(Stdio::null()).output())
    }

    #[track_caller]
    fn checked(&self, words: &[&str], output: Output) -> String {
        let why = String::from_utf8_lossy(&output.stderr);
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
        let written = self.enter(|| std::fs::write(format!("/proc/sys/net/{key}"), value));
        written.unwrap_or_else(|error| panic!("{}: {key} = {value}: {error}", self.name));
    }

    /// Starts a command that runs until it is ended.
    #[track_caller]
    pub fn spawn(&self, words: &[&str], adjust: impl FnOnce(&mut Command) + Send) -> Process {
        let child = self.inside(words, |mut command| {
            command.stdin(Stdio::null());
            adjust(&mut command);
            command.spawn()
        });
        Process { name: format!("{}: {}", self.name, words.first().expect("a command")), child }
    }

    /// Runs a function on a thread that has entered the network namespace. Sockets that it opens belong there.
    pub fn enter<T: Send>(&self, function: impl FnOnce() -> T + Send) -> T {
        let net = File::open(self.net()).expect("the namespace is held");
        on_thread(|| {
            setns(net, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
            function()
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

/// Runs a function on a thread of its own, which ends with it.
fn on_thread<T: Send>(function: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope.spawn(function).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs a command whose standard input is this.
fn feed(mut command: Command, input: &str) -> io::Result<Output> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().expect("it is piped").write_all(input.as_bytes())?;
    child.wait_with_output()
}

#[track_caller]
fn cannot_run(program: &str, error: &io::Error) -> ! {
    if error.kind() == ErrorKind::NotFound {
        let package = PACKAGES.iter().find(|(name, _)| *name == program);
        let package = package.map_or(program, |(_, package)| *package);
        panic!("cannot run {program}: apt-get install {package}");
    }
    panic!("{program}: {error}")
}

/// A running command.
pub struct Process {
    name: String,
    child: Child,
}

impl Process {
    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Sends a signal to the command itself. One that is stopped has stopped when this returns.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap_or_else(|error| panic!("{}: {signal}: {error}", self.name));
        if signal == Signal::SIGSTOP {
            eventually(&format!("{} stops", self.name), Duration::from_secs(5), || self.stopped());
        }
    }

    fn stopped(&self) -> Result<(), String> {
        let tasks =
            std::fs::read_dir(format!("/proc/{}/task", self.pid())).map_err(|error| error.to_string())?;
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
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        // Fields after the name, which may hold blanks: user and system time are the 12th and 13th, in hundredths.
        let (_, fields) = text.rsplit_once(") ").unwrap_or_default();
        let ticks = |at| fields.split(' ').nth(at).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        Duration::from_millis(10 * (ticks(11) + ticks(12)))
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal, and waits for the end.
    pub fn end(mut self, signal: Signal) {
        if self.runs() {
            self.signal(signal);
        }
        self.child.wait().expect("it is our child");
    }

    /// Waits for the end, and gives what it printed, which was piped.
    pub fn output(mut self) -> String {
        let mut text = String::new();
        let mut output = self.child.stdout.take().expect("it is piped");
        output.read_to_string(&mut text).expect("it prints text");
        self.child.wait().expect("it is our child");
        text
    }

    /// Lines that it prints, each as soon as it has; its output was piped.
    pub fn lines(&mut self) -> impl Iterator<Item = String> + use<> {
        let output = self.child.stdout.take().expect("it is piped");
        BufReader::new(output).lines().map_while(Result::ok)
    }

    /// Its standard error, where that was piped.
    pub fn stderr(&mut self) -> Option<std::process::ChildStderr> {
        self.child.stderr.take()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.runs() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
