//! Owns every condition type, reason and message, and how a condition is set.
//! Never reads a clock: the time of a transition is passed in.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

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

/// A condition's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// It is so.
    True,
    /// It is not so.
    False,
    /// Nobody knows (yet).
    Unknown,
}

impl Truth {
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
    RunStillActive: "The stop was accepted, but no end of the run was seen before followTimeoutSeconds were over",
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
    /// 403.
    Forbidden: "The credentials lack the right to stop this run",
        "Use a key with the right to run workflow actions in this tenant; it is tried again by itself.";
    /// 404.
    RunNotFound: "Amperity does not know this run in this tenant",
        "Check runId, tenant and base URL, then create a new WorkflowRunStop.";
    /// Another 4xx.
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
    /// An answer that is not of the API.
    UnexpectedAnswer: "The answer is not one of the Amperity API", "Check the base URL and the proxies on the way, then create a new WorkflowRunStop if the run still runs.";
    /// `stopDeadlineSeconds` are over.
    DeadlineExceeded: "The stop was not accepted before stopDeadlineSeconds were over",
        "Create a new WorkflowRunStop if the run still has to be stopped.";
}

impl Reason {
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

/// Sets one condition. Its transition time moves only when its status changes.
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
        None => conditions.push(new),
    }
}

/// A condition that takes its time from the caller.
pub fn condition(
    kind: ConditionType,
    truth: Truth,
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
        set(&mut conditions, ready(Truth::Unknown, "a", 1));
        set(&mut conditions, ready(Truth::Unknown, "b", 2));
        assert_eq!(conditions[0].last_transition_time, at(1));
        set(&mut conditions, ready(Truth::False, "b", 3));
        assert_eq!(conditions[0].last_transition_time, at(3));
        assert_eq!(conditions.len(), 1);
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
