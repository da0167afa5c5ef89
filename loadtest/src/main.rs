//! `starling-loadtest`: drives a Starling deployment, measures it, compares the figures with floors
//! measured on the same machine, and checks that no message was lost, duplicated or reordered.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints its figures")]

mod tool;

use std::process::ExitCode;

fn main() -> ExitCode {
    tool::main()
}
