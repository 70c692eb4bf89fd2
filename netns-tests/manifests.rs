//! Manifests of Gateways as a controller makes them.

use serde::Serialize;
use serde_json::{Value, json};

/// A domain's Gateway, with its one endpoint elected; nodes as its status has them.
pub fn gateway(name: &str, endpoint: &Value, nodes: &impl Serialize) -> Value {
    json!({
        "apiVersion": "raven.openyurt.io/v1beta1",
        "kind": "Gateway",
        "metadata": { "name": name },
        "spec": { "tunnelConfig": { "Replicas": 1 }, "endpoints": [endpoint] },
        "status": { "nodes": nodes, "activeEndpoints": [endpoint] },
    })
}

/// A domain of one node that exists on paper.
pub fn paper(name: &str, subnets: &[impl Serialize]) -> Value {
    let node = format!("{name}-1");
    let key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
    let endpoint = json!({ "nodeName": node, "type": "tunnel", "publicIP": "198.18.9.2", "config": { "publicKey": key } });
    gateway(name, &endpoint, &[json!({ "nodeName": node, "privateIP": "10.77.0.1", "subnets": subnets })])
}
