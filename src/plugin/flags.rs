//! Owns the arguments of `kubectl stop-run`.
//! Never starts anything.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// Stops Amperity workflow runs: creates a WorkflowRunStop for each, which the operator carries out once.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-stop_run",
    bin_name = "kubectl stop-run",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Exit codes: 0 created, or stopped with --wait; 1 failed; 2 usage; 3 the time to wait was over; 130 Ctrl-C"
)]
pub struct Cli {
    /// Something else than to stop runs.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// What to stop.
    #[command(flatten)]
    pub stop: Option<Flags>,
}

/// Something else than to stop runs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Prints a completion script for a shell
    Completion {
        /// The shell
        shell: Shell,
    },
}

/// What is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// The resources as JSON; as a List where there are several.
    Json,
    /// The resources as YAML.
    Yaml,
    /// Their names alone.
    Name,
}

/// Whether anything is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DryRun {
    /// Create
    None,
    /// Create nothing, and ask no cluster
    Client,
    /// Create nothing, but let the API server check it
    Server,
}

impl DryRun {
    /// What kubectl adds to its word about it.
    pub fn note(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Client => " (dry run)",
            Self::Server => " (server dry run)",
        }
    }
}

/// What to stop, and how.
#[derive(Args, Clone, Debug)]
pub struct Flags {
    /// Ids of the runs to stop, such as wf-20240619-14418-6UhqSe
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<String>,

    /// The tenant that owns the runs, such as acme2-max
    #[arg(long, required = true, value_name = "TENANT")]
    pub tenant: String,

    /// The Secret with the credentials, in the namespace of the resource
    #[arg(long, required = true, value_name = "SECRET")]
    pub credentials: String,

    /// The namespace; the context's own where it is not given
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,

    /// The context of the kubeconfig
    #[arg(long, value_name = "CONTEXT")]
    pub context: Option<String>,

    /// The kubeconfig file
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// The resource's name; only with one run. Made from the run's id where it is not given
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Base URL of the tenant's API, in place of the operator's own
    #[arg(long, value_name = "URL")]
    pub base_url: Option<String>,

    /// Send nothing until spec.suspend is set to false
    #[arg(long)]
    pub suspend: bool,

    /// Give up what could not be sent by then, such as 30m
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    pub stop_deadline: Option<i32>,

    /// How long to follow the run after the stop was accepted; 0s does not follow it. 1h where it is not given
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    pub follow_timeout: Option<i32>,

    /// Delete the resource so long after it finished
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    pub ttl: Option<i32>,

    /// Wait until the stops have ended, and tell how
    #[arg(long)]
    pub wait: bool,

    /// The longest time to wait
    #[arg(long, default_value = "10m", value_name = "DURATION", value_parser = duration)]
    pub timeout: Duration,

    /// What is printed
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<Output>,

    /// Create nothing, only show what would be
    #[arg(long, value_name = "WHERE", default_value = "none", num_args = 0..=1, default_missing_value = "client", require_equals = true)]
    pub dry_run: DryRun,
}

impl Flags {
    /// Says what of the arguments does not go together.
    ///
    /// # Errors
    /// With what is wrong and what to do.
    pub fn check(&self) -> Result<(), String> {
        match (&self.name, self.runs.as_slice()) {
            (Some(_), [_, _, ..]) => Err("--name names one resource; leave it out to stop several runs".to_owned()),
            (Some(_) | None, _) => Ok(()),
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<jiff::SignedDuration>().ok().and_then(|parsed| Duration::try_from(parsed).ok());
    parsed.ok_or_else(|| "it is not a duration such as 90s, 10m or 1h30m".to_owned())
}

fn seconds(text: &str) -> Result<i32, String> {
    let whole = duration(text)?;
    match i32::try_from(whole.as_secs()) {
        Ok(seconds) if whole.subsec_nanos() == 0 => Ok(seconds),
        Ok(_) | Err(_) => Err("it has to be a number of whole seconds that is not too large".to_owned()),
    }
}
