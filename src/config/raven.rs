//! What a DaemonSet of Raven's brings on its command line: taken with its meaning, or refused with the reason. What Corax
//! has under the same name (`--node-name`, `--vpn-bind-port`, `--nat-traversal`, `--forward-node-ip`) is in [`super`].

use std::net::IpAddr;

use clap::Args;

/// Raven's options that are not Corax's own.
#[derive(Args, Clone, Debug)]
pub(crate) struct RavenArgs {
    /// The node's address; Corax takes the one that its Gateway has
    #[arg(long, env = "NODE_IP", value_name = "ADDR", value_parser = node_ip, hide = true)]
    node_ip: Option<String>,
    /// wireguard; nothing else
    #[arg(long, value_name = "NAME", value_parser = vpn_driver, hide = true)]
    vpn_driver: Option<String>,
    /// vxlan; nothing else
    #[arg(long, value_name = "NAME", value_parser = route_driver, hide = true)]
    route_driver: Option<String>,
    /// aa:0f; nothing else
    #[arg(long, value_name = "PREFIX", value_parser = mac_prefix, hide = true)]
    customized_mac_prefix: Option<String>,
    /// Corax always does
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    sync_raven_rules: Option<bool>,
    /// Corax hears of changes, and reads everything each minute
    #[arg(long, value_name = "DURATION", hide = true)]
    sync_raven_rules_period: Option<String>,
    /// 0; nothing else
    #[arg(long, value_name = "SECONDS", value_parser = keep_alive, hide = true)]
    keep_alive_interval: Option<u8>,
    /// 0; nothing else
    #[arg(long, value_name = "SECONDS", value_parser = keep_alive, hide = true)]
    keep_alive_timeout: Option<u8>,
    /// Refused
    #[arg(long, value_name = "FILE", value_parser = kubeconfig, hide = true)]
    kubeconfig: Option<String>,
    /// Refused
    #[arg(long, value_name = "ADDR:PORT", value_parser = health_probe, hide = true)]
    health_probe_addr: Option<String>,
    /// Refused
    #[arg(long, value_name = "ADDR:PORT", value_parser = proxy, hide = true)]
    proxy_metric_bind_addr: Option<String>,
    /// Refused
    #[arg(long, value_name = "ADDR:PORT", value_parser = proxy, hide = true)]
    proxy_internal_secure_addr: Option<String>,
    /// Refused
    #[arg(long, value_name = "ADDR:PORT", value_parser = proxy, hide = true)]
    proxy_internal_insecure_addr: Option<String>,
    /// Refused
    #[arg(long, value_name = "ADDR:PORT", value_parser = proxy, hide = true)]
    proxy_external_addr: Option<String>,
}

/// Takes one value, and refuses every other with the reason.
fn only(text: &str, wanted: &str, reason: &str) -> Result<String, String> {
    if text == wanted { Ok(text.to_owned()) } else { Err(reason.to_owned()) }
}

/// An empty variable is none.
fn node_ip(text: &str) -> Result<String, String> {
    let address = text.is_empty() || text.parse::<IpAddr>().is_ok();
    address.then(|| text.to_owned()).ok_or_else(|| format!("{text:?} is no address"))
}

fn vpn_driver(text: &str) -> Result<String, String> {
    only(
        text,
        "wireguard",
        "Corax has WireGuard alone, IPsec is to come: move all gateways to --vpn-driver=wireguard under Raven first",
    )
}

fn route_driver(text: &str) -> Result<String, String> {
    only(text, "vxlan", "there is no other than vxlan")
}

fn mac_prefix(text: &str) -> Result<String, String> {
    only(
        text,
        "aa:0f",
        "beside nodes that run Raven, VTEPs have aa:0f (--vtep-identity=node-ip): set that on all of them first",
    )
}

fn keep_alive(text: &str) -> Result<u8, String> {
    let reason =
        "gateways behind a NAT send keepalives each 5 s, and no others have to: leave the option out";
    only(text, "0", reason).map(|_| 0)
}

fn kubeconfig(_: &str) -> Result<String, String> {
    Err("Gateways come from files, the API server as source is to come: name their directory by --source"
        .to_owned())
}

fn health_probe(_: &str) -> Result<String, String> {
    Err("/healthz and /readyz are answered at --admin (--metric-bind-addr): leave the option out, and have the probes \
         ask there"
        .to_owned())
}

fn proxy(_: &str) -> Result<String, String> {
    Err("Corax has no L7 proxy yet: leave the option out, and set enable-l7-proxy to false in ConfigMap \
         kube-system/raven-cfg"
        .to_owned())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use crate::cli::Cli;
    use crate::config::NodeArgs;

    #[derive(Parser)]
    struct Probe {
        #[command(flatten)]
        node: NodeArgs,
    }

    fn parse(words: &[&str]) -> Result<NodeArgs, String> {
        let fixed = ["corax", "--node-name", "n1", "--source", "/s"];
        Probe::try_parse_from(fixed.iter().chain(words))
            .map(|probe| probe.node)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_corax_does_anyway_is_taken() {
        for words in [
            "--node-ip 192.168.1.4",
            "--vpn-driver wireguard --route-driver=vxlan",
            "--sync-raven-rules --sync-raven-rules-period 30m",
            "--sync-raven-rules=true",
            "--keep-alive-interval 0 --keep-alive-timeout=0",
            "--customized-mac-prefix aa:0f",
            "--vpn-bind-port :4500",
        ] {
            let words: Vec<&str> = words.split(' ').collect();
            if let Err(error) = parse(&words) {
                panic!("{words:?}: {error}");
            }
        }
    }

    #[test]
    fn switches_take_a_value_as_ravens_do() {
        for (words, wanted) in [
            (&["--nat-traversal", "--forward-node-ip", "--mesh"][..], true),
            (&["--nat-traversal=true", "--forward-node-ip=true", "--mesh=true"], true),
            (&["--nat-traversal=false", "--forward-node-ip=false", "--mesh=false"], false),
            (&[], false),
        ] {
            let args = parse(words).unwrap();
            assert_eq!([args.nat_traversal, args.forward_node_ip, args.mesh], [wanted; 3], "{words:?}");
            assert_eq!(args.settings().forward_node_ip, wanted);
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_option_and_the_remedy() {
        for (option, value, remedy) in [
            ("--node-ip", "here", "is no address"),
            ("--vpn-driver", "libreswan", "--vpn-driver=wireguard"),
            ("--route-driver", "geneve", "vxlan"),
            ("--customized-mac-prefix", "aa:1f", "--vtep-identity=node-ip"),
            ("--keep-alive-interval", "10", "leave the option out"),
            ("--keep-alive-timeout", "30", "leave the option out"),
            ("--kubeconfig", "/etc/kubeconfig", "--source"),
            ("--health-probe-addr", ":10275", "--admin"),
            ("--proxy-metric-bind-addr", ":10266", "enable-l7-proxy"),
            ("--proxy-internal-secure-addr", ":10263", "enable-l7-proxy"),
            ("--proxy-internal-insecure-addr", ":10264", "enable-l7-proxy"),
            ("--proxy-external-addr", ":10262", "enable-l7-proxy"),
        ] {
            let error = parse(&[option, value]).err().unwrap_or_else(|| panic!("{option} is taken"));
            assert!(error.contains(option) && error.contains(remedy), "{option}: {error}");
        }
    }

    #[test]
    fn the_agent_knows_every_option_of_ravens_and_its_help_is_corax_own() {
        let mut command = Cli::command();
        let agent = command.find_subcommand_mut("agent").unwrap();
        let known: Vec<String> = agent
            .get_arguments()
            .flat_map(|arg| {
                arg.get_long_and_visible_aliases()
                    .into_iter()
                    .flatten()
                    .chain(arg.get_all_aliases().into_iter().flatten())
            })
            .map(str::to_owned)
            .collect();
        for option in
            "node-name node-ip kubeconfig vpn-driver route-driver metric-bind-addr health-probe-addr \
                       sync-raven-rules sync-raven-rules-period vpn-bind-port nat-traversal forward-node-ip \
                       keep-alive-interval keep-alive-timeout customized-mac-prefix proxy-metric-bind-addr \
                       proxy-internal-secure-addr proxy-internal-insecure-addr proxy-external-addr"
                .split_whitespace()
        {
            assert!(known.iter().any(|name| name == option), "--{option}");
        }
        let help = agent.render_long_help().to_string();
        assert!(!help.contains("vpn-driver"), "{help}");
    }
}
