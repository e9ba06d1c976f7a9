//! Owns the program behind `make api-docs`: a definition on stdin, the page on stdout.
//! Never reads or writes a file.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "that is what it is for")]

use std::{io, process::ExitCode};

fn main() -> ExitCode {
    let page = io::read_to_string(io::stdin()).map_err(|error| error.to_string());
    match page.and_then(|crd| lab::api_docs::page(&crd)) {
        Ok(page) => {
            print!("{page}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("api-docs: stdin is no CustomResourceDefinition in YAML: {error}");
            ExitCode::FAILURE
        }
    }
}
