//! Packets as bytes: no sockets, no devices, no clock.

pub mod checksum;
pub mod coalesce;
pub mod ip;
pub mod segment;
pub mod vnet;
