//! What `scripts/bench-cni` runs, in a mount and a network namespace of its own: the plugin against host-local, and a chain
//! with it against one without, in turn and in the same run. Durations in milliseconds, from spawn to exit.
//!
//! `bench_cni ROUNDS DIRECTORY PLUGIN OUTPUT`: rounds of each measurement, a directory on the disk to measure, the plugin,
//! and where the JSON goes.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use corax_pins::{Pin, PinState, Store, import};
use serde_json::{Value, json};

const PARALLEL: usize = 20;
const PINS: usize = 10_000;

type Samples = Mutex<BTreeMap<String, Vec<f64>>>;

struct Bench {
    plugin: String,
    directory: String,
    rounds: usize,
    samples: Samples,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [rounds, directory, plugin, output] = &arguments[..] else {
        eprintln!("usage: bench_cni ROUNDS DIRECTORY PLUGIN OUTPUT (see scripts/bench-cni)");
        std::process::exit(2);
    };
    let bench = Bench {
        plugin: plugin.clone(),
        directory: directory.clone(),
        rounds: rounds.parse().expect("ROUNDS is a number"),
        samples: Samples::default(),
    };
    for n in 0..PARALLEL {
        let made = Command::new("ip").args(["netns", "add", &format!("b{n}")]).status();
        assert!(made.is_ok_and(|s| s.success()), "ip netns add: run this by scripts/bench-cni");
    }
    bench.alone();
    bench.in_parallel();
    bench.crowded();
    bench.report(Path::new(output));
}

impl Bench {
    fn ipam(&self, kind: &str, store: &str) -> Value {
        let place = |name: &str| format!("{}/{store}/{name}", self.directory);
        let mut ipam = json!({ "type": kind, "subnet": "10.1.0.0/16", "dataDir": place("host-local"),
            "routes": [{ "dst": "0.0.0.0/0" }] });
        if kind == "corax-cni" {
            ipam["stateDir"] = place("state").into();
            ipam["runDir"] = format!("/run/{store}").into();
        }
        json!({ "cniVersion": "1.0.0", "name": "bench", "type": "none", "ipam": ipam })
    }

    fn bridge(&self, kind: &str, name: &str) -> Value {
        let mut config = self.ipam(kind, name);
        config["type"] = "bridge".into();
        config["bridge"] = name.into();
        config["isGateway"] = true.into();
        config
    }

    /// One call; its duration goes under `label`, its result is returned.
    fn call(&self, label: &str, program: &str, verb: &str, who: &Who<'_>, config: &Value) -> Value {
        let input = config.to_string();
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_PATH", format!("/run/bin:{PLUGINS}"))
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", who.container)
            .env("CNI_NETNS", who.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={}", who.pod))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let start = Instant::now();
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{program}: {e}"));
        child.stdin.take().expect("stdin is piped").write_all(input.as_bytes()).expect("the plugin reads");
        let out = child.wait_with_output().expect("the plugin ends");
        let took = start.elapsed();
        assert!(out.status.success(), "{label}: {}", String::from_utf8_lossy(&out.stdout));
        self.sample(label, took);
        serde_json::from_slice(&out.stdout).unwrap_or_default()
    }

    fn sample(&self, label: &str, took: Duration) {
        let mut samples = self.samples.lock().expect("no thread panicked");
        samples.entry(label.to_owned()).or_default().push(took.as_secs_f64() * 1e3);
    }

    fn alone(&self) {
        for n in 0..self.rounds {
            self.ipam_round("alone", n, "/run/netns/b0");
            self.bridge_round("alone", n, "/run/netns/b0");
        }
    }

    fn in_parallel(&self) {
        for part in ["ipam", "bridge"] {
            std::thread::scope(|scope| {
                for worker in 0..PARALLEL {
                    scope.spawn(move || {
                        let netns = format!("/run/netns/b{worker}");
                        for n in 0..self.rounds.div_ceil(PARALLEL) {
                            let n = 100_000 + worker * 1_000 + n;
                            match part {
                                "ipam" => self.ipam_round("20 in parallel", n, &netns),
                                _ => self.bridge_round("20 in parallel", n, &netns),
                            }
                        }
                    });
                }
            });
        }
    }

    /// A new pod and one that comes home, host-local and ours in turn.
    fn ipam_round(&self, how: &str, n: usize, netns: &str) {
        let (theirs, ours) = (self.ipam("host-local", "h"), self.ipam("corax-cni", "c"));
        let host_local = format!("{PLUGINS}/host-local");
        let pod = format!("pod-{n}");
        let (first, second) = (format!("c{n}a"), format!("c{n}b"));
        let who = |container| Who { container, pod: &pod, netns };
        self.call(&format!("{how}: host-local ADD"), &host_local, "ADD", &who(&first), &theirs);
        self.call(&format!("{how}: corax-cni ADD, new pod"), &self.plugin, "ADD", &who(&first), &ours);
        self.call(&format!("{how}: host-local DEL"), &host_local, "DEL", &who(&first), &theirs);
        self.call(&format!("{how}: corax-cni DEL"), &self.plugin, "DEL", &who(&first), &ours);
        self.call(&format!("{how}: corax-cni ADD, pinned pod"), &self.plugin, "ADD", &who(&second), &ours);
        self.call(&format!("{how}: corax-cni DEL"), &self.plugin, "DEL", &who(&second), &ours);
    }

    /// bridge with host-local, and bridge with ours as IPAM and behind it.
    fn bridge_round(&self, how: &str, n: usize, netns: &str) {
        let bridge = format!("{PLUGINS}/bridge");
        let (container, pod) = (format!("d{n}"), format!("bridged-{n}"));
        let who = Who { container: &container, pod: &pod, netns };
        let theirs = self.bridge("host-local", "bh");
        self.call(&format!("{how}: bridge + host-local ADD"), &bridge, "ADD", &who, &theirs);
        self.call(&format!("{how}: bridge + host-local DEL"), &bridge, "DEL", &who, &theirs);

        let ours = self.bridge("corax-cni", "bc");
        let chain = |result: Value| {
            json!({ "cniVersion": "1.0.0", "name": "bench", "type": "corax-cni", "mtu": 1370, "prevResult": result,
                "stateDir": ours["ipam"]["stateDir"], "runDir": ours["ipam"]["runDir"] })
        };
        let start = Instant::now();
        let result = self.call(&format!("{how}: bridge + corax-cni ADD"), &bridge, "ADD", &who, &ours);
        let result = self.call(&format!("{how}: chain ADD"), &self.plugin, "ADD", &who, &chain(result));
        self.sample(&format!("{how}: bridge + corax-cni + chain ADD"), start.elapsed());
        let start = Instant::now();
        self.call(&format!("{how}: chain DEL"), &self.plugin, "DEL", &who, &chain(result));
        self.call(&format!("{how}: bridge + corax-cni DEL"), &bridge, "DEL", &who, &ours);
        self.sample(&format!("{how}: bridge + corax-cni + chain DEL"), start.elapsed());
    }

    /// With ten thousand pins, beside a store that has few.
    fn crowded(&self) {
        let (few, many) = (self.ipam("corax-cni", "few"), self.ipam("corax-cni", "many"));
        fill(Path::new(many["ipam"]["stateDir"].as_str().expect("a path")), Path::new("/run/many"));
        for n in 0..self.rounds {
            let pod = format!("late-{n}");
            for (config, label) in [(&few, "few pins"), (&many, "10,000 pins")] {
                let container = |letter| format!("e{n}{letter}");
                let (first, second) = (container("a"), container("b"));
                let who = |container| Who { container, pod: &pod, netns: "/run/netns/b0" };
                self.call(
                    &format!("{label}: corax-cni ADD, new pod"),
                    &self.plugin,
                    "ADD",
                    &who(&first),
                    config,
                );
                self.call(&format!("{label}: corax-cni DEL"), &self.plugin, "DEL", &who(&first), config);
                self.call(
                    &format!("{label}: corax-cni ADD, pinned pod"),
                    &self.plugin,
                    "ADD",
                    &who(&second),
                    config,
                );
                self.call(&format!("{label}: corax-cni DEL"), &self.plugin, "DEL", &who(&second), config);
            }
        }
    }

    fn report(&self, output: &Path) {
        let mut samples = self.samples.lock().expect("no thread panicked");
        let mut rows = BTreeMap::new();
        println!("{:<52} {:>8} {:>8} {:>6}", "ms", "p50", "p99", "n");
        for (label, all) in samples.iter_mut() {
            all.sort_by(f64::total_cmp);
            let at = |q: f64| all[((all.len() - 1) as f64 * q).round() as usize];
            println!("{label:<52} {:>8.3} {:>8.3} {:>6}", at(0.5), at(0.99), all.len());
            rows.insert(label.clone(), json!({ "p50": at(0.5), "p99": at(0.99), "n": all.len() }));
        }
        let p50 = |label: &str| rows[label]["p50"].as_f64().expect("measured");
        let ratio = |a: &str, b: &str| p50(a) / p50(b);
        let targets = [
            ("new pod / host-local", ratio("alone: corax-cni ADD, new pod", "alone: host-local ADD"), 0.4),
            (
                "pinned pod / host-local",
                ratio("alone: corax-cni ADD, pinned pod", "alone: host-local ADD"),
                0.25,
            ),
            ("the chain adds, ms", p50("alone: chain ADD"), 1.2),
            (
                "10,000 pins add to a new pod, ms",
                p50("10,000 pins: corax-cni ADD, new pod") - p50("few pins: corax-cni ADD, new pod"),
                1.0,
            ),
            (
                "10,000 pins add to a pinned pod, ms",
                p50("10,000 pins: corax-cni ADD, pinned pod") - p50("few pins: corax-cni ADD, pinned pod"),
                1.0,
            ),
        ];
        println!("\n{:<52} {:>8} {:>8}", "p50, same run", "is", "at most");
        for (what, is, most) in targets {
            println!("{what:<52} {is:>8.3} {most:>8.3}{}", if is > most { "  missed" } else { "" });
        }
        let parallel = ratio("20 in parallel: corax-cni ADD, new pod", "20 in parallel: host-local ADD");
        let whole = ratio("alone: bridge + corax-cni + chain ADD", "alone: bridge + host-local ADD");
        println!("{:<52} {parallel:>8.3}", "new pod / host-local, 20 in parallel");
        println!("{:<52} {whole:>8.3}", "bridge + corax-cni + chain / bridge + host-local");
        let targets: Vec<_> =
            targets.map(|(what, is, most)| json!({ "what": what, "is": is, "at_most": most })).into();
        let all = json!({ "milliseconds": rows, "targets": targets,
            "ratios": { "new pod / host-local, 20 in parallel": parallel, "bridge + corax-cni + chain / bridge + host-local": whole } });
        std::fs::write(output, format!("{all:#}\n")).unwrap_or_else(|e| panic!("{}: {e}", output.display()));
    }
}

const PLUGINS: &str = "/usr/lib/cni";

struct Who<'a> {
    container: &'a str,
    pod: &'a str,
    netns: &'a str,
}

/// Ten thousand pins of pods that came and went.
fn fill(state: &Path, run: &Path) {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot");
    let store = Store::new(state, run, &boot, Duration::from_secs(60));
    let pin = |n: usize| Pin {
        network: "bench".parse().expect("a network"),
        namespace: "production".parse().expect("a namespace"),
        pod: format!("frontend-{n}-7c5ddbdf54-x{n:04}").parse().expect("a pod"),
        interface: "eth0".parse().expect("an interface"),
        addresses: vec![std::net::Ipv4Addr::from_bits(0x0a01_0002 + u32::try_from(n).expect("small")).into()],
        state: PinState::Free,
        seen: false,
        since: 1,
        container: None,
    };
    let pins: Vec<_> = (0..PINS).map(pin).collect();
    let mut transaction = store.begin(1).expect("a transaction");
    assert_eq!(import::pins(&mut transaction, &pins).expect("pins").new, PINS);
}
