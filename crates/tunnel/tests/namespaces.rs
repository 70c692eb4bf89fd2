//! Whole tunnels in network namespaces, with other people's programs as the judge.
//!
//! Each test runs in mount and network namespaces of its own thread, with a `/run` of its own; all children are killed by the
//! kernel when that thread ends, however it ends, so nothing is left on the host.

#![allow(clippy::unwrap_used)] // helpers of tests fail as tests do

#[path = "namespaces/world.rs"]
mod world;

#[path = "namespaces/control.rs"]
mod control;
#[path = "namespaces/fallbacks.rs"]
mod fallbacks;
#[path = "namespaces/interop.rs"]
mod interop;
#[path = "namespaces/many.rs"]
mod many;
#[path = "namespaces/paths.rs"]
mod paths;
#[path = "namespaces/sessions.rs"]
mod sessions;
#[path = "namespaces/traffic.rs"]
mod traffic;
