//! The real binary: what it prints, how it ends, what survives.

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
