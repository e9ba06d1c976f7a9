//! Owns the start of the operator: crypto provider, flags, log, clock, signals and exit codes.
//! Never holds logic.

use std::{num::NonZeroUsize, process::ExitCode, sync::Arc};

use clap::Parser;
use jiff::Timestamp;
use kube::CustomResourceExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::Subscriber;
use tracing_subscriber::{
    Layer,
    filter::{FilterExt, LevelFilter, Targets, filter_fn},
    fmt::MakeWriter,
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};
use workflow_run_stop_api::WorkflowRunStop;
use workflow_run_stop_common::output;
use workflow_run_stop_operator::{
    amperity::client::Settings,
    config::{Cli, Command, Flags, LogFormat},
    operator::{self, LeaseName, Setup},
    rng,
};

/// The exit code for invalid arguments: the one that clap and most programs use.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    rustls::crypto::ring::default_provider().install_default().expect("nothing was installed before");
    match Cli::try_parse().map(Cli::command) {
        Ok(Command::Run(flags)) => run(&flags),
        Ok(Command::Crd) => print_crd(),
        Ok(Command::Check(watch)) => check(&watch.watch_namespaces.0),
        Err(error) if error.use_stderr() => fail(USAGE, &in_one_line(&error.to_string())),
        // Help and version.
        Err(text) => print(&text.to_string()),
    }
}

/// Returns clap's error in one line, without the usage after the empty line.
fn in_one_line(error: &str) -> String {
    error.split("\n\n").next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn run(flags: &Flags) -> ExitCode {
    let endpoints = match flags.endpoints() {
        Ok(endpoints) => endpoints,
        Err(error) => return fail(USAGE, &format!("error: {error}")),
    };
    let targets = match log_filter(&std::env::var("RUST_LOG").unwrap_or_default()) {
        Ok(targets) => targets,
        Err(error) => return fail(USAGE, &format!("error: {error}")),
    };
    start_log(flags.log_format, targets);
    let setup = Setup {
        amperity: Settings { api_version: flags.amperity_api_version.clone(), request_timeout: flags.request_timeout },
        endpoints,
        requests_per_second: flags.requests_per_second,
        settle_time: flags.settle_time,
        max_unfinished_per_namespace: NonZeroUsize::new(flags.max_unfinished_per_namespace),
        namespaces: flags.watch.watch_namespaces.0.clone(),
        lease: flags
            .leader_elect
            .then(|| LeaseName { namespace: flags.lease_namespace.clone(), name: flags.lease_name.clone() }),
        http_addr: flags.http_addr.0,
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
        Ok(()) => print("ok: WorkflowRunStops can be listed\n"),
        Err(error) => fail(1, &format!("error: {error}")),
    }
}

fn block_on<E: ToString>(work: impl Future<Output = Result<(), E>>) -> Result<(), String> {
    // One thread: the work is small, and handing it from thread to thread takes a third of the CPU time of a stop. The memory
    // does not depend on the number of cores of the node.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(work).map_err(|error| error.to_string())
}

/// Reads the wall clock. No other code does.
#[allow(clippy::disallowed_methods)]
fn now() -> Timestamp {
    Timestamp::now()
}

/// Returns the host name, which is the pod's name in a cluster, with a random suffix for this process.
fn identity() -> String {
    let host = std::env::var("HOSTNAME").ok().or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok());
    let host = host.as_deref().map(str::trim).filter(|host| !host.is_empty()).unwrap_or("unknown").to_owned();
    format!("{host}_{}", &rng::id()[..8])
}

async fn cancel_on_signal(shutdown: CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("failed to install signal handlers; the process cannot shut down cleanly");
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("shutting down: no new work is started, requests in flight are recorded");
    shutdown.cancel();
    // From now on, Ctrl-C ends the process at once.
    interrupt.recv().await;
    tracing::warn!("terminated immediately: the next replica confirms the claims of requests in flight");
    std::process::exit(130);
}

/// Reads `RUST_LOG`: levels and `target=level`, separated by commas; `info` if it is unset or empty.
///
/// # Errors
/// If a part is neither. A word that is no level would otherwise count as a target and silence everything else.
fn log_filter(directives: &str) -> Result<Targets, String> {
    let directives = if directives.trim().is_empty() { "info" } else { directives };
    for part in directives.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        if !part.contains('=') && part.parse::<LevelFilter>().is_err() {
            return Err(format!(
                "RUST_LOG: '{part}' is not a level; use error, warn, info, debug, trace or target=level"
            ));
        }
    }
    let targets: Targets = directives.parse().map_err(|error| format!("RUST_LOG: '{directives}': {error}"))?;
    // kube logs a failed request without naming it. The caller reports the error with its context.
    let quiet = !directives.contains("kube_client");
    Ok(if quiet { targets.with_target("kube_client::client::builder", LevelFilter::OFF) } else { targets })
}

fn start_log(format: LogFormat, targets: Targets) {
    tracing_subscriber::registry().with(log_layer(format, targets, std::io::stdout)).init();
    // Panics are logged like everything else.
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(location = panic.location().map(tracing::field::display), "{panic}")
    }));
}

/// Returns the layer that writes the log lines that a filter enables.
fn log_layer<S, W>(format: LogFormat, targets: Targets, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer();
    let lines = match format {
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).with_writer(writer).boxed(),
        LogFormat::Text => lines.with_writer(writer).boxed(),
    };
    // kube logs a whole body that it cannot decode, which may be a Secret, whatever the level of the log.
    let without_bodies = filter_fn(|metadata| metadata.target() != "kube_client::client");
    lines.with_filter(targets.and(without_bodies)).boxed()
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Write, sync::Mutex};
    use tracing::Level;

    #[test]
    fn a_log_filter_has_levels_and_targets_and_info_is_the_default() {
        let enables =
            |directives: &str, target: &str, level| log_filter(directives).unwrap().would_enable(target, &level);
        let own = "workflow_run_stop_operator::operator";
        for directives in ["", " ", "info", "info,kube_client=debug", "INFO"] {
            assert!(enables(directives, own, Level::INFO) && !enables(directives, own, Level::DEBUG), "{directives}");
        }
        assert!(enables("warn,workflow_run_stop_operator=debug", own, Level::DEBUG));
        assert!(!enables("debug", "kube_client::client::builder", Level::ERROR));
        assert!(enables("info,kube_client=debug", "kube_client::client::builder", Level::DEBUG));
    }

    /// A log in memory.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_body_that_kube_cannot_decode_is_never_logged() {
        for directives in ["", "trace", "kube_client=trace", "kube_client::client=trace"] {
            for format in [LogFormat::Json, LogFormat::Text] {
                let (written, targets) = (Written::default(), log_filter(directives).unwrap());
                let writer = written.clone();
                let layer = log_layer(format, targets, move || writer.clone());
                tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
                    tracing::warn!(target: "kube_client::client", "{}", "hush");
                    tracing::error!(target: "kube_client::client::builder", "from the builder");
                    tracing::error!(target: "workflow_run_stop_operator", "our own");
                });
                let log = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
                assert!(!log.contains("hush"), "{directives}: {log}");
                assert_eq!(log.contains("our own"), !directives.contains("kube_client"), "{directives}: {log}");
                assert_eq!(log.contains("from the builder"), directives.contains("kube_client"), "{directives}: {log}");
            }
        }
    }

    #[test]
    fn a_wrong_log_filter_is_refused_by_name() {
        for (directives, part) in
            [("inf", "'inf'"), ("info,kube", "'kube'"), ("a=b", "'a=b'"), ("info,a=loud", "a=loud")]
        {
            let error = log_filter(directives).unwrap_err();
            assert!(error.starts_with("RUST_LOG: ") && error.contains(part), "{error}");
        }
    }
}
