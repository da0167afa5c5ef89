//! The rules of the source tree.

pub mod circles;
pub mod edges;
pub mod lexer;
pub mod rules;
