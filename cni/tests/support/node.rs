//! A node for tests: a mount and a network namespace of its own, where `/run`, `/var/lib` and `/opt` are empty memory and
//! `/opt/cni/bin` has Debian's plugins beside ours. It goes with the test, however that ends: its only process reads our pipe.
//!
//! Debian packages: containernetworking-plugins, iproute2, iptables, iputils-ping, util-linux; for `runtimes.rs` podman,
//! conmon, crun, runc, containerd. A Go toolchain (1.22 and up).
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};

/// The plugin under test: what `scripts/build-plugin` built, where `CORAX_PLUGIN` says so, else this build's.
pub const PLUGIN: &str = match option_env!("CORAX_PLUGIN") {
    Some(plugin) => plugin,
    None => env!("CARGO_BIN_EXE_corax-cni"),
};

/// Names the package where a program is missing: a test that cannot run here fails.
pub fn need(program: &str, package: &str) {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin:/usr/lib/cni";
    let found = std::env::split_paths(&path).any(|d| d.join(program).is_file());
    assert!(found, "{program} is missing: install Debian's {package}");
}

/// The example that runs the commands as `corax` would.
pub fn commands() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_corax-cni")).with_file_name("examples").join("commands");
    assert!(path.is_file(), "{} is missing: cargo builds it with the tests", path.display());
    path
}

/// A Go program of `runtimes-go`, built once: `libcni`, a runtime of libcni alone; `cri`, as much of a kubelet as a sandbox needs;
/// `sleeper`, what a pod runs.
pub fn go_program(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let all = BUILT.get_or_init(|| {
        need_go();
        let binaries = Path::new(env!("CARGO_TARGET_TMPDIR")).join("runtimes-go");
        std::fs::create_dir_all(&binaries).unwrap();
        let built = Command::new("go")
            .env("CGO_ENABLED", "0")
            .arg("build")
            .arg("-o")
            .arg(&binaries)
            .arg("./...")
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/runtimes-go"))
            .output()
            .unwrap();
        assert!(built.status.success(), "go build: {}", String::from_utf8_lossy(&built.stderr));
        binaries
    });
    all.join(name)
}

fn need_go() {
    let runs = Command::new("go").arg("version").output().is_ok_and(|o| o.status.success());
    assert!(runs, "go is missing: runtimes are driven by Go programs (Go 1.22 and up)");
}

pub struct Node {
    holder: Child,
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

impl Node {
    pub fn new() -> Self {
        for (program, package) in [
            ("unshare", "util-linux"),
            ("nsenter", "util-linux"),
            ("ip", "iproute2"),
            ("ping", "iputils-ping"),
            ("iptables", "iptables"),
            ("bridge", "containernetworking-plugins"),
            ("host-local", "containernetworking-plugins"),
        ] {
            need(program, package);
        }
        let setup = format!(
            "set -e
             for d in /run /var/lib /opt; do mount -t tmpfs tmpfs $d; done
             mkdir -p /opt/cni/bin /run/netns /run/conf /var/lib/corax
             ln -s /usr/lib/cni/* /opt/cni/bin/
             cp {PLUGIN} /opt/cni/bin/corax-cni
             ip link set lo up
             echo ready
             exec cat"
        );
        let mut holder = Command::new("unshare")
            .args(["-m", "-n", "--propagation", "private", "sh", "-c", &setup])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut ready).unwrap();
        assert_eq!(ready.trim(), "ready", "a node needs root, namespaces and tmpfs");
        Self { holder }
    }

    /// A command inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.holder.id().to_string(), "-m", "-n", "--"]).arg(program);
        command.env("CNI_PATH", "/opt/cni/bin").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// A shell script inside; it has to succeed.
    pub fn sh(&self, script: &str) -> String {
        let out = self.command("sh").args(["-ec", script]).output().unwrap();
        let error = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{script}\n{error}{}", String::from_utf8_lossy(&out.stdout));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    /// A file inside, through the holder's root.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.holder.id()))
    }

    pub fn write(&self, inside: &str, text: &str) {
        std::fs::write(self.path(inside), text).unwrap();
    }

    pub fn read(&self, inside: &str) -> String {
        std::fs::read_to_string(self.path(inside)).unwrap()
    }

    /// Power off, power on: sandboxes, namespaces and `/run/corax` are gone, the disk is not.
    pub fn reboot(&self) {
        self.sh("rm -rf /run/corax; ip -all netns delete; ip link delete cni0 2>/dev/null || true");
    }

    pub fn netns(&self, name: &str) -> String {
        self.sh(&format!("ip netns add {name}"));
        format!("/run/netns/{name}")
    }

    /// One call of the plugin, as a main plugin or a runtime makes it.
    pub fn call(&self, verb: &str, container: &str, pod: Option<&str>, config: &Value) -> Answer {
        self.call_with(verb, container, pod, config, &[])
    }

    pub fn call_with(
        &self,
        verb: &str,
        container: &str,
        pod: Option<&str>,
        config: &Value,
        environment: &[(&str, &str)],
    ) -> Answer {
        let mut command = self.command("/opt/cni/bin/corax-cni");
        command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", container).env("CNI_IFNAME", "eth0");
        if verb != "DEL" {
            command.env("CNI_NETNS", format!("/run/netns/{container}"));
        }
        if let Some(pod) = pod {
            command.env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod}"));
        }
        environment.iter().for_each(|(key, value)| {
            command.env(key, value);
        });
        Answer::of(feed(command, config.to_string().as_bytes()))
    }

    /// ADD that has to succeed: the addresses.
    pub fn add(&self, container: &str, pod: &str, config: &Value) -> Vec<String> {
        let answer = self.call("ADD", container, Some(pod), config);
        assert!(answer.ok, "ADD {container} of {pod}: {answer:?}");
        answer.ips()
    }

    pub fn del(&self, container: &str, config: &Value) {
        let answer = self.call("DEL", container, None, config);
        assert!(answer.ok, "DEL {container}: {answer:?}");
    }

    /// What libcni says to a verb on a configuration list.
    pub fn libcni(&self, verb: &str, arguments: &[&str]) -> Answer {
        Answer::of(self.command(go_program("libcni")).arg(verb).args(arguments).output().unwrap())
    }

    pub fn commands(&self, arguments: &[&str]) -> Answer {
        Answer::of(self.command(commands()).args(arguments).output().unwrap())
    }
}

pub fn feed(mut command: Command, input: &[u8]) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // One that answers without reading closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

#[derive(Debug)]
pub struct Answer {
    pub ok: bool,
    pub text: String,
    pub json: Value,
    pub errors: String,
}

impl Answer {
    fn of(output: Output) -> Self {
        let text = String::from_utf8(output.stdout).unwrap();
        Self {
            ok: output.status.success(),
            json: serde_json::from_str(&text).unwrap_or(Value::Null),
            text,
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    pub fn code(&self) -> u64 {
        assert!(!self.ok, "{self:?}");
        self.json["code"].as_u64().unwrap_or_else(|| panic!("{self:?}"))
    }

    /// Addresses without prefix length.
    pub fn ips(&self) -> Vec<String> {
        let ips = self.json["ips"].as_array().unwrap_or_else(|| panic!("{self:?}"));
        ips.iter().map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned()).collect()
    }
}

/// host-local's configuration with one word changed.
pub fn ipam(subnets: &[&str]) -> Value {
    let ranges: Vec<_> = subnets.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
    json!({ "cniVersion": "1.0.0", "name": "pods", "type": "bridge", "ipam": { "type": "corax-cni", "ranges": ranges } })
}
