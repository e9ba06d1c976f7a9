//! Owns the choice of the next step: one pure function from what is seen to what is done.
//! Never does IO, reads a clock or throws dice; nothing else looks at the status to choose.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use workflow_run_stop_api::conditions::{self, ConditionType, Reason};
use workflow_run_stop_api::workflow_run::Phase;
use workflow_run_stop_api::{Claim, UnclearAnswer, WorkflowRunStop, WorkflowRunStopStatus};

use crate::reconcile::backoff::MAX_DELAY;

/// How long a claim allows sending, counted from before it was written.
pub const CLAIM_VALIDITY: Duration = Duration::from_secs(5);

/// A claim stays open at least this long, and at least `followTimeoutSeconds`, before the outcome counts as unknown.
const MIN_OPEN_CLAIM: Duration = Duration::from_secs(3600);

/// How much longer than it would wait itself a replica waits for a time that another one wrote: the clocks of two machines
/// differ, and written times are rounded up to seconds.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// The operator's settings that the choice depends on.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The limit for a request from its writing to the end of its answer.
    pub request_timeout: Duration,
    /// How long a request without an answer may go on working at the API's side.
    pub settle_time: Duration,
}

/// What this process knows beside the resource, measured by its own monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Observed {
    /// How long the resource's claim has been observed unchanged.
    pub claim_unchanged: Duration,
    /// How long `nextAttemptTime` has been observed unchanged.
    pub next_attempt_unchanged: Duration,
    /// How long ago the run was first read as active after the last stop request ended; `None` where it was not.
    pub active_for: Option<Duration>,
    /// How long ago the first of the latest reads in a row came back unreadable; `None` where the last one did not.
    pub unreadable_for: Option<Duration>,
    /// How long ago this process first tried to read the run for this request, or since its acceptance; `None` where it
    /// did not.
    pub tried_for: Option<Duration>,
    /// The run was read, and what was read is not stored yet.
    pub unrecorded: bool,
    /// Time until the next read of the run; `None` where this process has not read it yet.
    pub next_look: Option<Duration>,
}

/// How a resource ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The stop was accepted and the run ended.
    Ended,
    /// The stop was accepted and the run is not followed.
    NotFollowed,
    /// The stop was accepted and `followTimeoutSeconds` expired.
    StillActive,
    /// The resource was created at or after its `notAfter`.
    Expired,
    /// The stop was not accepted before `stopDeadlineSeconds` or `notAfter`.
    DeadlineExceeded,
    /// A stop request was sent, and reading the run has not shown its outcome for too long.
    OutcomeUnknown,
}

/// What earlier reads establish together with one more of the same kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Established {
    /// The run was read as active before, the settle time ago: active again means that the request had no effect.
    pub active: bool,
    /// The run has been unreadable since the settle time: unreadable again means that it stays so.
    pub unreadable: bool,
}

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Finished or being deleted.
    Nothing,
    /// Suspended: wait for a change.
    Suspended,
    /// Wait this long, unless something changes.
    Wait(Duration),
    /// Send the stop request, before this time if there is one.
    Stop(Option<Timestamp>),
    /// Read the run, and only if it is still active, send a further stop request, before this time if there is one.
    Repeat(Option<Timestamp>, Established),
    /// Read the run to learn what became of the claim's request.
    Confirm(Established),
    /// Read the run that was stopped.
    Read(Established),
    /// Store what was read of it.
    Record,
    /// Write the end.
    Finish(Ending),
}

/// Chooses the next step.
pub fn decide(resource: &WorkflowRunStop, now: Timestamp, observed: &Observed, rules: &Rules) -> Decision {
    if is_left_alone(resource) {
        return Decision::Nothing;
    }
    let unwritten = WorkflowRunStopStatus::default();
    let status = resource.status.as_ref().unwrap_or(&unwritten);
    let request = status.stop_request.as_ref();
    let next_attempt = request.and_then(|request| request.next_attempt_time.as_ref()).map(|Time(next)| {
        // A time that lies further ahead comes from another clock. It is not ignored: of two replicas whose clocks are far
        // apart, each would take the other one's backoff for over.
        let longest = MAX_DELAY.max(rules.settle_time) + CLOCK_SKEW;
        until(now, *next).min(longest.saturating_sub(observed.next_attempt_unchanged))
    });
    let next_attempt = next_attempt.filter(|wait| !wait.is_zero());

    // Before all else, also before an end: that would say less than is known.
    if observed.unrecorded {
        return Decision::Record;
    }
    if let Some(claim) = resource.claim() {
        let quiet = quiet_time(claim, observed, rules);
        if quiet.is_zero() && is_hopeless(resource, claim, now, (observed, rules)) {
            return Decision::Finish(Ending::OutcomeUnknown);
        }
        return match quiet.max(next_attempt.unwrap_or_default()) {
            Duration::ZERO => Decision::Confirm(established(observed, rules)),
            wait => Decision::Wait(wait),
        };
    }
    if let Some(accepted) = request.and_then(|request| request.accepted_time.as_ref()) {
        return follow(resource, (now, accepted), observed, rules);
    }
    if let Some(not_after) = not_after(resource) {
        // Both times are written, so that whose clock is right is no matter.
        if not_after <= resource.created() && request.is_none_or(|request| request.attempts == 0) {
            return Decision::Finish(Ending::Expired);
        }
        if not_after <= now {
            return Decision::Finish(Ending::DeadlineExceeded);
        }
    }
    if resource.spec.suspend {
        return Decision::Suspended;
    }
    let deadline = deadline(resource);
    if deadline.is_some_and(|deadline| deadline <= now) {
        return Decision::Finish(Ending::DeadlineExceeded);
    }
    match next_attempt {
        Some(ahead) => Decision::Wait(ahead),
        None if may_have_had_an_effect(status) => Decision::Repeat(deadline, established(observed, rules)),
        None => Decision::Stop(deadline),
    }
}

fn is_left_alone(resource: &WorkflowRunStop) -> bool {
    resource.is_finished() || resource.metadata.deletion_timestamp.is_some()
}

/// The step after acceptance.
fn follow(
    resource: &WorkflowRunStop,
    (now, accepted): (Timestamp, &Time),
    observed: &Observed,
    rules: &Rules,
) -> Decision {
    let state = resource.status.as_ref().and_then(|status| status.state.as_deref());
    let tasks_known = resource.status.as_ref().is_some_and(|status| status.task_instances.is_some());
    let ended = state.is_some_and(|state| Phase::of(state).has_ended());
    let followed = resource.spec.follow_timeout_seconds != 0;
    // Also where no replica worked until now, the run is read once before its following ends.
    let over = until(now, follow_end(resource, accepted)).is_zero();
    let over_and_read = over && observed.tried_for.is_some();
    // A run that ended without a word of its tasks is read once more for them.
    if ended && (tasks_known || !followed || over_and_read) {
        return Decision::Finish(Ending::Ended);
    }
    if !followed {
        return Decision::Finish(Ending::NotFollowed);
    }
    if over_and_read {
        return Decision::Finish(Ending::StillActive);
    }
    match observed.next_look.filter(|_| !over).unwrap_or_default() {
        Duration::ZERO => Decision::Read(established(observed, rules)),
        wait => Decision::Wait(wait),
    }
}

/// What the reads so far establish together with one more of the same kind.
fn established(observed: &Observed, rules: &Rules) -> Established {
    let settled = |since: Option<Duration>| since.is_some_and(|since| rules.settle_time <= since);
    Established { active: settled(observed.active_for), unreadable: settled(observed.unreadable_for) }
}

/// True where a stop request was sent before that is known to have had no effect only because the run was read as active
/// twice. Reading it right before the next request narrows the window for a wrong repetition to one round trip.
fn may_have_had_an_effect(status: &WorkflowRunStopStatus) -> bool {
    let dropped = conditions::find(&status.conditions, ConditionType::StopAccepted).and_then(Reason::of);
    let attempts = status.stop_request.as_ref().map_or(0, |request| request.attempts);
    0 < attempts && !dropped.is_some_and(Reason::excludes_an_effect)
}

/// Time until the claimed request can no longer be in flight: the claim observed unchanged by the own monotonic clock.
/// The claim's written time is not believed: a wall clock that jumped would make a fresh claim look old.
fn quiet_time(claim: &Claim, observed: &Observed, rules: &Rules) -> Duration {
    let quiet = match &claim.ended {
        None => in_flight(rules),
        Some(ended) => match ended.answer {
            UnclearAnswer::NoAnswer | UnclearAnswer::ServerError | UnclearAnswer::NotOurRun => rules.settle_time,
            // The request was answered: only reading tells what the answer means.
            UnclearAnswer::Conflict => Duration::ZERO,
        },
    };
    quiet.saturating_sub(observed.claim_unchanged)
}

/// True where the outcome of an open claim counts as unknown: it is open for long, this process has tried to read the run
/// for a while, and no read lets expect that the next one decides.
fn is_hopeless(
    resource: &WorkflowRunStop,
    claim: &Claim,
    now: Timestamp,
    (observed, rules): (&Observed, &Rules),
) -> bool {
    let open = follow_timeout(resource).max(MIN_OPEN_CLAIM);
    // Also by what was observed: the clock that wrote the time may have been far ahead.
    let Time(since) = claim.time;
    let over = since.saturating_add(open).is_ok_and(|end| end <= now) || open <= observed.claim_unchanged;
    let tried_enough = observed.tried_for.is_some_and(|tried| in_flight(rules) <= tried);
    // The second of two reads comes after the settle time, or after a failure or two with their backoff.
    let expected = rules.settle_time + MAX_DELAY * 2;
    let undecided = [observed.active_for, observed.unreadable_for].into_iter().flatten().all(|since| expected <= since);
    over && tried_enough && undecided
}

/// The longest time from before a claim is written until its request can no longer take effect.
fn in_flight(rules: &Rules) -> Duration {
    CLAIM_VALIDITY + rules.request_timeout + rules.settle_time
}

/// Time until the resource has to be looked at whatever else it waits for: its deadline or the
/// end of its following. A claim has to be cleared up first, however long that takes.
pub fn at_the_latest(resource: &WorkflowRunStop, now: Timestamp) -> Option<Duration> {
    let end = match resource.accepted_time() {
        _ if is_left_alone(resource) || resource.claim().is_some() => None,
        Some(accepted) => Some(follow_end(resource, accepted)),
        None if resource.spec.suspend => not_after(resource),
        None => deadline(resource),
    };
    end.map(|end| until(now, end))
}

/// When no stop request may be sent any more: the earlier of `notAfter` and the end of `stopDeadlineSeconds`.
fn deadline(resource: &WorkflowRunStop) -> Option<Timestamp> {
    let seconds = resource.spec.stop_deadline_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let end = |seconds| resource.created().saturating_add(Duration::from_secs(seconds)).unwrap_or(Timestamp::MAX);
    let stop_deadline = seconds.filter(|_| resource.metadata.creation_timestamp.is_some()).map(end);
    stop_deadline.into_iter().chain(not_after(resource)).min()
}

fn not_after(resource: &WorkflowRunStop) -> Option<Timestamp> {
    resource.spec.not_after.as_ref().map(|Time(not_after)| *not_after)
}

fn follow_end(resource: &WorkflowRunStop, Time(accepted): &Time) -> Timestamp {
    accepted.saturating_add(follow_timeout(resource)).unwrap_or(Timestamp::MAX)
}

fn follow_timeout(resource: &WorkflowRunStop) -> Duration {
    Duration::from_secs(u64::try_from(resource.spec.follow_timeout_seconds).unwrap_or_default())
}

fn until(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(then.duration_since(now)).unwrap_or(Duration::ZERO)
}
