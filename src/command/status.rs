//! `corax status`: what a running agent says of itself.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use comfy_table::{Table, presets::NOTHING};

use corax_cni::cli::age;
use corax_core::topology::{Path, Role};
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::agent::epoch;
use crate::agent::report::{Report, TunnelReport};
use crate::cli::{Output, OutputArgs, print_line};
use crate::config::AdminArgs;

/// How many of the last changes are shown.
const CHANGES: usize = 10;

/// How long an agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Options of `corax status`.
#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    /// Where the agent answers.
    #[command(flatten)]
    admin: AdminArgs,
    /// How it is printed.
    #[command(flatten)]
    output: OutputArgs,
}

/// Prints it.
///
/// # Errors
/// Where no agent answers.
pub(crate) fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let address = args.admin.admin;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = runtime.block_on(async { tokio::time::timeout(PATIENCE, ask(address.here())).await });
    let answer = asked
        .unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {} s", PATIENCE.as_secs())))
        .with_context(|| {
            format!("no agent answers on {address}: is it running? does it have another --admin?")
        })?;
    match args.output.output {
        Output::Json => {
            let value: serde_json::Value = serde_json::from_slice(&answer)?;
            print_line(serde_json::to_string_pretty(&value)?)?;
        }
        Output::Table => {
            let report: Report =
                serde_json::from_slice(&answer).context("the agent is of another version")?;
            print_line(render(&report, epoch()).trim_end())?;
        }
    }
    Ok(())
}

/// The body of `/status`.
async fn ask(address: SocketAddr) -> anyhow::Result<Bytes> {
    let stream = TokioIo::new(TcpStream::connect(address).await?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    let request = Request::get("/status").header(HOST, address.to_string()).body(Empty::<Bytes>::new())?;
    let answer = async move {
        let answer = sender.send_request(request).await?;
        anyhow::ensure!(answer.status().is_success(), "it answers {}", answer.status());
        Ok(answer.into_body().collect().await?.to_bytes())
    };
    let (answer, _) = tokio::join!(answer, connection);
    answer
}

fn render(report: &Report, now: u64) -> String {
    let mut text = String::new();
    let mut add = |part: String| {
        text.push_str(&part);
        text.push('\n');
    };
    add(head(report, now));
    if !report.domains.is_empty() {
        add(format!("\nDOMAINS\n{}", domains(report)));
    }
    if !report.tunnels.is_empty() {
        add(format!("\nTUNNELS\n{}", tunnels(report)));
    }
    if !report.devices.is_empty() {
        add(format!("\nDEVICES\n{}", devices(report)));
    }
    let dropped = report.drops.iter().filter(|drop| drop.packets > 0);
    let dropped: Vec<_> = dropped.map(|drop| vec![drop.reason.clone(), drop.packets.to_string()]).collect();
    if !dropped.is_empty() {
        add(format!("\nDROPPED\n{}", table(&["REASON", "PACKETS"], dropped)));
    }
    let last = report.last_changes.iter().rev().take(CHANGES).rev();
    let last: Vec<String> = last.map(|change| change_line(change, now)).collect();
    if !last.is_empty() {
        add(format!("\nLAST CHANGES\n{}", last.join("\n")));
    }
    if !report.problems.is_empty() {
        let lines: Vec<String> = report.problems.iter().map(ToString::to_string).collect();
        add(format!("\nPROBLEMS\n  {}", lines.join("\n  ")));
    }
    text
}

fn head(report: &Report, now: u64) -> String {
    let view = &report.view;
    let applied = match (view.applied, view.revision) {
        (_, 0) => "none yet".to_owned(),
        (true, revision) => format!("{revision}, applied, read {} ago", age(now.saturating_sub(view.since))),
        (false, revision) => format!("{revision}, NOT applied"),
    };
    let role = match report.role {
        Role::Gateway => "gateway".to_owned(),
        Role::Member if report.gateway.is_none() => "member, no gateway".to_owned(),
        Role::Member => format!("member, gateway is {}", option(report.gateway.as_ref())),
        Role::Outside if report.objects.get("nft_table").is_none_or(|count| *count == 0) => {
            "outside every domain: nothing steered, NO LOCK against plaintext".to_owned()
        }
        Role::Outside => "outside every domain, what it had stays".to_owned(),
    };
    let rows = [
        ("node", format!("{} ({})", report.node, option(report.underlay.as_ref()))),
        ("role", role),
        (
            "domain",
            format!("{}{}", option(report.domain.as_ref()), if report.mesh { ", in mesh" } else { "" }),
        ),
        ("prefixes", report.prefixes.join(", ")),
        ("VTEP", option(report.vtep.as_ref())),
        ("public key", report.public_key.clone()),
        ("view", applied),
        ("agent", format!("{}, up {}", report.version, age(now.saturating_sub(report.started)))),
    ];
    rows.map(|(name, value)| format!("{name:<11} {value}")).join("\n")
}

fn domains(report: &Report) -> String {
    let rows = report.domains.iter().map(|domain| {
        let path = match (domain.remote.path, &domain.remote.relay) {
            (Path::None, _) => "none".to_owned(),
            (Path::Overlay, None) => "overlay".to_owned(),
            (Path::Tunnel, None) => "tunnel".to_owned(),
            (Path::Overlay, Some(relay)) => format!("overlay, relayed by {relay}"),
            (Path::Tunnel, Some(relay)) => format!("tunnel, relayed by {relay}"),
        };
        let gateway = option(domain.remote.gateway.as_ref());
        vec![domain.remote.name.to_string(), path, gateway, domain.prefixes.to_string()]
    });
    table(&["NAME", "PATH", "GATEWAY", "PREFIXES"], rows.collect())
}

fn tunnels(report: &Report) -> String {
    let rows = report.tunnels.iter().map(|tunnel: &TunnelReport| {
        vec![
            tunnel.domain.to_string(),
            tunnel.node.to_string(),
            tunnel.device.clone(),
            tunnel.endpoint.clone().unwrap_or_else(|| "waiting for it".to_owned()),
            tunnel
                .handshake_age
                .map_or_else(|| "never".to_owned(), |seconds| format!("{} ago", age(seconds))),
            bytes(tunnel.received),
            bytes(tunnel.sent),
        ]
    });
    table(&["DOMAIN", "NODE", "DEVICE", "ENDPOINT", "HANDSHAKE", "RECEIVED", "SENT"], rows.collect())
}

fn devices(report: &Report) -> String {
    let rows = report.devices.iter().map(|device| {
        let state = if device.up { "up" } else { "DOWN" };
        vec![device.name.clone(), device.kind.clone(), device.mtu.to_string(), state.to_owned()]
    });
    table(&["NAME", "KIND", "MTU", "STATE"], rows.collect())
}

fn change_line(change: &crate::agent::report::ChangeReport, now: u64) -> String {
    let mut lines = change.line.lines();
    let first: String = lines.next().unwrap_or_default().chars().take(140).collect();
    let more = if lines.next().is_some() { " …" } else { "" };
    let error = change.error.as_ref().map_or_else(String::new, |error| format!("  FAILED: {error}"));
    format!("  {:>5} ago  {first}{more}{error}", age(now.saturating_sub(change.at)))
}

fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(head.to_vec()).add_rows(rows);
    table.lines().map(|line| format!(" {}", line.trim_end())).collect::<Vec<_>>().join("\n")
}

fn option(value: Option<&impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), ToString::to_string)
}

fn bytes(number: u64) -> String {
    let mut rest = number;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if rest < 10_240 {
            return format!("{rest} {unit}");
        }
        rest /= 1024;
    }
    format!("{rest} TiB")
}

#[cfg(test)]
mod tests;
