//! Owns the measurement of stops that wait for the rate limit.
//! Never lets one of them finish: each request is answered with 429 and a long `Retry-After`.

use std::time::Duration;

use lab::{
    control_plane::ControlPlane,
    simulator::{Kind, RetryAfter, Simulator},
    testing::namespace_with_secret,
};
use tokio::time::{Instant, sleep_until, timeout};

use crate::{
    apiserver::Counts,
    bare_client,
    process::Operator,
    seed::{self, Seed},
};

/// The time for which the first 429 closes a budget, in seconds: longer than a measurement.
const RETRY_AFTER: u64 = 900;

/// The time within which the first stop must be sent.
const FIRST_STOP_WITHIN: Duration = Duration::from_secs(120);

const MINUTE: Duration = Duration::from_secs(60);

/// The time after the list at which the quiet minute begins: every stop has waited for two minutes or longer at its end.
const QUIET_FROM: Duration = Duration::from_secs(130);

/// The tenants of the stops.
#[derive(Clone, Copy, PartialEq)]
pub enum Tenants {
    /// One tenant in one namespace.
    One,
    /// 1,000 tenants in 50 namespaces, or fewer, so that ten stops wait for each.
    Many,
}

impl Tenants {
    /// Returns the numbers of tenants and namespaces of this number of stops.
    pub fn numbers(self, stops: usize) -> (usize, usize) {
        match self {
            Self::One => (1, 1),
            Self::Many => ((stops / 10).clamp(1, 1000), (stops / 10).clamp(1, 50)),
        }
    }
}

/// The memory of an operator without stops, in MiB: a minute after its start, and the peak until then.
pub struct Idle {
    pub rss: f64,
    pub peak: f64,
}

/// The measurements with waiting stops. Sizes are in MiB and CPU times in seconds.
pub struct Waiting {
    pub stops: usize,
    /// The time from the start of the operator, and of a bare client, to the end of the list.
    pub listed: Duration,
    pub bare_listed: Duration,
    /// The time from the start of the operator to the first stop request.
    pub first_stop: Duration,
    /// One minute after the end of the list.
    pub rss: f64,
    /// The peak until the end of the list, until a minute later, and until the end of the measurement.
    pub peaks: [f64; 3],
    /// The CPU time until the end of the list, and in the minute after it.
    pub cpu: [f64; 2],
    /// Stop requests sent until a minute after the end of the list.
    pub sent: u64,
    /// Stops in the queue of the rate limit a minute after the end of the list.
    pub queued: f64,
    /// Requests to the API server until a minute after the end of the list, and in all.
    pub requests: [Counts; 2],
    /// The CPU time and the requests to the API server in the quiet minute.
    pub quiet: Option<(f64, Counts)>,
    /// The number of namespaces.
    pub namespaces: usize,
    /// The peak of the memory cgroup, if there is one.
    pub cgroup_peak: Option<f64>,
}

/// Measures an operator without stops.
pub async fn idle(cluster: &ControlPlane) -> Idle {
    let amperity = Simulator::start().await;
    let mut operator = Operator::start(cluster, &amperity);
    let listed = operator.listed().await;
    sleep_until(operator.started + listed + MINUTE / 4).await;
    let idle = Idle { rss: operator.mebibytes("VmRSS"), peak: operator.mebibytes("VmHWM") };
    println!("idle: {:.1} MiB, peak {:.1} MiB", idle.rss, idle.peak);
    operator.kill().await;
    idle
}

/// Measures an operator with this number of waiting stops, and with `quiet` also in a minute in which nothing happens.
pub async fn measure(cluster: &ControlPlane, tenants: Tenants, stops: usize, quiet: bool) -> Waiting {
    let amperity = Simulator::start().await;
    amperity.set_rate_limit(Some(0));
    amperity.set_rate_limit_retry_after(Some(RetryAfter::Seconds(RETRY_AFTER)));
    let namespaces = store(cluster, tenants, stops).await;
    let bare_listed = bare_client::wait_for(cluster, stops).await;
    println!("a bare client lists {stops} stops in {:.2} s", bare_listed.as_secs_f64());

    let before = Counts::now(cluster).await;
    let mut operator = Operator::start(cluster, &amperity);
    let first_stop = async {
        amperity.wait_until(|requests| requests.iter().any(|request| request.kind == Kind::Stop)).await;
        amperity.requests().iter().find(|request| request.kind == Kind::Stop).map(|request| request.at)
    };
    let first_stop = timeout(FIRST_STOP_WITHIN, first_stop);
    let (first_stop, listed) = tokio::join!(first_stop, operator.listed());
    let first_stop = first_stop.ok().flatten().expect("a stop is sent, see the log of the operator") - operator.started;
    let (peak_listed, cpu_listed) = (operator.mebibytes("VmHWM"), operator.cpu());
    println!(
        "listed after {:.2} s, first stop after {:.2} s, {} MiB",
        listed.as_secs_f64(),
        first_stop.as_secs_f64(),
        operator.mebibytes("VmRSS")
    );

    let ended = operator.started + listed;
    sleep_until(ended + MINUTE).await;
    let (rss, peak_minute, cpu_minute) = (operator.mebibytes("VmRSS"), operator.mebibytes("VmHWM"), operator.cpu());
    let after_minute = Counts::now(cluster).await;
    let sent = amperity.requests().iter().filter(|request| request.kind == Kind::Stop).count() as u64;
    let queued = operator.metric("budget_waiting", "purpose=\"stop\"").await;
    println!("after a minute {rss:.1} MiB, peak {peak_minute:.1} MiB, CPU {:.1} s", cpu_minute - cpu_listed);
    println!("  {sent} stops sent, {queued} wait; {}", after_minute.since(&before).text());

    let quiet = match quiet {
        true => Some(quiet_minute(cluster, &operator, ended + QUIET_FROM).await),
        false => None,
    };
    let all = Counts::now(cluster).await.since(&before);
    let measured = Waiting {
        stops,
        listed,
        bare_listed,
        first_stop,
        rss,
        peaks: [peak_listed, peak_minute, operator.mebibytes("VmHWM")],
        cpu: [cpu_listed, cpu_minute - cpu_listed],
        sent,
        queued,
        requests: [after_minute.since(&before), all],
        quiet,
        namespaces,
        cgroup_peak: operator.cgroup.as_ref().and_then(|cgroup| cgroup.peak()),
    };
    operator.kill().await;
    measured
}

/// Measures the minute from this time: the CPU time, and the requests to the API server.
async fn quiet_minute(cluster: &ControlPlane, operator: &Operator, from: Instant) -> (f64, Counts) {
    sleep_until(from).await;
    let (requests, cpu, since) = (Counts::now(cluster).await, operator.cpu(), Instant::now());
    sleep_until(since + MINUTE).await;
    let (requests, cpu) = (Counts::now(cluster).await.since(&requests), operator.cpu() - cpu);
    println!("  quiet minute: {:.1} MiB, CPU {cpu:.1} s; {}", operator.mebibytes("VmRSS"), requests.text());
    (cpu, requests)
}

/// Stores the stops, and returns the number of namespaces.
async fn store(cluster: &ControlPlane, tenants: Tenants, stops: usize) -> usize {
    let (tenants, namespace_count) = tenants.numbers(stops);
    let mut namespaces = vec![];
    for _ in 0..namespace_count {
        namespaces.push(namespace_with_secret(cluster).await);
    }
    let seed = |index: usize| {
        let tenant = index % tenants;
        // Each tenant is in one namespace.
        Seed { namespace: namespaces[tenant % namespace_count].clone(), tenant: format!("tenant-{tenant:04}"), index }
    };
    seed::store(cluster, (0..stops).map(seed).collect(), None).await;
    namespace_count
}
