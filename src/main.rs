//! The network agent.
fn main() {}
