//! Owns completion: scripts for shells, and the candidates that kubectl asks for.
//! Never asks a cluster.

use clap::{Arg, Command};
use clap_complete::{Shell, generate};

/// The last line for kubectl: no file names beside these (cobra's `ShellCompDirectiveNoFileComp`).
const NO_FILES: &str = ":4\n";

/// The script that completes the program under its own name.
pub fn script(mut command: Command, shell: Shell) -> String {
    let mut script = vec![];
    let name = command.get_name().to_owned();
    generate(shell, &mut command, name, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// What may stand in place of the last of these words, in cobra's format: a candidate a line, with its help.
pub fn candidates(command: &Command, words: &[String]) -> String {
    let (last, before) = words.split_last().map_or(("", &[][..]), |(last, before)| (last.as_str(), before));
    let flag_of = |word: &str| {
        command.get_arguments().find(|arg| {
            word.strip_prefix("--").is_some_and(|long| arg.get_long() == Some(long))
                || word
                    .strip_prefix('-')
                    .is_some_and(|short| arg.get_short().is_some_and(|own| short == own.to_string()))
        })
    };
    let values = |arg: &Arg, prefix: &str| -> Vec<String> {
        let values = arg.get_possible_values();
        let line = |value: &clap::builder::PossibleValue| match value.get_help() {
            Some(help) => format!("{prefix}{}\t{help}", value.get_name()),
            None => format!("{prefix}{}", value.get_name()),
        };
        values.iter().map(line).collect()
    };
    let lines = match (last.split_once('='), before.last().and_then(|word| flag_of(word))) {
        (Some((flag, _)), _) => flag_of(flag).map(|arg| values(arg, &format!("{flag}="))).unwrap_or_default(),
        // The value of the flag before it; one that takes none is followed by anything.
        (None, Some(arg)) if arg.get_action().takes_values() && !arg.is_require_equals_set() => values(arg, ""),
        (None, _) if last.starts_with('-') => command
            .get_arguments()
            .filter_map(|arg| Some(format!("--{}\t{}", arg.get_long()?, arg.get_help()?)))
            .collect(),
        // The id of a run: nothing that is known here.
        (None, _) => vec![],
    };
    let mut text = String::new();
    for line in lines.iter().filter(|line| line.starts_with(last)) {
        text.push_str(line);
        text.push('\n');
    }
    text + NO_FILES
}
