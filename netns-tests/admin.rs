//! The admin address, to which anybody on the node may connect.

use std::io::{ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;

use crate::agent::{CORAX, SOON, ask, await_ready};
use crate::await_::eventually;
use crate::lab::{Lab, Plan};

#[test]
fn connections_that_say_nothing_stop_no_repair_and_no_probe() {
    let mut lab = Lab::build(&[Plan::public("cloud", 2)]);
    lab.declare();
    lab.write();
    // Fewer than connections: were all of them taken, nothing were left.
    let wrapper = lab.scratch().join("few-files");
    std::fs::write(&wrapper, format!("#!/bin/bash\nulimit -Sn 64; ulimit -Hn 128; exec {CORAX} \"$@\"\n"))
        .expect("the directory can be written");
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    lab.binary = wrapper;
    lab.start_agent("cloud-1", &[]);
    let space = &lab.node("cloud-1").space;
    await_ready(space);
    let limits = space.sh("cat /proc/$(pgrep -f '[c]orax agent')/limits");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("there is one");
    assert_eq!(
        files.split_whitespace().skip(3).take(2).collect::<Vec<_>>(),
        ["128", "128"],
        "all it may have"
    );

    let connect = || TcpStream::connect("127.0.0.1:10265").expect("it listens");
    let silent: Vec<_> = space.enter(|| (0..300).map(|_| connect()).collect());
    let (code, _) = ask(space, "/healthz").expect("newcomers are answered");
    assert_eq!(code, 200);
    space.run("nft flush ruleset");
    eventually("the table is back", SOON, || space.try_run("nft list table inet corax").map(drop));
    let (code, _) = ask(space, "/metrics").expect("newcomers are answered");
    assert_eq!(code, 200);
    // Also those that nobody displaced.
    eventually("they are let go", SOON, || {
        let is_open = |mut stream: &TcpStream| {
            stream.set_nonblocking(true).expect("it is a socket");
            stream.read(&mut [0; 512]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
        };
        match silent.iter().filter(|stream| is_open(stream)).count() {
            0 => Ok(()),
            open => Err(format!("{open} are open")),
        }
    });
}

#[test]
fn who_has_the_admin_address_keeps_the_agent_from_nothing_else() {
    let mut lab = Lab::build(&[Plan::public("cloud", 2)]);
    lab.declare();
    lab.write();
    let squatter =
        lab.node("cloud-1").space.enter(|| TcpListener::bind("127.0.0.1:10265").expect("it is free"));
    lab.start_agent("cloud-1", &[]);
    let space = &lab.node("cloud-1").space;
    eventually("the node is programmed", SOON, || space.try_run("nft list table inet corax").map(drop));
    let log = || std::fs::read_to_string(lab.log("cloud-1")).expect("it speaks");
    let said = |words: &str| {
        eventually("it says so", SOON, || if log().contains(words) { Ok(()) } else { Err(log()) });
    };
    said("admin address 127.0.0.1:10265: cannot be listened on");
    drop(squatter);
    await_ready(space);
    said("admin address 127.0.0.1:10265: no longer");
}

#[test]
fn a_port_without_an_address_is_of_both_families() {
    let mut lab = Lab::build(&[Plan::public("cloud", 1)]);
    lab.declare();
    lab.write();
    // By which others would have it for IPv6 alone.
    lab.node("cloud-1").space.set("ipv6/bindv6only", "1");
    lab.start_agent("cloud-1", &["--metric-bind-addr", ":10265"]);
    let space = &lab.node("cloud-1").space;
    await_ready(space);
    space.enter(|| TcpStream::connect("[::1]:10265").expect("it listens there too"));
    let told = space.run(&format!("{CORAX} status --admin :10265"));
    assert!(told.contains("cloud-1"), "{told}");
}
