//! `corax identity`: the hardware address of a node's VTEP.

use std::net::IpAddr;

use clap::Args;
use serde::Serialize;

use crate::cli::{Output, OutputArgs, print_line};
use crate::config::{IdentityArgs, VtepIdentity};

/// Options of `corax identity`.
#[derive(Args, Debug)]
pub(crate) struct IdentityCommand {
    /// Who.
    #[command(flatten)]
    identity: IdentityArgs,
    /// The node's underlay address; needed with --vtep-identity=node-ip
    #[arg(long, env = "NODE_IP", value_name = "ADDR", required_if_eq("vtep_identity", "node-ip"))]
    node_ip: Option<IpAddr>,
    /// How it is printed.
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Identity<'a> {
    cluster: &'a str,
    node: &'a str,
    of: &'static str,
    mac: String,
    #[serde(rename = "linkLocal")]
    link_local: String,
}

/// Prints it.
///
/// # Errors
/// An IPv6 address to make a MAC of, and those of JSON.
pub(crate) fn run(args: &IdentityCommand) -> anyhow::Result<()> {
    let IdentityArgs { node_name, cluster_name, vtep_identity } = &args.identity;
    let underlay = args.node_ip.unwrap_or(IpAddr::from([0, 0, 0, 0]));
    anyhow::ensure!(
        underlay.is_ipv4() || *vtep_identity == VtepIdentity::NodeName,
        "--node-ip {underlay}: a MAC is made of an IPv4 address only; on IPv6 the node's name is its identity"
    );
    let mac = args.identity.identity().mac(cluster_name, node_name, underlay);
    let of = match vtep_identity {
        VtepIdentity::NodeName => "node-name",
        VtepIdentity::NodeIp => "node-ip",
    };
    let identity = Identity {
        cluster: cluster_name,
        node: node_name.as_str(),
        of,
        mac: mac.to_string(),
        link_local: mac.link_local().to_string(),
    };
    match args.output.output {
        Output::Json => print_line(serde_json::to_string_pretty(&identity)?)?,
        Output::Table => print_line(format_args!(
            "cluster     {}\nnode        {}\nmade of     {}\nVTEP MAC    {}\nlink-local  {}",
            identity.cluster, identity.node, identity.of, identity.mac, identity.link_local
        ))?,
    }
    Ok(())
}
