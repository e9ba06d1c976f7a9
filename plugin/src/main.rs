//! Owns the start of the kubectl plugin: the crypto provider and the exit code.
//! Never holds logic.

use std::process::ExitCode;

fn main() -> ExitCode {
    rustls::crypto::ring::default_provider().install_default().expect("no crypto provider was installed before");
    ExitCode::from(kubectl_stop_run::run(std::env::args_os().collect()).code())
}
