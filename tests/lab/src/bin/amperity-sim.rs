//! Owns the simulated Amperity as a program: what pods of a real cluster reach it by, and the record that scripts read.
//! Never decides what a right client does, and never keeps a run from one start to the next.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is there to be read in a terminal")]

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
    simulator::{Fault, Recorded, Run, Simulator},
};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "usage: amperity-sim --listen ADDRESS:PORT --record FILE [--tls NAME,ADDRESS,... --ca FILE] [--dns NAME]

Knows the runs of examples/, and of the tenant acme2-max also
  wf-quick-1 to wf-quick-50   stop at once
  wf-slow-1 to wf-slow-50     answer a stop only after 5 seconds
Takes the token demo-token, and the client demo-client with demo-secret.
Writes a line of JSON to the record for each request when it arrives, and with --tls its authority's certificate to --ca.
With --dns, it is also the name server at port 53 of that address, which knows the one name as its own.
Ends with SIGTERM.";

/// How many runs of each kind there are beside those of the examples.
const SPARE: usize = 50;

/// Longer than a drain needs to begin, and shorter than it may take.
const SLOW: Duration = Duration::from_secs(5);

/// What the command line says.
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
        put(ca, &amperity.ca_pem())?;
    }
    examples::add_to(&amperity);
    for n in 1..=SPARE {
        amperity.add_run(examples::TENANT, Run::new(format!("wf-quick-{n}")).with_tasks(2));
        let slow = format!("wf-slow-{n}");
        amperity.add_run(examples::TENANT, Run::new(&slow).with_tasks(2));
        amperity.always_on_stop(&slow, Fault::Slow(SLOW));
    }
    println!("serving {}", base_url(options.listen, options.tls.is_some()));

    let mut end = signal(SignalKind::terminate())?;
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
        () = recording => Err(format!("the record cannot be written: {failed:?}").into()),
        error = serve_names(options) => Err(format!("no names can be served: {error}").into()),
        _ = end.recv() => Ok(()),
    }
}

/// Serves the name where one is given; only a failure ends it.
async fn serve_names(options: &Options) -> std::io::Error {
    match (&options.dns, options.listen.ip()) {
        (None, _) => std::future::pending().await,
        (Some(name), IpAddr::V4(address)) => match dns::serve(SocketAddr::new(address.into(), 53), name, address).await
        {
            Ok(()) => std::io::Error::other("it ended"),
            Err(error) => error,
        },
        (Some(_), IpAddr::V6(_)) => std::io::Error::other("only for an address of version 4"),
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

/// Whole or not at all, for those who wait for it.
fn put(file: &Path, text: &str) -> std::io::Result<()> {
    let new = file.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(new, file)
}

fn line(request: &Recorded) -> serde_json::Value {
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
