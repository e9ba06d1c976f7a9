//! Owns the facts of a resource on which decisions and reports depend: all that is kept in memory while it waits.
//! Never does IO, and holds no condition's message, no task and no metadata that others may make large.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use workflow_run_stop_api::conditions::{self, ConditionType, Reason};
use workflow_run_stop_api::workflow_run::Phase;
use workflow_run_stop_api::{Claim, UnclearAnswer, WorkflowRunStop};

/// The facts of one version of a resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// The resource version; `None` if it is not a number. Then every other version counts as newer, and the guards of
    /// the writes decide.
    pub resource_version: Option<u64>,
    /// The generation of the spec.
    pub generation: Option<i64>,
    /// The generation that the status belongs to.
    pub observed_generation: Option<i64>,
    /// The creation time; `None` for an object that was not stored by an API server.
    pub created: Option<Timestamp>,
    /// True if the resource is being deleted.
    pub deleting: bool,
    /// True if the resource has finished.
    pub finished: bool,
    /// The name of the Secret in `spec.credentialsSecretRef`.
    pub secret: Arc<str>,
    /// `spec.suspend`.
    pub suspend: bool,
    /// `spec.stopDeadlineSeconds`.
    pub stop_deadline_seconds: Option<i32>,
    /// `spec.notAfter`.
    pub not_after: Option<Timestamp>,
    /// `spec.followTimeoutSeconds`.
    pub follow_timeout_seconds: i32,
    /// The facts of the stop request. In a box, since most resources that wait have none.
    pub request: Option<Box<RequestFacts>>,
    /// The meaning of the run's last state; `None` if no state is known.
    pub phase: Option<Phase>,
    /// True if the tasks of the run are known.
    pub has_tasks: bool,
    /// The reason of `Ready`.
    pub ready: Option<Reason>,
    /// The reason of `StopAccepted`.
    pub stop_accepted: Option<Reason>,
}

/// The facts of a stop request.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestFacts {
    /// The number of stop requests claimed.
    pub attempts: i32,
    /// The claim of a request that may be in flight or whose outcome is not known.
    pub claim: Option<ClaimFacts>,
    /// The time at which the operator learned that Amperity accepted the stop.
    pub accepted: Option<Timestamp>,
    /// The earliest time of the next attempt.
    pub next_attempt: Option<Timestamp>,
}

/// The facts of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimFacts {
    /// The id of the claim.
    pub id: String,
    /// The replica that made the claim.
    pub holder: String,
    /// The time of the claim.
    pub time: Timestamp,
    /// The kind of the unclear answer with which the request ended; `None` if it may be in flight.
    pub ended: Option<UnclearAnswer>,
}

impl Facts {
    /// Returns the facts of a resource.
    pub fn of(resource: &WorkflowRunStop) -> Self {
        let (metadata, spec) = (&resource.metadata, &resource.spec);
        let status = resource.status.as_ref();
        let time = |time: Option<&Time>| time.map(|Time(time)| *time);
        let reason = |kind| conditions::find(&status?.conditions, kind).and_then(Reason::of);
        let claim = |claim: &Claim| ClaimFacts {
            id: claim.id.clone(),
            holder: claim.holder.clone(),
            time: claim.time.0,
            ended: claim.ended.as_ref().map(|ended| ended.answer),
        };
        let request = resource.stop_request().map(|request| RequestFacts {
            attempts: request.attempts,
            claim: request.claim.as_ref().map(claim),
            accepted: time(request.accepted_time.as_ref()),
            next_attempt: time(request.next_attempt_time.as_ref()),
        });
        Self {
            resource_version: resource.resource_version().parse().ok(),
            generation: metadata.generation,
            observed_generation: status.and_then(|status| status.observed_generation),
            created: time(metadata.creation_timestamp.as_ref()),
            deleting: metadata.deletion_timestamp.is_some(),
            finished: resource.is_finished(),
            secret: spec.credentials_secret_ref.name.as_str().into(),
            suspend: spec.suspend,
            stop_deadline_seconds: spec.stop_deadline_seconds,
            not_after: time(spec.not_after.as_ref()),
            follow_timeout_seconds: spec.follow_timeout_seconds,
            request: request.map(Box::new),
            phase: status.and_then(|status| status.state.as_deref()).map(Phase::of),
            has_tasks: status.is_some_and(|status| status.task_instances.is_some()),
            ready: reason(ConditionType::Ready),
            stop_accepted: reason(ConditionType::StopAccepted),
        }
    }

    /// Returns the number of stop requests claimed.
    pub fn attempts(&self) -> i32 {
        self.request.as_ref().map_or(0, |request| request.attempts)
    }

    /// Returns the claim of a request that may be in flight or whose outcome is not known.
    pub fn claim(&self) -> Option<&ClaimFacts> {
        self.request.as_ref()?.claim.as_ref()
    }

    /// Returns the time at which the operator learned that Amperity accepted the stop.
    pub fn accepted(&self) -> Option<Timestamp> {
        self.request.as_ref()?.accepted
    }

    /// Returns the earliest time of the next attempt.
    pub fn next_attempt(&self) -> Option<Timestamp> {
        self.request.as_ref()?.next_attempt
    }

    /// Returns the creation time, or the Unix epoch if there is none.
    pub fn created(&self) -> Timestamp {
        self.created.unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// Returns the creation time in seconds since the Unix epoch, by which resources are ordered. The API server stores no
    /// fractions.
    pub fn created_second(&self) -> i64 {
        self.created().as_second()
    }

    /// Returns true if the status says already that the resource waits for this reason.
    pub fn announces(&self, reason: Reason) -> bool {
        self.ready == Some(reason) && self.observed_generation == self.generation
    }

    /// Returns true unless `other` is known to be newer than or the same as this version.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        self.resource_version.zip(other.resource_version).is_none_or(|(this, other)| other < this)
    }

    /// Returns true if these facts are newer than `known` and differ in a part that others may change and that a decision
    /// depends on. With `any_spec`, a changed spec does not matter.
    pub fn outdate(&self, known: &Self, any_spec: bool) -> bool {
        let same = (any_spec || self.generation == known.generation)
            && self.deleting == known.deleting
            && self.claim() == known.claim()
            && self.accepted().is_some() == known.accepted().is_some()
            && self.finished == known.finished;
        self.is_newer_than(known) && !same
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use workflow_run_stop_api::{StopRequest, WorkflowRunStopSpec, WorkflowRunStopStatus};

    pub const THEN: Time = Time(Timestamp::UNIX_EPOCH);

    /// Returns a stop of this version.
    pub fn a_stop(version: &str) -> WorkflowRunStop {
        let mut stop = WorkflowRunStop::new("a", WorkflowRunStopSpec::new("wf-1", "acme", "amperity"));
        stop.metadata.resource_version = Some(version.into());
        stop.metadata.generation = Some(1);
        stop
    }

    /// Returns a stop of this version with a stop request, which is changed before.
    pub fn with_request(version: &str, change: impl Fn(&mut StopRequest)) -> WorkflowRunStop {
        let mut request = StopRequest { attempts: 1, ..StopRequest::default() };
        change(&mut request);
        let status = WorkflowRunStopStatus { stop_request: Some(request), ..WorkflowRunStopStatus::default() };
        WorkflowRunStop { status: Some(status), ..a_stop(version) }
    }

    #[test]
    fn only_a_newer_version_with_a_change_that_matters_outdates_known_facts() {
        let known = Facts::of(&a_stop("5"));
        let outdates = |resource: &WorkflowRunStop| Facts::of(resource).outdate(&known, false);
        let deleting = |version: &str| {
            let mut stop = a_stop(version);
            stop.metadata.deletion_timestamp = Some(THEN);
            stop
        };
        assert!(!outdates(&a_stop("6")), "nothing changed");
        assert!(!outdates(&with_request("6", |_| {})), "attempts do not matter");
        assert!(!outdates(&deleting("4")) && !outdates(&deleting("5")), "not newer");
        assert!(outdates(&deleting("6")));
        assert!(outdates(&deleting("not a number")), "the guard of a write decides");
        let claim = || Some(Claim { id: "c".into(), holder: "pod-1".into(), time: THEN, ended: None });
        assert!(outdates(&with_request("6", |request| request.claim = claim())));
        assert!(outdates(&with_request("6", |request| request.accepted_time = Some(THEN))));
        let mut finished = with_request("6", |_| {});
        finished.status.as_mut().unwrap().completion_time = Some(THEN);
        assert!(outdates(&finished));
        let mut spec = a_stop("6");
        spec.metadata.generation = Some(2);
        assert!(outdates(&spec));
        assert!(!Facts::of(&spec).outdate(&known, true), "what was read is valid for any spec");
        assert!(Facts::of(&deleting("6")).outdate(&known, true));
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        let newer = |this: &str, other: &str| Facts::of(&a_stop(this)).is_newer_than(&Facts::of(&a_stop(other)));
        for (this, other, expected) in [
            ("4", "5", false),
            ("5", "5", false),
            ("6", "5", true),
            ("10", "9", true),
            ("9", "10", false),
            ("x", "5", true),
        ] {
            assert_eq!(newer(this, other), expected, "{this} {other}");
        }
    }
}
