//! systemd's own network daemon beside Corax. It takes away the rules and routes that it does not know.

use std::fs::File;
use std::path::PathBuf;

use nix::sys::signal::Signal;

use crate::agent::{SOON, metric};
use crate::await_::eventually;
use crate::lab::{Lab, Node, Plan};
use crate::objects::{difference, ours};
use crate::space::{Process, Space};

/// A message bus for one daemon, without a policy.
const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>"#;

/// The daemon on a node, which has the uplink as its own.
struct Networkd {
    _bus: Process,
    daemon: Process,
    log: PathBuf,
}

impl Networkd {
    fn start(lab: &Lab, node: &Node) -> Self {
        // Without udev no device is ever ready where devices can be written, and there is none in a container.
        node.space.sh("mount -o remount,ro /sys; mkdir -p /run/systemd/network /run/dbus");
        node.space.feed(&["tee", "/run/bus.conf"], BUS);
        let log = lab.scratch().join(format!("networkd of {}", node.name));
        let words = ["dbus-daemon", "--config-file=/run/bus.conf", "--nofork", "--nopidfile"];
        let bus = spawn(&node.space, &words, &lab.scratch().join("bus"));
        eventually("there is a bus", SOON, || node.space.try_run("test -S /run/dbus/system_bus_socket"));
        network(node, "");
        let daemon = daemon(node, &log);
        Self { _bus: bus, daemon, log }
    }

    /// As its unit does it: it leaves what it made itself.
    fn restart(self, node: &Node) -> Self {
        self.daemon.end(Signal::SIGUSR2);
        Self { daemon: daemon(node, &self.log), ..self }
    }
}

fn spawn(space: &Space, words: &[&str], log: &PathBuf) -> Process {
    space.spawn(words, |command| {
        let log = File::options().create(true).append(true).open(log).expect("the directory can be written");
        command.stdout(log.try_clone().expect("a file may be shared")).stderr(log);
    })
}

fn daemon(node: &Node, log: &PathBuf) -> Process {
    let daemon = spawn(&node.space, &["/usr/lib/systemd/systemd-networkd"], log);
    configured(node, log);
    daemon
}

/// Waits until it has done with the uplink.
#[track_caller]
fn configured(node: &Node, log: &PathBuf) {
    eventually(&format!("networkd of {} has configured the uplink", node.name), SOON, || {
        let told = node.space.try_run("networkctl --no-legend list eth0");
        match &told {
            Ok(text) if text.trim_end().ends_with("configured") => Ok(()),
            _ => Err(format!("{told:?}: {}", std::fs::read_to_string(log).unwrap_or_default())),
        }
    });
}

/// Gives it the uplink, with its address and routes as they are, and a line more: what changed is configured anew at a reload.
fn network(node: &Node, more: &str) {
    let text = format!(
        "[Match]\nName=eth0\n[Network]\nKeepConfiguration=static\nIPv6AcceptRA=no\n{more}\n\
         [Route]\nGateway=192.168.1.254\n[Route]\nGateway=fe80::1\n"
    );
    node.space.feed(&["tee", "/run/systemd/network/10-uplink.network"], &text);
}

/// Where there is no udev it takes nothing away at its start, as it comes to the uplink before it has read the rules.
#[test]
fn what_networkd_flushes_at_a_reload_comes_back_and_it_may_start_and_be_restarted() {
    let mut lab = Lab::start(&[Plan::public("cloud", 1), Plan::nat("site", 2).mesh()]);
    lab.everyone_reaches_everyone();
    for name in ["site-1", "site-2"] {
        let node = lab.node(name);
        let space = &node.space;
        let before = ours(space);
        let repaired = |what: &str| {
            eventually(&format!("{name}: repaired after networkd {what}"), SOON, || {
                let after = ours(space);
                if after == before { Ok(()) } else { Err(difference(&before, &after)) }
            });
        };
        let changes = || metric(space, "corax_changes_total", &[]);
        let mut networkd = Networkd::start(&lab, node);
        repaired("has started");
        for more in ["LLDP=no", "LLDP=yes"] {
            let quiet = changes();
            network(node, more);
            space.run("networkctl reload");
            eventually("networkd takes rules away", SOON, || {
                let now = changes();
                if now > quiet { Ok(()) } else { Err(now) }
            });
            configured(node, &networkd.log);
            repaired("has reloaded");
        }
        networkd = networkd.restart(node);
        repaired("was restarted");
        drop(networkd);
    }
    lab.everyone_reaches_everyone();
}
