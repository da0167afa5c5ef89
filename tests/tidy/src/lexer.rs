//! Separates Rust code from comments and string literals.

/// The code and the string literals of a file.
pub struct Lexed {
    /// The code without comments, with empty literals.
    pub code: String,
    /// The string literals, in order.
    pub literals: Vec<String>,
}

impl Lexed {
    /// Separates the text of a file.
    pub fn new(text: &str) -> Self {
        let mut lexed = Self { code: String::with_capacity(text.len()), literals: Vec::new() };
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let after_word =
                lexed.code.chars().last().is_some_and(|last| last.is_alphanumeric() || last == '_');
            let taken = if rest.starts_with("//") {
                rest.find('\n').unwrap_or(rest.len())
            } else if rest.starts_with("/*") {
                block_comment(rest)
            } else if c == '"' {
                lexed.literal(rest, 1, "\"", true)
            } else if !after_word && raw_hashes(rest).is_some() {
                let (prefix, hashes) = raw_hashes(rest).unwrap_or_default();
                lexed.literal(rest, prefix, &format!("\"{}", "#".repeat(hashes)), false)
            } else if c == '\'' {
                let taken = character(rest);
                lexed.code.push('\'');
                taken
            } else {
                lexed.code.push(c);
                c.len_utf8()
            };
            rest = &rest[taken..];
        }
        lexed
    }

    /// Reads a literal whose text begins after `prefix` bytes. Returns its length with both
    /// delimiters.
    fn literal(&mut self, rest: &str, prefix: usize, end: &str, escapes: bool) -> usize {
        let body = &rest[prefix..];
        let mut at = 0;
        while at < body.len() && !body[at..].starts_with(end) {
            let c = body[at..].chars().next().unwrap_or_default();
            at += c.len_utf8();
            if escapes && c == '\\' {
                at += body[at..].chars().next().map_or(0, char::len_utf8);
            }
        }

        self.literals.push(body[..at].to_owned());
        self.code.push_str("\"\"");
        (prefix + at + end.len()).min(rest.len())
    }
}

/// The length of the prefix of a raw string such as `r"…"` or `br#"…"#`, and the number of its
/// hashes.
fn raw_hashes(rest: &str) -> Option<(usize, usize)> {
    let start = ["r", "br", "cr"].iter().find(|start| {
        rest.strip_prefix(**start)
            .is_some_and(|after| after.trim_start_matches('#').starts_with('"'))
    })?;
    let hashes = rest[start.len()..].bytes().take_while(|byte| *byte == b'#').count();
    Some((start.len() + hashes + 1, hashes))
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    loop {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else if let Some(c) = rest[at..].chars().next() {
            at += c.len_utf8();
        } else {
            return at;
        }
    }
}

/// The length of a character literal, or 1 for the quote of a lifetime.
fn character(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    let first = chars.next().map(|(_, c)| c);
    let second = chars.next();
    if first == Some('\\') {
        // The escaped character may itself be a quote.
        let from = second.map_or(rest.len(), |(at, c)| at + c.len_utf8());
        return rest[from..].find('\'').map_or(rest.len(), |at| from + at + 1);
    }

    match second {
        Some((at, '\'')) => at + 1,
        _ => 1,
    }
}

/// The first name of each path after `root`, such as `crate::`; for a group, the first name of each
/// path in it.
pub fn paths_after(code: &str, root: &str) -> Vec<String> {
    // Spaces around `::` are legal.
    let code = code.replace(" :: ", "::").replace(":: ", "::").replace(" ::", "::");
    let mut found = Vec::new();
    for (at, _) in code.match_indices(root) {
        let joined =
            code[..at].chars().last().is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':');
        if joined {
            continue;
        }
        let rest = code[at + root.len()..].trim_start();
        match rest.strip_prefix('{') {
            Some(group) => found.extend(first_names(group)),
            None => found.push(name(rest)),
        }
    }

    found.retain(|name| !name.is_empty());
    found
}

fn first_names(group: &str) -> Vec<String> {
    let mut names = Vec::new();
    let (mut depth, mut fresh) = (0, true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            _ if depth == 0 && fresh && !c.is_whitespace() => {
                names.push(name(&group[at..]));
                fresh = false;
            }
            _ => {}
        }
    }
    names
}

fn name(rest: &str) -> String {
    rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn comments_and_literals_are_separated_from_code() {
    let text = r##"a /* b /* c */ "d" */ "e\"f" 'g' '\'' &'h i // "j"
        r#"k"l"# br"m" "n""##;
    let lexed = Lexed::new(text);
    assert_eq!(lexed.literals, ["e\\\"f", "k\"l", "m", "n"]);
    let code: String = lexed.code.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(code, "a \"\" ' ' &'h i \"\" \"\" \"\"");
}

#[test]
fn paths_and_groups_of_paths_are_found() {
    let code = "use crate::a::B; use crate::{c, d::{self, e}, f}; mycrate::g(); crate::{\n  h,\n}";
    assert_eq!(paths_after(code, "crate::"), ["a", "c", "d", "f", "h"]);
}
