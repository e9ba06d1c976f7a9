//! Owns the choice of the next step: one pure function from what is seen to what is done.
//! Never does IO, reads a clock or throws dice; nothing else looks at the status to choose.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::resource::{Claim, UnclearAnswer, WorkflowRunStop, WorkflowRunStopStatus};
use crate::run::Phase;
use crate::stop::backoff::MAX_DELAY;

/// How long a claim entitles to send, from before it was written.
pub const CLAIM_VALIDITY: Duration = Duration::from_secs(5);

/// How far apart the clocks of two machines may be, where a written time has to be believed.
pub const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// The operator's settings that the choice depends on.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The limit for a request from its start to the end of its answer.
    pub request_timeout: Duration,
    /// How long a request without an answer may go on working at the API's side.
    pub settle_time: Duration,
}

/// What this process knows beside the resource, measured by its own monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    /// For how long the resource's claim was seen unchanged.
    pub claim_unchanged: Duration,
    /// For how long the run has been known to be active after the claim's request ended; `None` where it
    /// was not read since.
    pub active_for: Option<Duration>,
    /// The run was read while it is followed, and what was read is not stored yet.
    pub unrecorded: bool,
    /// How long until the run is to be read again; `None` where this process has not read it yet.
    pub next_look: Option<Duration>,
}

/// How a resource ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The stop was accepted and the run ended.
    Ended,
    /// The stop was accepted and the run is not followed.
    NotFollowed,
    /// The stop was accepted and the time to follow the run is over.
    StillActive,
    /// The stop was not accepted in time.
    DeadlineExceeded,
}

/// What it means when the run is read as active after an unclear request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActiveRead {
    /// Nothing yet: the request may still be at work.
    First,
    /// That the request had no effect: it was active before, and the settle time has passed since.
    Again,
}

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Finished or being deleted.
    Nothing,
    /// Suspended: wait for a change.
    Suspended,
    /// Wait so long, unless something changes.
    Wait(Duration),
    /// Send the stop request, at the latest in so long.
    Stop(Option<Duration>),
    /// Read the run to learn what became of the claim's request.
    Confirm(ActiveRead),
    /// Read the run that was stopped.
    Read,
    /// Store what was read of it.
    Record,
    /// Write the end.
    Finish(Ending),
}

/// Chooses the next step.
pub fn decide(resource: &WorkflowRunStop, now: Timestamp, seen: &Seen, rules: &Rules) -> Decision {
    if is_left_alone(resource) {
        return Decision::Nothing;
    }
    let unwritten = WorkflowRunStopStatus::default();
    let status = resource.status.as_ref().unwrap_or(&unwritten);
    let request = status.stop_request.as_ref();
    let next_attempt = request.and_then(|request| request.next_attempt_time.as_ref()).and_then(|Time(next)| {
        let ahead = until(now, *next);
        // A time that no operator would have written comes from a clock that was wrong.
        (Duration::ZERO < ahead && ahead <= MAX_DELAY.max(rules.settle_time) + CLOCK_SKEW).then_some(ahead)
    });

    if let Some(claim) = resource.claim() {
        let quiet = quiet_time(claim, now, seen, rules);
        return match quiet.max(next_attempt.unwrap_or_default()) {
            Duration::ZERO => Decision::Confirm(match seen.active_for {
                Some(active) if rules.settle_time <= active => ActiveRead::Again,
                Some(_) | None => ActiveRead::First,
            }),
            wait => Decision::Wait(wait),
        };
    }
    if let Some(accepted) = request.and_then(|request| request.accepted_time.as_ref()) {
        return follow(resource, status, until(now, follow_end(resource, accepted)), seen);
    }
    if resource.spec.suspend {
        return Decision::Suspended;
    }
    let deadline = deadline(resource).map(|deadline| until(now, deadline));
    if deadline == Some(Duration::ZERO) {
        return Decision::Finish(Ending::DeadlineExceeded);
    }
    match next_attempt {
        Some(ahead) => Decision::Wait(ahead),
        None => Decision::Stop(deadline),
    }
}

fn is_left_alone(resource: &WorkflowRunStop) -> bool {
    resource.is_finished() || resource.metadata.deletion_timestamp.is_some()
}

/// What follows after acceptance, with so much time left to follow the run.
fn follow(resource: &WorkflowRunStop, status: &WorkflowRunStopStatus, left: Duration, seen: &Seen) -> Decision {
    // Before all else, also before the end: that would tell less than is known.
    if seen.unrecorded {
        return Decision::Record;
    }
    let ended = status.state.as_deref().is_some_and(|state| Phase::of(state).has_ended());
    let followed = resource.spec.follow_timeout_seconds != 0;
    let over = left == Duration::ZERO;
    // A run that ended without a word of its tasks is read once more for them.
    if ended && (status.task_instances.is_some() || !followed || over) {
        return Decision::Finish(Ending::Ended);
    }
    if !followed {
        return Decision::Finish(Ending::NotFollowed);
    }
    if over {
        return Decision::Finish(Ending::StillActive);
    }
    match seen.next_look.unwrap_or_default() {
        Duration::ZERO => Decision::Read,
        wait => Decision::Wait(wait),
    }
}

/// How long until the claim's request has surely had its time: when it was seen unchanged by the own
/// clock for that long, or when its written time is so long ago that even clocks apart agree.
fn quiet_time(claim: &Claim, now: Timestamp, seen: &Seen, rules: &Rules) -> Duration {
    let (Time(since), quiet) = match &claim.ended {
        None => (&claim.time, CLAIM_VALIDITY + rules.request_timeout + rules.settle_time),
        Some(ended) => match ended.answer {
            UnclearAnswer::NoAnswer | UnclearAnswer::ServerError | UnclearAnswer::NotOurRun => {
                (&ended.time, rules.settle_time)
            }
            // The request was answered: only reading tells what the answer means.
            UnclearAnswer::Conflict => (&ended.time, Duration::ZERO),
        },
    };
    let observed = quiet.saturating_sub(seen.claim_unchanged);
    let written = until(now, since.saturating_add(quiet + CLOCK_SKEW).unwrap_or(Timestamp::MAX));
    observed.min(written)
}

/// How long until the resource has to be looked at whatever else it waits for: its stop deadline or the
/// end of its following. A claim has to be cleared up first, however long that takes.
pub fn at_the_latest(resource: &WorkflowRunStop, now: Timestamp) -> Option<Duration> {
    let request = resource.status.as_ref().and_then(|status| status.stop_request.as_ref());
    let accepted = request.and_then(|request| request.accepted_time.as_ref());
    let end = match accepted {
        _ if is_left_alone(resource) || resource.claim().is_some() => None,
        Some(accepted) => Some(follow_end(resource, accepted)),
        None if resource.spec.suspend => None,
        None => deadline(resource),
    };
    end.map(|end| until(now, end))
}

/// The last moment in which a stop request may be sent.
fn deadline(resource: &WorkflowRunStop) -> Option<Timestamp> {
    let seconds = u64::try_from(resource.spec.stop_deadline_seconds?).ok()?;
    let Time(created) = resource.metadata.creation_timestamp.as_ref()?;
    Some(created.saturating_add(Duration::from_secs(seconds)).unwrap_or(Timestamp::MAX))
}

fn follow_end(resource: &WorkflowRunStop, Time(accepted): &Time) -> Timestamp {
    let seconds = u64::try_from(resource.spec.follow_timeout_seconds).unwrap_or_default();
    accepted.saturating_add(Duration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

fn until(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(then.duration_since(now)).unwrap_or(Duration::ZERO)
}
