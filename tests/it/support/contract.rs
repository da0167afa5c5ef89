//! Checks every HTTP answer and every frame of the tests against the server's own documents.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};

use jsonschema::Validator;
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

fn openapi() -> &'static Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    DOCUMENT.get_or_init(|| serde_json::from_str(&starling::server::openapi()).unwrap())
}

fn asyncapi() -> &'static Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    DOCUMENT.get_or_init(starling::wire::asyncapi::document)
}

/// Checks a value against the schema at a JSON pointer of a document.
fn check(document: &'static Value, pointer: &str, value: &Value) {
    static VALIDATORS: OnceLock<Mutex<HashMap<String, &'static Validator>>> = OnceLock::new();

    let validators = VALIDATORS.get_or_init(Mutex::default);
    let validator = *validators.lock().unwrap().entry(pointer.to_owned()).or_insert_with(|| {
        let mut root = document.clone();
        // A URI cannot contain the braces of a path template.
        root["$ref"] = json!(format!("#{}", pointer.replace('{', "%7B").replace('}', "%7D")));
        Box::leak(Box::new(jsonschema::validator_for(&root).unwrap()))
    });

    let errors: Vec<String> = validator
        .iter_errors(value)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{pointer} does not allow this value: {errors:?}\n{value:#}");
}

/// Escapes a part of a JSON pointer for a URI.
fn escaped(part: &str) -> String {
    part.replace('~', "~0").replace('/', "~1").replace('{', "%7B").replace('}', "%7D")
}

/// The path template that fits a request path; of several, the one with the fewest parameters.
fn template_of(path: &str) -> Option<&'static str> {
    let parts: Vec<&str> = path.split('/').collect();
    let fits = |template: &str| {
        let of_template: Vec<&str> = template.split('/').collect();
        of_template.len() == parts.len()
            && of_template
                .iter()
                .zip(&parts)
                .all(|(expected, part)| expected.starts_with('{') || expected == part)
    };

    let paths = openapi()["paths"].as_object().unwrap().keys();
    paths
        .map(String::as_str)
        .filter(|template| fits(template))
        .min_by_key(|template| template.matches('{').count())
}

/// Fails unless the document allows this status, content type and body for this operation.
pub fn check_answer(
    method: &Method,
    path: &str,
    status: u16,
    headers: &HeaderMap,
    body: &Value,
    empty: bool,
) {
    let Some(template) = template_of(path) else {
        return;
    };

    let method = method.as_str().to_lowercase();
    let operation = &openapi()["paths"][template][&method];
    if operation.is_null() {
        return;
    }

    let response = &operation["responses"][status.to_string()];
    assert!(
        !response.is_null(),
        "{method} {template} answered {status}, which is not documented: {body}"
    );

    let Some(contents) = response["content"].as_object() else {
        assert!(empty, "{method} {template} {status} is documented without a body: {body}");
        return;
    };

    let content_type =
        headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default();
    assert!(
        contents.contains_key(essence),
        "{method} {template} {status} is documented as {contents:?}, not {essence}"
    );

    if essence.ends_with("json") {
        let pointer = format!(
            "/paths/{}/{method}/responses/{status}/content/{}/schema",
            escaped(template),
            escaped(essence)
        );
        check(openapi(), &pointer, body);
    }
}

/// Fails unless the document describes this frame in this shape.
pub fn check_frame(frame: &Value) {
    let kind = frame["type"].as_str().unwrap_or_else(|| panic!("a frame without a type: {frame}"));
    let schema = format!("server.{kind}");
    assert!(
        !asyncapi()["components"]["schemas"][&schema].is_null(),
        "the frame {kind} is not documented"
    );
    check(asyncapi(), &format!("/components/schemas/{}", escaped(&schema)), frame);
}
