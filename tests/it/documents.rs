//! The OpenAPI and AsyncAPI documents describe everything that the server does, and nothing else.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};
use starling::model::Code;
use starling::wire::{ClientFrame, ServerFrame};
use utoipa::PartialSchema;

use crate::support::{Backend, TestServer};

fn openapi() -> Value {
    serde_json::from_str(&starling::server::openapi()).unwrap()
}

/// Every documented operation: its method, path and description.
fn operations(document: &Value) -> Vec<(Method, String, Value)> {
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let Ok(method) = method.to_uppercase().parse::<Method>() else { continue };
            if ["GET", "PUT", "POST", "PATCH", "DELETE"].contains(&method.as_str()) {
                found.push((method, path.clone(), operation.clone()));
            }
        }
    }

    assert!(found.len() > 35, "{}", found.len());
    found
}

/// The path with a well-formed id for each parameter.
fn plausible(path: &str) -> String {
    path.split('/')
        .map(|part| match part {
            "{message_id}" => "1",
            "{code}" => "AAAAAAAAAAAAAAAAAAAAAA",
            part if part.starts_with('{') => "01a20129-9b5b-7b60-a200-9fd9bf6e30ad",
            part => part,
        })
        .collect::<Vec<_>>()
        .join("/")
}

#[tokio::test]
async fn every_documented_operation_has_a_route_and_every_other_method_of_its_path_has_none() {
    let server = TestServer::start(Backend::Sqlite).await;
    let document = openapi();
    let documented = operations(&document);
    let paths: BTreeSet<&String> = documented.iter().map(|(_, path, _)| path).collect();

    for path in paths {
        for method in [Method::GET, Method::PUT, Method::POST, Method::PATCH, Method::DELETE] {
            // Each request has a user of its own, since some requests end the session.
            let user = server.user().await;
            let request = user.request(method.clone(), &plausible(path)).json(&json!({}));
            let answer = user.send(request).await;
            let is_documented = documented.iter().any(|(it, at, _)| *it == method && at == path);
            let code = answer.body["code"].as_str().unwrap_or_default();

            if is_documented {
                assert!(
                    answer.status != 405 && code != "route_not_found",
                    "{method} {path}: {}",
                    answer.status
                );
            } else {
                assert_eq!(
                    (answer.status, code),
                    (405, "method_not_allowed"),
                    "{method} {path} is not documented"
                );
            }
        }
    }
    server.stop().await;
}

#[test]
fn every_route_in_the_sources_is_documented() {
    // `utoipa::path` declares the routes. Only pages, documents and probes are mounted by hand.
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let document = openapi();
    let mut declared = 0;
    for module in ["api", "gateway"] {
        for entry in std::fs::read_dir(root.join(module)).unwrap() {
            let path = entry.unwrap().path();
            let source = std::fs::read_to_string(&path).unwrap();
            declared += source.matches("#[utoipa::path(").count();

            for (at, _) in source.match_indices(".route(\"") {
                let route = source[at + 8..].split('"').next().unwrap();
                let by_hand = [
                    "/",
                    "/join",
                    "/openapi.json",
                    "/asyncapi.json",
                    "/livez",
                    "/readyz",
                    "/metrics",
                ];

                assert!(
                    by_hand.contains(&route) || !document["paths"][route].is_null(),
                    "{route} of {} is not documented",
                    path.display()
                );
            }
        }
    }

    assert_eq!(
        declared,
        operations(&document).len(),
        "a declared operation is not mounted, or the other way round"
    );
}

#[test]
fn every_endpoint_takes_a_caller_unless_it_is_declared_open() {
    // `/ws` is not in `api`: it may authenticate by its first frame.
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api");
    let mut endpoints = 0;
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        let source = std::fs::read_to_string(&path).unwrap();
        for (at, _) in source.match_indices("#[utoipa::path(") {
            let (attribute, function) = source[at..].split_once("pub async fn ").unwrap();
            let (signature, _) = function.split_once(" {\n").unwrap();
            let (name, _) = signature.split_once('(').unwrap();

            let (is_open, takes_caller) =
                (attribute.contains("security(())"), signature.contains("caller: Caller"));
            assert_ne!(is_open, takes_caller, "{name} of {}", path.display());
            endpoints += 1;
        }
    }

    assert!(endpoints >= 30, "the endpoints were not found: {endpoints}");
}

#[test]
fn operation_ids_are_unique_and_every_operation_has_a_description() {
    let mut seen = BTreeSet::new();
    for (method, path, operation) in operations(&openapi()) {
        let id = operation["operationId"]
            .as_str()
            .unwrap_or_else(|| panic!("{method} {path} has no operationId"));
        assert!(seen.insert(id.to_owned()), "{id} names two operations");

        let is_described = ["summary", "description"]
            .iter()
            .any(|key| operation[key].as_str().is_some_and(|it| !it.is_empty()));
        assert!(is_described, "{method} {path} has no description");
        assert!(
            operation["tags"].as_array().is_some_and(|tags| !tags.is_empty()),
            "{method} {path} has no tag"
        );
    }
}

#[test]
fn every_operation_documents_its_errors_as_problems() {
    for (method, path, operation) in operations(&openapi()) {
        for (status, response) in operation["responses"].as_object().unwrap() {
            if status.starts_with(['4', '5']) {
                let problem = &response["content"]["application/problem+json"]["schema"];
                assert!(
                    !problem.is_null(),
                    "{method} {path} {status} is no problem+json: {response}"
                );
            }
        }
        assert!(!operation["responses"]["503"].is_null(), "{method} {path} documents no 503");
    }
}

#[test]
fn references_in_both_documents_resolve() {
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|field| references(field, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    for document in [openapi(), starling::wire::asyncapi::document()] {
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        assert!(found.len() > 5);
        for reference in found {
            let pointer =
                reference.strip_prefix('#').unwrap_or_else(|| panic!("{reference} leads outside"));
            assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
        }
    }
}

#[test]
fn every_frame_of_either_side_is_in_the_asyncapi_document_and_no_other() {
    let document = starling::wire::asyncapi::document();
    let of = |side: &str| -> BTreeSet<String> {
        let messages = document["components"]["messages"].as_object().unwrap().keys();
        messages.filter_map(|name| name.strip_prefix(side)).map(str::to_owned).collect()
    };
    assert_eq!(of("client."), ClientFrame::TYPES.iter().map(|kind| (*kind).to_owned()).collect());

    let union = serde_json::to_value(ServerFrame::schema()).unwrap();
    let variants = union["oneOf"].as_array().unwrap();
    let kinds: BTreeSet<String> = variants
        .iter()
        .map(|variant| {
            variant["properties"]["type"]["enum"][0]
                .as_str()
                .expect("each variant names its type")
                .to_owned()
        })
        .collect();

    assert_eq!(kinds.len(), variants.len());
    assert_eq!(of("server."), kinds);

    for kind in [
        "ready",
        "pong",
        "ack",
        "error",
        "synced",
        "reset",
        "new_message",
        "member_left",
        "reconnect",
    ] {
        assert!(kinds.contains(kind), "{kind} is of the protocol");
    }

    let in_channel = document["channels"]["gateway"]["messages"].as_object().unwrap();
    assert_eq!(in_channel.len(), document["components"]["messages"].as_object().unwrap().len());
}

#[test]
fn error_codes_are_unique_words() {
    let codes: BTreeSet<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(codes.len(), Code::ALL.len());
    for code in Code::ALL {
        let word = code.as_str();
        assert!(word.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{word}");
        assert!(!code.title().is_empty());
    }
}

/// `RELIABILITY.md` names a test for each promise. Each of these tests must exist.
#[test]
fn every_test_named_in_reliability_md_exists() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("RELIABILITY.md")).unwrap();
    let named: BTreeSet<&str> = page
        .split('`')
        .filter(|word| word.contains("::") && word.bytes().all(|it| it != b' '))
        .collect();
    assert!(named.len() > 50, "{}", named.len());

    for name in named {
        let mut path: Vec<&str> = name.split("::").collect();
        let function = path.pop().unwrap();
        let file = root.join("tests/it").join(path.join("/")).with_extension("rs");
        let text = std::fs::read_to_string(&file)
            .unwrap_or_else(|error| panic!("{name}: {}: {error}", file.display()));
        let is_there = text.contains(&format!("fn {function}("))
            || text.contains(&format!("    {function}: "));
        assert!(is_there, "{name} is not in {}", file.display());
    }
}
