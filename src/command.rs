//! One file a command.

pub mod cleanup;
pub mod identity;
pub mod key;
pub mod plan;
pub mod status;
