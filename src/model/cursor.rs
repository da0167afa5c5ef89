//! Opaque positions in lists: clients hand them back, and only this module knows what is in them.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{ChatId, Error, Result, UserId};

/// Longest cursor worth decoding; ours are shorter, also with a name of a hundred characters of
/// four bytes.
const CURSOR_BYTES_MAX: usize = 1024;

/// Where a page of the inbox ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InboxCursor {
    /// Last activity of the last chat, in milliseconds since 1970.
    #[serde(rename = "a")]
    pub activity_ms: i64,
    /// The last chat.
    #[serde(rename = "c")]
    pub chat_id: ChatId,
}

/// Where a page of members ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberCursor {
    /// The last member.
    #[serde(rename = "u")]
    pub user_id: UserId,
}

/// Where a page of the directory ended: among those whose login begins with the query, which come
/// first, or among those whose name does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum DirectoryCursor {
    /// The last login.
    ByLogin {
        /// It.
        #[serde(rename = "l")]
        login: String,
    },
    /// The last name, in lower case, and whose it is.
    ByName {
        /// The name.
        #[serde(rename = "n")]
        name_key: String,
        /// The user.
        #[serde(rename = "u")]
        user_id: UserId,
    },
}

/// The cursor's words.
pub fn encode(cursor: &impl Serialize) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(cursor).unwrap_or_default())
}

/// The cursor's meaning.
///
/// # Errors
/// `invalid_fields` naming `after`, if it is not one that [`encode`] made for this list.
pub fn decode<T: DeserializeOwned>(words: &str) -> Result<T> {
    let bad = || Error::field("after", "is not a cursor of this list");
    if words.len() > CURSOR_BYTES_MAX {
        return Err(bad());
    }
    let bytes = URL_SAFE_NO_PAD.decode(words).map_err(|_| bad())?;
    serde_json::from_slice(&bytes).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::limits::NAME_CHARS_MAX;

    proptest! {
        #[test]
        fn a_cursor_comes_back_as_it_went(activity_ms: i64, id: u128, login in "\\PC{0,64}") {
            let inbox = InboxCursor { activity_ms, chat_id: ChatId(uuid::Uuid::from_u128(id)) };
            prop_assert_eq!(decode::<InboxCursor>(&encode(&inbox)).unwrap(), inbox);
            let by_name = DirectoryCursor::ByName { name_key: login.clone(), user_id: UserId(uuid::Uuid::from_u128(id)) };
            for directory in [DirectoryCursor::ByLogin { login }, by_name] {
                prop_assert_eq!(decode::<DirectoryCursor>(&encode(&directory)).unwrap(), directory);
            }
        }

        #[test]
        fn what_is_no_cursor_is_refused_and_never_panics(words in "\\PC{0,600}") {
            if let Err(error) = decode::<InboxCursor>(&words) {
                prop_assert_eq!(error.code.as_str(), "invalid_fields");
            }
        }
    }

    #[test]
    fn a_cursor_of_another_list_is_refused() {
        let words = encode(&DirectoryCursor::ByLogin { login: "ada".into() });
        assert!(decode::<InboxCursor>(&words).is_err());
        let words = encode(&MemberCursor { user_id: UserId::default() });
        assert!(decode::<DirectoryCursor>(&words).is_err());
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
