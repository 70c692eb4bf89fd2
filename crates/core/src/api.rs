//! The Gateway resource, `gateways.raven.openyurt.io/v1beta1`, as it stands in manifests and on the API server.
//!
//! Types follow the resource's JSON. What Corax does not read is not here; what it reads is as lenient as can be, so
//! that one wrong value costs its own part and not the whole object: [`crate::view`] checks it.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

/// `apiVersion` of a Gateway.
pub const API_VERSION: &str = "raven.openyurt.io/v1beta1";

/// `kind` of a Gateway.
pub const KIND: &str = "Gateway";

/// Annotation with a comma list of CIDRs beside the pods' that the active tunnel node answers for.
pub const EXTRA_CIDRS: &str = "raven.openyurt.io/extra-allowed-source-cidrs";

/// `type` of an endpoint for L3 tunnels.
pub const TUNNEL: &str = "tunnel";

/// `type` of an endpoint for the L7 proxy.
pub const PROXY: &str = "proxy";

/// Key of an endpoint's `config` that holds its public key.
pub const PUBLIC_KEY: &str = "publicKey";

/// Key of an active endpoint's `config` that turns its L3 tunnel off with `false`.
pub const ENABLE_L3: &str = "enable-l3-tunnel";

/// A Gateway: one domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Gateway {
    /// `raven.openyurt.io/v1beta1`.
    #[serde(deserialize_with = "null_is_default")]
    pub api_version: String,
    /// `Gateway`.
    #[serde(deserialize_with = "null_is_default")]
    pub kind: String,
    /// Its name and annotations.
    #[serde(deserialize_with = "null_is_default")]
    pub metadata: Metadata,
    /// What users ask for.
    #[serde(deserialize_with = "null_is_default")]
    pub spec: GatewaySpec,
    /// What the controller found and decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<GatewayStatus>,
}

/// Metadata of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// The domain's name.
    #[serde(deserialize_with = "null_is_default")]
    pub name: String,
    /// When it was made, RFC 3339; empty in manifests.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_is_default")]
    pub creation_timestamp: String,
    /// Its annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_default")]
    pub annotations: BTreeMap<String, String>,
}

/// `spec` of a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewaySpec {
    /// Nodes that may be gateway nodes.
    #[serde(deserialize_with = "null_is_default")]
    pub endpoints: Vec<Endpoint>,
    /// `""`, `PublicIP` or `LoadBalancer`.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_is_default")]
    pub expose_type: String,
}

/// An endpoint, in `spec.endpoints[]` and `status.activeEndpoints[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    /// Its node.
    #[serde(deserialize_with = "null_is_default")]
    pub node_name: String,
    /// `tunnel` or `proxy`.
    #[serde(rename = "type", deserialize_with = "null_is_default")]
    pub kind: String,
    /// Port as seen from outside.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "lenient_number")]
    pub port: Option<i64>,
    /// Whether it is behind a NAT.
    #[serde(rename = "underNAT", deserialize_with = "lenient_flag")]
    pub under_nat: bool,
    /// What kind of NAT.
    #[serde(
        rename = "natType",
        skip_serializing_if = "String::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub nat_type: String,
    /// Its address as seen from outside.
    #[serde(
        rename = "publicIP",
        skip_serializing_if = "String::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub public_ip: String,
    /// The tunnel socket's port as mapped by a NAT.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "lenient_number")]
    pub public_port: Option<i64>,
    /// Public key and switches.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_default")]
    pub config: BTreeMap<String, String>,
}

/// `status` of a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayStatus {
    /// The domain's members.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub nodes: Vec<NodeInfo>,
    /// The endpoints elected.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub active_endpoints: Vec<Endpoint>,
}

/// A member, in `status.nodes[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeInfo {
    /// Name of the node.
    #[serde(deserialize_with = "null_is_default")]
    pub node_name: String,
    /// Its underlay address.
    #[serde(rename = "privateIP", deserialize_with = "null_is_default")]
    pub private_ip: String,
    /// Its pods' prefixes.
    #[serde(deserialize_with = "null_is_default")]
    pub subnets: Vec<String>,
}

/// `null` where a value may stand: Go writes it for what is empty.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A number, or a text that is one. What is none is a number that no field takes.
fn lenient_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number {
        Is(i64),
        Fraction(f64),
        Text(String),
    }
    Ok(Option::deserialize(deserializer)?.map(|number| match number {
        Number::Is(number) => number,
        Number::Fraction(number) if number.fract() == 0.0 => number as i64,
        Number::Fraction(_) => -1,
        Number::Text(text) => text.trim().parse().unwrap_or(-1),
    }))
}

/// True or false, or a text that says so.
fn lenient_flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected true or false")]
    enum Flag {
        Is(bool),
        Text(String),
    }
    match Option::deserialize(deserializer)? {
        None => Ok(false),
        Some(Flag::Is(flag)) => Ok(flag),
        Some(Flag::Text(text)) => text.trim().parse().map_err(|_| {
            serde::de::Error::invalid_value(serde::de::Unexpected::Str(&text), &"true or false")
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_null_is_what_is_not_there_and_a_port_may_be_a_text() {
        let json = r#"{
            "apiVersion": "raven.openyurt.io/v1beta1", "kind": "Gateway", "spec": null,
            "metadata": { "name": "site", "creationTimestamp": null, "annotations": null },
            "status": {
                "nodes": [{ "nodeName": "s1", "privateIP": "192.168.1.1", "subnets": null }],
                "activeEndpoints": [{ "nodeName": "s1", "type": "tunnel", "port": "4500", "publicPort": null, "config": null }]
            }
        }"#;
        let gateway: Gateway = serde_json::from_str(json).unwrap();
        let status = gateway.status.unwrap();
        assert_eq!(status.nodes[0].subnets, Vec::<String>::new());
        assert_eq!(
            (status.active_endpoints[0].port, status.active_endpoints[0].public_port),
            (Some(4500), None)
        );
    }

    #[test]
    fn a_flag_may_be_a_text_and_a_fraction_is_no_port() {
        let endpoint = |json: &str| serde_json::from_str::<Endpoint>(json);
        for (value, flag) in [("true", true), ("\"true\"", true), ("\"false\"", false), ("null", false)] {
            assert_eq!(endpoint(&format!("{{ \"underNAT\": {value} }}")).unwrap().under_nat, flag, "{value}");
        }
        let told = |value| endpoint(&format!("{{ \"underNAT\": {value} }}")).unwrap_err().to_string();
        assert!(told("\"perhaps\"").contains("expected true or false"), "{}", told("\"perhaps\""));
        assert!(told("5").contains("expected true or false"), "{}", told("5"));
        assert_eq!(endpoint(r#"{ "port": 4500.5 }"#).unwrap().port, Some(-1));
    }

    #[test]
    fn a_gateway_reads_back_with_the_resources_own_field_names() {
        let json = serde_json::json!({
            "apiVersion": "raven.openyurt.io/v1beta1",
            "kind": "Gateway",
            "metadata": { "name": "site", "annotations": { EXTRA_CIDRS: "192.168.9.0/24" } },
            "spec": {
                "proxyConfig": { "Replicas": 1, "proxyHTTPPort": "10255" },
                "tunnelConfig": { "Replicas": 1 },
                "endpoints": [{
                    "nodeName": "s1", "type": "tunnel", "port": 4500, "underNAT": true,
                    "natType": "Full cone NAT", "publicIP": "203.0.113.9", "publicPort": 40001,
                    "config": { "publicKey": "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=" },
                }],
            },
            "status": { "nodes": [{ "nodeName": "s1", "privateIP": "192.168.1.1", "subnets": ["10.10.1.0/24"] }] },
        });
        let gateway: Gateway = serde_json::from_value(json.clone()).unwrap();
        let endpoint = &gateway.spec.endpoints[0];
        assert!(endpoint.under_nat);
        assert_eq!((endpoint.public_ip.as_str(), endpoint.public_port), ("203.0.113.9", Some(40001)));
        let back = serde_json::to_value(&gateway).unwrap();
        assert_eq!(back["spec"]["endpoints"], json["spec"]["endpoints"]);
        assert_eq!(back["status"], json["status"]);
    }
}
