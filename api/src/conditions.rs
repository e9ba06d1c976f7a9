//! Owns every condition type, reason, message and result, and how a condition is set.
//! Never reads a clock: the time of a transition is passed in.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The conditions of a `WorkflowRunStop`; they follow kstatus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionType {
    /// True: the stop was accepted and the run ended (or is not followed). False: failed or failing. Unknown: in progress.
    Ready,
    /// True while work goes on or waits; absent when finished.
    Reconciling,
    /// True when finished without success, so that a person must act; absent otherwise.
    Stalled,
    /// True: accepted. False: rejected, or not sent yet. Unknown: sent, outcome not known.
    StopAccepted,
    /// True: the last state is an ended one. False: active or stopping. Unknown: not known.
    RunEnded,
}

impl ConditionType {
    /// The type as it stands in the status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Reconciling => "Reconciling",
            Self::Stalled => "Stalled",
            Self::StopAccepted => "StopAccepted",
            Self::RunEnded => "RunEnded",
        }
    }
}

/// The result of a finished stop in one word, for scripts, workflows and queries that cannot read conditions.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopResult {
    /// The stop was accepted and the run was stopped.
    Stopped,
    /// The run ended on its own: it succeeded or failed.
    EndedOtherwise,
    /// The stop was accepted; the end of the run was not followed or could not be read.
    Accepted,
    /// The resource was created at or after its `notAfter`; no request was sent.
    Expired,
    /// The stop was accepted, and no end of the run was seen within `followTimeoutSeconds`.
    StillActive,
    /// A stop request was sent and its outcome is not known.
    Unknown,
    /// The stop was not accepted: rejected, or not sent before its deadline.
    Failed,
}

impl StopResult {
    /// Every result.
    pub const ALL: [Self; 7] = [
        Self::Stopped,
        Self::EndedOtherwise,
        Self::Accepted,
        Self::Expired,
        Self::StillActive,
        Self::Unknown,
        Self::Failed,
    ];

    /// The result as it is written in the status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "Stopped",
            Self::EndedOtherwise => "EndedOtherwise",
            Self::Accepted => "Accepted",
            Self::Expired => "Expired",
            Self::StillActive => "StillActive",
            Self::Unknown => "Unknown",
            Self::Failed => "Failed",
        }
    }
}

/// A condition's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionStatus {
    /// It is so.
    True,
    /// It is not so.
    False,
    /// Nobody knows (yet).
    Unknown,
}

impl ConditionStatus {
    /// The status as it stands in the condition.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident: $summary:literal, $remedy:literal;)*) => {
        /// Why a condition is as it is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason, in the order of this list.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The reason as it stands in the condition.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// The reason of a condition; `None` where it is none of these.
            pub fn of(condition: &Condition) -> Option<Self> {
                Self::ALL.iter().copied().find(|reason| reason.as_str() == condition.reason)
            }

            /// What happened, without a full stop.
            fn summary(self) -> &'static str {
                match self { $(Self::$name => $summary,)* }
            }

            /// What a person can do, as a sentence; empty where nothing is to be done.
            fn remedy(self) -> &'static str {
                match self { $(Self::$name => $remedy,)* }
            }
        }
    };
}

reasons! {
    /// `spec.suspend` is true and nothing was sent.
    Suspended: "Nothing is sent while spec.suspend is true", "Set spec.suspend to false to go on.";
    /// The tenant's rate limit lets others go first.
    WaitingForBudget: "The request waits for its turn within the tenant's rate limit", "";
    /// A stop request is on its way.
    StopRequested: "The stop request is being sent", "";
    /// The API accepted the stop.
    StopAccepted: "Amperity accepted the stop", "";
    /// The run was read and is stopping or stopped.
    ConfirmedByRead: "The run was read and is stopping or stopped", "";
    /// The run is read until it ends.
    FollowingRun: "The stop was accepted and the run is followed until it ends", "";
    /// The run is stopped.
    RunStopped: "The run is stopped", "";
    /// The run ended, but not by the stop.
    RunEndedOtherwise: "The run ended in another way than by being stopped", "";
    /// No end of the run was seen when the time to follow it was over.
    RunStillActive: "The stop was accepted, but no end of the run was seen before followTimeoutSeconds expired",
        "Look at the run in Amperity; a task that has started may run to its end.";
    /// The stop was accepted, but the run cannot be read.
    RunUnreadable: "The stop was accepted, but the run cannot be read, so its end is not known",
        "Let the credentials read workflow runs if you want the end to be recorded.";
    /// The Secret or one of its keys is missing.
    CredentialsMissing: "The credentials cannot be used",
        "Give the Secret, in the namespace of this resource, the key token, or clientId and clientSecret; it is looked up again by itself.";
    /// 401.
    Unauthorized: "Amperity refused the credentials or the API version",
        "Put a valid token, or clientId and clientSecret, into the Secret, and check that it belongs to this tenant and that the operator's API version is a valid one; it is tried again by itself.";
    /// Amperity's own 403 to a stop.
    Forbidden: "The credentials lack the right to stop this run",
        "Use a key with the right to run workflow actions in this tenant; it is tried again by itself.";
    /// Created at or after `spec.notAfter`.
    Expired: "The resource was created at or after its spec.notAfter, so no stop request was sent", "";
    /// Amperity's own 404, or the same 404 to the stop and to two reads.
    RunNotFound: "Amperity does not know this run in this tenant",
        "Check runId, tenant and base URL, then create a new WorkflowRunStop.";
    /// Another 4xx of Amperity, and for a 400 or 422 the run is still active; or the same 4xx to the stop and to two reads.
    Rejected: "Amperity rejected the stop", "Check runId, tenant and the operator's API version, then create a new WorkflowRunStop.";
    /// 409, and the run is still active.
    Conflict: "Amperity answered that the run cannot be stopped in its present state",
        "It is tried again by itself; set stopDeadlineSeconds to bound that.";
    /// 429.
    RateLimited: "Amperity's rate limit for the tenant is used up",
        "It is tried again by itself; other clients of the tenant share the limit.";
    /// 5xx, or a request that had no effect.
    Unavailable: "Amperity is unavailable or did not carry out the request", "It is tried again by itself as soon as that is safe.";
    /// No connection could be made.
    Unreachable: "Amperity cannot be reached",
        "Check the name resolution, network policy, proxy and certificates on the way; it is tried again by itself.";
    /// A request was sent and nobody knows whether it took effect.
    OutcomeUnknown: "A stop request was sent and its outcome is not known",
        "The run is read to find out; where it cannot be read, look at it in Amperity and create a new WorkflowRunStop only if it still runs.";
    /// The endpoint is not on the operator's list.
    EndpointNotAllowed: "The operator may not send to this endpoint",
        "Ask the operator's administrator to add the host to --allowed-hosts, or delete this resource and create one for an allowed https host.";
    /// A redirect, or a 4xx that is not Amperity's own answer, and the run is still active.
    UnexpectedAnswer: "The answer is not one of the Amperity API", "Check the base URL and the gateways and proxies on the way. A finished WorkflowRunStop is not tried again: create a new one if the run still has to be stopped.";
    /// `stopDeadlineSeconds` or `notAfter` passed.
    DeadlineExceeded: "The stop was not accepted before its deadline (stopDeadlineSeconds or notAfter)",
        "Create a new WorkflowRunStop if the run still has to be stopped.";
}

impl Reason {
    /// The result of a stop that finishes with this reason; `None` where no stop does.
    pub fn result(self) -> Option<StopResult> {
        match self {
            Self::RunStopped => Some(StopResult::Stopped),
            Self::RunEndedOtherwise => Some(StopResult::EndedOtherwise),
            Self::StopAccepted | Self::RunUnreadable => Some(StopResult::Accepted),
            Self::Expired => Some(StopResult::Expired),
            Self::RunStillActive => Some(StopResult::StillActive),
            Self::OutcomeUnknown => Some(StopResult::Unknown),
            Self::RunNotFound | Self::Rejected | Self::UnexpectedAnswer | Self::DeadlineExceeded => {
                Some(StopResult::Failed)
            }
            Self::Suspended
            | Self::WaitingForBudget
            | Self::StopRequested
            | Self::ConfirmedByRead
            | Self::FollowingRun
            | Self::CredentialsMissing
            | Self::Unauthorized
            | Self::Forbidden
            | Self::Conflict
            | Self::RateLimited
            | Self::Unavailable
            | Self::Unreachable
            | Self::EndpointNotAllowed => None,
        }
    }

    /// True where a stop request that was dropped with this reason is known to have had no effect by its own answer, or
    /// because it was not sent. After any other reason the run is read before the request is repeated.
    pub fn excludes_an_effect(self) -> bool {
        match self {
            Self::RateLimited | Self::Unauthorized | Self::Forbidden | Self::Unreachable | Self::StopRequested => true,
            Self::Suspended
            | Self::WaitingForBudget
            | Self::StopAccepted
            | Self::ConfirmedByRead
            | Self::FollowingRun
            | Self::RunStopped
            | Self::RunEndedOtherwise
            | Self::RunStillActive
            | Self::RunUnreadable
            | Self::CredentialsMissing
            | Self::Expired
            | Self::RunNotFound
            | Self::Rejected
            | Self::Conflict
            | Self::Unavailable
            | Self::OutcomeUnknown
            | Self::EndpointNotAllowed
            | Self::UnexpectedAnswer
            | Self::DeadlineExceeded => false,
        }
    }

    /// The message of a condition with this reason: what happened, the detail where there is one,
    /// and what to do. The same cause gives the same message.
    pub fn message(self, detail: &str) -> String {
        let detail = detail.trim().trim_end_matches('.');
        let mut message = self.summary().to_owned();
        if !detail.is_empty() {
            message.push_str(": ");
            message.push_str(detail);
        }
        message.push('.');
        if !self.remedy().is_empty() {
            message.push(' ');
            message.push_str(self.remedy());
        }
        message
    }
}

/// Sets one condition. Its transition time moves only when its status changes. `Ready` is written first; readers that
/// take the first condition for the summary then show it.
pub fn set(conditions: &mut Vec<Condition>, new: Condition) {
    match conditions.iter_mut().find(|known| known.type_ == new.type_) {
        Some(known) => {
            let since = if known.status == new.status {
                known.last_transition_time.clone()
            } else {
                new.last_transition_time.clone()
            };
            *known = Condition { last_transition_time: since, ..new };
        }
        None if new.type_ == ConditionType::Ready.as_str() => conditions.insert(0, new),
        None => conditions.push(new),
    }
}

/// A condition that takes its time from the caller.
pub fn condition(
    kind: ConditionType,
    truth: ConditionStatus,
    (reason, message): (Reason, String),
    generation: Option<i64>,
    now: &Time,
) -> Condition {
    Condition {
        type_: kind.as_str().to_owned(),
        status: truth.as_str().to_owned(),
        reason: reason.as_str().to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: now.clone(),
    }
}

/// The condition of one type, where it is set.
pub fn find(conditions: &[Condition], kind: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|known| known.type_ == kind.as_str())
}

/// Removes the condition of one type.
pub fn remove(conditions: &mut Vec<Condition>, kind: ConditionType) {
    conditions.retain(|known| known.type_ != kind.as_str());
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn a_transition_time_moves_only_when_the_status_changes() {
        let mut conditions = vec![];
        let ready = |truth, detail: &str, second| {
            let why = (Reason::Unauthorized, Reason::Unauthorized.message(detail));
            condition(ConditionType::Ready, truth, why, Some(1), &at(second))
        };
        set(&mut conditions, ready(ConditionStatus::Unknown, "a", 1));
        set(&mut conditions, ready(ConditionStatus::Unknown, "b", 2));
        assert_eq!(conditions[0].last_transition_time, at(1));
        set(&mut conditions, ready(ConditionStatus::False, "b", 3));
        assert_eq!(conditions[0].last_transition_time, at(3));
        assert_eq!(conditions.len(), 1);
    }

    #[test]
    fn ready_is_written_first_and_nothing_is_reordered() {
        let of = |kind| condition(kind, ConditionStatus::True, (Reason::RunStopped, String::new()), None, &at(1));
        let kinds = |conditions: &[Condition]| conditions.iter().map(|one| one.type_.clone()).collect::<Vec<_>>();
        let mut conditions = vec![];
        set(&mut conditions, of(ConditionType::StopAccepted));
        set(&mut conditions, of(ConditionType::Ready));
        assert_eq!(kinds(&conditions), ["Ready", "StopAccepted"]);
        let mut older = vec![of(ConditionType::StopAccepted), of(ConditionType::Ready)];
        set(&mut older, of(ConditionType::Ready));
        assert_eq!(kinds(&older), ["StopAccepted", "Ready"]);
    }

    #[test]
    fn every_result_is_that_of_some_reason() {
        for result in StopResult::ALL {
            assert!(Reason::ALL.iter().any(|reason| reason.result() == Some(result)), "{result:?}");
            assert_eq!(serde_json::to_value(result).unwrap(), result.as_str());
        }
    }

    #[test]
    fn a_message_holds_the_detail_and_the_remedy_and_single_full_stops() {
        assert_eq!(
            Reason::Suspended.message(""),
            "Nothing is sent while spec.suspend is true. Set spec.suspend to false to go on."
        );
        assert_eq!(
            Reason::Unavailable.message("HTTP 503."),
            "Amperity is unavailable or did not carry out the request: HTTP 503. It is tried again by itself as soon as that is safe."
        );
    }
}
