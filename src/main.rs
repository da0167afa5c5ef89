//! `starling`: flags → configuration → server → exit code.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use starling::cli::{Cli, Failure, run};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &format!("could not start: {error}")),
    };
    match runtime.block_on(run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(sentence)) => fail(2, &sentence),
        Err(Failure::Other(sentence)) => fail(1, &sentence),
    }
}

fn fail(code: u8, sentence: &str) -> ExitCode {
    // If stderr is closed, there is no other place for the message.
    let _ = writeln!(std::io::stderr(), "starling: {sentence}");
    ExitCode::from(code)
}
