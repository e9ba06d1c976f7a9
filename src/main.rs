//! Owns the front door: the crypto provider, flags, log, clock, signals and exit codes.
//! Never holds logic.

use std::{process::ExitCode, sync::Arc};

use clap::Parser;
use jiff::Timestamp;
use kube::CustomResourceExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{Layer, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};
use workflow_run_stop_api::WorkflowRunStop;
use workflow_run_stop_common::output;
use workflow_run_stop_operator::{
    amperity::client::Settings,
    config::{Cli, Command, Flags, LogFormat},
    operator::{self, LeaseName, Setup},
    rng,
};

/// Bad flags; what clap and most programs use.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    rustls::crypto::ring::default_provider().install_default().expect("nothing was installed before");
    match Cli::try_parse().map(Cli::command) {
        Ok(Command::Run(flags)) => run(&flags),
        Ok(Command::Crd) => print_crd(),
        Ok(Command::Check { watch_namespaces }) => check(&watch_namespaces.0),
        Err(error) if error.use_stderr() => fail(USAGE, &in_one_line(&error.to_string())),
        // Help and version.
        Err(text) => print(&text.to_string()),
    }
}

/// What is wrong, without the usage that follows behind an empty line.
fn in_one_line(error: &str) -> String {
    error.split("\n\n").next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn run(flags: &Flags) -> ExitCode {
    let endpoints = match flags.endpoints() {
        Ok(endpoints) => endpoints,
        Err(error) => return fail(USAGE, &format!("error: {error}")),
    };
    start_log(flags.log_format);
    let setup = Setup {
        amperity: Settings { api_version: flags.amperity_api_version.clone(), request_timeout: flags.request_timeout },
        endpoints,
        requests_per_second: flags.requests_per_second,
        settle_time: flags.settle_time,
        namespaces: flags.watch_namespaces.0.clone(),
        lease: flags
            .leader_elect
            .then(|| LeaseName { namespace: flags.lease_namespace.clone(), name: flags.lease_name.clone() }),
        http_addr: flags.http_addr,
        drain_timeout: flags.drain_timeout,
        clock: Arc::new(now),
        identity: identity(),
    };
    let ended = block_on(async {
        let shutdown = CancellationToken::new();
        tokio::spawn(cancel_on_signal(shutdown.clone()));
        operator::run(setup, shutdown).await
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &format!("error: {error}")),
    }
}

fn check(namespaces: &[String]) -> ExitCode {
    match block_on(operator::check(namespaces)) {
        Ok(()) => print("the API server answers, and WorkflowRunStops can be listed\n"),
        Err(error) => fail(1, &format!("error: {error}")),
    }
}

fn block_on<E: ToString>(work: impl Future<Output = Result<(), E>>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(work).map_err(|error| error.to_string())
}

/// The one place that reads the wall clock.
#[allow(clippy::disallowed_methods)]
fn now() -> Timestamp {
    Timestamp::now()
}

/// The host's name, which is the pod's in a cluster, and a number that tells processes on it apart.
fn identity() -> String {
    let host = std::env::var("HOSTNAME").ok().or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok());
    let host = host.as_deref().map(str::trim).filter(|host| !host.is_empty()).unwrap_or("unknown").to_owned();
    format!("{host}_{}", &rng::id()[..8])
}

async fn cancel_on_signal(shutdown: CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals cannot be caught");
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("told to end: no new work is begun, requests in flight are recorded");
    shutdown.cancel();
    // Who sits at a terminal and cannot wait says so twice.
    interrupt.recv().await;
    tracing::warn!("ended at once: claims of requests in flight are confirmed by the next replica");
    std::process::exit(130);
}

fn start_log(format: LogFormat) {
    // RUST_LOG as usual; what cannot be read of it counts as not given.
    let targets = std::env::var("RUST_LOG").ok().and_then(|targets| targets.parse::<Targets>().ok());
    let targets = targets.unwrap_or_else(|| Targets::new().with_default(tracing::Level::INFO));
    let lines = tracing_subscriber::fmt::layer();
    let lines = match format {
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
        LogFormat::Text => lines.boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(targets)).init();
    // A panic is a line of the log as well.
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(location = panic.location().map(tracing::field::display), "{panic}")
    }));
}

fn print_crd() -> ExitCode {
    match serde_yaml_ng::to_string(&WorkflowRunStop::crd()) {
        Ok(yaml) => print(&yaml),
        Err(error) => fail(1, &format!("error: {error}")),
    }
}

fn print(text: &str) -> ExitCode {
    match output::stdout(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &format!("error: stdout: {error}")),
    }
}

fn fail(code: u8, line: &str) -> ExitCode {
    output::stderr_line(line);
    ExitCode::from(code)
}
