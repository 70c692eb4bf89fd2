//! One file a command.

pub(crate) mod cleanup;
pub(crate) mod identity;
pub(crate) mod key;
pub(crate) mod plan;
pub(crate) mod status;
