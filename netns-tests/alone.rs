//! One agent a network namespace, and nobody but root has a say in it.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use nix::sys::signal::Signal;

use crate::agent::{CORAX, SOON, await_ready};
use crate::await_::eventually;
use crate::lab::{Lab, Plan};

fn one_node() -> Lab {
    let mut lab = Lab::build(&[Plan::public("cloud", 1)]);
    lab.declare();
    lab.write();
    lab
}

fn one_agent() -> Lab {
    let mut lab = one_node();
    lab.start_agent("cloud-1", &[]);
    await_ready(&lab.node("cloud-1").space);
    lab
}

fn second_agent(lab: &Lab) -> String {
    let source = lab.source().display().to_string();
    let words = format!("{CORAX} agent --node-name cloud-1 --source {source} --admin 127.0.0.1:1");
    lab.node("cloud-1").space.try_run(&words).expect_err("it does not start")
}

#[test]
fn a_second_agent_or_a_cleanup_beside_one_says_who_is_in_the_way() {
    let mut lab = one_agent();
    let space = &lab.node("cloud-1").space;
    let pid = space.run("pgrep -f [c]orax.agent");
    let who = format!("an agent, process {}, runs in this network namespace", pid.trim());
    let said = second_agent(&lab);
    assert!(said.contains(&who), "{said}");
    let said = space.try_run(&format!("{CORAX} cleanup")).expect_err("it does nothing");
    assert!(said.contains(&who), "{said}");
    assert!(space.run("ip -br link").contains("raven0"));
    // Killed, it leaves its file, which says nothing.
    lab.end_agent("cloud-1", Signal::SIGKILL);
    lab.start_agent("cloud-1", &[]);
    await_ready(&lab.node("cloud-1").space);
    lab.end_agent("cloud-1", Signal::SIGKILL);
    lab.node("cloud-1").space.run(&format!("{CORAX} cleanup"));
}

#[test]
fn no_agent_starts_in_the_middle_of_a_cleanup() {
    let mut lab = one_agent();
    lab.end_agent("cloud-1", Signal::SIGKILL);
    let space = &lab.node("cloud-1").space;
    // Which never answers.
    space.sh("mkdir /run/slow; mkfifo /run/slow/answer
              printf '#!/bin/sh\n: >/run/slow/asked; cat /run/slow/answer\n' >/run/slow/nft; chmod +x /run/slow/nft");
    let words = format!("PATH=/run/slow:$PATH exec {CORAX} cleanup");
    let cleanup = space.spawn(&["bash", "-c", &words], |_| {});
    eventually("the cleanup works", SOON, || space.try_run("test -e /run/slow/asked"));
    let said = second_agent(&lab);
    assert!(said.contains("a cleanup, process"), "{said}");
    drop(cleanup);
}

#[test]
fn who_is_not_root_cannot_keep_an_agent_out() {
    let mut lab = one_node();
    let space = &lab.node("cloud-1").space;
    // A name that has no permissions, and a file that has.
    let name = SocketAddr::from_abstract_name("corax-agent").expect("it is short");
    let held = space.enter(|| UnixListener::bind_addr(&name).expect("it is free"));
    lab.start_agent("cloud-1", &[]);
    let space = &lab.node("cloud-1").space;
    await_ready(space);
    lab.end_agent("cloud-1", Signal::SIGKILL);
    let space = &lab.node("cloud-1").space;
    let file = space.run("find /run/corax -name agent-*.lock");
    let said = space.try_run(&format!("setpriv --reuid 65534 --clear-groups flock -n {} true", file.trim()));
    assert!(said.as_ref().is_err_and(|said| said.contains("Permission denied")), "{said:?}");
    space.run(&format!("{CORAX} cleanup"));
    drop(held);
}

/// By a minute's end: nobody tells the agent.
#[test]
fn what_a_cleaner_takes_from_under_a_running_agent_is_there_again() {
    let lab = one_agent();
    let space = &lab.node("cloud-1").space;
    let kept = || space.try_run("cat /run/corax/mtu /var/lib/corax/wireguard.key");
    let before = kept().expect("an agent keeps them");
    space.sh("rm -rf /run/corax /var/lib/corax/*");
    eventually("they are there again", SOON * 3, || match kept()? {
        now if now == before => Ok(()),
        other => Err(other),
    });
    let said = second_agent(&lab);
    assert!(said.contains("runs in this network namespace"), "{said}");
}
