//! Owns the handle by which a test starts the simulated Amperity API, tells it what to do, and asks what arrived.
//! Never decides what a right client does: it answers as documented or as it was told, and records everything.
//!
//! A request is judged in this order: rate limit, the documented checks, then a fault, then the proper answer.
//! A request that fails a check uses up no fault. What has arrived takes its course even if the client leaves.

mod answer;
mod fault;
mod handler;
pub mod proxy;
mod record;
mod run;
mod server;
mod task;
mod tls;
mod tokens;
mod world;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

pub use fault::{ErrorBody, Fault, RetryAfter, Took};
pub use record::{Kind, Recorded};
pub use run::{Again, Run, StopAnswerTasks};

use fault::Rule;
use world::Shared;

/// Any free port.
const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// The simulated API. It serves until it is dropped.
pub struct Simulator {
    shared: Arc<Shared>,
    address: SocketAddr,
    tls: Option<(TlsAcceptor, String)>,
    serving: Option<JoinHandle<()>>,
}

/// Where held stops wait.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HoldPoint {
    /// The stop has arrived, and the run does not know of it.
    BeforeEffect,
    /// The run was stopped, and the client does not know of it.
    AfterEffect,
}

/// Holds stops until it is released or dropped.
#[must_use = "stops are held only as long as this lives"]
#[derive(Debug)]
pub struct Hold(Arc<Semaphore>);

impl Hold {
    /// Lets one stop pass, now or when it comes.
    pub fn release_one(&self) {
        self.0.add_permits(1);
    }

    /// Lets all pass that wait, and holds no more.
    pub fn release(self) {}
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Simulator {
    /// Serves `http://127.0.0.1:PORT`.
    pub async fn start() -> Self {
        Simulator::start_with(LOOPBACK, None).await
    }

    /// Serves `https://localhost:PORT` with a certificate for `localhost`, 127.0.0.1 and `*.amperity.test`.
    pub async fn start_tls() -> Self {
        Simulator::start_with(LOOPBACK, Some(tls::acceptor(&["localhost", "127.0.0.1", "*.amperity.test"]))).await
    }

    /// Serves at this address, with TLS where there are names or addresses for its certificate.
    pub async fn start_at(address: SocketAddr, names: &[&str]) -> Self {
        Simulator::start_with(address, (!names.is_empty()).then(|| tls::acceptor(names))).await
    }

    async fn start_with(address: SocketAddr, tls: Option<(TlsAcceptor, String)>) -> Self {
        let (listener, address) = server::bind(address).await;
        let mut simulator = Simulator { shared: Arc::new(Shared::new()), address, tls, serving: None };
        simulator.serve(listener);
        simulator
    }

    fn serve(&mut self, listener: tokio::net::TcpListener) {
        let tls = self.tls.as_ref().map(|(acceptor, _)| acceptor.clone());
        let shared = Arc::clone(&self.shared);
        self.serving = Some(tokio::spawn(server::serve(listener, tls, shared)));
    }

    /// From now on connections are refused, and those that stand are closed. What has arrived takes its course.
    pub async fn go_offline(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            // Only a task that has ended has surely closed its sockets.
            let _ = serving.await;
        }
    }

    /// Serves again at the same address.
    pub async fn go_online(&mut self) {
        if self.serving.is_none() {
            let (listener, _) = server::bind(self.address).await;
            self.serve(listener);
        }
    }

    /// The authority that signed the server's certificate; empty without TLS.
    pub fn ca_pem(&self) -> String {
        self.tls.as_ref().map(|(_, pem)| pem.clone()).unwrap_or_default()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Scheme, host and port.
    pub fn origin(&self) -> String {
        match &self.tls {
            Some(_) => format!("https://localhost:{}", self.address.port()),
            None => format!("http://{}", self.address),
        }
    }

    /// What the operator's base URL is to be.
    pub fn base_url(&self) -> String {
        format!("{}/api", self.origin())
    }

    /// Adds a run, or puts it in the place of one with its id. Its own times count from now.
    pub fn add_run(&self, tenant: &str, mut run: Run) {
        run.add(tenant, Instant::now(), SystemTime::now());
        self.shared.world().put(tenant, run);
    }

    /// The state in which a run is now, also where reads are stale.
    pub fn state(&self, tenant: &str, run_id: &str) -> Option<String> {
        let now = Instant::now();
        self.shared.world().run(tenant, run_id).map(|run| run.state(now))
    }

    /// Only these tokens are good from now on, for every tenant; those that were issued are not. At first: `good-token`.
    pub fn set_tokens<T: Into<String>>(&self, tokens: impl IntoIterator<Item = T>) {
        let tokens = tokens.into_iter().map(Into::into).collect();
        self.shared.world().tokens.replace(tokens);
    }

    /// The client that gets tokens. At first: `good-client` and `good-secret`. Issued tokens stay good.
    pub fn set_client(&self, id: &str, secret: &str) {
        self.shared.world().tokens.client = (id.to_owned(), secret.to_owned());
    }

    /// How long tokens that are issued from now on are good. At first: 3600 s.
    pub fn set_expires_in(&self, seconds: u64) {
        self.shared.world().tokens.expires_in = seconds;
    }

    /// How many stops, reads and token requests of one tenant are taken in any sliding second. At first: any number.
    pub fn limit(&self, per_second: Option<usize>) {
        self.shared.world().limit.per_second = per_second;
    }

    /// The `Retry-After` of a 429 over the limit. At first: none.
    pub fn retry_after_on_limit(&self, retry_after: Option<RetryAfter>) {
        self.shared.world().limit.retry_after = retry_after;
    }

    /// A header that every answer has from now on, e.g. `Deprecation`.
    pub fn add_answer_header(&self, name: &str, value: &str) {
        let header = (name.to_owned(), value.to_owned());
        self.shared.world().answer_headers.push(header);
    }

    /// What the next stops of this run meet, one each.
    pub fn on_stop(&self, run_id: &str, faults: impl IntoIterator<Item = Fault>) {
        self.shared.world().on_stop.queue(run_id, faults);
    }

    /// What the next reads of this run meet, one each.
    pub fn on_read(&self, run_id: &str, faults: impl IntoIterator<Item = Fault>) {
        self.shared.world().on_read.queue(run_id, faults);
    }

    /// What the next requests for a token meet, one each.
    pub fn on_token(&self, faults: impl IntoIterator<Item = Fault>) {
        self.shared.world().on_token.queue("", faults);
    }

    /// What every stop of this run meets for which none is queued.
    pub fn always_on_stop(&self, run_id: &str, fault: Fault) {
        self.shared.world().on_stop.stand(run_id, fault);
    }

    /// What every read of this run meets for which none is queued.
    pub fn always_on_read(&self, run_id: &str, fault: Fault) {
        self.shared.world().on_read.stand(run_id, fault);
    }

    /// What every request for a token meets for which none is queued.
    pub fn always_on_token(&self, fault: Fault) {
        self.shared.world().on_token.stand("", fault);
    }

    /// What any request meets for which no fault is queued or standing, by what it asks for and for which run (empty
    /// where a token is asked for).
    pub fn rule(&self, rule: impl FnMut(Kind, &str) -> Option<Fault> + Send + 'static) {
        self.shared.world().rule = Some(Rule(Box::new(rule)));
    }

    /// Takes back every fault: queued, standing and by rule.
    pub fn clear_faults(&self) {
        let world = &mut *self.shared.world();
        world.rule = None;
        world.on_stop.clear();
        world.on_read.clear();
        world.on_token.clear();
    }

    /// Stops that arrive from now on are recorded and wait at this point.
    pub fn hold_stops(&self, point: HoldPoint) -> Hold {
        Hold(self.shared.world().hold(point))
    }

    /// What waits at this hold goes on waiting; what arrives from now on passes.
    pub fn pass_others(&self, hold: &Hold) {
        self.shared.world().pass_others(&hold.0);
    }

    /// Every request since the start or the last `forget`, in order of arrival.
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.journal.records().to_vec()
    }

    /// How many stops of this run arrived, whatever became of them.
    pub fn stops(&self, run_id: &str) -> usize {
        self.count(Kind::Stop, run_id)
    }

    /// How many reads of this run arrived, whatever became of them.
    pub fn reads(&self, run_id: &str) -> usize {
        self.count(Kind::Read, run_id)
    }

    /// How many stops reached this run while it was active or already stopping.
    pub fn effects(&self, run_id: &str) -> usize {
        self.shared.journal.effects(run_id)
    }

    /// Whether each stop that ever arrived for this run took effect so far, in order of arrival. `forget` leaves it.
    pub fn took_effect(&self, run_id: &str) -> Vec<bool> {
        self.shared.journal.stops(run_id)
    }

    /// The largest number of requests of this tenant that arrived within any one second, refused ones included.
    pub fn max_in_any_second(&self, tenant: &str) -> usize {
        let records = self.shared.journal.records();
        let of_tenant = records.iter().filter(|request| request.tenant.as_deref() == Some(tenant));
        record::max_in_any_second(of_tenant.map(|request| request.at).collect())
    }

    /// Waits until the record satisfies this. It is asked again at each change; it may ask the simulator as well.
    pub async fn wait_until(&self, enough: impl FnMut(&[Recorded]) -> bool) {
        self.shared.journal.wait_until(enough).await;
    }

    /// Forgets the record and the counts, not the runs.
    pub fn forget(&self) {
        self.shared.journal.forget();
    }

    fn count(&self, kind: Kind, run_id: &str) -> usize {
        let records = self.shared.journal.records();
        let of_run = records.iter().filter(|request| request.kind == kind && request.run_id.as_deref() == Some(run_id));
        of_run.count()
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.shared.ended.send_replace(true);
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}
