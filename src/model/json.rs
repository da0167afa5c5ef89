//! Strict decoding of JSON from clients. An error names every invalid field, not just the first.

use std::collections::HashMap;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Code, Error, FieldError, Result};

/// Invalid fields that one answer names.
const FIELDS_MAX: usize = 16;

/// Decodes one JSON object.
///
/// # Errors
/// `malformed_json` if the bytes are not JSON; `invalid_fields` for each field that is unknown,
/// missing or of a wrong type.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    // serde also decodes a struct from an array of its fields in the order of declaration, which is
    // not part of the protocol.
    if bytes.trim_ascii_start().starts_with(b"[") && serde_json::from_slice::<Value>(bytes).is_ok()
    {
        return Err(Error::field("body", "must be an object"));
    }

    serde_json::from_slice(bytes).map_err(|error| {
        // serde_json reports a number that is too large for its field as a syntax error. A second
        // parse without types finds out whether the bytes are JSON.
        match serde_json::from_slice::<Value>(bytes) {
            Ok(value) => Error::fields(wrong_fields::<T>(value, &error)),
            Err(error) => {
                Error::with_detail(Code::MalformedJson, format!("not valid JSON: {error}"))
            }
        }
    })
}

/// Removes one invalid field after the other, and adds a value for each missing field, until the
/// rest can be decoded.
fn wrong_fields<T: DeserializeOwned>(
    mut value: Value,
    first: &serde_json::Error,
) -> Vec<FieldError> {
    // Nearly every field accepts one of these values.
    let stand_ins = [
        Value::from(""),
        Value::from(0),
        Value::from(uuid::Uuid::nil().to_string()),
        Value::Array(vec![]),
    ];
    let mut untried: HashMap<String, std::slice::Iter<'_, Value>> = HashMap::new();
    let mut wrong: Vec<FieldError> = Vec::new();

    while wrong.len() < FIELDS_MAX {
        let Err(error) = serde_path_to_error::deserialize::<_, T>(&value) else {
            break;
        };
        let error = field_error(error.path().to_string(), error.inner().to_string());
        let top = top(&error).to_owned();
        if !wrong.iter().any(|earlier| self::top(earlier) == top) {
            wrong.push(error);
        }

        // A field that was removed because it was invalid is then missing. It is not named twice.
        let Some(object) = value.as_object_mut() else { break };
        if object.remove(&top).is_none() {
            let Some(stand_in) =
                untried.entry(top.clone()).or_insert_with(|| stand_ins.iter()).next()
            else {
                break;
            };
            object.insert(top, stand_in.clone());
        }
    }

    if wrong.is_empty() {
        wrong.push(field_error(".".to_owned(), first.to_string()));
    }
    wrong
}

/// Makes a [`FieldError`] of an error of serde. For an unknown, missing or duplicate field, the
/// path leads to the object, and only the message contains the field's name.
pub fn field_error(path: String, message: String) -> FieldError {
    let by_name = ["unknown field", "missing field", "duplicate field"]
        .iter()
        .any(|kind| message.starts_with(kind));

    let field = match message.split('`').nth(1).filter(|_| by_name) {
        Some(name) => name.to_owned(),
        None if path == "." || path.is_empty() => "body".to_owned(),
        None => path,
    };
    FieldError { field, message }
}

/// The field of the outermost object that contains the error.
fn top(error: &FieldError) -> &str {
    if error.message.starts_with("unknown field") {
        return &error.field;
    }
    error.field.split(['.', '[']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its shape matters")]
    struct Shape {
        text: String,
        count: Option<u32>,
        ids: Option<Vec<u32>>,
    }

    fn fields(json: &str) -> Vec<String> {
        decode::<Shape>(json.as_bytes()).unwrap_err().fields.into_iter().map(|f| f.field).collect()
    }

    #[test]
    fn every_wrong_field_is_named() {
        assert_eq!(fields(r#"{"text": 1, "count": "x", "colour": 2}"#).len(), 3);
        assert_eq!(fields(r#"{"count": 1}"#), ["text"]);
        assert_eq!(fields(r#"{"count": "x"}"#), ["count", "text"]);
        assert_eq!(fields(r#"{"text": 1, "a.b": 2, "a": 3}"#).len(), 3);
        assert_eq!(fields(r#"{"text": "a", "text": "b"}"#), ["text"]);
        assert_eq!(fields(r#"{"text": "a", "ids": [1, 2, "x"]}"#), ["ids[2]"]);
        assert_eq!(fields(r#"{"text": "a", "count": 99999999999}"#), ["count"]);
        for no_object in ["[]", "[\"a\", 1, [2]]", " [{}]", "\"a\"", "1", "null"] {
            assert_eq!(fields(no_object), ["body"]);
        }
    }

    #[test]
    fn a_body_that_is_not_json_is_malformed() {
        for bad in ["", "{", "nul", "{\"text\": \"\\ud800\"}", "\u{feff}{}", "{\"text\":\"a\"} x"] {
            assert_eq!(
                decode::<Shape>(bad.as_bytes()).unwrap_err().code,
                Code::MalformedJson,
                "{bad:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn decoding_any_bytes_does_not_panic(bytes: Vec<u8>) {
            let _ = decode::<Shape>(&bytes);
        }
    }
}
