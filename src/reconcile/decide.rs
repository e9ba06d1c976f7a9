//! Owns the choice of the next step, in one pure function. No other code reads the status to choose one.
//! Never does IO and reads no clock or random number.

use std::time::Duration;

use jiff::Timestamp;
use workflow_run_stop_api::UnclearAnswer;
use workflow_run_stop_api::conditions::Reason;
use workflow_run_stop_api::workflow_run::Phase;

use crate::amperity::purpose::Purpose;
use crate::reconcile::backoff::{MAX_DELAY, read_delay};
use crate::reconcile::facts::{ClaimFacts, Facts};

/// The time for which a claim allows sending, counted from before it was written.
pub const CLAIM_VALIDITY: Duration = Duration::from_secs(5);

/// The shortest time after which the outcome of an open claim counts as unknown, even if `followTimeoutSeconds` is
/// shorter.
const MIN_OPEN_CLAIM: Duration = Duration::from_secs(3600);

/// The tolerance for a `nextAttemptTime` that another replica wrote: clocks of two machines differ, and written times are
/// rounded up to seconds.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// The operator's settings that the decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The timeout of a request, from when it is written to the end of the response.
    pub request_timeout: Duration,
    /// The time after which a request without a clear answer can no longer take effect.
    pub settle_time: Duration,
}

/// The observations of this process, in addition to the resource, measured on its own monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Observed {
    /// Time for which the claim has been observed unchanged.
    pub claim_unchanged: Duration,
    /// Time for which `nextAttemptTime` has been observed unchanged.
    pub next_attempt_unchanged: Duration,
    /// Time since the run was first read as active after the last stop request ended; `None` if it was not.
    pub active_for: Option<Duration>,
    /// Time since the first of the latest consecutive unreadable reads; `None` if the last read was not unreadable.
    pub unreadable_for: Option<Duration>,
    /// Time since this process first tried to read the run for this request, or after its acceptance; `None` if it
    /// has not tried.
    pub tried_for: Option<Duration>,
    /// True if a read of the run is not stored yet.
    pub unrecorded: bool,
    /// Time until the next read of the run; `None` if this process has not read it yet.
    pub next_read: Option<Duration>,
}

/// The ending of a resource.
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
    /// A stop request was sent, and reading the run did not show its outcome in time.
    OutcomeUnknown,
}

/// The conclusions that the next read allows if its result is the same as that of an earlier read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Established {
    /// The run was read as active at least the settle time ago. If the next read shows it active again, the request had
    /// no effect.
    pub active: bool,
    /// The run has been unreadable for at least the settle time. If the next read cannot read it either, it counts as
    /// unreadable for good.
    pub unreadable: bool,
}

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Do nothing: the resource is finished or being deleted.
    Nothing,
    /// Wait for a change: the stop is suspended.
    Suspended,
    /// Wait for this time, or until the resource changes.
    Wait(Duration),
    /// Send the stop request, not later than this time.
    Stop(Option<Timestamp>),
    /// Read the run and, only if it is still active, repeat the stop request, not later than this time.
    Repeat(Option<Timestamp>, Established),
    /// Read the run to learn the outcome of the claimed request.
    Confirm(Established),
    /// Read the run after its stop was accepted.
    Read(Established),
    /// Store a read of the run that could not be stored before.
    Record,
    /// Write the final status.
    Finish(Ending),
}

impl Decision {
    /// Returns the purpose of the request that the step sends first; `None` if it sends none.
    pub fn purpose(self) -> Option<Purpose> {
        match self {
            Self::Stop(_) | Self::Repeat(..) => Some(Purpose::Stop),
            Self::Confirm(_) | Self::Read(_) => Some(Purpose::Read),
            Self::Nothing | Self::Suspended | Self::Wait(_) | Self::Record | Self::Finish(_) => None,
        }
    }
}

/// Chooses the next step.
pub fn decide(facts: &Facts, now: Timestamp, observed: &Observed, rules: &Rules) -> Decision {
    if is_left_alone(facts) {
        return Decision::Nothing;
    }
    let next_attempt = facts.next_attempt().map(|next| {
        // A time further ahead than the longest backoff was written by a clock that is ahead of this one. The wait is
        // limited to that backoff, but not skipped: otherwise two replicas whose clocks are far apart would ignore each
        // other's backoff.
        let longest = MAX_DELAY.max(rules.settle_time) + CLOCK_SKEW;
        until(now, next).min(longest.saturating_sub(observed.next_attempt_unchanged))
    });
    let next_attempt = next_attempt.filter(|wait| !wait.is_zero());

    // First of all, also before an ending: a final status without this read would say less than is known.
    if observed.unrecorded {
        return Decision::Record;
    }
    if let Some(claim) = facts.claim() {
        let quiet = quiet_time(claim, observed, rules);
        if quiet.is_zero() && is_hopeless(facts, claim, now, (observed, rules)) {
            return Decision::Finish(Ending::OutcomeUnknown);
        }
        return match quiet.max(next_attempt.unwrap_or_default()) {
            Duration::ZERO => Decision::Confirm(established(observed, rules)),
            wait => Decision::Wait(wait),
        };
    }
    if let Some(accepted) = facts.accepted() {
        return follow(facts, (now, accepted), observed, rules);
    }
    if let Some(not_after) = facts.not_after {
        // Both are stored times, so no clock matters.
        if not_after <= facts.created() && facts.attempts() == 0 {
            return Decision::Finish(Ending::Expired);
        }
        if not_after <= now {
            return Decision::Finish(Ending::DeadlineExceeded);
        }
    }
    if facts.suspend {
        return Decision::Suspended;
    }
    let deadline = deadline(facts);
    if deadline.is_some_and(|deadline| deadline <= now) {
        return Decision::Finish(Ending::DeadlineExceeded);
    }
    match next_attempt {
        Some(ahead) => Decision::Wait(ahead),
        None if may_have_had_an_effect(facts) => Decision::Repeat(deadline, established(observed, rules)),
        None => Decision::Stop(deadline),
    }
}

fn is_left_alone(facts: &Facts) -> bool {
    facts.finished || facts.deleting
}

/// Chooses the step after acceptance.
fn follow(facts: &Facts, (now, accepted): (Timestamp, Timestamp), observed: &Observed, rules: &Rules) -> Decision {
    let ended = facts.phase.is_some_and(Phase::has_ended);
    let followed = facts.follow_timeout_seconds != 0;
    // The run is read once before following ends, also if no replica was running until now.
    let over = until(now, follow_end(facts, accepted)).is_zero();
    let over_and_read = over && observed.tried_for.is_some();
    // A run that ended, but whose tasks were not in the answer, is read once more for them.
    if ended && (facts.has_tasks || !followed || over_and_read) {
        return Decision::Finish(Ending::Ended);
    }
    if !followed {
        return Decision::Finish(Ending::NotFollowed);
    }
    if over_and_read {
        return Decision::Finish(Ending::StillActive);
    }
    match observed.next_read.filter(|_| !over).unwrap_or_default() {
        Duration::ZERO => Decision::Read(established(observed, rules)),
        wait => Decision::Wait(wait),
    }
}

/// Returns the delay before the first read of a run whose stop was accepted: none if the run has ended, or if the answer
/// did not describe it.
pub fn first_read_delay(answered_state: Option<&str>, jitter: f64) -> Duration {
    match answered_state.map(Phase::of) {
        Some(Phase::Active | Phase::Stopping) => read_delay(0, jitter),
        Some(Phase::Stopped | Phase::EndedOtherwise) | None => Duration::ZERO,
    }
}

/// Returns the conclusions that the next read allows.
fn established(observed: &Observed, rules: &Rules) -> Established {
    let settled = |since: Option<Duration>| since.is_some_and(|since| rules.settle_time <= since);
    Established { active: settled(observed.active_for), unreadable: settled(observed.unreadable_for) }
}

/// Returns true if the last stop request may have had an effect after all: its claim was dropped because reads showed
/// the run active, and not for a reason that excludes an effect. Then the run is read again right before the request is
/// repeated, which narrows the window for a wrong repeat to one round trip.
fn may_have_had_an_effect(facts: &Facts) -> bool {
    0 < facts.attempts() && !facts.stop_accepted.is_some_and(Reason::excludes_an_effect)
}

/// Returns the time until the claimed request can no longer be in flight, measured by how long the claim was observed
/// unchanged. The time in the claim is not used: a wall clock that jumps would make a fresh claim look old.
fn quiet_time(claim: &ClaimFacts, observed: &Observed, rules: &Rules) -> Duration {
    let quiet = match &claim.ended {
        None => in_flight(rules),
        Some(UnclearAnswer::NoAnswer | UnclearAnswer::ServerError | UnclearAnswer::NotOurRun) => rules.settle_time,
        // The request was answered; the run can be read at once to learn what the answer means.
        Some(UnclearAnswer::Conflict) => Duration::ZERO,
    };
    quiet.saturating_sub(observed.claim_unchanged)
}

/// Returns true if the outcome of an open claim counts as unknown: the claim is old, this process has tried to read the
/// run for long enough, and no second read is about to decide it.
fn is_hopeless(facts: &Facts, claim: &ClaimFacts, now: Timestamp, (observed, rules): (&Observed, &Rules)) -> bool {
    let open = follow_timeout(facts).max(MIN_OPEN_CLAIM);
    // Also measured by observation: the clock that wrote the time may have been far ahead.
    let over = claim.time.saturating_add(open).is_ok_and(|end| end <= now) || open <= observed.claim_unchanged;
    let tried_enough = observed.tried_for.is_some_and(|tried| in_flight(rules) <= tried);
    // The second of two reads comes after the settle time, plus the backoff of a failure or two.
    let expected = rules.settle_time + MAX_DELAY * 2;
    let undecided = [observed.active_for, observed.unreadable_for].into_iter().flatten().all(|since| expected <= since);
    over && tried_enough && undecided
}

/// Returns the longest time from before a claim is written until its request can no longer take effect.
fn in_flight(rules: &Rules) -> Duration {
    CLAIM_VALIDITY + rules.request_timeout + rules.settle_time
}

/// Returns how long the resource may wait, whatever it waits for: until its deadline, or until the end of following.
/// `None` while it has a claim, which must be confirmed first.
pub fn at_the_latest(facts: &Facts, now: Timestamp) -> Option<Duration> {
    let end = match facts.accepted() {
        _ if is_left_alone(facts) || facts.claim().is_some() => None,
        Some(accepted) => Some(follow_end(facts, accepted)),
        None if facts.suspend => facts.not_after,
        None => deadline(facts),
    };
    end.map(|end| until(now, end))
}

/// Returns the time from which on no stop request may be sent: the earlier of `notAfter` and the end of
/// `stopDeadlineSeconds`.
fn deadline(facts: &Facts) -> Option<Timestamp> {
    let seconds = facts.stop_deadline_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let end = |(created, seconds): (Timestamp, u64)| {
        created.saturating_add(Duration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
    };
    let stop_deadline = facts.created.zip(seconds).map(end);
    stop_deadline.into_iter().chain(facts.not_after).min()
}

fn follow_end(facts: &Facts, accepted: Timestamp) -> Timestamp {
    accepted.saturating_add(follow_timeout(facts)).unwrap_or(Timestamp::MAX)
}

fn follow_timeout(facts: &Facts) -> Duration {
    Duration::from_secs(u64::try_from(facts.follow_timeout_seconds).unwrap_or_default())
}

fn until(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(then.duration_since(now)).unwrap_or(Duration::ZERO)
}
