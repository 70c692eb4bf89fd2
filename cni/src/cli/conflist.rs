//! The edit of a network configuration, as text in and text out. `cniVersion` is never touched, order is kept.

use corax_pins::Network;
use serde_json::{Map, Value, json};

use crate::TYPE;
use crate::plugin::SUPPORTED;

/// What to put into a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Mode {
    /// As IPAM where host-local is or flannel delegates, else in the chain
    #[default]
    Auto,
    /// As IPAM only
    Ipam,
    /// At the end of the chain only
    Chain,
    /// Both
    Both,
}

/// Why a configuration cannot be edited.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the message is the documentation
pub enum ConflistError {
    #[error("it is no JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("it has no name")]
    NoName,
    #[error("it has no plugins")]
    NoPlugins,
    #[error("none of its plugins uses host-local or is flannel: use --mode chain")]
    NoIpam,
    #[error(
        "its cniVersion is {0}, which corax-cni does not speak: no pod could start; set it to one of {known} that its other \
         plugins speak too, then install again", known = SUPPORTED.join(", ")
    )]
    Version(String),
    #[error(
        "corax-cni is its IPAM, and pods may have addresses from it: `corax cni uninstall` first, then install with --mode chain"
    )]
    IsIpam,
    #[error("it is a single plugin, which has no chain: make it a conflist, or use --mode ipam")]
    NoChain,
}

/// A configuration with us in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edited {
    /// The network.
    pub network: Network,
    /// The new text.
    pub text: String,
    /// Whether that is another than before.
    pub changed: bool,
    /// Whether we are its IPAM now.
    pub ipam: bool,
    /// host-local's directory, where the configuration names one.
    pub data_dir: Option<String>,
}

/// The network of a configuration, and whether we are in it.
///
/// # Errors
/// When it is no network configuration.
pub fn inspect(text: &str) -> Result<(Network, bool), ConflistError> {
    let config: Value = serde_json::from_str(text)?;
    let name = config.get("name").and_then(Value::as_str).and_then(|name| name.parse().ok());
    let ours = plugins(&config)
        .iter()
        .any(|plugin| is(plugin, TYPE) || plugin.get("ipam").is_some_and(|i| is(i, TYPE)));
    Ok((name.ok_or(ConflistError::NoName)?, ours))
}

/// Puts us in. `extra` are keys that say where our things are kept, if not where they usually are.
///
/// # Errors
/// When there is no place for us.
pub fn edit(text: &str, mode: Mode, extra: &Map<String, Value>) -> Result<Edited, ConflistError> {
    let (network, _) = inspect(text)?;
    let mut config: Value = serde_json::from_str(text)?;
    spoken(&config)?;
    let before = config.clone();
    let data_dir = data_dir(&config);
    let mut ipam = false;
    if mode == Mode::Chain && plugins(&config).iter().any(|p| p.get("ipam").is_some_and(|i| is(i, TYPE))) {
        return Err(ConflistError::IsIpam);
    }
    if mode == Mode::Ipam
        && let Some(plugins) = config.get_mut("plugins").and_then(Value::as_array_mut)
    {
        plugins.retain(|plugin| !is(plugin, TYPE));
    }
    if mode != Mode::Chain {
        for plugin in plugins_mut(&mut config) {
            let Some(section) = section_for_us(plugin) else { continue };
            section.insert("type".into(), TYPE.into());
            section.extend(extra.clone());
            ipam = true;
        }
    }
    if !ipam && matches!(mode, Mode::Ipam | Mode::Both) {
        return Err(ConflistError::NoIpam);
    }
    if mode != Mode::Ipam && !(mode == Mode::Auto && ipam) {
        let Some(plugins) = config.get_mut("plugins").and_then(Value::as_array_mut) else {
            return Err(ConflistError::NoChain);
        };
        if plugins.is_empty() {
            return Err(ConflistError::NoPlugins);
        }
        if !plugins.iter().any(|plugin| is(plugin, TYPE)) {
            let mut entry = Map::from_iter([("type".to_owned(), json!(TYPE))]);
            entry.extend(extra.clone());
            plugins.push(Value::Object(entry));
        }
    }
    let changed = config != before;
    let text = if changed { pretty(&config) } else { text.to_owned() };
    Ok(Edited { network, text, changed, ipam, data_dir })
}

/// Takes us out: host-local where we were IPAM, nothing where we were in the chain.
///
/// # Errors
/// When it is no network configuration.
pub fn revert(text: &str) -> Result<String, ConflistError> {
    let mut config: Value = serde_json::from_str(text)?;
    let before = config.clone();
    for plugin in plugins_mut(&mut config) {
        let flannel = is(plugin, "flannel");
        let Some(plugin) = plugin.as_object_mut() else { continue };
        let Some(section) = plugin.get_mut("ipam").filter(|i| is(i, TYPE)).and_then(Value::as_object_mut)
        else {
            continue;
        };
        section.insert("type".into(), "host-local".into());
        for key in ["stateDir", "runDir", "cacheDir", "lockTimeout"] {
            section.shift_remove(key);
        }
        if flannel && section.len() == 1 {
            plugin.shift_remove("ipam");
        }
    }
    if let Some(plugins) = config.get_mut("plugins").and_then(Value::as_array_mut) {
        plugins.retain(|plugin| !is(plugin, TYPE));
    }
    Ok(if config == before { text.to_owned() } else { pretty(&config) })
}

/// host-local's directory, where the configuration of a plugin that host-local or we serve names one.
pub fn data_dir(config: &Value) -> Option<String> {
    let sections = plugins(config).iter().filter_map(|plugin| {
        let flannel = is(plugin, "flannel");
        let section = plugin.get("ipam")?;
        let ours = is(section, "host-local") || is(section, TYPE);
        (ours || (flannel && section.get("type").is_none())).then_some(section)
    });
    sections.filter_map(|section| section.get("dataDir")?.as_str()).next_back().map(str::to_owned)
}

/// The keys by which a configuration says where our things are, if not where they usually are.
pub fn places(config: &Value) -> Map<String, Value> {
    let ours = plugins(config).iter().find_map(|plugin| {
        let section = plugin.get("ipam").filter(|ipam| is(ipam, TYPE));
        section.or_else(|| is(plugin, TYPE).then_some(plugin))?.as_object()
    });
    let known = |key: &str| matches!(key, "stateDir" | "runDir" | "cacheDir");
    let all = ours.into_iter().flatten().filter(|(key, _)| known(key));
    all.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Whether a text still names us as a plugin, wherever in it. What is no JSON may be half written: its words count.
pub fn names_us(text: &str) -> bool {
    fn within(value: &Value) -> bool {
        match value {
            Value::Object(map) => is(value, TYPE) || map.values().any(within),
            Value::Array(list) => list.iter().any(within),
            _ => false,
        }
    }
    serde_json::from_str(text).map_or_else(|_| text.contains(TYPE), |config| within(&config))
}

/// Refuses a configuration of no version that we speak. A list says all its versions in `cniVersions` (CNI 1.1).
fn spoken(config: &Value) -> Result<(), ConflistError> {
    let one = config.get("cniVersion").and_then(Value::as_str).filter(|version| !version.is_empty());
    let more = config.get("cniVersions").and_then(Value::as_array).into_iter().flatten();
    if one.into_iter().chain(more.filter_map(Value::as_str)).any(|version| SUPPORTED.contains(&version)) {
        return Ok(());
    }
    Err(ConflistError::Version(one.map_or_else(|| "missing (that is 0.1.0)".to_owned(), str::to_owned)))
}

/// The ipam section to put us in: host-local's, ours already, or the one that flannel passes to its delegate.
fn section_for_us(plugin: &mut Value) -> Option<&mut Map<String, Value>> {
    let flannel = is(plugin, "flannel");
    let plugin = plugin.as_object_mut()?;
    if flannel && !plugin.contains_key("ipam") {
        plugin.insert("ipam".into(), json!({}));
    }
    let section = plugin.get_mut("ipam")?;
    let ours = is(section, "host-local") || is(section, TYPE) || (flannel && section.get("type").is_none());
    section.as_object_mut().filter(|_| ours)
}

fn is(plugin: &Value, kind: &str) -> bool {
    plugin.get("type").and_then(Value::as_str) == Some(kind)
}

fn plugins(config: &Value) -> &[Value] {
    match config.get("plugins").and_then(Value::as_array) {
        Some(list) => list,
        None => std::slice::from_ref(config),
    }
}

fn plugins_mut(config: &mut Value) -> &mut [Value] {
    if config.get("plugins").is_some_and(Value::is_array) {
        return config.get_mut("plugins").and_then(Value::as_array_mut).map_or(&mut [], Vec::as_mut_slice);
    }
    std::slice::from_mut(config)
}

fn pretty(config: &Value) -> String {
    let mut text = serde_json::to_string_pretty(config).expect("a JSON value is JSON");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIDGE: &str = r#"{ "name": "pods", "cniVersion": "0.3.1", "plugins": [
        { "type": "bridge", "ipam": { "ranges": [[{"subnet": "10.1.0.0/24"}]], "type": "host-local", "dataDir": "/d" } },
        { "type": "portmap" } ] }"#;
    const FLANNEL: &str = r#"{"name":"cbr0","cniVersion":"0.3.1","plugins":[{"type":"flannel","delegate":{"isDefaultGateway":true}},{"type":"portmap"}]}"#;

    fn auto(text: &str) -> Edited {
        edit(text, Mode::Auto, &Map::new()).unwrap()
    }

    #[test]
    fn one_word_changes_and_nothing_else() {
        let edited = auto(BRIDGE);
        assert!(edited.changed && edited.ipam);
        assert_eq!(edited.data_dir.as_deref(), Some("/d"));
        let want: Value = serde_json::from_str(&BRIDGE.replace("host-local", TYPE)).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&edited.text).unwrap(), want);
        assert!(edited.text.find("name") < edited.text.find("cniVersion"), "order is kept: {}", edited.text);
        assert!(!auto(&edited.text).changed, "a second edit changes nothing");
        let back: Value = serde_json::from_str(&revert(&edited.text).unwrap()).unwrap();
        assert_eq!(back, serde_json::from_str::<Value>(BRIDGE).unwrap());
    }

    #[test]
    fn flannel_is_told_to_delegate_to_us() {
        let edited = auto(FLANNEL);
        let config: Value = serde_json::from_str(&edited.text).unwrap();
        assert_eq!(config["plugins"][0]["ipam"], json!({"type": TYPE}));
        assert_eq!(config["plugins"].as_array().unwrap().len(), 2);
        let back: Value = serde_json::from_str(&revert(&edited.text).unwrap()).unwrap();
        assert_eq!(back, serde_json::from_str::<Value>(FLANNEL).unwrap());
    }

    #[test]
    fn another_ipam_gets_us_behind_it() {
        let calico = r#"{"name":"k8s-pod-network","cniVersion":"0.3.1","plugins":[{"type":"calico","ipam":{"type":"calico-ipam"}}]}"#;
        let edited = auto(calico);
        assert!(!edited.ipam);
        assert_eq!(serde_json::from_str::<Value>(&edited.text).unwrap()["plugins"][1], json!({"type": TYPE}));
        assert!(matches!(edit(calico, Mode::Ipam, &Map::new()), Err(ConflistError::NoIpam)));
        let single = r#"{"name":"x","cniVersion":"0.3.1","type":"bridge","ipam":{"type":"host-local"}}"#;
        assert!(auto(single).ipam);
        assert!(matches!(edit(single, Mode::Chain, &Map::new()), Err(ConflistError::NoChain)));
        assert!(matches!(edit("{}", Mode::Auto, &Map::new()), Err(ConflistError::NoName)));
        assert!(matches!(edit("{", Mode::Auto, &Map::new()), Err(ConflistError::Json(_))));
    }

    #[test]
    fn a_version_that_we_do_not_speak_is_refused_and_the_one_to_set_is_named() {
        for version in [r#""cniVersion":"0.2.0","#, r#""cniVersion":"0.1.0","#, r#""cniVersion":"","#, ""] {
            let old = FLANNEL.replace(r#""cniVersion":"0.3.1","#, version);
            let refused = edit(&old, Mode::Auto, &Map::new()).unwrap_err();
            assert!(matches!(refused, ConflistError::Version(_)), "{refused}");
            assert!(refused.to_string().contains("set it to one of 0.3.0, 0.3.1"), "{refused}");
        }
        let list = FLANNEL.replace(r#""0.3.1","#, r#""0.2.0","cniVersions":["0.2.0","1.0.0"],"#);
        assert!(auto(&list).changed, "of a list's versions one is enough");
    }

    #[test]
    fn places_go_along_and_come_out_again() {
        let extra = Map::from_iter([("stateDir".to_owned(), json!("/s"))]);
        let edited = edit(BRIDGE, Mode::Both, &extra).unwrap();
        let config: Value = serde_json::from_str(&edited.text).unwrap();
        assert_eq!(config["plugins"][0]["ipam"]["stateDir"], "/s");
        assert_eq!(config["plugins"][2], json!({"type": TYPE, "stateDir": "/s"}));
        let back: Value = serde_json::from_str(&revert(&edited.text).unwrap()).unwrap();
        assert_eq!(back, serde_json::from_str::<Value>(BRIDGE).unwrap());
    }
}
