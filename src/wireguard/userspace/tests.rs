mod process;
mod wire;

use std::time::Duration;

use corax_core::change::AllowedUpdate;
use corax_core::key::PresharedKey;
use corax_core::object::Tunnel;
use corax_core::prefix::Prefix;

use super::*;

const DEVICE: Device = Device::WireGuard(0);

fn prefixes(texts: &[&str]) -> Vec<Prefix> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}
