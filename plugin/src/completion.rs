//! Owns completion: the scripts of the shells, and the way in which kubectl asks a plugin for candidates.
//! Never asks a cluster: a key press must not wait for one.

use std::ffi::OsString;

use clap::CommandFactory;
use clap_complete::{Shell, engine};

use crate::args::Cli;

/// kubectl runs a program of this name to complete `kubectl stop-run`.
const ASKED_BY_KUBECTL: &str = "kubectl_complete-stop_run";

/// The last line for kubectl: complete nothing else, no names of files either.
const NO_FILES: &str = ":4\n";

/// True where this program was called by the name under which kubectl asks for candidates.
pub fn is_asked_by_kubectl(args: &[OsString]) -> bool {
    let name = args.first().map(std::path::Path::new).and_then(|path| path.file_stem());
    name.is_some_and(|name| name == ASKED_BY_KUBECTL)
}

/// What the last of these arguments could become: one candidate a line, each with a tab and what it means.
pub fn candidates(args: Vec<OsString>) -> String {
    // kubectl always passes the word that is being completed, an empty one as well.
    let index = args.len().saturating_sub(1).max(1);
    // Nobody reads a message in the middle of a command line: no candidates is the answer.
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

/// The completion of a shell for this program under its own name.
pub fn script(shell: Shell) -> Vec<u8> {
    let mut script = vec![];
    clap_complete::generate(shell, &mut Cli::command(), "kubectl-stop_run", &mut script);
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(words: &[&str]) -> Vec<String> {
        let args = std::iter::once(ASKED_BY_KUBECTL).chain(words.iter().copied()).map(Into::into).collect();
        candidates(args).lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
    }

    #[test]
    fn only_the_name_that_kubectl_asks_by_asks_for_candidates() {
        let asked = |name: &str| is_asked_by_kubectl(&[name.into()]);
        assert!(asked("/usr/local/bin/kubectl_complete-stop_run") && asked("kubectl_complete-stop_run"));
        assert!(!asked("/usr/local/bin/kubectl-stop_run") && !is_asked_by_kubectl(&[]));
    }

    #[test]
    fn flags_and_values_are_completed_and_no_file_names() {
        let flags = complete(&["wf-1", "--t"]);
        assert_eq!(flags, ["--tenant", "--ttl", "--timeout", ":4"]);
        assert_eq!(complete(&["wf-1", "--dry-run", ""]), ["none", "client", "server", ":4"]);
        assert_eq!(complete(&["wf-1", "-o", "j"]), ["json", ":4"]);
        assert_eq!(complete(&["comp"]), ["completion", ":4"]);
        assert_eq!(complete(&["wf-1", "--tenant", ""]), [":4"]);
    }

    #[test]
    fn each_candidate_says_what_it_means() {
        let args = [ASKED_BY_KUBECTL, "wf-1", "--wa"].map(Into::into).to_vec();
        assert_eq!(candidates(args), "--wait\tWait until the stop has finished, and print its result\n:4\n");
    }
}
