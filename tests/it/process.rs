//! The real binary: its output, its exit codes, and the data that survives it.

mod commands;
mod configuration;
mod crash;
pub mod harness;
mod logs;
mod panics;
mod postgres;
mod serve;
mod versions;
mod writers;
