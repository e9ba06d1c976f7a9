//! Owns reading and writing in Kubernetes: resources, Secrets, claims and outcomes.
//! Never writes without a guard: every patch tests the uid and the resource version that it builds on.

use std::{sync::Arc, time::Duration};

use futures::AsyncBufRead;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{
    Client, Resource,
    api::{GetParams, Patch, PatchParams},
    core::Request,
};
use prometheus_client::metrics::{counter::Counter, family::Family};
use serde::Serialize;
use tokio::time::Instant;
use workflow_run_stop_api::{Claim, WorkflowRunStop, WorkflowRunStopStatus};

use crate::amperity::transport::Fence;
use crate::clock::Clock;
use crate::fault_injection::{Fault, is_injected};
use crate::metric_labels::ResultLabel;
use crate::reconcile::{
    api_response,
    api_turns::{ApiRequest, ApiTurn, ApiTurns},
    decide::CLAIM_VALIDITY,
    secret::{self, SecretCache},
    store_error::{is_invalid, is_refused, optional, within},
};
pub use crate::reconcile::{secret::SecretContent, store_error::StoreError};
use crate::rng;

const FIRST_RETRY: Duration = Duration::from_millis(100);
const MAX_RETRY: Duration = Duration::from_secs(5);

/// The result of a guarded write.
#[derive(Debug)]
pub enum WriteResult {
    /// Stored; the object as it is now.
    Stored(Box<WorkflowRunStop>),
    /// Not written: the status is the same already.
    Same,
    /// Not written: the object changed in between; the object as it is now.
    Changed(Box<WorkflowRunStop>),
    /// Not written: the resource is gone.
    Gone,
}

/// The result of claiming.
pub enum ClaimResult {
    /// The claim is stored.
    Claimed(Box<Claimed>),
    /// No claim is stored, because the resource changed or is gone.
    NotClaimed(WriteResult),
}

/// A stored claim: the right to send one request for a short time. Only [`Store::claim`] creates it, and [`Store::record`]
/// consumes it.
#[must_use]
pub struct Claimed {
    resource: WorkflowRunStop,
    id: String,
    until: Instant,
    from_wall: Timestamp,
    clock: Clock,
}

impl Claimed {
    /// Returns the resource as it was stored with the claim.
    pub fn resource(&self) -> &WorkflowRunStop {
        &self.resource
    }

    /// Returns the fence of this claim. It closes when the claim expires by the monotonic or by the wall clock, since only
    /// one of them may run while a process is stopped or a machine suspended. It also closes at the deadline, by the wall
    /// clock.
    pub fn fence(&self, deadline: Option<Timestamp>) -> Fence {
        let (until, from, clock) = (self.until, self.from_wall, self.clock.clone());
        let is_open = Arc::new(move || {
            let now = clock();
            let fresh = now.duration_since(from).unsigned_abs() < CLAIM_VALIDITY;
            let in_time = deadline.is_none_or(|deadline| now < deadline);
            Instant::now() < until && ((fresh && in_time) || is_injected(Fault::NoWallClock))
        });
        Fence { until, is_open }
    }
}

/// The values of the label `result` of status writes.
pub const RESULTS: [&str; 4] = ["stored", "conflict", "gone", "failed"];

/// Reads and writes in the name of one replica.
#[derive(Clone)]
pub struct Store {
    client: Client,
    holder: Arc<str>,
    clock: Clock,
    secrets: Arc<SecretCache>,
    turns: ApiTurns,
    /// Status writes by result.
    pub writes: Family<ResultLabel, Counter>,
}

impl Store {
    /// Creates a store that claims in the name of `holder`.
    pub fn new(client: Client, holder: &str, clock: Clock) -> Self {
        let (secrets, turns, writes) = Default::default();
        Self { client, holder: holder.into(), clock, secrets, turns, writes }
    }

    /// Returns the name in which claims are made.
    pub fn holder(&self) -> &str {
        &self.holder
    }

    /// Returns the resource as it is stored now; `None` if it is gone, also if there is another one of its name.
    ///
    /// # Errors
    /// If the request to the API server fails.
    pub async fn read(&self, resource: &WorkflowRunStop) -> Result<Option<WorkflowRunStop>, StoreError> {
        self.get(resource.namespace(), resource.name(), resource.uid()).await
    }

    /// Returns the resource with this namespace, name and uid as it is stored now; `None` if it is gone.
    ///
    /// # Errors
    /// If the request to the API server fails.
    pub async fn get(&self, namespace: &str, name: &str, uid: &str) -> Result<Option<WorkflowRunStop>, StoreError> {
        let request = path(namespace).get(name, &GetParams::default()).map_err(kube::Error::BuildRequest)?;
        let _turn = self.turns.turn(namespace, ApiRequest::Read).await;
        let found = optional(resource_in(self.client.request_stream(request)).await)?;
        Ok(found.filter(|found| found.uid() == uid))
    }

    /// Returns a Secret, at most one second old; `None` if there is none.
    ///
    /// # Errors
    /// If the request to the API server fails, or the operator may not read the Secret.
    pub async fn secret(&self, namespace: &str, name: &str) -> Result<Option<SecretContent>, StoreError> {
        let read = async {
            let _turn = self.turns.turn(namespace, ApiRequest::Read).await;
            Ok((Instant::now(), secret::read(&self.client, namespace, name).await?))
        };
        self.secrets.get_or(namespace, name, read).await
    }

    /// Waits until a claim may be written. It is valid for a short time only, so that the wait has to come before.
    pub async fn turn_to_claim(&self, resource: &WorkflowRunStop) -> ApiTurn {
        self.turns.turn(resource.namespace(), ApiRequest::Claim).await
    }

    /// Stores a claim, which is the right to send one stop request. `status` returns the new status with it.
    ///
    /// # Errors
    /// If it is not known whether the claim is stored; then nothing may be sent. The claim may still appear, and is treated
    /// like that of a crashed process.
    pub async fn claim(
        &self,
        turn: ApiTurn,
        resource: &WorkflowRunStop,
        status: impl FnOnce(Claim) -> WorkflowRunStopStatus,
    ) -> Result<ClaimResult, StoreError> {
        let (start, from_wall) = (Instant::now(), (self.clock)());
        let id = rng::id();
        let claim = Claim { id: id.clone(), holder: self.holder.to_string(), time: Time(from_wall), ended: None };
        let until = start + CLAIM_VALIDITY;
        let claimed = |resource| {
            let clock = self.clock.clone();
            ClaimResult::Claimed(Box::new(Claimed { resource, id: id.clone(), until, from_wall, clock }))
        };
        let ours = |stored: &WorkflowRunStop| stored.claim().is_some_and(|stored| stored.id == id);
        if is_injected(Fault::NoClaim) {
            let status = Some(status(claim));
            return Ok(claimed(WorkflowRunStop { status, ..resource.clone() }));
        }
        match self.write_in_turn(turn, resource, &status(claim)).await {
            Ok(WriteResult::Stored(stored)) => Ok(claimed(*stored)),
            // A proxy on the way repeated the patch, and the second one was refused.
            Ok(WriteResult::Changed(stored)) if ours(&stored) => Ok(claimed(*stored)),
            Ok(written) => Ok(ClaimResult::NotClaimed(written)),
            Err(StoreError::Invalid(why)) => Err(StoreError::Invalid(why)),
            // The answer was lost: a read shows whether the claim is stored.
            Err(error) => match self.read(resource).await? {
                Some(stored) if ours(&stored) => Ok(claimed(stored)),
                Some(_) | None => Err(error),
            },
        }
    }

    /// Writes the outcome of a claimed request. Retries until it is stored, the resource is gone or finished, or the claim is
    /// no longer ours. `status` returns the outcome for the current resource: its spec may have changed in between.
    pub async fn record(
        &self,
        claimed: Claimed,
        status: impl Fn(&WorkflowRunStop) -> WorkflowRunStopStatus,
    ) -> WriteResult {
        let Claimed { mut resource, id, until: _, from_wall: _, clock: _ } = claimed;
        let (mut bare, mut wait) = (false, FIRST_RETRY);
        loop {
            let outcome = status(&resource);
            let outcome = if bare { outcome.bare() } else { outcome };
            let unguarded = is_injected(Fault::RecordWithoutClaim) || is_injected(Fault::NoClaim);
            let turn = self.turns.turn(resource.namespace(), ApiRequest::Write).await;
            let error = match self.patch(turn, &resource, &outcome, unguarded).await {
                Ok(stored) => {
                    self.count("stored");
                    return WriteResult::Stored(Box::new(stored));
                }
                Err(error) => error,
            };
            // Whatever went wrong, the stored object shows how to go on.
            match self.read(&resource).await {
                Ok(None) => {
                    self.count("gone");
                    return WriteResult::Gone;
                }
                // Only the answer was lost.
                Ok(Some(stored)) if stored.status.as_ref() == Some(&outcome) => {
                    self.count("stored");
                    return WriteResult::Stored(Box::new(stored));
                }
                // A final OutcomeUnknown keeps the claim.
                Ok(Some(stored)) if stored.is_finished() || stored.claim().is_none_or(|claim| claim.id != id) => {
                    self.count("conflict");
                    return WriteResult::Changed(Box::new(stored));
                }
                Ok(Some(stored)) if stored.resource_version() != resource.resource_version() => {
                    self.count("conflict");
                    resource = stored;
                    continue;
                }
                Ok(Some(_)) if is_invalid(&error) => bare = true,
                Ok(Some(_)) | Err(_) => {}
            }
            self.count("failed");
            let (namespace, name) = (resource.namespace(), resource.name());
            tracing::warn!(namespace, name, %error, "failed to store the outcome, will retry");
            tokio::time::sleep(wait.mul_f64(rng::upper_half())).await;
            wait = (wait * 2).min(MAX_RETRY);
        }
    }

    /// Writes a status as [`Store::write`], without the details of the run if the API server rejects it with them.
    ///
    /// # Errors
    /// If it is not known whether it is stored, or the API server rejects it.
    pub async fn update(
        &self,
        resource: &WorkflowRunStop,
        status: WorkflowRunStopStatus,
    ) -> Result<WriteResult, StoreError> {
        match self.write(resource, &status).await {
            // Better a status without the details of the run than none.
            Err(StoreError::Invalid(_)) if status.task_instances.is_some() => {
                self.write(resource, &status.bare()).await
            }
            written => written,
        }
    }

    /// Writes a status that builds on the version of `resource`, unless it is the same already.
    ///
    /// # Errors
    /// If it is not known whether it is stored, or the API server rejects it.
    pub async fn write(
        &self,
        resource: &WorkflowRunStop,
        status: &WorkflowRunStopStatus,
    ) -> Result<WriteResult, StoreError> {
        if resource.status.as_ref() == Some(status) {
            return Ok(WriteResult::Same);
        }
        let turn = self.turns.turn(resource.namespace(), ApiRequest::Write).await;
        // In a box: it is large, and a step that waits for its turn does not have it yet.
        Box::pin(self.write_in_turn(turn, resource, status)).await
    }

    async fn write_in_turn(
        &self,
        turn: ApiTurn,
        resource: &WorkflowRunStop,
        status: &WorkflowRunStopStatus,
    ) -> Result<WriteResult, StoreError> {
        let written = self.try_write(turn, resource, status).await;
        self.count(match &written {
            Ok(WriteResult::Stored(_) | WriteResult::Same) => "stored",
            Ok(WriteResult::Changed(_)) => "conflict",
            Ok(WriteResult::Gone) => "gone",
            Err(_) => "failed",
        });
        written
    }

    fn count(&self, result: &'static str) {
        self.writes.get_or_create(&ResultLabel { result }).inc();
    }

    async fn try_write(
        &self,
        turn: ApiTurn,
        resource: &WorkflowRunStop,
        status: &WorkflowRunStopStatus,
    ) -> Result<WriteResult, StoreError> {
        match self.patch(turn, resource, status, is_injected(Fault::ClaimWithoutVersion)).await {
            Ok(stored) => Ok(WriteResult::Stored(Box::new(stored))),
            Err(error) if is_refused(&error) => match self.read(resource).await? {
                None => Ok(WriteResult::Gone),
                Some(stored) if stored.resource_version() == resource.resource_version() => {
                    Err(StoreError::Invalid(error.to_string()))
                }
                Some(stored) => Ok(WriteResult::Changed(Box::new(stored))),
            },
            Err(error) => Err(error),
        }
    }

    /// Patches the status if uid and resource version are unchanged (`unguarded` is for fault injection only).
    async fn patch(
        &self,
        _turn: ApiTurn,
        resource: &WorkflowRunStop,
        status: &WorkflowRunStopStatus,
        unguarded: bool,
    ) -> Result<WorkflowRunStop, StoreError> {
        let uid = Operation { op: "test", path: "/metadata/uid", value: resource.uid() };
        let version = Operation { op: "test", path: "/metadata/resourceVersion", value: resource.resource_version() };
        let status = Operation { op: "add", path: "/status", value: status };
        // kube would hold the status as a tree of values, which takes many times as much memory as its text.
        let operations = if unguarded {
            serde_json::to_vec(&(&uid, &status))
        } else {
            serde_json::to_vec(&(&uid, &version, &status))
        };
        let empty = Patch::Json::<()>(Default::default());
        let request =
            path(resource.namespace()).patch_subresource("status", resource.name(), &PatchParams::default(), &empty);
        let mut request = request.map_err(kube::Error::BuildRequest)?;
        *request.body_mut() = operations.map_err(kube::Error::SerdeError)?;
        resource_in(self.client.request_stream(request)).await
    }
}

/// An operation of a JSON patch.
#[derive(Serialize)]
struct Operation<T> {
    op: &'static str,
    path: &'static str,
    value: T,
}

/// Returns the builder of requests for the resources of a namespace.
fn path(namespace: &str) -> Request {
    Request::new(WorkflowRunStop::url_path(&(), Some(namespace)))
}

/// Waits for a response whose body is a resource.
async fn resource_in(
    response: impl Future<Output = kube::Result<impl AsyncBufRead>>,
) -> Result<WorkflowRunStop, StoreError> {
    within(Box::pin(async { api_response::stop(response.await?).await })).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicI64, Ordering};
    use workflow_run_stop_api::WorkflowRunStopSpec;

    const START: i64 = 1_800_000_000;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(START + second).unwrap()
    }

    /// Returns the fence of a claim that is made now, with this deadline, and the seconds of its wall clock.
    fn a_fence(deadline: Option<i64>) -> (Fence, Arc<AtomicI64>) {
        let seconds = Arc::new(AtomicI64::new(0));
        let clock: Clock = {
            let seconds = seconds.clone();
            Arc::new(move || at(seconds.load(Ordering::SeqCst)))
        };
        let resource = WorkflowRunStop::new("a", WorkflowRunStopSpec::new("wf-1", "acme", "amperity"));
        let until = Instant::now() + CLAIM_VALIDITY;
        let claimed = Claimed { resource, id: "c".into(), until, from_wall: at(0), clock };
        (claimed.fence(deadline.map(at)), seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_allows_sending_for_five_seconds_by_the_monotonic_clock() {
        let (fence, _) = a_fence(None);
        tokio::time::advance(Duration::from_millis(4_999)).await;
        assert!((fence.is_open)());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!(fence.is_open)());
        assert_eq!(fence.until, Instant::now());
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_allows_sending_for_five_seconds_by_the_wall_clock_whichever_way_it_jumps() {
        let (fence, seconds) = a_fence(None);
        for (second, open) in [(4, true), (5, false), (3600, false), (-4, true), (-5, false)] {
            seconds.store(second, Ordering::SeqCst);
            assert_eq!((fence.is_open)(), open, "{second}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_closes_the_fence_by_the_wall_clock() {
        let (fence, seconds) = a_fence(Some(2));
        for (second, open) in [(1, true), (2, false), (3, false)] {
            seconds.store(second, Ordering::SeqCst);
            assert_eq!((fence.is_open)(), open, "{second}");
        }
    }
}
