//! The rules for texts from users: trimming, lengths, forbidden characters, and the messages of the
//! errors.

use super::{FieldError, limits};

/// Collects the invalid fields of a request, so that one answer names all of them.
#[derive(Debug, Default)]
pub struct Checks(Vec<FieldError>);

impl Checks {
    /// Checks without an invalid field.
    pub fn new() -> Self {
        Self::default()
    }

    /// Records that `field` is invalid.
    pub fn fail(&mut self, field: &str, message: impl Into<String>) {
        self.0.push(FieldError { field: field.to_owned(), message: message.into() });
    }

    /// Returns a valid value. For an invalid value, records the error and returns the default,
    /// which is never used, since [`Checks::done`] then refuses the request.
    pub fn keep<T: Default>(&mut self, field: &str, checked: Result<T, String>) -> T {
        checked.unwrap_or_else(|message| {
            self.fail(field, message);
            T::default()
        })
    }

    /// Refuses the request if any field is invalid.
    pub fn done(self) -> super::Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(super::Error::fields(self.0)) }
    }
}

fn trimmed(text: &str, min: usize, max: usize) -> Result<String, String> {
    let text = text.trim();
    if text.contains('\0') {
        return Err("must not contain U+0000".to_owned());
    }

    let chars = text.chars().count();
    if chars < min || chars > max {
        return Err(format!("has {chars} characters, {min} to {max} are allowed"));
    }
    Ok(text.to_owned())
}

/// Trims and checks a message's text: 1 to 4096 characters, no U+0000.
pub fn message(text: &str) -> Result<String, String> {
    trimmed(text, 1, limits::TEXT_CHARS_MAX)
}

/// Trims and checks the name of a user or chat: 1 to 100 characters, no control characters.
pub fn name(text: &str) -> Result<String, String> {
    let name = trimmed(text, 1, limits::NAME_CHARS_MAX)?;
    if name.chars().any(char::is_control) {
        Err("must not contain control characters".to_owned())
    } else {
        Ok(name)
    }
}

/// Checks a login and converts it to lower case: 1 to 64 of `a-z 0-9 . _ -`, starting with a letter
/// or digit.
pub fn login(text: &str) -> Result<String, String> {
    let login = text.trim().to_lowercase();
    let well_formed =
        login.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
            && login.starts_with(|c: char| c.is_ascii_alphanumeric());

    if !well_formed || login.len() > limits::LOGIN_CHARS_MAX {
        return Err(format!(
            "must be 1 to {} of a-z, 0-9, '.', '_', '-', and start with a letter or digit",
            limits::LOGIN_CHARS_MAX
        ));
    }
    Ok(login)
}

/// Checks a new password: 8 to 128 characters, not a common password, not the login.
pub fn password(text: &str, login: &str) -> Result<(), String> {
    let chars = text.chars().count();
    let (min, max) = (limits::PASSWORD_CHARS_MIN, limits::PASSWORD_CHARS_MAX);
    if chars < min || chars > max {
        return Err(format!("has {chars} characters, {min} to {max} are allowed"));
    }

    let lower = text.to_lowercase();
    if COMMON_PASSWORDS.binary_search(&lower.as_str()).is_ok() || lower == login {
        return Err("is a common password or equal to the login: choose another".to_owned());
    }
    Ok(())
}

/// Trims and checks a device's description: up to 100 characters, no control characters.
pub fn device(text: &str) -> Result<String, String> {
    let device = trimmed(text, 0, limits::DEVICE_CHARS_MAX)?;
    if device.chars().any(char::is_control) {
        Err("must not contain control characters".to_owned())
    } else {
        Ok(device)
    }
}

/// Checks an idempotency key: 1 to 64 characters, no U+0000. It is not trimmed.
pub fn client_id(text: &str) -> Result<(), String> {
    let chars = text.chars().count();
    if chars == 0 || chars > limits::CLIENT_ID_CHARS_MAX || text.contains('\0') {
        return Err(format!(
            "must be 1 to {} characters without U+0000",
            limits::CLIENT_ID_CHARS_MAX
        ));
    }
    Ok(())
}

/// The first characters of a text, for the inbox.
pub fn snippet(text: &str) -> String {
    text.chars().take(limits::SNIPPET_CHARS_MAX).collect()
}

/// The most common passwords of at least 8 characters, from public lists of leaked passwords.
/// Sorted, for a binary search.
const COMMON_PASSWORDS: &[&str] = &[
    "00000000",
    "11111111",
    "1111111111",
    "12121212",
    "123123123",
    "1234512345",
    "12345678",
    "123456789",
    "1234567890",
    "123qweasd",
    "1q2w3e4r",
    "1q2w3e4r5t",
    "1qaz2wsx",
    "87654321",
    "88888888",
    "987654321",
    "abc12345",
    "abcd1234",
    "asdfghjkl",
    "baseball",
    "changeme",
    "computer",
    "dragon123",
    "football",
    "hello123",
    "iloveyou",
    "jennifer",
    "letmein1",
    "liverpool",
    "michelle",
    "mustang1",
    "passw0rd",
    "password",
    "password!",
    "password1",
    "password12",
    "password123",
    "princess",
    "q1w2e3r4",
    "qwer1234",
    "qwerty12",
    "qwerty123",
    "qwertyui",
    "qwertyuiop",
    "starling",
    "starwars",
    "sunshine",
    "superman",
    "trustno1",
    "welcome1",
    "whatever",
    "zaq12wsx",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_common_passwords_is_sorted_so_that_it_can_be_searched() {
        assert!(COMMON_PASSWORDS.is_sorted());
        assert!(password("PassWord123", "ada").is_err());
        assert!(password("adalovelace", "adalovelace").is_err());
        assert!(password("correct horse", "ada").is_ok());
    }

    #[test]
    fn a_text_is_trimmed_and_counted_in_characters_not_bytes() {
        assert_eq!(message("  hé \n").as_deref(), Ok("hé"));
        assert!(message(&"𝄞".repeat(4096)).is_ok());
        assert!(message(&"𝄞".repeat(4097)).is_err());
        assert!(message(" \u{3000} ").is_err());
        assert!(message("a\0b").is_err());
    }

    #[test]
    fn a_login_is_lower_case_ascii() {
        assert_eq!(login(" Ada.L ").as_deref(), Ok("ada.l"));
        for bad in ["", ".ada", "a da", "ädä", "a\0", &"a".repeat(65)] {
            assert!(login(bad).is_err(), "{bad:?}");
        }
    }
}
