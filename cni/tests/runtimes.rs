//! Real runtimes: containerd as a kubelet drives it, and podman with its CNI back end. Images are tars of one layer, made here.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

#[path = "support/node.rs"]
mod common;

use std::io::Read;
use std::process::{Child, Stdio};

use common::{Node, go_program, need};
use serde_json::{Value, json};

fn conflist(name: &str) -> String {
    let ipam = json!({ "type": "corax-cni", "ranges": [[{ "subnet": "10.1.0.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }] });
    let bridge = json!({ "type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": ipam });
    json!({ "cniVersion": "0.4.0", "name": name, "plugins": [bridge, { "type": "corax-cni" }] }).to_string()
}

/// An image of the form of `docker save`: one layer with one program that waits.
fn image(node: &Node, name: &str) {
    node.sh("mkdir -p /run/image/root");
    std::fs::copy(go_program("sleeper"), node.path("/run/image/root/pause")).unwrap();
    node.sh("cd /run/image && chmod 755 root/pause && tar -C root -cf layer.tar pause");
    let digest = node.sh("sha256sum /run/image/layer.tar | cut -d' ' -f1");
    let config = json!({ "architecture": std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64"), "os": "linux",
        "config": { "Entrypoint": ["/pause"] }, "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] } });
    node.write("/run/image/config.json", &config.to_string());
    let manifest = json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }]);
    node.write("/run/image/manifest.json", &manifest.to_string());
    node.sh("cd /run/image && tar -cf ../image.tar manifest.json config.json layer.tar");
}

fn pins(node: &Node) -> Value {
    node.commands(&["pins", "list", "-o", "json"]).json
}

struct Containerd<'n> {
    node: &'n Node,
    daemon: Child,
}

const SOCKET: &str = "/run/ctd/containerd.sock";

impl<'n> Containerd<'n> {
    fn new(node: &'n Node) -> Self {
        node.sh("mkdir -p /run/ctd");
        node.write(
            "/run/ctd/config.toml",
            r#"version = 2
root = "/run/ctd/root"
state = "/run/ctd/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[grpc]
address = "/run/ctd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "corax.invalid/pause:1"
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
conf_dir = "/run/conf"
"#,
        );
        let log = std::fs::File::create(node.path("/run/ctd/log")).unwrap();
        let mut command = node.command("containerd");
        command
            .args(["--config", "/run/ctd/config.toml"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let containerd = Self { node, daemon: command.spawn().unwrap() };
        containerd.cri(&["ready", SOCKET]);
        containerd
    }

    fn cri(&self, arguments: &[&str]) -> String {
        let out = self.node.command(go_program("cri")).args(arguments).output().unwrap();
        let (text, error) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        let mut log = String::new();
        let _ = std::fs::File::open(self.node.path("/run/ctd/log")).map(|mut f| f.read_to_string(&mut log));
        let from = log.len().saturating_sub(4_000);
        assert!(out.status.success(), "{arguments:?}: {error}\n{}", log.get(from..).unwrap_or_default());
        text.trim().to_owned()
    }

    /// A pod's sandbox: its id and its address.
    fn start(&self, pod: &str, uid: &str) -> (String, String) {
        let text = self.cri(&["run", SOCKET, "default", pod, uid]);
        let (id, ip) = text.split_once(' ').unwrap();
        (id.to_owned(), ip.to_owned())
    }

    fn stop(&self, id: &str) {
        self.cri(&["stop", SOCKET, id]);
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        // Shims outlive their daemon: those of this node's socket, and what they run.
        self.node.sh(
            "for p in /proc/[0-9]*; do
                 [ \"$(readlink $p/ns/mnt)\" = \"$(readlink /proc/self/ns/mnt)\" ] || continue
                 tr '\\0' ' ' < $p/cmdline 2>/dev/null | grep -q -e '-address [/]run/ctd/containerd.sock' && kill -9 ${p#/proc/} || true
             done",
        );
    }
}

#[test]
fn under_containerd_a_pod_comes_home() {
    need("containerd", "containerd");
    need("ctr", "containerd");
    need("runc", "runc");
    let node = Node::new();
    node.write("/run/conf/10-pods.conflist", &conflist("pods"));
    image(&node, "corax.invalid/pause:1");
    let containerd = Containerd::new(&node);
    node.sh(&format!("ctr -a {SOCKET} -n k8s.io images import --snapshotter native /run/image.tar"));
    let (first, home) = containerd.start("web-0", "uid-1");
    let (other, _) = containerd.start("web-1", "uid-2");
    containerd.stop(&first);
    let (third, _) = containerd.start("web-2", "uid-3");
    let (again, now) = containerd.start("web-0", "uid-4");
    assert_eq!(now, home, "web-0 is where it was: {}", pins(&node));
    assert_eq!(pins(&node).as_array().unwrap().len(), 3);
    for id in [&other, &third, &again] {
        containerd.stop(id);
    }
    assert!(pins(&node).as_array().unwrap().iter().all(|pin| pin["state"] == "free"), "{}", pins(&node));
}

#[test]
fn under_podman_a_container_holds_an_address_and_pins_none() {
    need("podman", "podman");
    need("conmon", "conmon");
    need("crun", "crun");
    let node = Node::new();
    node.sh("mkdir -p /run/podman/conf /run/podman/tmp");
    // crun takes cgroup v1 or v2, not both.
    node.sh("! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified");
    node.write("/run/podman/conf/pods.conflist", &conflist("pods"));
    node.write(
        "/run/podman/containers.conf",
        r#"[containers]
cgroups = "disabled"
seccomp_profile = "unconfined"
apparmor_profile = "unconfined"
default_sysctls = []
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[network]
network_backend = "cni"
network_config_dir = "/run/podman/conf"
cni_plugin_dirs = ["/opt/cni/bin"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "crun"
"#,
    );
    image(&node, "corax.invalid/pause:1");
    let podman = "export CONTAINERS_CONF=/run/podman/containers.conf
        podman() { command podman --root /run/podman/root --runroot /run/podman/run --tmpdir /run/podman/tmp --storage-driver vfs \"$@\"; }";
    let sh = |script: &str| node.sh(&format!("{podman}\n{script}"));
    sh("podman load -q -i /run/image.tar");
    let address = |name: &str| {
        let inspected: Value = serde_json::from_str(&sh(&format!("podman inspect {name}"))).unwrap();
        inspected[0]["NetworkSettings"]["Networks"]["pods"]["IPAddress"].as_str().unwrap().to_owned()
    };
    sh("podman run -d --name a --network pods corax.invalid/pause:1");
    sh("podman run -d --name b --network pods corax.invalid/pause:1");
    let (a, b) = (address("a"), address("b"));
    assert_ne!(a, b);
    sh("podman rm -f -t 0 a");
    sh("podman run -d --name c --network pods corax.invalid/pause:1");
    assert_ne!(address("c"), b);
    assert_eq!(pins(&node), json!([]), "a name without a namespace is no pod");
    sh("podman rm -f -t 0 b c");
    let holds = node.read("/run/corax/holds");
    assert_eq!(holds.matches(" free ").count(), holds.matches(" given").count(), "all are freed: {holds}");
}
