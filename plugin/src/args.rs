//! Owns the command line of the plugin: its flags, and how their values are parsed.
//! Never sends a request. The API server validates the values of the spec.

use std::{path::PathBuf, time::Duration};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum, error::ErrorKind};
use clap_complete::Shell;
use jiff::Timestamp;
use workflow_run_stop_common::{duration, name::dns_label};

const EXIT_CODES: &str = "\
Exit codes:
  0    created; with --wait: result Stopped or Accepted
  1    result Failed or StillActive, deleted before its result was read, or a failed request to the API server
  2    invalid arguments; nothing was created
  3    no result within --timeout; the resources stay and the operator continues
  4    result EndedOtherwise: the run ended on its own
  5    result Expired: created at or after its --not-after; nothing was sent
  6    result Unknown: a stop request was sent and its outcome is not known
  130  Ctrl-C; the resources stay and the operator continues
With several runs, the first of 130, 1, 6, 3, 5, 4 and 0 that occurred.";

/// Stops Amperity workflow runs: creates a WorkflowRunStop for each run. The operator in the cluster stops the run.
#[derive(Debug, Parser)]
#[command(name = "kubectl-stop_run", bin_name = "kubectl stop-run", version, after_help = EXIT_CODES)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    flags: Option<Flags>,
}

/// A subcommand.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Stops runs; the default
    #[command(skip)]
    Stop(Box<Flags>),
    /// Prints the completion script of a shell for `kubectl-stop_run`; for `kubectl stop-run`, see docs/kubectl-plugin.md
    Completion {
        /// Shell: bash, zsh or fish
        #[arg(value_parser = shell)]
        shell: Shell,
    },
}

/// The flags of a stop.
#[derive(Args, Clone, Debug)]
pub struct Flags {
    /// Ids of the workflow runs to stop, such as wf-20240619-14418-6UhqSe
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<String>,

    /// Id of the tenant that owns the runs, such as acme2-max
    #[arg(long)]
    pub tenant: String,

    /// Name of the Secret with the credentials, in the same namespace; the plugin does not read it
    #[arg(long, value_name = "SECRET")]
    pub credentials: String,

    /// Base URL of the tenant's API, https only; the operator's by default
    #[arg(long, value_name = "URL")]
    pub base_url: Option<String>,

    /// Send nothing until spec.suspend is set to false
    #[arg(long)]
    pub suspend: bool,

    /// Time after the creation within which a stop request may be sent, such as 30m; no limit by default
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    pub stop_deadline: Option<i32>,

    /// Time at and after which no stop request is sent, such as 2026-11-26T06:00:00Z; no limit by default
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub not_after: Option<Timestamp>,

    /// Reason for the stop, in one line; copied to events and to the operator's log
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,

    /// Time to follow the run after the stop was accepted, such as 2h; 0s does not follow it; 1h by default
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    pub follow_timeout: Option<i32>,

    /// Time after which a finished resource is deleted, such as 7d; kept by default
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    pub ttl: Option<i32>,

    /// Name of the resource, for one RUN only; generated from the run's id by default
    #[arg(long)]
    pub name: Option<String>,

    /// Wait until the stop has finished, and print its result
    #[arg(long)]
    pub wait: bool,

    /// Longest time to wait, such as 30s or 1h
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = timeout, requires = "wait")]
    pub timeout: Duration,

    /// Print the resources on stdout in this format; everything else goes to stderr
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<Output>,

    /// Create nothing: print the resources (client), or let the API server validate them too (server)
    #[arg(long, value_name = "BY", default_value = "none")]
    pub dry_run: DryRun,

    /// Namespace; that of the kubeconfig's context by default
    #[arg(short, long, value_parser = dns_label)]
    pub namespace: Option<String>,

    /// Context of the kubeconfig
    #[arg(long)]
    pub context: Option<String>,

    /// Path of the kubeconfig, instead of $KUBECONFIG and ~/.kube/config
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub kubeconfig: Option<PathBuf>,
}

/// The format in which resources are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// One JSON object for each resource
    Json,
    /// One YAML document for each resource
    Yaml,
    /// One line for each resource: kind, group and name
    Name,
}

/// The kind of dry run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DryRun {
    /// Create the resources
    None,
    /// Send no request
    Client,
    /// Let the API server validate the resources without storing them
    Server,
}

impl Cli {
    /// Parses a command line.
    ///
    /// # Errors
    /// If the arguments are invalid; also for `--help` and `--version`, whose text is to be printed.
    pub fn read(args: &[std::ffi::OsString]) -> Result<Command, clap::Error> {
        let cli = Self::try_parse_from(args)?;
        let invalid = |kind, message: String| Self::command().error(kind, message);
        let Some(flags) = cli.flags else {
            return cli
                .command
                .ok_or_else(|| invalid(ErrorKind::MissingRequiredArgument, "no RUN was given".to_owned()));
        };
        if 1 < flags.runs.len() && flags.name.is_some() {
            return Err(invalid(ErrorKind::ArgumentConflict, "--name can only be used with one RUN".to_owned()));
        }
        if flags.wait && flags.dry_run != DryRun::None {
            return Err(invalid(ErrorKind::ArgumentConflict, "--wait cannot be used with --dry-run".to_owned()));
        }
        // The operator sends one stop request for each resource, so a duplicate would send a second one for the same
        // run.
        let duplicate = flags.runs.iter().enumerate().find(|(index, run)| flags.runs[..*index].contains(run));
        if let Some((_, run)) = duplicate {
            return Err(invalid(ErrorKind::ValueValidation, format!("RUN {run} was given more than once")));
        }
        Ok(Command::Stop(Box::new(flags)))
    }
}

/// Parses the name of a shell whose completion is tested.
fn shell(name: &str) -> Result<Shell, String> {
    match name.parse() {
        Ok(shell @ (Shell::Bash | Shell::Zsh | Shell::Fish)) => Ok(shell),
        Ok(_) | Err(_) => Err("must be one of bash, zsh and fish".to_owned()),
    }
}

/// Parses a duration such as `90s`, `1h30m` or `7d`, or a bare number of seconds, into whole seconds.
fn seconds(text: &str) -> Result<i32, String> {
    if let Ok(seconds) = text.parse() {
        return if 0 <= seconds { Ok(seconds) } else { Err("must not be negative".to_owned()) };
    }
    let duration = duration::parse(text).map_err(|error| error.to_string())?;
    if duration.is_negative() {
        return Err("must not be negative".to_owned());
    }
    if duration.subsec_nanos() != 0 {
        return Err("must be a whole number of seconds".to_owned());
    }
    i32::try_from(duration.as_secs()).map_err(|_| "must not be longer than 68 years".to_owned())
}

/// Parses an instant such as `2026-11-26T06:00:00Z`. Without an offset it would depend on the time zone of the machine.
fn time(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| {
        "must be a time with an offset, such as 2026-11-26T06:00:00Z or 2026-11-26T07:00:00+01:00; \
         for a duration, use --stop-deadline"
            .to_owned()
    })
}

/// Parses a duration of at least one second.
fn timeout(text: &str) -> Result<Duration, String> {
    match seconds(text)? {
        0 => Err("must be at least 1s".to_owned()),
        seconds => Ok(Duration::from_secs(u64::from(seconds.unsigned_abs()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &str) -> Result<Command, String> {
        let args: Vec<_> = std::iter::once("kubectl-stop_run").chain(args.split_whitespace()).map(Into::into).collect();
        Cli::read(&args).map_err(|error| error.to_string())
    }

    fn flags(args: &str) -> Flags {
        match read(&format!("{args} --tenant acme --credentials amperity")) {
            Ok(Command::Stop(flags)) => *flags,
            other => panic!("{args}: {other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn runs_and_flags_are_accepted_in_any_order() {
        let read = flags("--wait wf-1 -n ops --timeout 90s wf-2 -o yaml");
        assert_eq!(
            (read.runs, read.namespace.as_deref(), read.wait),
            (vec!["wf-1".into(), "wf-2".into()], Some("ops"), true)
        );
        assert_eq!(
            (read.timeout, read.output, read.dry_run),
            (Duration::from_secs(90), Some(Output::Yaml), DryRun::None)
        );
        assert_eq!(flags("wf-1 --wait").timeout, Duration::from_secs(600));
    }

    #[test]
    fn a_duration_is_parsed_into_whole_seconds() {
        for (text, wanted) in [
            ("0", 0),
            ("0s", 0),
            ("90", 90),
            ("90s", 90),
            ("10m", 600),
            ("1h30m", 5400),
            ("7d", 604_800),
            ("1w", 604_800),
        ] {
            assert_eq!(seconds(text), Ok(wanted), "{text}");
        }
        for (text, why) in [
            ("soon", "not a duration"),
            ("", "not a duration"),
            ("-5", "negative"),
            ("-5s", "negative"),
            ("1500ms", "whole number"),
            ("1mo", "not a duration"),
            ("99y", "not a duration"),
            ("99999999h", "68 years"),
        ] {
            assert!(seconds(text).unwrap_err().contains(why), "{text}: {:?}", seconds(text));
        }
        assert!(timeout("0s").is_err());
    }

    #[test]
    fn a_time_needs_an_offset_and_the_error_gives_an_example() {
        let instant = time("2026-11-26T06:00:00Z");
        assert_eq!(instant.as_ref().map(ToString::to_string), Ok("2026-11-26T06:00:00Z".to_owned()));
        assert_eq!(time("2026-11-26T07:00:00+01:00"), instant);
        for text in ["", "soon", "2h", "1795672800", "2026-11-26", "2026-11-26T06:00:00", "2026-13-26T06:00:00Z"] {
            assert!(time(text).unwrap_err().contains("such as 2026-11-26T06:00:00Z"), "{text}");
        }
    }

    #[test]
    fn completion_needs_no_run_and_supports_three_shells() {
        for name in ["bash", "zsh", "fish"] {
            assert!(matches!(read(&format!("completion {name}")), Ok(Command::Completion { .. })), "{name}");
        }
        assert!(read("completion elvish").unwrap_err().contains("must be one of bash, zsh and fish"));
    }

    #[test]
    fn invalid_arguments_are_rejected_with_a_message() {
        for (args, why) in [
            ("", "<RUN>"),
            ("wf-1", "--tenant"),
            ("wf-1 --tenant acme", "--credentials"),
            ("--tenant acme --credentials amperity", "<RUN>"),
            ("wf-1 wf-2 --name x --tenant acme --credentials amperity", "--name can only be used with one RUN"),
            ("wf-1 wf-1 --tenant acme --credentials amperity", "RUN wf-1 was given more than once"),
            (
                "wf-1 --wait --dry-run=client --tenant acme --credentials amperity",
                "--wait cannot be used with --dry-run",
            ),
            ("wf-1 --timeout 5m --tenant acme --credentials amperity", "--wait"),
            ("wf-1 --wait --timeout soon --tenant acme --credentials amperity", "not a duration such as"),
            ("wf-1 --not-after 2h --tenant acme --credentials amperity", "for a duration, use --stop-deadline"),
            ("wf-1 -o table --tenant acme --credentials amperity", "possible values: json, yaml, name"),
            ("wf-1 -n ../x --tenant acme --credentials amperity", "is not a DNS label"),
            ("wf-1 --no-such-flag --tenant acme --credentials amperity", "unexpected argument"),
        ] {
            let error = read(args).unwrap_err();
            assert!(error.contains(why), "{args}: {error}");
        }
    }
}
