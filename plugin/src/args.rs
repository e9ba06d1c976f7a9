//! Owns the command line of the plugin: its flags, and how their values are read.
//! Never asks a cluster, and leaves to it whether a value of the spec is a right one.

use std::{path::PathBuf, time::Duration};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum, error::ErrorKind};
use clap_complete::Shell;
use jiff::Timestamp;
use workflow_run_stop_common::{duration, name::dns_label};

const EXIT_CODES: &str = "\
Exit codes:
  0    created; with --wait: result Stopped or Accepted
  1    result Failed or StillActive, deleted before the result, or refused by the cluster
  2    invalid arguments; nothing was created
  3    no result within --timeout; the resources stay and the operator continues
  4    result EndedOtherwise: the run ended on its own
  5    result Expired: created at or after its --not-after; nothing was sent
  6    result Unknown: a stop request was sent and its outcome is not known
  130  Ctrl-C; the resources stay and the operator continues
With several runs, the first of 130, 1, 6, 3, 5, 4 and 0 that occurred.";

/// Stops Amperity workflow runs: creates a WorkflowRunStop for each, which the operator in the cluster carries out.
#[derive(Debug, Parser)]
#[command(name = "kubectl-stop_run", bin_name = "kubectl stop-run", version, after_help = EXIT_CODES)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    flags: Option<Flags>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Stops runs; what is done where no command is named
    #[command(skip)]
    Stop(Box<Flags>),
    /// Prints the completion of a shell for `kubectl-stop_run`; for `kubectl stop-run`, see docs/kubectl-plugin.md
    Completion {
        /// The shell
        #[arg(value_parser = shell)]
        shell: Shell,
    },
}

/// What to stop, and how.
#[derive(Args, Clone, Debug)]
pub struct Flags {
    /// Ids of the workflow runs to stop, such as wf-20240619-14418-6UhqSe
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<String>,

    /// Id of the tenant that owns the runs, such as acme2-max
    #[arg(long)]
    pub tenant: String,

    /// Name of the Secret with the credentials, in the same namespace; it is not read here
    #[arg(long, value_name = "SECRET")]
    pub credentials: String,

    /// Base URL of the tenant's API, where it is not the operator's own; only https
    #[arg(long, value_name = "URL")]
    pub base_url: Option<String>,

    /// Send nothing until spec.suspend is set to false
    #[arg(long)]
    pub suspend: bool,

    /// How long after the creation the last stop request may be sent, such as 30m; no limit where it is not given
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    pub stop_deadline: Option<i32>,

    /// Time at and after which no stop request is sent, such as 2026-11-26T06:00:00Z; no limit where it is not given
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub not_after: Option<Timestamp>,

    /// Why the run is stopped, in one line; repeated in events and in the operator's log
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,

    /// How long to follow a run after the stop was accepted, such as 2h; 0s does not follow it [cluster's default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    pub follow_timeout: Option<i32>,

    /// How long after its end a resource is deleted, such as 7d; kept where it is not given
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    pub ttl: Option<i32>,

    /// Name of the resource, for one run; where it is not given, one is made of the run's id
    #[arg(long)]
    pub name: Option<String>,

    /// Wait until the stop has finished, and print its result
    #[arg(long)]
    pub wait: bool,

    /// How long to wait, such as 30s or 1h
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = timeout, requires = "wait")]
    pub timeout: Duration,

    /// Print the resources on stdout in this format; everything else goes to stderr
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<Output>,

    /// Create nothing: only print what would be created (client), or let the cluster check it as well (server)
    #[arg(long, value_name = "BY", default_value = "none")]
    pub dry_run: DryRun,

    /// Namespace; the kubeconfig's own where it is not given
    #[arg(short, long, value_parser = dns_label)]
    pub namespace: Option<String>,

    /// Context of the kubeconfig
    #[arg(long)]
    pub context: Option<String>,

    /// Path of the kubeconfig, in place of $KUBECONFIG and ~/.kube/config
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub kubeconfig: Option<PathBuf>,
}

/// How resources are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// One JSON object each
    Json,
    /// YAML documents
    Yaml,
    /// One line each: kind, group and name
    Name,
}

/// Whether anything is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DryRun {
    /// It is created
    None,
    /// Nothing is asked of the cluster
    Client,
    /// The cluster checks it and stores nothing
    Server,
}

impl Cli {
    /// Reads a command line.
    ///
    /// # Errors
    /// Where it makes no sense; also for `--help` and `--version`, which are texts and not mistakes.
    pub fn read(args: &[std::ffi::OsString]) -> Result<Command, clap::Error> {
        let cli = Self::try_parse_from(args)?;
        let wrong = |kind, message: String| Self::command().error(kind, message);
        let Some(flags) = cli.flags else {
            return cli.command.ok_or_else(|| wrong(ErrorKind::MissingRequiredArgument, "no RUN is named".to_owned()));
        };
        if 1 < flags.runs.len() && flags.name.is_some() {
            return Err(wrong(ErrorKind::ArgumentConflict, "--name is for one RUN, and several are named".to_owned()));
        }
        if flags.wait && flags.dry_run != DryRun::None {
            return Err(wrong(ErrorKind::ArgumentConflict, "--wait cannot be used with --dry-run".to_owned()));
        }
        // Each resource is a stop request of its own.
        let twice = flags.runs.iter().enumerate().find(|(index, run)| flags.runs[..*index].contains(run));
        if let Some((_, run)) = twice {
            return Err(wrong(ErrorKind::ValueValidation, format!("the RUN {run} is named twice")));
        }
        Ok(Command::Stop(Box::new(flags)))
    }
}

/// The shells whose completion is known to work.
fn shell(name: &str) -> Result<Shell, String> {
    match name.parse() {
        Ok(shell @ (Shell::Bash | Shell::Zsh | Shell::Fish)) => Ok(shell),
        Ok(_) | Err(_) => Err("it is not one of bash, zsh and fish".to_owned()),
    }
}

/// A duration such as `90s`, `1h30m`, `7d`, or a bare number of seconds, as whole seconds.
fn seconds(text: &str) -> Result<i32, String> {
    if let Ok(seconds) = text.parse() {
        return if 0 <= seconds { Ok(seconds) } else { Err("it is negative".to_owned()) };
    }
    let duration = duration::parse(text).map_err(|error| error.to_string())?;
    if duration.is_negative() {
        return Err("it is negative".to_owned());
    }
    if duration.subsec_nanos() != 0 {
        return Err("it is not a whole number of seconds".to_owned());
    }
    i32::try_from(duration.as_secs()).map_err(|_| "it is longer than 68 years".to_owned())
}

/// An instant, such as `2026-11-26T06:00:00Z`. Without an offset it would be a different one on each machine.
fn time(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| {
        "it is not a time with an offset such as 2026-11-26T06:00:00Z or 2026-11-26T07:00:00+01:00; \
         for a duration, use --stop-deadline"
            .to_owned()
    })
}

fn timeout(text: &str) -> Result<Duration, String> {
    match seconds(text)? {
        0 => Err("it has to be more than nothing".to_owned()),
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
    fn runs_and_flags_stand_in_any_order() {
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
    fn a_duration_is_read_as_whole_seconds() {
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
    fn a_time_is_an_instant_and_a_wrong_one_is_refused_with_a_right_one() {
        let instant = time("2026-11-26T06:00:00Z");
        assert_eq!(instant.as_ref().map(ToString::to_string), Ok("2026-11-26T06:00:00Z".to_owned()));
        assert_eq!(time("2026-11-26T07:00:00+01:00"), instant);
        for text in ["", "soon", "2h", "1795672800", "2026-11-26", "2026-11-26T06:00:00", "2026-13-26T06:00:00Z"] {
            assert!(time(text).unwrap_err().contains("such as 2026-11-26T06:00:00Z"), "{text}");
        }
    }

    #[test]
    fn completion_needs_no_run_and_knows_three_shells() {
        for name in ["bash", "zsh", "fish"] {
            assert!(matches!(read(&format!("completion {name}")), Ok(Command::Completion { .. })), "{name}");
        }
        assert!(read("completion elvish").unwrap_err().contains("not one of bash, zsh and fish"));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_a_reason() {
        for (args, why) in [
            ("", "<RUN>"),
            ("wf-1", "--tenant"),
            ("wf-1 --tenant acme", "--credentials"),
            ("--tenant acme --credentials amperity", "<RUN>"),
            ("wf-1 wf-2 --name x --tenant acme --credentials amperity", "--name is for one RUN"),
            ("wf-1 wf-1 --tenant acme --credentials amperity", "wf-1 is named twice"),
            (
                "wf-1 --wait --dry-run=client --tenant acme --credentials amperity",
                "--wait cannot be used with --dry-run",
            ),
            ("wf-1 --timeout 5m --tenant acme --credentials amperity", "--wait"),
            ("wf-1 --wait --timeout soon --tenant acme --credentials amperity", "not a duration such as"),
            ("wf-1 --not-after 2h --tenant acme --credentials amperity", "for a duration, use --stop-deadline"),
            ("wf-1 -o table --tenant acme --credentials amperity", "possible values: json, yaml, name"),
            ("wf-1 -n ../x --tenant acme --credentials amperity", "not a name of lower-case letters"),
            ("wf-1 --no-such-flag --tenant acme --credentials amperity", "unexpected argument"),
        ] {
            let error = read(args).unwrap_err();
            assert!(error.contains(why), "{args}: {error}");
        }
    }
}
