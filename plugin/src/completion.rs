//! Owns completion: the scripts for shells, and the protocol by which kubectl requests candidates from a plugin.
//! Never sends a request: a key press must not wait for a cluster.

use std::ffi::OsString;

use clap::CommandFactory;
use clap_complete::{Shell, engine};

use crate::args::Cli;

/// The name of the program that kubectl runs to complete `kubectl stop-run`.
const COMPLETION_PROGRAM: &str = "kubectl_complete-stop_run";

/// The last line for kubectl: do not complete file names.
const NO_FILES: &str = ":4\n";

/// Returns whether the program was called by the name by which kubectl requests candidates.
pub fn is_requested_by_kubectl(args: &[OsString]) -> bool {
    let name = args.first().map(std::path::Path::new).and_then(|path| path.file_stem());
    name.is_some_and(|name| name == COMPLETION_PROGRAM)
}

/// Returns the completions of the last argument, as kubectl expects them: one candidate a line, with a tab and its
/// description, and `NO_FILES` at the end.
pub fn candidates(args: Vec<OsString>) -> String {
    // kubectl always passes the word to complete, even if it is empty.
    let index = args.len().saturating_sub(1).max(1);
    // An error message would disturb the command line, so an error means no candidates.
    let found = engine::complete(&mut Cli::command(), args, index, None).unwrap_or_default();
    let mut text = String::new();
    for candidate in found.iter().filter(|candidate| !candidate.is_hide_set()) {
        text.push_str(&candidate.get_value().to_string_lossy());
        if let Some(help) = candidate.get_help() {
            text.push('\t');
            text.push_str(help.to_string().lines().next().unwrap_or_default());
        }
        text.push('\n');
    }
    text + NO_FILES
}

/// Returns the completion script of a shell for the program name `kubectl-stop_run`.
pub fn script(shell: Shell) -> Vec<u8> {
    let mut script = vec![];
    clap_complete::generate(shell, &mut Cli::command(), "kubectl-stop_run", &mut script);
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(words: &[&str]) -> Vec<String> {
        let args = std::iter::once(COMPLETION_PROGRAM).chain(words.iter().copied()).map(Into::into).collect();
        candidates(args).lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
    }

    #[test]
    fn candidates_are_returned_only_under_the_name_that_kubectl_calls() {
        let requested = |name: &str| is_requested_by_kubectl(&[name.into()]);
        assert!(requested("/usr/local/bin/kubectl_complete-stop_run") && requested("kubectl_complete-stop_run"));
        assert!(!requested("/usr/local/bin/kubectl-stop_run") && !is_requested_by_kubectl(&[]));
    }

    #[test]
    fn flags_and_values_are_completed_but_no_file_names() {
        let flags = complete(&["wf-1", "--t"]);
        assert_eq!(flags, ["--tenant", "--ttl", "--timeout", ":4"]);
        assert_eq!(complete(&["wf-1", "--dry-run", ""]), ["none", "client", "server", ":4"]);
        assert_eq!(complete(&["wf-1", "-o", "j"]), ["json", ":4"]);
        assert_eq!(complete(&["comp"]), ["completion", ":4"]);
        assert_eq!(complete(&["wf-1", "--tenant", ""]), [":4"]);
    }

    #[test]
    fn each_candidate_has_a_description() {
        let args = [COMPLETION_PROGRAM, "wf-1", "--wa"].map(Into::into).to_vec();
        assert_eq!(candidates(args), "--wait\tWait until the stop has finished, and print its result\n:4\n");
    }
}
