//! Owns the program of `make api-docs`: reads a CustomResourceDefinition from stdin and prints the page.
//! Never reads or writes a file.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line program")]

use std::{io, process::ExitCode};

fn main() -> ExitCode {
    let page = io::read_to_string(io::stdin()).map_err(|error| error.to_string());
    match page.and_then(|crd| lab::api_docs::page(&crd)) {
        Ok(page) => {
            print!("{page}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("api-docs: stdin is not a CustomResourceDefinition in YAML: {error}");
            ExitCode::FAILURE
        }
    }
}
