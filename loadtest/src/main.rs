//! `starling-loadtest`: drives a Starling deployment, measures it, holds it against floors measured
//! beside it, and proves that it lost, doubled and reordered nothing.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints its figures")]

mod tool;

use std::process::ExitCode;

fn main() -> ExitCode {
    tool::main()
}
