//! The `mcprelay` program: arguments, logging, a runtime, an exit code.

use std::process::ExitCode;

use mcprelay::{
    cli,
    telemetry::{LastLines, log_warnings},
};

fn main() -> ExitCode {
    cli::completions::answer();
    let arguments = match cli::parse() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    // Created before everything else, because it has to be dropped after everything else has been logged.
    let _last_lines = LastLines;
    if !cli::sets_up_its_own_log(&arguments) {
        log_warnings();
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return cli::Stop::Failed(format!("cannot start: {error}")).report(),
    };
    match runtime.block_on(cli::dispatch(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(stop) => stop.report(),
    }
}
