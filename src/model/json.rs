//! Reading JSON from clients: strict, and naming every field that is wrong, not just the first.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Code, Error, FieldError, Result};

/// Wrong fields named in one answer.
const FIELDS_MAX: usize = 16;

/// Reads one JSON value of a known shape.
///
/// # Errors
/// `malformed_json` if it is not JSON; `invalid_fields` naming each field that is unknown, missing or of a wrong type.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        // A number too large for its field is reported as syntax, though it is JSON: only a second reading tells.
        match serde_json::from_slice::<Value>(bytes) {
            Ok(value) => Error::fields(wrong_fields::<T>(value, &error)),
            Err(error) => Error::with_detail(Code::MalformedJson, format!("not valid JSON: {error}")),
        }
    })
}

/// Takes out one wrong field after the other until the rest can be read.
fn wrong_fields<T: DeserializeOwned>(mut value: Value, first: &serde_json::Error) -> Vec<FieldError> {
    let mut wrong: Vec<FieldError> = Vec::new();
    while wrong.len() < FIELDS_MAX {
        let Err(error) = serde_path_to_error::deserialize::<_, T>(&value) else {
            break;
        };
        let path = error.path().to_string();
        let message = error.into_inner().to_string();
        let named = message
            .split('`')
            .nth(1)
            .filter(|_| message.starts_with("unknown field") || message.starts_with("missing field"));
        let field = named.map_or(path, str::to_owned);
        let top = field.split(['.', '[']).next().unwrap_or_default().to_owned();
        let known = wrong.iter().any(|earlier| earlier.field.split(['.', '[']).next() == Some(&top));
        let removed = value.as_object_mut().is_some_and(|object| object.remove(&top).is_some());
        // A field that was taken out because it was wrong is then missing: that is no second fault.
        if !known {
            let field = if top.is_empty() || field == "." { "body".to_owned() } else { field };
            wrong.push(FieldError { field, message });
        }
        if !removed {
            break;
        }
    }
    if wrong.is_empty() {
        wrong.push(FieldError { field: "body".to_owned(), message: first.to_string() });
    }
    wrong
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
        assert_eq!(fields(r#"{"text": "a", "ids": [1, 2, "x"]}"#), ["ids[2]"]);
        assert_eq!(fields(r#"{"text": "a", "count": 99999999999}"#), ["count"]);
        assert_eq!(fields("[]"), ["body"]);
    }

    #[test]
    fn what_is_not_json_is_malformed() {
        for bad in ["", "{", "nul", "{\"text\": \"\\ud800\"}", "\u{feff}{}", "{\"text\":\"a\"} x"] {
            assert_eq!(decode::<Shape>(bad.as_bytes()).unwrap_err().code, Code::MalformedJson, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = decode::<Shape>(&bytes);
        }
    }
}
