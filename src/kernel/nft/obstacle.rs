//! Chains of others that stand in the way: a policy of drop for what the node forwards, as Docker, ufw and many a
//! hardening guide set it. Corax never writes a rule into a chain of others; it says what to write.

use corax_core::problem::Problem;

use super::super::error::Failure;
use super::super::socket::Socket;
use super::wire::{self, Chain};

/// How the names of Corax's devices begin. A table that has a rule for them knows what it does.
const DEVICES: &str = "raven";

const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

pub(super) fn problems(socket: &mut Socket) -> Result<Vec<Problem>, Failure> {
    let mut problems = Vec::new();
    for chain in wire::dump_dropping(socket)? {
        let family = match chain.family {
            NFPROTO_INET => "inet",
            NFPROTO_IPV4 => "ip",
            NFPROTO_IPV6 => "ip6",
            _ => continue,
        };
        if !wire::table_names(socket, &chain, DEVICES)? {
            problems.push(problem(family, &chain));
        }
    }
    Ok(problems)
}

fn problem(family: &str, chain: &Chain) -> Problem {
    let Chain { table, name, .. } = chain;
    let remedy = match (family, table.as_str(), name.as_str()) {
        ("ip" | "ip6", "filter", "FORWARD") => {
            let program = if family == "ip" { "iptables" } else { "ip6tables" };
            format!("{program} -I FORWARD -i raven+ -j ACCEPT; {program} -I FORWARD -o raven+ -j ACCEPT")
        }
        _ => format!(
            "nft insert rule {family} {table} {name} iifname 'raven*' accept; \
             nft insert rule {family} {table} {name} oifname 'raven*' accept"
        ),
    };
    let what = "drops what no rule of it accepts, and none names Corax's devices: packets between domains may end here";
    Problem::new(format!("chain {name} of nftables table {family} {table}"), what, remedy)
}
