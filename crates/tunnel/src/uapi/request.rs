//! Requests, read as a whole before any of it is done.

use std::net::SocketAddr;

use crate::key::{PresharedKey, PrivateKey, PublicKey};
use crate::net::endpoint;
use crate::prefix::Prefix;

/// A request.
#[derive(Debug, PartialEq)]
pub(crate) enum Request {
    /// `get=1`: the configuration and state.
    Get,
    /// `get=metrics`: the counters.
    Metrics,
    /// `set=1`.
    Set(Set),
}

/// Changes; what is `None` stays.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Set {
    /// `Some(None)` removes it.
    pub(crate) private_key: Option<Option<PrivateKey>>,
    pub(crate) listen_port: Option<u16>,
    /// Zero for none.
    pub(crate) fwmark: Option<u32>,
    /// All peers that are not named afterwards go.
    pub(crate) replace_peers: bool,
    pub(crate) peers: Vec<SetPeer>,
}

/// Changes to one peer.
#[derive(Debug, PartialEq)]
pub(crate) struct SetPeer {
    pub(crate) key: PublicKey,
    pub(crate) remove: bool,
    /// Do nothing where there is no such peer.
    pub(crate) update_only: bool,
    /// `Some(None)` removes it.
    pub(crate) preshared_key: Option<Option<PresharedKey>>,
    pub(crate) endpoint: Option<SocketAddr>,
    /// Seconds, zero for none.
    pub(crate) keepalive: Option<u16>,
    /// All prefixes that are not named afterwards go.
    pub(crate) replace_allowed: bool,
    pub(crate) allowed: Vec<Allowed>,
}

/// One `allowed_ip` line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Allowed {
    Add(Prefix),
    /// Written with a minus sign.
    Remove(Prefix),
}

impl Request {
    /// Reads the lines of a request, without the empty one that ends it. `None` where a line cannot be understood.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        match lines.next()? {
            "get=1" => lines.next().is_none().then_some(Self::Get),
            "get=metrics" => lines.next().is_none().then_some(Self::Metrics),
            "set=1" => {
                let mut set = Set::default();
                for line in lines {
                    let (key, value) = line.split_once('=')?;
                    set.line(key, value)?;
                }
                Some(Self::Set(set))
            }
            _ => None,
        }
    }
}

impl Set {
    fn line(&mut self, key: &str, value: &str) -> Option<()> {
        if key == "public_key" {
            self.peers.push(SetPeer::new(PublicKey::parse(value)?));
            return Some(());
        }
        if let Some(peer) = self.peers.last_mut() {
            return peer.line(key, value);
        }
        match key {
            "private_key" => self.private_key = Some(PrivateKey::parse(value)?),
            "listen_port" => self.listen_port = Some(value.parse().ok()?),
            "fwmark" => self.fwmark = Some(mark(value)?),
            "replace_peers" => self.replace_peers = truth(value)?,
            _ => return None,
        }
        Some(())
    }
}

impl SetPeer {
    pub(crate) fn new(key: PublicKey) -> Self {
        Self {
            key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            keepalive: None,
            replace_allowed: false,
            allowed: Vec::new(),
        }
    }

    fn line(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "remove" => self.remove = truth(value)?,
            "update_only" => self.update_only = truth(value)?,
            "preshared_key" => self.preshared_key = Some(PresharedKey::parse(value)?),
            "endpoint" => self.endpoint = Some(endpoint::parse(value)?),
            "persistent_keepalive_interval" => self.keepalive = Some(value.parse().ok()?),
            "replace_allowed_ips" => {
                self.replace_allowed = truth(value)?;
                // What was named before is replaced too.
                self.allowed.clear();
            }
            "allowed_ip" => self.allowed.push(match value.strip_prefix('-') {
                Some(value) => Allowed::Remove(Prefix::parse(value)?),
                None => Allowed::Add(Prefix::parse(value)?),
            }),
            "protocol_version" => return (value == "1").then_some(()),
            _ => return None,
        }
        Some(())
    }
}

fn truth(value: &str) -> Option<bool> {
    (value == "true").then_some(true)
}

fn mark(value: &str) -> Option<u32> {
    match value.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => value.parse().ok(),
    }
}

#[cfg(test)]
mod tests;
