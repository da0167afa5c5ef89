//! The `AsyncAPI` 3.0 document of the gateway, generated from the frames.

use serde_json::{Map, Value, json};
use utoipa::{PartialSchema, ToSchema};

use super::client_frame::{ClientFrame, SendMessageFrame, SyncFrame};
use super::close::CloseCode;
use super::server_frame::ServerFrame;

/// The WebSocket subprotocol of this server.
pub const SUBPROTOCOL: &str = "starling.v1";

/// The document as JSON.
pub fn document() -> Value {
    let mut schemas = component_schemas();
    let mut messages = Map::new();
    for (kind, schema) in ClientFrame::schemas() {
        schemas.insert(format!("client.{kind}"), with_const_type(value(&schema), kind));
        messages.insert(format!("client.{kind}"), message("client", kind));
    }

    for (kind, schema) in server_frames() {
        schemas.insert(format!("server.{kind}"), schema);
        messages.insert(format!("server.{kind}"), message("server", &kind));
    }

    let references = |side: &str| -> Vec<Value> {
        let names = messages.keys().filter(|name| name.starts_with(side));
        names.map(|name| json!({ "$ref": format!("#/channels/gateway/messages/{name}") })).collect()
    };
    let operation = |action: &str, side: &str| {
        let channel = json!({ "$ref": "#/channels/gateway" });
        json!({ "action": action, "channel": channel, "messages": references(side) })
    };
    let operations = json!({
        "fromClient": operation("receive", "client."),
        "fromServer": operation("send", "server."),
    });
    let in_channel: Map<String, Value> = messages
        .keys()
        .map(|name| (name.clone(), json!({ "$ref": format!("#/components/messages/{name}") })))
        .collect();

    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Starling gateway",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0" },
            "description": description(),
        },
        "defaultContentType": "application/json",
        "channels": { "gateway": { "address": "/ws", "messages": in_channel } },
        "operations": operations,
        "components": { "messages": messages, "schemas": schemas },
    })
}

fn description() -> String {
    let codes: Vec<String> = CloseCode::ALL
        .iter()
        .map(|code| code.wire())
        .filter(|(_, reason)| !reason.is_empty())
        .map(|(code, reason)| format!("- `{code}`: {reason}"))
        .collect();

    format!(
        "One JSON object per text frame, `type` first. Subprotocol `{SUBPROTOCOL}`. Authenticate \
         by an `Authorization` header, by the subprotocol pair `{SUBPROTOCOL}, bearer.<token>`, or \
         by an `authenticate` frame within 5 s. The server sends no chat event before `sync`.\n\n\
         Close codes:\n{}",
        codes.join("\n")
    )
}

fn message(side: &str, kind: &str) -> Value {
    json!({ "name": kind, "payload": { "$ref": format!("#/components/schemas/{side}.{kind}") } })
}

fn value(schema: &impl serde::Serialize) -> Value {
    serde_json::to_value(schema).unwrap_or_default()
}

/// The schemas that the frames refer to.
fn component_schemas() -> Map<String, Value> {
    let mut referred = Vec::new();
    ServerFrame::schemas(&mut referred);
    SendMessageFrame::schemas(&mut referred);
    SyncFrame::schemas(&mut referred);
    referred.into_iter().map(|(name, schema)| (name, value(&schema))).collect()
}

/// The schema of each server frame, by its `type`.
fn server_frames() -> Vec<(String, Value)> {
    let union = value(&ServerFrame::schema());
    let variants = union.get("oneOf").and_then(Value::as_array).cloned().unwrap_or_default();
    let kind = |variant: &Value| {
        variant.pointer("/properties/type/enum/0").and_then(Value::as_str).map(str::to_owned)
    };
    variants.into_iter().filter_map(|variant| kind(&variant).map(|kind| (kind, variant))).collect()
}

fn with_const_type(mut schema: Value, kind: &str) -> Value {
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.insert("type".to_owned(), json!({ "const": kind }));
    }
    schema
}
