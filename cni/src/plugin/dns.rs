//! DNS settings out of a file of resolv.conf's form, as host-local reads them.

use std::path::Path;

use serde_json::{Map, Value};

use super::error::{Code, Failure};

pub(super) fn read(path: &Path) -> Result<Map<String, Value>, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::new(Code::Io, format!("resolvConf {}: {error}", path.display())))?;
    Ok(parse(&text))
}

fn parse(text: &str) -> Map<String, Value> {
    let mut dns = Map::new();
    let mut extend = |key: &str, words: &[&str]| {
        let list = dns.entry(key).or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(list) = list {
            list.extend(words.iter().map(|&word| word.into()));
        }
    };
    let mut domain = None;
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["nameserver", server, ..] => extend("nameservers", &[server]),
            ["domain", name, ..] => domain = Some(name),
            ["search", _, ..] => extend("search", words.get(1..).unwrap_or_default()),
            ["options", _, ..] => extend("options", words.get(1..).unwrap_or_default()),
            _ => {}
        }
    }
    dns.extend(domain.map(|name| ("domain".to_owned(), name.into())));
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_becomes_a_dns_object() {
        let text = "# c\n; c\nnameserver 10.0.0.1\nnameserver fd00::1 x\nsearch a b\ndomain d\noptions ndots:5\nsortlist 1\nsearch\n";
        let want = serde_json::json!({
            "nameservers": ["10.0.0.1", "fd00::1"], "search": ["a", "b"], "domain": "d", "options": ["ndots:5"]
        });
        assert_eq!(Value::Object(parse(text)), want);
        assert!(parse("").is_empty());
    }
}
