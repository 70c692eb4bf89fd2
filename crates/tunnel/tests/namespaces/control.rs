//! The command line, the control socket, and how a tunnel begins and ends.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use nix::fcntl::{Flock, FlockArg};

use super::world::{CORAX, Keys, Tunnel, WIREGUARD_GO, World, ask, eventually, feed, join, socket, text};

#[test]
fn it_ends_when_its_socket_is_removed() {
    let world = World::new();
    let a = world.host("a");
    let mut tunnel = Tunnel::start(&a, CORAX, "wga", 5001);
    fs::remove_file(socket("wga")).unwrap();
    assert!(tunnel.process.0.wait().unwrap().success());
    assert!(!a.try_run("ip link show wga").status.success(), "the device goes with it");
}

#[test]
fn it_ends_when_its_device_is_deleted() {
    let world = World::new();
    let a = world.host("a");
    let mut tunnel = Tunnel::start(&a, CORAX, "wga", 5001);
    a.run("ip link del wga");
    assert!(tunnel.process.0.wait().unwrap().success());
    assert!(!socket("wga").exists());
}

#[test]
fn it_ends_when_asked() {
    let world = World::new();
    let a = world.host("a");
    let mut tunnel = Tunnel::start(&a, CORAX, "wga", 5001);
    a.run(&format!("kill -TERM {}", tunnel.process.0.id()));
    assert!(tunnel.process.0.wait().unwrap().success());
    assert!(!socket("wga").exists());
}

#[test]
fn a_dead_ones_socket_is_replaced_and_a_live_ones_is_not() {
    let world = World::new();
    let (a, b) = world.pair();
    drop(UnixListener::bind(socket("wga")).unwrap());
    assert!(socket("wga").exists(), "left behind");
    let tunnel = Tunnel::start(&a, CORAX, "wga", 5001);
    let mode = fs::metadata(socket("wga")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // The same name in another network namespace, where the device could be made.
    for host in [&a, &b] {
        let second = host.try_run(&format!("{CORAX} -f wga"));
        assert!(!second.status.success());
        let error = text(&second.stderr);
        assert!(
            error.contains("wga") && (error.contains("in use") || error.contains("another process")),
            "{error}"
        );
    }
    assert!(ask("wga", "get=1\n\n").contains("errno=0"), "the first goes on");
    assert_eq!(tunnel.metric("mtu"), 1420);
}

#[test]
fn what_anybody_may_lock_keeps_it_from_nothing() {
    let world = World::new();
    let a = world.host("a");
    let directory = File::open(socket("wga").parent().unwrap()).unwrap();
    let _locked = Flock::lock(directory, FlockArg::LockExclusive).map_err(|(_, error)| error).unwrap();
    let _tunnel = Tunnel::start(&a, CORAX, "wga", 5001);
    for entry in fs::read_dir(socket("wga").parent().unwrap()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o77, 0, "{:?}", entry.path());
    }
}

#[test]
fn without_foreground_it_returns_when_it_answers() {
    let world = World::new();
    let a = world.host("a");
    // In a process namespace of its own, so that the daemon ends with the test.
    let script = format!(
        "{CORAX} wga && wg show wga && ! {CORAX} wga 2>/run/error && cat /run/error && rm /run/wireguard/wga.sock && \
         while ip link show wga >/dev/null 2>&1; do sleep 0.05; done"
    );
    let mut command = a.command("unshare --pid --fork --kill-child --mount-proc sh -e -c");
    let output = command.arg(&script).stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    assert!(said.contains("interface: wga"), "{said}");
    assert!(said.contains("corax-tunnel: ") && said.contains("another process"), "{said}");
}

#[test]
fn a_name_that_no_device_can_have_is_wrong_usage() {
    let world = World::new();
    let a = world.host("a");
    for name in ["with/slash", "longer-than-a-device's", "a:b", ".."] {
        let refused = a.try_run(&format!("{CORAX} -f {name}"));
        assert_eq!(refused.status.code(), Some(2), "{name}");
        assert!(text(&refused.stderr).contains("1 to 15 characters"), "{}", text(&refused.stderr));
    }
}

#[test]
fn it_logs_where_a_level_is_asked_for_and_to_a_file_without_colours() {
    let world = World::new();
    let a = world.host("a");
    let log = world.file("log", "");
    for (level, said) in [("info", true), ("silent", false)] {
        let script = format!(
            "LOG_LEVEL={level} {CORAX} wga 2>{} && rm /run/wireguard/wga.sock && \
             while ip link show wga >/dev/null 2>&1; do sleep 0.05; done",
            log.display()
        );
        let mut command = a.command("unshare --pid --fork --kill-child --mount-proc sh -e -c");
        assert!(command.arg(&script).status().unwrap().success());
        let lines = fs::read_to_string(&log).unwrap();
        assert_eq!(
            lines.contains("INFO corax_tunnel::service: the tunnel is ready device=\"wga\"\n"),
            said,
            "{lines}"
        );
    }
}

#[test]
fn wg_quick_brings_it_up_and_down() {
    let world = World::new();
    let (a, b) = world.pair();
    let peer = Tunnel::start(&b, CORAX, "wgb", 5002);
    b.run("ip addr add 10.8.0.2/24 dev wgb");
    let keys = Keys::new();
    peer.wg(&format!("peer {} allowed-ips 10.8.0.1/32", keys.public));
    let configuration = world.file(
        "wgq0.conf",
        &format!(
            "[Interface]\nPrivateKey = {}\nAddress = 10.8.0.1/24\nMTU = 1400\n[Peer]\nPublicKey = {}\nAllowedIPs = \
             0.0.0.0/0\nEndpoint = 10.9.0.2:5002\n",
            keys.private, peer.keys.public
        ),
    );
    fs::set_permissions(&configuration, fs::Permissions::from_mode(0o600)).unwrap();
    let path = configuration.display();
    let script = format!(
        "sysctl -w net.ipv4.conf.all.src_valid_mark=1 2>/dev/null; export \
         WG_QUICK_USERSPACE_IMPLEMENTATION={CORAX}; wg-quick up {path} && ip link show wgq0 && ping -c 2 -w 200 10.8.0.2 \
         && ping -c 1 -w 200 10.9.0.2 && wg-quick down {path} && while test -e \
         /run/wireguard/wgq0.sock; do sleep 0.05; done"
    );
    let mut command = a.command("unshare --pid --fork --kill-child --mount-proc sh -e -c");
    let output = command.arg(&script).stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    assert!(said.contains("mtu 1400"), "{said}");
}

#[test]
fn wg_reads_the_same_from_it_as_from_wireguard_go() {
    let world = World::new();
    let (a, b) = world.pair();
    let (own, theirs) = (Tunnel::start(&a, CORAX, "wga", 5001), Tunnel::start(&b, WIREGUARD_GO, "wgb", 5001));
    let peers: Vec<_> = (0..3).map(|_| Keys::new().public).collect();
    let configuration = format!(
        "[Interface]\nPrivateKey = {}\nListenPort = 7777\nFwMark = 0x42\n[Peer]\nPublicKey = {}\nPresharedKey = \
         FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=\nAllowedIPs = 10.1.0.0/16, fd01::/64, \
         10.1.2.3/32\nEndpoint = 192.0.2.7:1234\nPersistentKeepalive = 33\n[Peer]\nPublicKey = {}\nAllowedIPs = \
         10.2.0.0/16\nEndpoint = [2001:db8::7]:4321\n[Peer]\nPublicKey = {}\n",
        Keys::new().private,
        peers[0],
        peers[1],
        peers[2]
    );
    let sorted = |device: &str| {
        let dump = text(&feed(&format!("wg show {device} dump"), "").stdout);
        let mut lines: Vec<String> = dump
            .lines()
            .map(|line| {
                let mut fields: Vec<_> = line.split('\t').map(str::to_owned).collect();
                if fields.len() > 5 {
                    // Order of prefixes and bytes of handshakes under way say nothing.
                    let mut prefixes: Vec<_> = fields[3].split(',').collect();
                    prefixes.sort_unstable();
                    fields[3] = prefixes.join(",");
                    fields[6] = String::new();
                }
                fields.join(" ")
            })
            .collect();
        lines.sort();
        lines
    };
    for tunnel in [&own, &theirs] {
        tunnel.configure(&configuration);
    }
    assert_eq!(sorted("wga"), sorted("wgb"));
    for change in [
        format!("peer {} allowed-ips 10.1.0.0/16", peers[1]),
        format!("peer {} allowed-ips 10.3.0.0/16 persistent-keepalive off endpoint 192.0.2.8:1", peers[0]),
        format!("peer {} remove", peers[2]),
        "fwmark off".to_owned(),
        format!("peer {} preshared-key /dev/null", peers[0]),
        "listen-port 7778".to_owned(),
    ] {
        own.wg(&change);
        theirs.wg(&change);
        assert_eq!(sorted("wga"), sorted("wgb"), "{change}");
    }
    let again = text(&feed("wg showconf wga", "").stdout);
    own.configure(&again);
    assert_eq!(sorted("wga"), sorted("wgb"), "its own showconf");
}

#[test]
fn single_prefixes_come_and_go_by_the_minus_sign() {
    let world = World::new();
    let a = world.host("a");
    let tunnel = Tunnel::start(&a, CORAX, "wga", 5001);
    let key = "11".repeat(32);
    let set = |lines: &str| ask("wga", &format!("set=1\npublic_key={key}\n{lines}\n\n"));
    assert_eq!(set("allowed_ip=10.0.0.0/8\nallowed_ip=fd00::/8\nallowed_ip=10.1.0.0/16"), "errno=0\n\n");
    assert_eq!(set("allowed_ip=-10.0.0.0/8\nallowed_ip=-192.0.2.0/24"), "errno=0\n\n");
    let state = ask("wga", "get=1\n\n");
    let prefixes: Vec<_> = state.lines().filter_map(|line| line.strip_prefix("allowed_ip=")).collect();
    assert_eq!(prefixes, ["10.1.0.0/16", "fd00::/8"]);
    for bad in
        ["allowed_ip=10.0.0.0/33", "endpoint=nowhere", "persistent_keepalive_interval=70000", "what=1", "no"]
    {
        let answer = set(bad);
        assert_eq!(answer, format!("errno={}\n\n", libc::EINVAL), "{bad}");
    }
    assert_eq!(set("update_only=true\nremove=true"), "errno=0\n\n");
    assert!(!ask("wga", "get=1\n\n").contains("public_key"));
    drop(tunnel);
}

#[test]
fn a_port_in_use_is_an_error_and_the_old_one_stays() {
    let world = World::new();
    let (a, b) = world.pair();
    let (_wga, _wgb) = join((&a, CORAX), (&b, CORAX));
    a.ping("10.8.0.2");
    let taken = a.within(|| std::net::UdpSocket::bind("0.0.0.0:5555").unwrap()).join().unwrap();
    assert_eq!(ask("wga", "set=1\nlisten_port=5555\n\n"), format!("errno={}\n\n", libc::EADDRINUSE));
    a.ping("10.8.0.2");
    drop(taken);
    // A child that another test is just starting may hold it a little longer.
    eventually("the port", || ask("wga", "set=1\nlisten_port=5555\n\n") == "errno=0\n\n");
    a.ping("10.8.0.2");
}

#[test]
fn a_port_that_is_taken_when_the_device_comes_up_is_had_later() {
    let world = World::new();
    let (a, b) = world.pair();
    let (_wga, _wgb) = join((&a, CORAX), (&b, CORAX));
    a.run("ip link set wga down");
    let taken = a
        .within(|| {
            let mut socket = std::net::UdpSocket::bind("[::]:5001");
            eventually("the port", || {
                socket = std::net::UdpSocket::bind("[::]:5001");
                socket.is_ok()
            });
            socket
        })
        .join()
        .unwrap();
    a.run("ip link set wga up");
    assert!(!b.reaches("10.8.0.1"));
    drop(taken);
    eventually("an answer", || b.reaches("10.8.0.1"));
}

#[test]
fn its_device_may_move_to_another_namespace() {
    let world = World::new();
    let (a, b) = world.pair();
    let inner = world.host("inner");
    let (mut wga, _wgb) = join((&a, CORAX), (&b, CORAX));
    a.ping("10.8.0.2");
    a.run(&format!("ip link set wga netns {}", inner.path()));
    inner.run("ip addr add 10.8.0.1/24 dev wga");
    inner.run("ip link set wga up");
    eventually("an answer from inside", || inner.reaches("10.8.0.2"));
    // And is followed there, under another name as well.
    inner.run("ip link set wga mtu 1380");
    eventually("the new MTU", || wga.metric("mtu") == 1380);
    inner.run("ip link set wga down");
    eventually("the port to be free", || a.run("ss -Hlun sport = :5001").is_empty());
    inner.run("ip link set wga name other");
    inner.run("ip link set other up");
    eventually("the port to be bound", || !a.run("ss -Hlun sport = :5001").is_empty());
    eventually("an answer from inside", || inner.reaches("10.8.0.2"));
    // The namespace goes, and the device and the tunnel with it.
    drop(inner);
    assert!(wga.process.0.wait().unwrap().success());
}
