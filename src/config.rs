//! Owns the flags and environment variables, and turns them into a checked configuration.
//! Never starts anything; no room below sees this file.

use std::{net::SocketAddr, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use workflow_run_stop_common::{
    duration,
    name::{NotADnsLabel, dns_label},
};

use crate::amperity::endpoint::{AllowedHosts, Endpoints};

/// Asks Amperity once for each WorkflowRunStop to stop a workflow run, follows the run to its end and
/// records the outcome.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Flags,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the operator (the default)
    Run(Box<Flags>),
    /// Prints the CustomResourceDefinition as YAML
    Crd,
    /// Says whether the API server can be reached and WorkflowRunStops be listed, and ends
    Check {
        /// Namespaces to look into, separated by commas; all where it is empty
        #[arg(long, env, default_value = "", value_name = "NAMESPACES", hide_default_value = true, value_parser = namespaces)]
        watch_namespaces: Namespaces,
    },
}

impl Cli {
    /// What to do; to run the operator where nothing is said.
    pub fn command(self) -> Command {
        self.command.unwrap_or_else(|| Command::Run(Box::new(self.run)))
    }
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// The operator's flags, each also an environment variable.
#[derive(Args, Clone, Debug)]
pub struct Flags {
    /// Base URL of the Amperity API; `{tenant}` stands for the resource's tenant
    #[arg(long, env, default_value = "https://app.amperity.com/api", value_name = "URL")]
    pub amperity_base_url: String,

    /// Version of the Amperity API, sent in the header api-version
    #[arg(long, env, default_value = "2024-04-01", value_name = "VERSION", value_parser = api_version)]
    pub amperity_api_version: String,

    /// Hosts that spec.baseUrl and a Secret's tokenUrl may name, separated by commas
    #[arg(long, env, default_value = "*.amperity.com", value_name = "HOSTS", value_parser = AllowedHosts::parse)]
    pub allowed_hosts: AllowedHosts,

    /// Most requests for one tenant in any second, from 1 to 1000
    #[arg(long, env, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub requests_per_second: u32,

    /// Limit for one request to Amperity, from its writing to the end of its answer
    #[arg(long, env, default_value = "30s", value_name = "DURATION", value_parser = duration)]
    pub request_timeout: Duration,

    /// How long after a request ended without a clear answer it may still take effect
    #[arg(long, env, default_value = "30s", value_name = "DURATION", value_parser = duration)]
    pub settle_time: Duration,

    /// Namespaces to watch, separated by commas; all where it is empty
    #[arg(long, env, default_value = "", value_name = "NAMESPACES", hide_default_value = true, value_parser = namespaces)]
    pub watch_namespaces: Namespaces,

    /// Let one of several replicas work, elected by a Lease
    #[arg(long, env, default_value_t = false, num_args = 0..=1, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub leader_elect: bool,

    /// Name of the Lease
    #[arg(long, env, default_value = "workflow-run-stop-operator", value_name = "NAME", value_parser = dns_label)]
    pub lease_name: String,

    /// Namespace of the Lease; the operator's own where it is not given
    #[arg(long, env, value_name = "NAMESPACE", value_parser = dns_label)]
    pub lease_namespace: Option<String>,

    /// Address that serves /metrics, /healthz and /readyz
    #[arg(long, env, default_value = "0.0.0.0:8080", value_name = "ADDRESS")]
    pub http_addr: SocketAddr,

    /// How log lines are written
    #[arg(long, env, default_value = "json", value_name = "FORMAT")]
    pub log_format: LogFormat,

    /// Longest wait at the end for requests in flight
    #[arg(long, env, default_value = "40s", value_name = "DURATION", value_parser = duration)]
    pub drain_timeout: Duration,
}

impl Flags {
    /// Where the API is.
    ///
    /// # Errors
    /// Where the base URL cannot be used.
    pub fn endpoints(&self) -> Result<Endpoints, String> {
        Endpoints::new(&self.amperity_base_url, self.allowed_hosts.clone())
            .map_err(|error| format!("--amperity-base-url: {error}"))
    }
}

/// The namespaces to watch; none stands for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespaces(pub Vec<String>);

fn namespaces(list: &str) -> Result<Namespaces, NotADnsLabel> {
    let names = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    let mut names = names.map(dns_label).collect::<Result<Vec<_>, _>>()?;
    names.sort_unstable();
    names.dedup();
    Ok(Namespaces(names))
}

/// What can be sent as a header.
fn api_version(text: &str) -> Result<String, String> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if plain { Ok(text.to_owned()) } else { Err("it is not a version such as 2024-04-01".to_owned()) }
}

/// A duration such as `30s` or `1m30s`, greater than zero and at most one hour.
fn duration(text: &str) -> Result<Duration, String> {
    let parsed = Duration::try_from(duration::parse(text).map_err(|error| error.to_string())?).unwrap_or_default();
    if Duration::ZERO < parsed && parsed <= Duration::from_secs(3600) {
        Ok(parsed)
    } else {
        Err("not greater than 0s and at most 1h".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(args: &[&str]) -> Result<Flags, String> {
        let args = std::iter::once("operator").chain(args.iter().copied());
        match Cli::try_parse_from(args).map(Cli::command) {
            Ok(Command::Run(flags)) => Ok(*flags),
            Ok(Command::Crd | Command::Check { .. }) => panic!("not the command to run"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn run_is_the_default_command_and_takes_the_same_flags() {
        let plain = flags(&["--requests-per-second", "3", "--settle-time=1m30s"]).unwrap();
        let named = flags(&["run", "--requests-per-second", "3", "--settle-time=1m30s"]).unwrap();
        assert_eq!(format!("{plain:?}"), format!("{named:?}"));
        assert_eq!(plain.settle_time, Duration::from_secs(90));
    }

    #[test]
    fn leader_elect_is_a_switch_that_also_takes_a_value() {
        let elects = |args: &[&str]| flags(args).unwrap().leader_elect;
        assert_eq!([elects(&[]), elects(&["--leader-elect"]), elects(&["--leader-elect=false"])], [false, true, false]);
    }

    #[test]
    fn namespaces_are_a_list() {
        assert_eq!(flags(&["--watch-namespaces", "b, a,b,"]).unwrap().watch_namespaces.0, ["a", "b"]);
        assert!(flags(&[]).unwrap().watch_namespaces.0.is_empty());
    }

    #[test]
    fn wrong_values_are_refused_with_a_reason() {
        for (args, why) in [
            (&["--request-timeout", "soon"][..], "not a duration"),
            (&["--request-timeout", "0s"], "more than nothing"),
            (&["--requests-per-second", "0"], "1..=1000"),
            (&["--allowed-hosts", "https://x"], "not a host name"),
            (&["--http-addr", "x"], "invalid socket address"),
            (&["--watch-namespaces", "a,Bad_Name"], "'Bad_Name' is not a name"),
            (&["--lease-name", "-"], "is not a name"),
            (&["--no-such-flag"], "unexpected argument"),
        ] {
            let error = flags(args).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        assert!(flags(&["--amperity-base-url", "nonsense"]).unwrap().endpoints().is_err());
    }
}
