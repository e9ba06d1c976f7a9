//! Owns the measurement of reads over TLS: what one read of a followed run costs, and how many reads one core can do.
//! Never lets a run end, so that no status changes.

use std::{fs, path::Path, time::Duration};

use lab::{
    control_plane::ControlPlane,
    simulator::{Kind, Run, Simulator},
    testing::namespace_with_secret,
};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    process::Operator,
    seed::{self, Seed},
};

/// The number of tenants. Each may be read ten times a second.
const TENANTS: usize = 100;

/// The size of the measurement.
pub struct Size {
    /// The runs of each tenant that are followed for a while.
    followed: usize,
    /// The runs of each tenant that are all due at once.
    due: usize,
    /// The time after which the first reads are over, which also write to the statuses.
    warm_up: Duration,
    /// The time that is measured then.
    measured: Duration,
}

impl Size {
    pub const FULL: Self =
        Self { followed: 10, due: 100, warm_up: Duration::from_secs(20), measured: Duration::from_secs(40) };
    /// Enough to see that everything works.
    pub const SMALL: Self =
        Self { followed: 1, due: 2, warm_up: Duration::from_secs(1), measured: Duration::from_secs(5) };
}

/// The longest time until all runs are read once.
const MOST: Duration = Duration::from_secs(120);

/// The measurements of reads.
pub struct Reads {
    /// Of runs that are followed for a while already.
    pub followed: Measured,
    /// Of very many runs, of which none was read before.
    pub due: Measured,
    /// The sockets in TIME_WAIT after that.
    pub time_wait: usize,
}

/// The measurements of a phase.
pub struct Measured {
    /// The number of runs.
    pub runs: usize,
    /// The number of reads, and of connections that were made for them.
    pub reads: usize,
    pub connections: usize,
    /// The reads a second.
    pub rate: f64,
    /// The CPU time of each read, in ms.
    pub cpu: f64,
}

/// The counts at the start of a phase.
struct Phase {
    started: Instant,
    reads: usize,
    connections: usize,
    cpu: f64,
}

impl Phase {
    fn begin(operator: &Operator, amperity: &Simulator) -> Self {
        let (reads, connections) = (reads(amperity), amperity.connections());
        Self { started: Instant::now(), reads, connections, cpu: operator.cpu() }
    }

    fn end(self, runs: usize, operator: &Operator, amperity: &Simulator) -> Measured {
        let end = Self::begin(operator, amperity);
        let reads = end.reads - self.reads;
        let rate = reads as f64 / (end.started - self.started).as_secs_f64();
        let cpu = (end.cpu - self.cpu) * 1000.0 / reads as f64;
        let connections = end.connections - self.connections;
        println!("{runs} runs: {reads} reads, {rate:.0} a second, {cpu:.3} ms CPU each, {connections} connections");
        Measured { runs, reads, connections, rate, cpu }
    }
}

/// Measures reads.
pub async fn measure(cluster: &ControlPlane, size: &Size) -> Reads {
    let (followed, due) = (TENANTS * size.followed, TENANTS * size.due);
    let (operator, amperity) = follow(cluster, size.followed).await;
    all_read(&amperity, followed).await;
    sleep(size.warm_up).await;
    let phase = Phase::begin(&operator, &amperity);
    sleep(size.measured).await;
    let followed = phase.end(followed, &operator, &amperity);
    operator.kill().await;

    let (operator, amperity) = follow(cluster, size.due).await;
    amperity.wait_until(|requests| !requests.is_empty()).await;
    let phase = Phase::begin(&operator, &amperity);
    all_read(&amperity, due).await;
    let due = phase.end(due, &operator, &amperity);
    let time_wait = time_wait(&amperity);
    operator.kill().await;
    Reads { followed, due, time_wait }
}

/// Stores runs of all tenants whose stop was accepted, and starts an operator that follows them.
async fn follow(cluster: &ControlPlane, runs: usize) -> (Operator, Simulator) {
    let (amperity, namespace) = (Simulator::start_tls().await, namespace_with_secret(cluster).await);
    let seed = |index: usize| {
        let tenant = format!("tenant-{:04}", index % TENANTS);
        amperity.add_run(&tenant, Run::new(seed::run_id(index)).in_state("stopping"));
        Seed { namespace: namespace.clone(), tenant, index }
    };
    let seeds = (0..TENANTS * runs).map(seed).collect();
    let request = json!({"attempts": 1, "acceptedTime": jiff::Timestamp::now(), "httpStatus": 200});
    let status = json!({"state": "stopping", "observedGeneration": 1, "stopRequest": request});
    seed::store(cluster, seeds, Some(status)).await;
    let authority = Path::new(env!("CARGO_TARGET_TMPDIR")).join("scale-authority.crt");
    fs::write(&authority, amperity.ca_pem()).unwrap();
    let operator = Operator::start_with(cluster, &amperity.base_url(), &[("SSL_CERT_FILE", &authority)]);
    (operator, amperity)
}

async fn all_read(amperity: &Simulator, count: usize) {
    let all =
        amperity.wait_until(|requests| count <= requests.iter().filter(|request| request.kind == Kind::Read).count());
    timeout(MOST, all).await.expect("all runs are read");
}

fn reads(amperity: &Simulator) -> usize {
    amperity.requests().iter().filter(|request| request.kind == Kind::Read).count()
}

/// Returns the number of sockets in TIME_WAIT of connections to the simulator.
fn time_wait(amperity: &Simulator) -> usize {
    let port = format!(":{:04X}", amperity.address().port());
    let sockets = ["/proc/net/tcp", "/proc/net/tcp6"].map(|file| fs::read_to_string(file).unwrap_or_default());
    let is_waiting = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        matches!(fields[..], [_, local, remote, "06", ..] if local.ends_with(&port) || remote.ends_with(&port))
    };
    sockets.iter().flat_map(|text| text.lines()).filter(is_waiting).count()
}
