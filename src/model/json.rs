//! Reading JSON from clients: strict, and naming every field that is wrong, not just the first.

use std::collections::HashMap;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Code, Error, FieldError, Result};

/// Wrong fields named in one answer.
const FIELDS_MAX: usize = 16;

/// Reads one JSON value of a known shape.
///
/// # Errors
/// `malformed_json` if it is not JSON; `invalid_fields` naming each field that is unknown, missing
/// or of a wrong type.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    // Every request is an object. The reader would also take the bare list of its values, in the
    // order of our source.
    if bytes.trim_ascii_start().starts_with(b"[") && serde_json::from_slice::<Value>(bytes).is_ok()
    {
        return Err(Error::field("body", "must be an object"));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        // A number too large for its field is reported as syntax, though it is JSON: only a second
        // reading tells.
        match serde_json::from_slice::<Value>(bytes) {
            Ok(value) => Error::fields(wrong_fields::<T>(value, &error)),
            Err(error) => {
                Error::with_detail(Code::MalformedJson, format!("not valid JSON: {error}"))
            }
        }
    })
}

/// Takes out one wrong field after the other, and puts something in for those that are missing,
/// until the rest can be read.
fn wrong_fields<T: DeserializeOwned>(
    mut value: Value,
    first: &serde_json::Error,
) -> Vec<FieldError> {
    // One of these is of the type of nearly every field.
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
        let Some(object) = value.as_object_mut() else { break };
        // A field that was taken out because it was wrong is then missing: that is no second fault.
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

/// What the reader says of a field. Of one that is unknown, missing or there twice it tells the
/// name in its message alone.
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

/// The field of the outermost object that an error is about.
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
    fn what_is_not_json_is_malformed() {
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
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = decode::<Shape>(&bytes);
        }
    }
}
