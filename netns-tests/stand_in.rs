//! A link to the program that is named `corax-tunnel` is a stand-in for `wireguard-go`.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::symlink;

use crate::agent::{CORAX, SOON};
use crate::await_::eventually;
use crate::space::Space;

#[test]
fn a_link_named_corax_tunnel_is_what_wg_quick_asks_for() {
    let space = Space::new("alone");
    let scratch = tempfile::tempdir().expect("a directory");
    let link = scratch.path().join("corax-tunnel");
    symlink(CORAX, &link).expect("it is not there yet");
    let link = link.display();
    let key = space.run("wg genkey");
    let configuration = scratch.path().join("wgq0.conf");
    let text =
        format!("[Interface]\nPrivateKey = {key}\nListenPort = 5001\nAddress = 10.8.0.1/24\nMTU = 1400\n");
    std::fs::write(&configuration, text).expect("a file");
    std::fs::set_permissions(&configuration, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
    let configuration = configuration.display();
    let implementation = format!("export WG_QUICK_USERSPACE_IMPLEMENTATION={link}");

    let said = space.sh(&format!("{implementation}; wg-quick up {configuration} 2>&1"));
    assert!(said.contains(&format!("{link} wgq0")), "{said}");
    // Not whoever asks, by its command line.
    let processes = format!("pgrep -f {}/[c]orax-tunnel", scratch.path().display());
    assert_eq!(space.run(&processes).lines().count(), 1, "{said}");
    let device = space.json("ip -j -d address show wgq0");
    assert_eq!(device[0]["linkinfo"]["info_kind"], "tun", "{device}");
    assert_eq!((&device[0]["mtu"], &device[0]["addr_info"][0]["local"]), (&1400.into(), &"10.8.0.1".into()));
    assert_eq!(space.run("wg show wgq0 listen-port").trim(), "5001");
    space.sh(&format!("{implementation}; wg-quick down {configuration} 2>&1"));
    eventually("the process ends with its device", SOON, || {
        let processes = space.try_run(&processes);
        if processes.is_err() { Ok(()) } else { Err(format!("{processes:?}")) }
    });

    // In the foreground it is this very process, and ends with its socket.
    let foreground = format!("WG_PROCESS_FOREGROUND=1 exec {link} wgf0");
    let mut process = space.spawn(&["bash", "-c", &foreground], |_| {});
    eventually("it answers", SOON, || space.try_run("wg show wgf0"));
    assert!(process.runs(), "it has not gone to the background");
    space.run("rm /run/wireguard/wgf0.sock");
    eventually("it ends", SOON, || if process.runs() { Err("it runs") } else { Ok(()) });
}
