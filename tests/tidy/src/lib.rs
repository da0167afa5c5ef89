//! Reads Rust source as far as the rules of the tree need it. The rules are in `tests/tree.rs`.

pub mod lexer;
