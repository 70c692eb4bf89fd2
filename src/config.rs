//! What a node is told on its command line, checked.

mod admin;
mod raven;

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};
use corax_core::key::{PresharedKey, RAVEN_SECRET};
use corax_core::name::NodeName;
use corax_core::object::VXLAN_PORT;
use corax_core::prefix::Prefix;
use corax_core::problem::Problem;
use corax_core::view::Settings;
use corax_core::vtep::Identity;

pub(crate) use admin::AdminAddress;

/// Where state is kept if nothing else is said.
pub(crate) const STATE_DIR: &str = "/var/lib/corax";

/// Where the agent answers if nothing else is said.
pub(crate) const ADMIN: &str = "127.0.0.1:10265";

/// What a VTEP's MAC is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum VtepIdentity {
    /// Cluster and node name.
    NodeName,
    /// The node's IPv4 address, as Raven does.
    NodeIp,
}

/// Whose WireGuard carries the tunnels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WireguardMode {
    /// The kernel's where it has one, else user space.
    Auto,
    /// The kernel's.
    Kernel,
    /// A process of its own, `corax tunnel`.
    Userspace,
}

/// Who starts the user-space tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TunnelStart {
    /// The agent, where nobody answers the tunnel's socket.
    Spawn,
    /// Somebody else, such as a container beside the agent's.
    External,
}

/// Where the agent's HTTP answers are.
#[derive(Args, Clone, Debug)]
pub(crate) struct AdminArgs {
    /// Address of /metrics, /healthz, /readyz and /status
    #[arg(long, alias = "metric-bind-addr", value_name = "ADDR:PORT", default_value = ADMIN)]
    pub admin: AdminAddress,
}

/// Where the node keeps what outlives a restart.
#[derive(Args, Clone, Debug)]
pub(crate) struct StateArgs {
    /// Directory of the key, the snapshot and the pins; on the host, not in a container's own layer
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    pub state_dir: PathBuf,
}

/// Who this node is.
#[derive(Args, Clone, Debug)]
pub(crate) struct IdentityArgs {
    /// Name of this node, as Kubernetes has it
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: NodeName,
    /// Name of the cluster; part of every VTEP's identity, so the same on all nodes
    #[arg(long, value_name = "NAME", default_value = "kubernetes")]
    pub cluster_name: String,
    /// What VTEPs' MACs are made of; node-ip where some nodes of a domain still run Raven
    #[arg(long, value_name = "OF", value_enum, default_value = "node-name")]
    pub vtep_identity: VtepIdentity,
}

impl IdentityArgs {
    /// What VTEPs' MACs are made of.
    pub(crate) const fn identity(&self) -> Identity {
        match self.vtep_identity {
            VtepIdentity::NodeName => Identity::NodeName,
            VtepIdentity::NodeIp => Identity::NodeIp,
        }
    }
}

/// What decides a node's kernel state.
#[derive(Args, Clone, Debug)]
pub(crate) struct NodeArgs {
    /// Who this node is.
    #[command(flatten)]
    pub identity: IdentityArgs,
    /// Directory of Gateway manifests (YAML or JSON), with their status
    #[arg(long, value_name = "DIR", value_parser = source)]
    pub source: PathBuf,
    /// Where the node keeps what outlives a restart.
    #[command(flatten)]
    pub state: StateArgs,
    /// Networks of Services, comma list; never taken for a domain's
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub service_cidr: Vec<Prefix>,
    /// Addresses of the API server, comma list; never inside a steered prefix
    #[arg(long, value_name = "ADDR", value_delimiter = ',', value_parser = address)]
    pub api_server: Vec<IpAddr>,
    /// Members of the domain reach each other's pods over raven0 too; the same on all of them
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", hide_default_value = true)]
    pub mesh: bool,
    /// Whose WireGuard carries the tunnels
    #[arg(long, value_name = "WHOSE", value_enum, default_value = "auto")]
    pub wireguard: WireguardMode,
    /// Who starts the user-space tunnel
    #[arg(long, value_name = "WHO", value_enum, default_value = "spawn")]
    pub tunnel: TunnelStart,
    /// Gateways behind NATs try each other directly where their natTypes allow it; the same on all gateway nodes
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", hide_default_value = true)]
    pub nat_traversal: bool,
    /// Addresses of nodes are reached across domains as well; the same on all nodes
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", hide_default_value = true)]
    pub forward_node_ip: bool,
    /// UDP port of this node's tunnel socket [default: the Gateway's for a node under no NAT, else 4500]
    #[arg(long, value_name = "[ADDR]:PORT", value_parser = parse_port)]
    pub vpn_bind_port: Option<u16>,
    /// The cluster's secret, of which the preshared key is made
    #[arg(long, env = "VPN_CONNECTION_PSK", hide_env_values = true, hide = true, default_value = RAVEN_SECRET)]
    vpn_connection_psk: Secret,
    /// What a DaemonSet of Raven's brings.
    #[command(flatten)]
    _raven: raven::RavenArgs,
}

impl NodeArgs {
    /// What a view depends on.
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            cluster: self.identity.cluster_name.clone(),
            identity: self.identity.identity(),
            service_cidrs: self.service_cidr.clone(),
            api_servers: self.api_server.clone(),
            forward_node_ip: self.forward_node_ip,
        }
    }

    /// The cluster's preshared key.
    pub(crate) fn preshared(&self) -> PresharedKey {
        PresharedKey::of_secret(&self.vpn_connection_psk.0)
    }

    /// Whether a secret was given.
    pub(crate) fn has_secret(&self) -> bool {
        self.vpn_connection_psk.0.as_str() != RAVEN_SECRET
    }

    /// What is unwise.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let problem = (!self.has_secret()).then(|| {
            Problem::new(
                "VPN_CONNECTION_PSK",
                "is not set, so the preshared key is the well-known one",
                "set the same secret on all gateway nodes (Secret raven-agent-secret, key vpn-connection-psk)",
            )
        });
        problem.into_iter().collect()
    }
}

/// A secret of the command line; prints nothing, is cleared when dropped.
#[derive(Clone, zeroize::Zeroize, zeroize::ZeroizeOnDrop)]
struct Secret(String);

impl std::str::FromStr for Secret {
    type Err = std::convert::Infallible;

    /// An empty one is none, as it is to Raven.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(if text.is_empty() { RAVEN_SECRET } else { text }.to_owned()))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("(hidden)")
    }
}

/// Parses a UDP port, alone or as Raven writes it, `:4500`.
fn parse_port(text: &str) -> Result<u16, String> {
    let port = text.rsplit_once(':').map_or(text, |(_, port)| port);
    match port.parse() {
        Ok(VXLAN_PORT) => Err(format!("UDP port {VXLAN_PORT} is the overlay's, the tunnel needs another")),
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{text:?} names no UDP port, expected 1 to 65535")),
    }
}

/// An address alone.
fn address(text: &str) -> Result<IpAddr, String> {
    text.parse()
        .map_err(|_| "expected an IP address without a port, like 192.0.2.1 or 2001:db8::1".to_owned())
}

/// A directory of manifests.
fn source(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    // Not a directory to wait for.
    if text == "kube" && !path.is_dir() {
        return Err("the API server is no source yet; name a directory of Gateway manifests".to_owned());
    }
    Ok(path)
}
