//! Owns the measurement of the memory that hostile answers take: many at once, each as large as it can be.
//! Never fails on a slow machine: it prints figures. A limit in `MAX_MIB` makes it fail.
//!
//! `cargo bench --bench answers [KIND…]` measures these kinds, or all of them. `SCHEME=http` leaves out TLS. The server
//! and each client run as processes of their own, so that only the client is measured.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod hostile;

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use jiff::Timestamp;
use tokio::{net::TcpListener, time::Instant};
use workflow_run_stop_operator::amperity::{
    answer::ReadAnswer,
    budget::Budget,
    client::{Amperity, Settings},
    credentials::Token,
    endpoint::{AllowedHosts, Endpoints, RunId},
    purpose::Purpose,
    wait_queue::Requester,
};

use hostile::KINDS;

/// The number of answers that are received at once.
const AT_ONCE: usize = 100;

fn main() {
    let args: Vec<_> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    // As the operator.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match &args[..] {
        ["server", scheme, kind, at_once, ca] => {
            rustls::crypto::ring::default_provider().install_default().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let base = format!("{scheme}://{}/api", listener.local_addr().unwrap());
                let at_once = at_once.parse().unwrap();
                hostile::serve(listener, scheme, kind, at_once, ca, || println!("{base}")).await;
            });
        }
        ["client", base, at_once, tenants] => {
            runtime.block_on(receive(base, at_once.parse().unwrap(), tenants.parse().unwrap()));
        }
        [] => measure(&KINDS),
        kinds => measure(kinds),
    }
}

/// Measures each kind, and prints a line for it.
fn measure(kinds: &[&str]) {
    let max = std::env::var("MAX_MIB").ok().and_then(|max| max.parse::<f64>().ok());
    let scheme = std::env::var("SCHEME").unwrap_or("https".to_owned());
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem").display().to_string();
    for kind in kinds {
        for (at_once, tenants) in [(1, 1), (AT_ONCE, 1), (AT_ONCE, AT_ONCE)] {
            let (at_once, tenants) = (at_once.to_string(), tenants.to_string());
            let (mut server, base) = start(&["server", &scheme, kind, &at_once, &ca], &ca);
            let (mut client, result) = start(&["client", &base, &at_once, &tenants], &ca);
            client.wait().unwrap();
            server.kill().unwrap();
            server.wait().unwrap();
            println!("{kind:12} {at_once:>3} answers of {tenants:>3} tenants: {result}");
            let peak: f64 = result.split_whitespace().next().unwrap_or_default().parse().unwrap_or(f64::INFINITY);
            assert!(max.is_none_or(|max| peak <= max), "more than {max:?} MiB");
        }
    }
}

/// Starts this program with other arguments, and with the variable for glibc that the image sets. It trusts this
/// authority. Returns it with the first line of its output.
fn start(args: &[&str], ca: &str) -> (Child, String) {
    let mut program = Command::new(std::env::current_exe().unwrap());
    program.args(args).env("SSL_CERT_FILE", ca).env("MALLOC_MMAP_THRESHOLD_", "65536");
    let mut child = program.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    (child, line.trim().to_owned())
}

/// Receives answers at the same time, keeps what was decoded until all are there, and prints the memory that it took.
async fn receive(base: &str, at_once: usize, tenants: usize) {
    rustls::crypto::ring::default_provider().install_default().unwrap();
    let settings = Settings { api_version: "2024-04-01".into(), request_timeout: Duration::from_secs(60) };
    let amperity = Amperity::new(&settings, Arc::new(|| Timestamp::UNIX_EPOCH)).unwrap();
    let (endpoints, budget) = (Endpoints::new(base, AllowedHosts::parse("").unwrap()).unwrap(), Budget::new(1000));
    let read = async |run_id: &str, index: usize| {
        let endpoint = endpoints.of(&format!("t{}", index % tenants), None).unwrap();
        let slot = budget
            .acquire(&endpoint.budget_key(), &Requester::new("bench", "s", Purpose::Read, Timestamp::UNIX_EPOCH))
            .await;
        amperity.read(&endpoint, &RunId::parse(run_id).unwrap(), &Token::bearer("t").unwrap(), slot).await
    };
    read("wf-warm-up", 0).await;
    let (idle, start) = (mebibytes("VmRSS"), Instant::now());
    let answers = join_all((0..at_once).map(|index| read("wf-1", index))).await;
    let kept = |answer: &ReadAnswer| match answer {
        ReadAnswer::Run(run) => run.tasks.as_ref().map_or(0, Vec::len),
        ReadAnswer::Unreadable(_) | ReadAnswer::Failed(_) => 0,
    };
    let decoded = answers.iter().filter(|answer| matches!(answer, ReadAnswer::Run(_))).count();
    let tasks: usize = answers.iter().map(kept).sum();
    let first = answers.iter().find_map(|answer| match answer {
        ReadAnswer::Run(_) => None,
        ReadAnswer::Unreadable(info) => Some(info.detail()),
        ReadAnswer::Failed(failure) => Some(format!("{failure:?}")),
    });
    println!(
        "{:.1} MiB above idle ({idle:.1}), {:.1} after, {:.2} s, {decoded} runs with {tasks} tasks {}",
        mebibytes("VmHWM") - idle,
        mebibytes("VmRSS") - idle,
        start.elapsed().as_secs_f64(),
        first.unwrap_or_default()
    );
}

fn mebibytes(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}
