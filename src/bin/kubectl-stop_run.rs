//! Owns the front door of the kubectl plugin: the crypto provider, and the exit code.
//! Never holds logic.

use std::process::ExitCode;

use workflow_run_stop_operator::plugin;

fn main() -> ExitCode {
    rustls::crypto::ring::default_provider().install_default().expect("nothing was installed before");
    ExitCode::from(plugin::main(std::env::args_os().collect()).code())
}
