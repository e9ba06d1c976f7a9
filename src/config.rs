//! Owns the flags and environment variables, and turns them into a checked configuration.
//! Never starts anything, and no module below imports it.

use std::{
    net::{AddrParseError, SocketAddr},
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use workflow_run_stop_common::{
    duration,
    name::{NotADnsLabel, dns_label},
};

use crate::amperity::endpoint::{AllowedHosts, Endpoints};

/// Sends one stop request to Amperity for each WorkflowRunStop, follows the run to its end and records the outcome.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Flags,
}

/// The command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the operator (the default)
    Run(Box<Flags>),
    /// Prints the CustomResourceDefinition as YAML
    Crd,
    /// Checks that WorkflowRunStops can be listed, and exits
    Check(WatchNamespaces),
}

impl Cli {
    /// Returns the command; `run` by default.
    pub fn command(self) -> Command {
        self.command.unwrap_or_else(|| Command::Run(Box::new(self.run)))
    }
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object for each line.
    Json,
    /// Text for people.
    Text,
}

/// The namespaces that a command covers.
#[derive(Args, Clone, Debug)]
pub struct WatchNamespaces {
    /// Namespaces to watch, separated by commas; all if empty
    #[arg(long, env, default_value = "", value_name = "NAMESPACES", hide_default_value = true, value_parser = namespaces)]
    pub watch_namespaces: Namespaces,
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

    /// Highest number of requests for one tenant in any second, from 1 to 1000
    #[arg(long, env, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub requests_per_second: u32,

    /// Highest number of unfinished stops of one namespace that are worked on at a time, the oldest first; 0 is no limit
    #[arg(long, env, default_value_t = 0, value_name = "N")]
    pub max_unfinished_per_namespace: usize,

    /// Timeout of one request to Amperity, from when it is written to the end of the response
    #[arg(long, env, default_value = "30s", value_name = "DURATION", value_parser = duration)]
    pub request_timeout: Duration,

    /// Time after which a request without a clear answer can no longer take effect
    #[arg(long, env, default_value = "30s", value_name = "DURATION", value_parser = duration)]
    pub settle_time: Duration,

    /// The namespaces to watch.
    #[command(flatten)]
    pub watch: WatchNamespaces,

    /// Elect a leader among the replicas with a Lease; only the leader works
    #[arg(long, env, default_value_t = false, num_args = 0..=1, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub leader_elect: bool,

    /// Name of the Lease
    #[arg(long, env, default_value = "workflow-run-stop-operator", value_name = "NAME", value_parser = dns_label)]
    pub lease_name: String,

    /// Namespace of the Lease; the operator's own by default
    #[arg(long, env, value_name = "NAMESPACE", value_parser = dns_label)]
    pub lease_namespace: Option<String>,

    /// The address of the health server.
    // Not in the comment above, where rustdoc would read it as a link.
    #[arg(long, env, default_value = "", value_name = "ADDRESS", hide_default_value = true, value_parser = http_addr,
        help = "Address that serves /metrics, /healthz and /readyz; if empty [::]:8080, or 0.0.0.0:8080 on a machine without IPv6")]
    pub http_addr: HttpAddr,

    /// Format of log lines
    #[arg(long, env, default_value = "json", value_name = "FORMAT")]
    pub log_format: LogFormat,

    /// Timeout at shutdown for requests in flight to be answered and recorded
    #[arg(long, env, default_value = "40s", value_name = "DURATION", value_parser = duration)]
    pub drain_timeout: Duration,
}

impl Flags {
    /// Returns the base URL of the API and the allowed hosts.
    ///
    /// # Errors
    /// If the base URL is invalid.
    pub fn endpoints(&self) -> Result<Endpoints, String> {
        Endpoints::new(&self.amperity_base_url, self.allowed_hosts.clone())
            .map_err(|error| format!("--amperity-base-url: {error}"))
    }
}

/// The address of the health server; `None` for the default. The chart passes all flags, so an empty one is not given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HttpAddr(pub Option<SocketAddr>);

fn http_addr(text: &str) -> Result<HttpAddr, AddrParseError> {
    if text.is_empty() { Ok(HttpAddr(None)) } else { Ok(HttpAddr(Some(text.parse()?))) }
}

/// The namespaces to watch; all if empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespaces(pub Vec<String>);

fn namespaces(list: &str) -> Result<Namespaces, NotADnsLabel> {
    let names = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    let mut names = names.map(dns_label).collect::<Result<Vec<_>, _>>()?;
    names.sort_unstable();
    names.dedup();
    Ok(Namespaces(names))
}

/// Checks that the API version can be sent as a header.
fn api_version(text: &str) -> Result<String, String> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if plain { Ok(text.to_owned()) } else { Err("not a version such as 2024-04-01".to_owned()) }
}

/// Parses a duration such as `30s` or `1m30s`, which must be greater than zero and at most one hour.
fn duration(text: &str) -> Result<Duration, String> {
    let parsed = Duration::try_from(duration::parse(text).map_err(|error| error.to_string())?).unwrap_or_default();
    if Duration::ZERO < parsed && parsed <= Duration::from_secs(3600) {
        Ok(parsed)
    } else {
        Err("must be greater than 0s and at most 1h".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::http_server::{ANY, ANY_IPV4};

    fn flags(args: &[&str]) -> Result<Flags, String> {
        let args = std::iter::once("operator").chain(args.iter().copied());
        match Cli::try_parse_from(args).map(Cli::command) {
            Ok(Command::Run(flags)) => Ok(*flags),
            Ok(Command::Crd | Command::Check(_)) => panic!("not the command to run"),
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
    fn an_empty_http_address_is_none_and_the_help_names_the_default() {
        let address = |args: &[&str]| flags(args).unwrap().http_addr.0.map(|address| address.to_string());
        assert_eq!([address(&[]), address(&["--http-addr="])], [None, None]);
        assert_eq!(address(&["--http-addr", "[::]:8080"]).as_deref(), Some("[::]:8080"), "as given");
        let help = <Cli as clap::CommandFactory>::command().render_help().to_string();
        assert!(help.contains(&format!("if empty {ANY}, or {ANY_IPV4} on a machine without IPv6")), "{help}");
    }

    #[test]
    fn namespaces_are_a_list() {
        assert_eq!(flags(&["--watch-namespaces", "b, a,b,"]).unwrap().watch.watch_namespaces.0, ["a", "b"]);
        assert!(flags(&[]).unwrap().watch.watch_namespaces.0.is_empty());
    }

    #[test]
    fn wrong_values_are_refused_with_a_reason() {
        for (args, why) in [
            (&["--request-timeout", "soon"][..], "not a duration"),
            (&["--request-timeout", "0s"], "must be greater than 0s and at most 1h"),
            (&["--requests-per-second", "0"], "1..=1000"),
            (&["--allowed-hosts", "https://x"], "not a host name"),
            (&["--http-addr", "x"], "invalid socket address"),
            (&["--watch-namespaces", "a,Bad_Name"], "'Bad_Name' is not a DNS label"),
            (&["--lease-name", "-"], "is not a DNS label"),
            (&["--no-such-flag"], "unexpected argument"),
        ] {
            let error = flags(args).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        assert!(flags(&["--amperity-base-url", "nonsense"]).unwrap().endpoints().is_err());
    }
}
