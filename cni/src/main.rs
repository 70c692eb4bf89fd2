//! The CNI plugin.
#![forbid(unsafe_code)]
fn main() {}
