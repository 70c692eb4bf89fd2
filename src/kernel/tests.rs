//! Each test in a network namespace of its own; the oracle is iproute2 and nft.

mod classes;
mod fake;
mod foreign;
mod lacks;
mod random;
mod raven;
pub(crate) mod support;
mod table;
