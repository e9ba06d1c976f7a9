//! Owns the simulated Amperity API: a test starts it, configures runs and faults, and reads the recorded requests.
//! Never judges a client: it responds as documented or as configured, and records everything.
//!
//! A request is processed in this order: rate limit, the documented checks, a fault, the normal response. A request that
//! fails a check uses up no fault. A request that has arrived is processed even if the client disconnects.

mod api_state;
mod fault;
mod handler;
pub mod proxy;
mod request_log;
mod response;
mod run;
mod server;
mod task;
pub mod tls;
mod tokens;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering};
use std::time::SystemTime;

use tokio::net::TcpSocket;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

pub use fault::{ErrorBody, Fault, RetryAfter, StopEffect};
pub use request_log::{Kind, RecordedRequest};
pub use run::{RepeatedStop, Run, StopResponseTasks};

use api_state::Shared;
use fault::FaultRule;

/// A free loopback port.
const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// The simulated API. It serves until it is dropped.
pub struct Simulator {
    shared: Arc<Shared>,
    address: SocketAddr,
    tls: Option<(TlsAcceptor, String)>,
    server: Mutex<Option<JoinHandle<()>>>,
    /// Keeps the port while offline: otherwise another test's simulator could get it.
    bound: TcpSocket,
}

/// The point at which stop requests are held.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HoldPoint {
    /// The request has arrived and the run is not stopped yet.
    BeforeEffect,
    /// The run is stopped and the response is not sent yet.
    AfterEffect,
}

/// A hold on stop requests that ends when it is released or dropped.
#[must_use = "stops are held only until this is dropped"]
#[derive(Debug)]
pub struct Hold(Arc<Semaphore>);

impl Hold {
    /// Lets one stop request pass: a held one or the next one.
    pub fn release_one(&self) {
        self.0.add_permits(1);
    }

    /// Lets all held stop requests pass, and holds no more.
    pub fn release(self) {}
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Simulator {
    /// Starts a simulator at `http://127.0.0.1:PORT`.
    pub async fn start() -> Self {
        Simulator::start_with(LOOPBACK, None).await
    }

    /// Starts a simulator at `https://localhost:PORT` with a certificate for `localhost`, 127.0.0.1 and `*.amperity.test`.
    pub async fn start_tls() -> Self {
        Simulator::start_with(LOOPBACK, Some(tls::acceptor(&["localhost", "127.0.0.1", "*.amperity.test"]))).await
    }

    /// Starts a simulator at this address. Names or addresses for a certificate enable TLS.
    pub async fn start_at(address: SocketAddr, names: &[&str]) -> Self {
        Simulator::start_with(address, (!names.is_empty()).then(|| tls::acceptor(names))).await
    }

    async fn start_with(address: SocketAddr, tls: Option<(TlsAcceptor, String)>) -> Self {
        let bound = server::bind(address);
        let address = bound.local_addr().expect("a bound socket has an address");
        let simulator = Simulator { shared: Arc::new(Shared::new()), address, tls, server: Mutex::default(), bound };
        simulator.serve();
        simulator
    }

    fn serve(&self) {
        let listener = server::listen(&self.bound);
        let tls = self.tls.as_ref().map(|(acceptor, _)| acceptor.clone());
        let shared = Arc::clone(&self.shared);
        *self.lock_server() = Some(tokio::spawn(server::serve(listener, tls, shared)));
    }

    /// Refuses new connections and closes the existing ones. Requests that have arrived are still processed.
    pub async fn go_offline(&self) {
        let server = self.lock_server().take();
        if let Some(server) = server {
            server.abort();
            // The sockets are closed when the task has ended.
            let _ = server.await;
        }
    }

    /// Accepts connections again, at the same address.
    pub async fn go_online(&self) {
        let offline = self.lock_server().is_none();
        if offline {
            self.serve();
        }
    }

    fn lock_server(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the CA certificate as PEM; empty without TLS.
    pub fn ca_pem(&self) -> String {
        self.tls.as_ref().map(|(_, pem)| pem.clone()).unwrap_or_default()
    }

    /// Returns the address it listens at.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns scheme, host and port.
    pub fn origin(&self) -> String {
        match &self.tls {
            Some(_) => format!("https://localhost:{}", self.address.port()),
            None => format!("http://{}", self.address),
        }
    }

    /// Returns the base URL for the operator.
    pub fn base_url(&self) -> String {
        format!("{}/api", self.origin())
    }

    /// Adds a run, or replaces the one with its id. Its times count from now.
    pub fn add_run(&self, tenant: &str, mut run: Run) {
        run.add(tenant, Instant::now(), SystemTime::now());
        self.shared.lock().add_run(tenant, run);
    }

    /// Returns the current state of a run, also if reads are stale.
    pub fn state(&self, tenant: &str, run_id: &str) -> Option<String> {
        let now = Instant::now();
        self.shared.lock().run(tenant, run_id).map(|run| run.state(now))
    }

    /// Makes these the only valid tokens, for every tenant; issued tokens become invalid. Initially `good-token`.
    pub fn set_tokens<T: Into<String>>(&self, tokens: impl IntoIterator<Item = T>) {
        let tokens = tokens.into_iter().map(Into::into).collect();
        self.shared.lock().tokens.replace(tokens);
    }

    /// Sets the client that may fetch tokens. Initially `good-client` with `good-secret`. Issued tokens stay valid.
    pub fn set_client(&self, id: &str, secret: &str) {
        self.shared.lock().tokens.client = (id.to_owned(), secret.to_owned());
    }

    /// Sets the lifetime of tokens that are issued from now on, in seconds. Initially 3600.
    pub fn set_expires_in(&self, seconds: u64) {
        self.shared.lock().tokens.expires_in = seconds;
    }

    /// Sets the rate limit: stops, reads and token requests of one tenant in any sliding second. Initially none.
    pub fn set_rate_limit(&self, per_second: Option<usize>) {
        self.shared.lock().limit.per_second = per_second;
    }

    /// Sets the `Retry-After` of a 429 above the rate limit. Initially none.
    pub fn set_rate_limit_retry_after(&self, retry_after: Option<RetryAfter>) {
        self.shared.lock().limit.retry_after = retry_after;
    }

    /// Adds a header, e.g. `Deprecation`, to every later response.
    pub fn add_response_header(&self, name: &str, value: &str) {
        let header = (name.to_owned(), value.to_owned());
        self.shared.lock().response_headers.push(header);
    }

    /// Queues faults for the next stops of this run, one each.
    pub fn on_stop(&self, run_id: &str, faults: impl IntoIterator<Item = Fault>) {
        self.shared.lock().on_stop.queue(run_id, faults);
    }

    /// Queues faults for the next reads of this run, one each.
    pub fn on_read(&self, run_id: &str, faults: impl IntoIterator<Item = Fault>) {
        self.shared.lock().on_read.queue(run_id, faults);
    }

    /// Queues faults for the next token requests, one each.
    pub fn on_token(&self, faults: impl IntoIterator<Item = Fault>) {
        self.shared.lock().on_token.queue("", faults);
    }

    /// Sets the fault of every stop of this run while none is queued.
    pub fn always_on_stop(&self, run_id: &str, fault: Fault) {
        self.shared.lock().on_stop.set_permanent(run_id, fault);
    }

    /// Sets the fault of every read of this run while none is queued.
    pub fn always_on_read(&self, run_id: &str, fault: Fault) {
        self.shared.lock().on_read.set_permanent(run_id, fault);
    }

    /// Sets the fault of every token request while none is queued.
    pub fn always_on_token(&self, fault: Fault) {
        self.shared.lock().on_token.set_permanent("", fault);
    }

    /// Sets a function that chooses the fault of requests without a queued or permanent one, by kind and run id (empty
    /// for token requests).
    pub fn set_fault_rule(&self, rule: impl FnMut(Kind, &str) -> Option<Fault> + Send + 'static) {
        self.shared.lock().rule = Some(FaultRule(Box::new(rule)));
    }

    /// Removes all faults: queued, permanent and by rule.
    pub fn clear_faults(&self) {
        let state = &mut *self.shared.lock();
        state.rule = None;
        state.on_stop.clear();
        state.on_read.clear();
        state.on_token.clear();
    }

    /// Holds stop requests that arrive from now on at this point. They are recorded at arrival.
    pub fn hold_stops(&self, point: HoldPoint) -> Hold {
        Hold(self.shared.lock().hold(point))
    }

    /// Lets stop requests that arrive from now on pass this hold; those that are held stay held.
    pub fn pass_new_stops(&self, hold: &Hold) {
        self.shared.lock().pass_new_stops(&hold.0);
    }

    /// Returns all requests since the start or the last `clear_requests`, in order of arrival.
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.shared.requests.records().to_vec()
    }

    /// Returns the number of connections that were accepted, with TLS those whose handshake is complete.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Returns the number of stop requests that arrived for this run.
    pub fn stops(&self, run_id: &str) -> usize {
        self.count(Kind::Stop, run_id)
    }

    /// Returns the number of reads that arrived for this run.
    pub fn reads(&self, run_id: &str) -> usize {
        self.count(Kind::Read, run_id)
    }

    /// Returns the number of stop requests that reached this run while it was active or stopping.
    pub fn effects(&self, run_id: &str) -> usize {
        self.shared.requests.effects(run_id)
    }

    /// Returns for each stop request of this run whether it took effect so far, in order of arrival. Not affected by
    /// `clear_requests`.
    pub fn stop_effects(&self, run_id: &str) -> Vec<bool> {
        self.shared.requests.stops(run_id)
    }

    /// Returns the largest number of requests of this tenant that arrived within one second, rejected ones included.
    pub fn max_in_any_second(&self, tenant: &str) -> usize {
        let records = self.shared.requests.records();
        let of_tenant = records.iter().filter(|request| request.tenant.as_deref() == Some(tenant));
        request_log::max_in_any_second(of_tenant.map(|request| request.at).collect())
    }

    /// Waits until the recorded requests satisfy this condition, which is checked after each change. It may use the
    /// simulator.
    pub async fn wait_until(&self, condition: impl FnMut(&[RecordedRequest]) -> bool) {
        self.shared.requests.wait_until(condition).await;
    }

    /// Clears the recorded requests and the counts, not the runs.
    pub fn clear_requests(&self) {
        self.shared.requests.clear();
    }

    fn count(&self, kind: Kind, run_id: &str) -> usize {
        let records = self.shared.requests.records();
        let of_run = records.iter().filter(|request| request.kind == kind && request.run_id.as_deref() == Some(run_id));
        of_run.count()
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.shared.ended.send_replace(true);
        if let Some(server) = &*self.lock_server() {
            server.abort();
        }
    }
}
