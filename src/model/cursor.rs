//! Opaque positions in lists. A client sends the cursor of a page back to get the next page; only
//! this module reads its content.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{ChatId, Error, Result, UserId};

/// Length of the longest cursor that is decoded. The server's cursors are shorter, even with a name
/// of 100 characters of four bytes.
const CURSOR_BYTES_MAX: usize = 1024;

/// The position after a page of the inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InboxCursor {
    /// The last activity in the last chat of the page, in milliseconds since 1970.
    #[serde(rename = "a")]
    pub activity_ms: i64,
    /// The last chat of the page.
    #[serde(rename = "c")]
    pub chat_id: ChatId,
}

/// The position after a page of members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberCursor {
    /// The last member of the page.
    #[serde(rename = "u")]
    pub user_id: UserId,
}

/// The position after a page of the directory. The directory lists first the users whose login
/// begins with the query, then the users whose name does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum DirectoryCursor {
    /// A position among the users found by login.
    ByLogin {
        /// The login of the last user of the page.
        #[serde(rename = "l")]
        login: String,
    },
    /// A position among the users found by name.
    ByName {
        /// The name of the last user of the page, in lower case.
        #[serde(rename = "n")]
        name_key: String,
        /// The last user of the page.
        #[serde(rename = "u")]
        user_id: UserId,
    },
}

/// Encodes a cursor as the text that a client sends back.
pub fn encode(cursor: &impl Serialize) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(cursor).unwrap_or_default())
}

/// Decodes a cursor that a client sent.
///
/// # Errors
/// `invalid_fields` for `after`, unless [`encode`] made the text for this list.
pub fn decode<T: DeserializeOwned>(text: &str) -> Result<T> {
    let bad = || Error::field("after", "is not a cursor of this list");
    if text.len() > CURSOR_BYTES_MAX {
        return Err(bad());
    }

    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| bad())?;
    serde_json::from_slice(&bytes).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::limits::NAME_CHARS_MAX;

    proptest! {
        #[test]
        fn decoding_an_encoded_cursor_returns_the_cursor(
            activity_ms: i64,
            id: u128,
            login in "\\PC{0,64}",
        ) {
            let inbox = InboxCursor { activity_ms, chat_id: ChatId(uuid::Uuid::from_u128(id)) };
            prop_assert_eq!(decode::<InboxCursor>(&encode(&inbox)).unwrap(), inbox);

            let user_id = UserId(uuid::Uuid::from_u128(id));
            let by_name = DirectoryCursor::ByName { name_key: login.clone(), user_id };
            for directory in [DirectoryCursor::ByLogin { login }, by_name] {
                prop_assert_eq!(decode::<DirectoryCursor>(&encode(&directory)).unwrap(), directory);
            }
        }

        #[test]
        fn text_that_is_no_cursor_is_refused_without_a_panic(text in "\\PC{0,600}") {
            if let Err(error) = decode::<InboxCursor>(&text) {
                prop_assert_eq!(error.code.as_str(), "invalid_fields");
            }
        }
    }

    #[test]
    fn a_cursor_of_another_list_is_refused() {
        let by_login = encode(&DirectoryCursor::ByLogin { login: "ada".into() });
        assert!(decode::<InboxCursor>(&by_login).is_err());

        let member = encode(&MemberCursor { user_id: UserId::default() });
        assert!(decode::<DirectoryCursor>(&member).is_err());
    }

    #[test]
    fn the_longest_name_fits_in_a_cursor() {
        let cursor = DirectoryCursor::ByName {
            name_key: "\u{10FFFF}".repeat(NAME_CHARS_MAX),
            user_id: UserId::default(),
        };
        assert_eq!(decode::<DirectoryCursor>(&encode(&cursor)).unwrap(), cursor);
    }
}
