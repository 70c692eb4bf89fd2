//! The network agent.

#[allow(dead_code)]
mod wireguard;

fn main() {}
