//! Owns the simulated Amperity as a program: its flags, its TLS and DNS for pods, and the request log for scripts.
//! Never judges a client, and never keeps runs across restarts.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line program")]

use std::{
    error::Error,
    fs::File,
    io::Write,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use jiff::Timestamp;
use lab::{
    dns, examples,
    simulator::{Fault, RecordedRequest, Run, Simulator},
};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str =
    "usage: amperity-sim --listen ADDRESS:PORT --record FILE [--tls NAME,ADDRESS,... --ca FILE] [--dns NAME]

Serves the runs of examples/, and for the tenant acme2-max also
  wf-quick-1 to wf-quick-50   stop at once
  wf-slow-1 to wf-slow-50     respond to a stop after 5 seconds
Accepts the token demo-token, and the client demo-client with demo-secret.
Writes a line of JSON to the record for each request when it arrives, and with --tls the CA certificate to --ca.
With --dns, it also serves DNS at port 53 of its address, and resolves NAME to that address.
Exits on SIGTERM.";

/// Number of runs of each kind in addition to those of the examples.
const ADDITIONAL_RUNS: usize = 50;

/// Longer than the start of a drain takes, shorter than the drain timeout.
const SLOW_RESPONSE: Duration = Duration::from_secs(5);

/// The command line options.
struct Options {
    listen: SocketAddr,
    record: PathBuf,
    tls: Option<(String, PathBuf)>,
    dns: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let Some(options) = options(&args) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match serve(&options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("amperity-sim: {error}");
            ExitCode::FAILURE
        }
    }
}

fn options(args: &[String]) -> Option<Options> {
    let (mut listen, mut record, mut names, mut ca, mut dns) = (None, None, None, None, None);
    for pair in args.chunks(2) {
        let [flag, value] = pair else { return None };
        match flag.as_str() {
            "--listen" => listen = Some(value.parse().ok()?),
            "--record" => record = Some(PathBuf::from(value)),
            "--tls" => names = Some(value.clone()),
            "--ca" => ca = Some(PathBuf::from(value)),
            "--dns" => dns = Some(value.clone()),
            _ => return None,
        }
    }
    let tls = match (names, ca) {
        (None, None) => None,
        (names, ca) => Some((names?, ca?)),
    };
    Some(Options { listen: listen?, record: record?, tls, dns })
}

async fn serve(options: &Options) -> Result<(), Box<dyn Error>> {
    let mut record = File::create(&options.record)?;
    let names: Vec<_> = options.tls.iter().flat_map(|(names, _)| names.split(',')).collect();
    let amperity = Simulator::start_at(options.listen, &names).await;
    if let Some((_, ca)) = &options.tls {
        write_atomically(ca, &amperity.ca_pem())?;
    }
    examples::set_up(&amperity);
    for n in 1..=ADDITIONAL_RUNS {
        amperity.add_run(examples::TENANT, Run::new(format!("wf-quick-{n}")).with_tasks(2));
        let slow = format!("wf-slow-{n}");
        amperity.add_run(examples::TENANT, Run::new(&slow).with_tasks(2));
        amperity.always_on_stop(&slow, Fault::Slow(SLOW_RESPONSE));
    }
    println!("serving {}", base_url(options.listen, options.tls.is_some()));

    let mut terminate = signal(SignalKind::terminate())?;
    let mut written = 0;
    let mut failed = None;
    let recording = amperity.wait_until(|requests| {
        for request in &requests[written..] {
            if let Err(error) = writeln!(record, "{}", line(request)) {
                failed = Some(error);
            }
        }
        written = requests.len();
        failed.is_some()
    });
    tokio::select! {
        () = recording => Err(format!("cannot write the record: {failed:?}").into()),
        error = serve_dns(options) => Err(format!("cannot serve DNS: {error}").into()),
        _ = terminate.recv() => Ok(()),
    }
}

/// Serves DNS if a name is given. Returns only if that fails.
async fn serve_dns(options: &Options) -> std::io::Error {
    match (&options.dns, options.listen.ip()) {
        (None, _) => std::future::pending().await,
        (Some(name), IpAddr::V4(address)) => match dns::serve(SocketAddr::new(address.into(), 53), name, address).await
        {
            Ok(()) => std::io::Error::other("the server stopped"),
            Err(error) => error,
        },
        (Some(_), IpAddr::V6(_)) => std::io::Error::other("--dns needs an IPv4 address"),
    }
}

fn base_url(listen: SocketAddr, tls: bool) -> String {
    let scheme = if tls { "https" } else { "http" };
    let host = match listen.ip() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    format!("{scheme}://{host}:{}/api", listen.port())
}

/// Writes a file atomically, because scripts wait for it to exist.
fn write_atomically(file: &Path, text: &str) -> std::io::Result<()> {
    let new = file.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(new, file)
}

/// Returns the line of the record for a request.
fn line(request: &RecordedRequest) -> serde_json::Value {
    let at = Timestamp::try_from(request.wall).map(|at| at.to_string()).unwrap_or_default();
    json!({
        "at": at,
        "kind": format!("{:?}", request.kind).to_lowercase(),
        "run": request.run_id,
        "tenant": request.tenant,
        "method": request.method,
        "path": request.path,
    })
}
