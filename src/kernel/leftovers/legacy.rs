//! Raven's chains in the tables of `iptables-legacy`, which only that program reads and writes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use corax_core::raven::{Chain, Jump, Leftover, Tables};

use crate::kernel::error::Error;
use crate::kernel::program;

/// Seconds that it waits for another of its kind.
const WAIT: &str = "5";

/// The program, once it was looked for.
#[derive(Default)]
pub(super) struct Legacy {
    program: Option<PathBuf>,
}

impl Legacy {
    /// Raven's chains and the jumps to them. Only tables that are in use are read: reading would make them.
    pub(super) fn read(&mut self) -> Result<Vec<Leftover>, Error> {
        let used = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
        let mut found = Vec::new();
        for chain in Chain::ALL {
            if used.lines().any(|table| table == chain.table()) {
                let listing =
                    program::run(self.program()?, &["-w", WAIT, "-t", chain.table(), "-S"], "", "-S")?;
                found.extend(leftovers(&listing, chain));
            }
        }
        Ok(found)
    }

    /// Takes a jump away.
    pub(super) fn delete_jump(&mut self, jump: &Jump) -> Result<(), Error> {
        self.restore(jump.to, &format!("-D {} {}", jump.from, jump.rule))
    }

    /// Empties a chain and takes it away. Where somebody else jumps to it, it stays, and is not emptied.
    pub(super) fn delete(&mut self, chain: Chain) -> Result<(), Error> {
        let name = chain.name();
        self.restore(chain, &format!("-F {name}\n-X {name}"))
    }

    /// Changes a table in one go.
    fn restore(&mut self, chain: Chain, lines: &str) -> Result<(), Error> {
        let restore = {
            let mut name = OsString::from(self.program()?);
            name.push("-restore");
            PathBuf::from(name)
        };
        let text = format!("*{}\n{lines}\nCOMMIT\n", chain.table());
        program::run(&restore, &["-w", WAIT, "--noflush"], &text, "--noflush").map(drop)
    }

    fn program(&mut self) -> Result<&Path, Error> {
        if self.program.is_none() {
            self.program = find();
        }
        self.program.as_deref().ok_or_else(|| Error::Program {
            program: "iptables-legacy".to_owned(),
            what: "-S",
            text: "there is no such program, and tables of its kind are in use: install the package iptables"
                .to_owned(),
        })
    }
}

/// The program by its own name, or as the one that is meant by `iptables` here.
fn find() -> Option<PathBuf> {
    let legacy = |program: &PathBuf| {
        program::run(program, &["-V"], "", "-V").is_ok_and(|version| version.contains("legacy"))
    };
    program::find("iptables-legacy").or_else(|| program::find("iptables").filter(legacy))
}

/// Raven's chain and its jumps in what `-S` prints of a table.
fn leftovers(listing: &str, chain: Chain) -> Vec<Leftover> {
    let mut found = Vec::new();
    for line in listing.lines() {
        if line.strip_prefix("-N ") == Some(chain.name()) {
            found.push(Leftover::Chain(Tables::Legacy, chain));
        }
        for from in chain.hooks() {
            let rule = line.strip_prefix("-A ").and_then(|rest| rest.strip_prefix(from)?.strip_prefix(' '));
            if let Some(rule) = rule.filter(|rule| is_jump(rule, chain)) {
                found.push(Leftover::Jump(Jump {
                    tables: Tables::Legacy,
                    to: chain,
                    from,
                    rule: rule.into(),
                }));
            }
        }
    }
    found
}

/// Whether a rule is Raven's jump: a user's own asks for more, and is left alone.
fn is_jump(rule: &str, to: Chain) -> bool {
    let Some(mut rest) = rule.strip_suffix(&format!("-j {}", to.name())) else { return false };
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            return true;
        }
        let comment = |rest: &'_ str| {
            let (_, after) = rest.strip_prefix("-m comment --comment \"raven ")?.split_once('"')?;
            Some(rest.len() - after.len())
        };
        let device = (to == Chain::Postrouting && rest.starts_with("-o raven-wg0 ")).then_some(12);
        let Some(known) = comment(rest).or(device) else { return false };
        rest = rest.get(known..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ravens_chain_and_jumps_are_known_and_no_others() {
        let listing = r#"-P PREROUTING ACCEPT
-N MINE
-N RAVEN-MARK-CHAIN
-A PREROUTING -m comment --comment "raven traffic rules for mark" -j RAVEN-MARK-CHAIN
-A PREROUTING -s 10.0.0.1/32 -j RAVEN-MARK-CHAIN
-A PREROUTING -m comment --comment "mine" -j RAVEN-MARK-CHAIN
-A OUTPUT -j RAVEN-MARK-CHAIN
-A OUTPUT -o raven-wg0 -j RAVEN-MARK-CHAIN
-A MINE -j RAVEN-MARK-CHAIN
-A RAVEN-MARK-CHAIN -j MARK --set-xmark 0x40/0xffffffff"#;
        let lines: Vec<String> = leftovers(listing, Chain::Mark).iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "iptables-legacy -t mangle -F RAVEN-MARK-CHAIN\niptables-legacy -t mangle -X RAVEN-MARK-CHAIN",
                "iptables-legacy -t mangle -D PREROUTING -m comment --comment \"raven traffic rules for mark\" -j RAVEN-MARK-CHAIN",
                "iptables-legacy -t mangle -D OUTPUT -j RAVEN-MARK-CHAIN",
            ]
        );
        let nat = "-A POSTROUTING -o raven-wg0 -m comment --comment \"raven traffic should skip NAT\" -j RAVEN-POSTROUTING";
        assert_eq!(leftovers(nat, Chain::Postrouting).len(), 1);
    }
}
