//! Tests of the whole system in network namespaces: real kernel objects, real agents, and other people's programs as
//! oracle (`ip`, `bridge`, `nft`, `wg`, `ping`, `tcpdump`, `iperf3`, `conntrack`).
//!
//! They need root, and Debian's iproute2, nftables, iptables, ipset, wireguard-tools, wireguard-go, iputils-ping, iperf3,
//! tcpdump, conntrack and socat. What is missing makes the test that wants it fail, and say so. `CORAX_WIREGUARD` says whose
//! WireGuard agents have: `kernel` or `userspace`; without it they choose.
#![allow(unreachable_pub)] // a test has no outside

mod admin;
mod agent;
mod alone;
mod await_;
mod capture;
mod chance;
mod chaos;
mod cleanup;
mod drift;
mod fail_closed;
mod figure;
mod golden;
mod halfway;
mod hostile;
mod input;
mod kube;
mod lab;
mod lacks;
mod manifests;
mod mtu;
mod objects;
mod overlay_guard;
mod packets;
mod prompt;
mod raven;
mod repair;
mod selfcheck;
mod service;
mod services;
mod space;
mod stand_in;
mod state;
mod steady;
mod takeover;
mod traffic;
