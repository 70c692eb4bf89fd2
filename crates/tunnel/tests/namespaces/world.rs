//! Hosts (network namespaces), cables between them, and tunnels on them.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// Longest a test waits for anything; far more than anything takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);
const PACKAGES: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("wg", "wireguard-tools"),
    ("wg-quick", "wireguard-tools"),
    ("wireguard-go", "wireguard-go"),
    ("ping", "iputils-ping"),
    ("iperf3", "iperf3"),
    ("tcpdump", "tcpdump"),
    ("nft", "nftables"),
    ("ethtool", "ethtool"),
];

/// The test's own mount namespace, with an empty `/run`.
pub(crate) struct World {
    scratch: tempfile::TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("these tests need root");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        fs::create_dir_all("/run/wireguard").unwrap();
        for (program, package) in PACKAGES {
            let found =
                std::env::var("PATH").unwrap().split(':').any(|path| Path::new(path).join(program).exists());
            assert!(found, "{program} is not installed: Debian package {package}");
        }
        Self { scratch: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn host(&self, name: &'static str) -> Host {
        let ns = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let host = Host { name, ns: ns.join().unwrap() };
        host.run("ip link set lo up");
        host
    }

    /// Two hosts joined by a cable: 10.9.0.1 and .2, fd09::1 and ::2.
    pub(crate) fn pair(&self) -> (Host, Host) {
        let (a, b) = (self.host("a"), self.host("b"));
        cable(&a, "eth0", &b, "eth0");
        for (host, last) in [(&a, 1), (&b, 2)] {
            host.run(&format!("ip addr add 10.9.0.{last}/24 dev eth0"));
            host.run(&format!("ip addr add fd09::{last}/64 dev eth0 nodad"));
        }
        (a, b)
    }

    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.scratch.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

pub(crate) fn cable(a: &Host, at_a: &str, b: &Host, at_b: &str) {
    a.run(&format!("ip link add {at_a} type veth peer name {at_b} netns {}", b.path()));
    a.run(&format!("ip link set {at_a} up"));
    b.run(&format!("ip link set {at_b} up"));
}

/// A network namespace; it lives as long as this and what runs in it.
pub(crate) struct Host {
    pub(crate) name: &'static str,
    ns: File,
}

impl Host {
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.ns.as_raw_fd())
    }

    /// A command line in this host, killed when the test's thread ends.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "nsenter", &format!("--net={}", self.path()), "--"]);
        command.args(line.split_whitespace()).stdin(Stdio::null());
        command
    }

    /// Runs to the end, successfully; returns what it printed.
    #[track_caller]
    pub(crate) fn run(&self, line: &str) -> String {
        let output = self.command(line).output().unwrap();
        assert!(
            output.status.success(),
            "{} {line}: {}{}",
            self.name,
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    pub(crate) fn try_run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    pub(crate) fn start(&self, line: &str) -> Process {
        Process(self.command(line).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Runs `work` in this host, in a thread.
    pub(crate) fn within<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let ns = self.ns.try_clone().unwrap();
        thread::spawn(move || {
            setns(ns, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    #[track_caller]
    pub(crate) fn ping(&self, address: &str) {
        self.run(&format!("ping -n -c 3 -i 0.1 -w 200 {address}"));
    }

    /// Pings `count` times, so many seconds apart, beside what the test does.
    pub(crate) fn keep_pinging(&self, address: &str, interval: &str, count: u32) -> Pinging {
        let mut ping = self.command(&format!("ping -n -q -i {interval} -c {count} {address}"));
        Pinging { ping: ping.stdout(Stdio::piped()).spawn().unwrap(), count }
    }

    /// Whether any answer comes within about a second.
    pub(crate) fn reaches(&self, address: &str) -> bool {
        self.try_run(&format!("ping -n -c 5 -i 0.2 -W 1 {address}")).status.success()
    }
}

/// Pings under way.
pub(crate) struct Pinging {
    ping: Child,
    count: u32,
}

impl Pinging {
    /// Waits for the last: all were answered.
    #[track_caller]
    pub(crate) fn lost_nothing(self) {
        let told = text(&self.ping.wait_with_output().unwrap().stdout);
        assert!(told.contains(&format!("{} received, 0% packet loss", self.count)), "{told}");
    }
}

/// A child, killed when dropped.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    pub(crate) fn ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

pub(crate) const CORAX: &str = env!("CARGO_BIN_EXE_corax-tunnel");
pub(crate) const WIREGUARD_GO: &str = "wireguard-go";

/// boringtun's own program, built where scripts/bench-tunnel has it, if it is not there yet. To be asked for before there is a
/// [`World`], where there is no way to the registry.
pub(crate) fn boringtun_cli() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/bench");
    let program = root.join("bin/boringtun-cli");
    if !program.exists() {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["install", "--quiet", "--locked", "--root"]).arg(&root).arg("boringtun-cli");
        let built = cargo.status().is_ok_and(|status| status.success());
        assert!(built, "boringtun-cli is missing and could not be built: {cargo:?}");
    }
    format!("{} --disable-drop-privileges", program.display())
}

/// A key pair, as `wg` makes it.
#[derive(Clone)]
pub(crate) struct Keys {
    pub(crate) private: String,
    pub(crate) public: String,
}

impl Keys {
    pub(crate) fn new() -> Self {
        let private = text(&Command::new("wg").arg("genkey").output().unwrap().stdout).trim().to_owned();
        let public = pipe("wg pubkey", &private);
        Self { private, public }
    }
}

/// Output of a command that reads `input`.
pub(crate) fn pipe(line: &str, input: &str) -> String {
    let mut words = line.split_whitespace();
    let mut child = Command::new(words.next().unwrap())
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    text(&child.wait_with_output().unwrap().stdout).trim().to_owned()
}

/// A tunnel process on a host.
pub(crate) struct Tunnel {
    pub(crate) device: String,
    pub(crate) keys: Keys,
    pub(crate) process: Process,
}

impl Tunnel {
    /// Starts `program` and waits for its socket; key and port are set, the device is up.
    pub(crate) fn start(host: &Host, program: &str, device: &str, port: u16) -> Self {
        let mut child = host.start(&format!("{program} -f {device}"));
        eventually(&format!("the socket of {device}"), || {
            assert!(!child.ended(), "{program} {device} has ended");
            UnixStream::connect(socket(device)).is_ok()
        });
        let tunnel = Self { device: device.to_owned(), keys: Keys::new(), process: child };
        tunnel
            .configure(&format!("[Interface]\nPrivateKey = {}\nListenPort = {port}\n", tunnel.keys.private));
        host.run(&format!("ip link set {device} up"));
        tunnel
    }

    /// `wg setconf`.
    pub(crate) fn configure(&self, configuration: &str) {
        let output = feed(&format!("wg setconf {} /dev/stdin", self.device), configuration);
        assert!(output.status.success(), "wg setconf: {}", text(&output.stderr));
    }

    pub(crate) fn wg(&self, arguments: &str) -> String {
        let line = format!("wg set {} {arguments}", self.device);
        let output = feed(&line, "");
        assert!(output.status.success(), "{line}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    pub(crate) fn peer(&self, peer: &Self, arguments: &str) {
        self.wg(&format!("peer {} {arguments}", peer.keys.public));
    }

    /// A column of `wg show DEVICE FIELD` for a peer.
    pub(crate) fn show(&self, field: &str, peer: &Self) -> String {
        let output = feed(&format!("wg show {} {field}", self.device), "");
        text(&output.stdout)
            .lines()
            .find_map(|line| line.strip_prefix(&peer.keys.public))
            .map(|rest| rest.trim().to_owned())
            .unwrap_or_default()
    }

    pub(crate) fn metric(&self, name: &str) -> u64 {
        ask(&self.device, "get=metrics\n\n")
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(|value| value.parse().unwrap())
            .unwrap_or_else(|| panic!("no metric {name}"))
    }

    /// Most bytes that were ever resident.
    pub(crate) fn peak(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Time on a core so far of each worker, in order.
    pub(crate) fn busy(&self) -> Vec<Duration> {
        let mut workers = Vec::new();
        for thread in fs::read_dir(format!("/proc/{}/task", self.process.0.id())).unwrap() {
            let thread = thread.unwrap().path();
            let name = fs::read_to_string(thread.join("comm")).unwrap();
            if name.starts_with("worker") {
                let times = fs::read_to_string(thread.join("schedstat")).unwrap();
                let nanoseconds = times.split_whitespace().next().unwrap().parse().unwrap();
                workers.push((name, Duration::from_nanos(nanoseconds)));
            }
        }
        workers.sort();
        workers.into_iter().map(|(_, busy)| busy).collect()
    }

    /// What went wrong with packets, by its counters.
    pub(crate) fn faults(&self) -> Vec<(&'static str, u64)> {
        ["malformed", "not_authentic", "replayed", "source_not_allowed", "write_failed", "send_failed"]
            .map(|reason| (reason, self.metric(&format!("drops_{reason}_total"))))
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    #[track_caller]
    pub(crate) fn found_no_fault(&self) {
        assert_eq!(self.faults(), [], "{}", self.device);
    }
}

pub(crate) fn socket(device: &str) -> PathBuf {
    Path::new("/run/wireguard").join(format!("{device}.sock"))
}

/// One request and its answer on the control socket.
pub(crate) fn ask(device: &str, request: &str) -> String {
    let mut stream = UnixStream::connect(socket(device)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let mut buffer = [0; 65536];
    while !answer.ends_with(b"\n\n") {
        let length = stream.read(&mut buffer).unwrap();
        assert!(length > 0, "the answer ends early: {}", text(&answer));
        answer.extend_from_slice(&buffer[..length]);
    }
    text(&answer)
}

/// Runs a command that reads `input`.
pub(crate) fn feed(line: &str, input: &str) -> Output {
    let mut words = line.split_whitespace();
    let mut child = Command::new(words.next().unwrap())
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Two tunnels on a pair of hosts, each the other's peer: 10.8.0.1 and .2, fd08::1 and ::2.
pub(crate) fn join(a: (&Host, &str), b: (&Host, &str)) -> (Tunnel, Tunnel) {
    let left = Tunnel::start(a.0, a.1, "wga", 5001);
    let right = Tunnel::start(b.0, b.1, "wgb", 5002);
    for (host, tunnel, last) in [(a.0, &left, 1), (b.0, &right, 2)] {
        host.run(&format!("ip addr add 10.8.0.{last}/24 dev {}", tunnel.device));
        host.run(&format!("ip addr add fd08::{last}/64 dev {} nodad", tunnel.device));
    }
    left.peer(&right, "endpoint 10.9.0.2:5002 allowed-ips 10.8.0.2/32,fd08::2/128");
    right.peer(&left, "endpoint 10.9.0.1:5001 allowed-ips 10.8.0.1/32,fd08::1/128");
    (left, right)
}

/// A third host with a cable to `a` and a tunnel to the one there: 10.8.0.3.
pub(crate) fn third(world: &World, a: &Host, wga: &Tunnel) -> (Host, Tunnel) {
    let c = world.host("c");
    cable(a, "eth1", &c, "eth0");
    a.run("ip addr add 10.9.1.1/24 dev eth1");
    c.run("ip addr add 10.9.1.3/24 dev eth0");
    let third = Tunnel::start(&c, CORAX, "wgc", 5003);
    c.run("ip addr add 10.8.0.3/24 dev wgc");
    wga.peer(&third, "endpoint 10.9.1.3:5003 allowed-ips 10.8.0.3/32");
    third.peer(wga, "endpoint 10.9.1.1:5001 allowed-ips 10.8.0.1/32");
    (c, third)
}

/// Waits until `condition` holds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
