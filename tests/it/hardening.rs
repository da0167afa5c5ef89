//! What a hostile or careless client can take from the others: each bound, reached through the real ports.

mod answers;
mod connections;
mod probes;
mod raw;
