//! Owns the condition types, the reasons with their properties and messages, the results, and how a condition is set.
//! Never reads a clock: the time of a transition is a parameter.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The condition types of a `WorkflowRunStop`; `Ready`, `Reconciling` and `Stalled` follow kstatus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionType {
    /// True: finished with success. False: finished without success, or failing now. Unknown: in progress.
    Ready,
    /// True until the resource finishes; absent after that.
    Reconciling,
    /// True if the resource finished without success and a person must act; absent otherwise.
    Stalled,
    /// True: accepted. False: rejected, or not sent yet. Unknown: sent, and the outcome is not known.
    StopAccepted,
    /// True: the last observed state is final. False: the run was active or stopping. Unknown: no state was observed.
    RunEnded,
}

impl ConditionType {
    /// Returns the value of the condition's `type`.
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

// `kubectl explain` shows this description instead of the one of the field, and shows no descriptions of the values: so
// this one describes them all.
/// The outcome in one word, for scripts and queries. It is set together with `completionTime`, and never before.
/// `Stopped`: the run was stopped. `EndedOtherwise`: the run succeeded or failed on its own. `Accepted`: the stop was
/// accepted, and the end of the run was not followed or could not be read. `Expired`: created at or after `notAfter`, so
/// that no request was sent. `StillActive`: the stop was accepted, and no end of the run was observed before
/// `followTimeoutSeconds` expired. `Unknown`: a request was sent, and its outcome is not known. `Failed`: the stop was
/// not accepted. Resources that an older version of the operator finished have no result.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopResult {
    /// The stop was accepted, or another client stopped the run, and the run was stopped.
    Stopped,
    /// The run ended on its own: it succeeded or failed.
    EndedOtherwise,
    /// The stop was accepted; the end of the run was not followed or could not be read.
    Accepted,
    /// The resource was created at or after its `notAfter`; no request was sent.
    Expired,
    /// The stop was accepted, and no end of the run was observed within `followTimeoutSeconds`.
    StillActive,
    /// A stop request was sent, and its outcome is not known.
    Unknown,
    /// The stop was not accepted: rejected, or not sent before its deadline.
    Failed,
}

impl StopResult {
    /// All results.
    pub const ALL: [Self; 7] = [
        Self::Stopped,
        Self::EndedOtherwise,
        Self::Accepted,
        Self::Expired,
        Self::StillActive,
        Self::Unknown,
        Self::Failed,
    ];

    /// Returns the value of `status.result`.
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

/// The status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionStatus {
    /// The condition holds.
    True,
    /// The condition does not hold.
    False,
    /// It is not known whether the condition holds.
    Unknown,
}

impl ConditionStatus {
    /// Returns the value of the condition's `status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// The thing that an unfinished resource waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WaitsFor {
    /// Its first reconciliation, or a slot of the rate limit that is free within seconds.
    New,
    /// `spec.suspend` to be set to false.
    Suspended,
    /// A slot of the tenant's rate limit.
    Budget,
    /// Older resources of its namespace to finish, of which the operator works on a limited number.
    NamespaceLimit,
    /// Usable credentials.
    Credentials,
    /// An endpoint that the operator may send to.
    Endpoint,
    /// The answer to its stop request.
    Answer,
    /// The outcome of its stop request, which the operator learns by reading the run.
    Outcome,
    /// The next attempt, because the API is unavailable or did not carry out the request.
    Retry,
    /// The end of the run.
    RunEnd,
}

impl WaitsFor {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::New,
        Self::Suspended,
        Self::Budget,
        Self::NamespaceLimit,
        Self::Credentials,
        Self::Endpoint,
        Self::Answer,
        Self::Outcome,
        Self::Retry,
        Self::RunEnd,
    ];

    /// Returns the value of the metric label `waits_for`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Suspended => "suspended",
            Self::Budget => "budget",
            Self::NamespaceLimit => "namespace_limit",
            Self::Credentials => "credentials",
            Self::Endpoint => "endpoint",
            Self::Answer => "answer",
            Self::Outcome => "outcome",
            Self::Retry => "retry",
            Self::RunEnd => "run_end",
        }
    }
}

/// The second expression if there is one, and the default otherwise.
macro_rules! or {
    ($default:expr;) => {
        $default
    };
    ($default:expr; $value:expr) => {
        $value
    };
}

macro_rules! reasons {
    ($(
        $(#[$doc:meta])*
        $name:ident {
            $(result: $result:ident,)?
            $(waits_for: $waits_for:ident,)?
            $(in_progress: $in_progress:literal,)?
            $(routine: $routine:literal,)?
            $(no_effect: $no_effect:literal,)?
        } $summary:literal, $remedy:literal;
    )*) => {
        /// The reason of a condition or an event.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// All reasons.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Returns the value of the condition's `reason`.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// Returns the reason of a condition, or `None` if this version does not know it.
            pub fn of(condition: &Condition) -> Option<Self> {
                Self::ALL.iter().copied().find(|reason| reason.as_str() == condition.reason)
            }

            /// Returns the result of a stop that finishes with this reason, or `None` if no stop does.
            pub fn result(self) -> Option<StopResult> {
                match self { $(Self::$name => or!(None; $(Some(StopResult::$result))?),)* }
            }

            /// Returns what an unfinished resource waits for if its `Ready` has this reason, or `None` if only finished
            /// resources have it. If the resource has a claim or an accepted stop, the wait follows from that instead.
            pub fn waits_for(self) -> Option<WaitsFor> {
                match self { $(Self::$name => or!(None; $(Some(WaitsFor::$waits_for))?),)* }
            }

            /// Returns true if an unfinished resource with this reason counts as in progress, so that its `Ready` is
            /// `Unknown`. Its `Ready` is `False` for all other reasons.
            pub fn is_in_progress(self) -> bool {
                match self { $(Self::$name => or!(false; $($in_progress)?),)* }
            }

            /// Returns true for a reason that a stop passes through in the normal course, so that it needs no event.
            pub fn is_routine(self) -> bool {
                match self { $(Self::$name => or!(false; $($routine)?),)* }
            }

            /// Returns true if a stop request whose claim was dropped with this reason is known to have had no effect:
            /// its answer says so, or it was not sent. After any other reason, the run is read before the request is
            /// repeated.
            pub fn excludes_an_effect(self) -> bool {
                match self { $(Self::$name => or!(false; $($no_effect)?),)* }
            }

            /// Returns what happened, without a full stop.
            fn summary(self) -> &'static str {
                match self { $(Self::$name => $summary,)* }
            }

            /// Returns what to do, in whole sentences; empty if there is nothing to do.
            fn remedy(self) -> &'static str {
                match self { $(Self::$name => $remedy,)* }
            }
        }
    };
}

// Each row: the properties that differ from `None` and false, then summary and remedy.
reasons! {
    /// `spec.suspend` is true, and no stop request may have taken effect.
    Suspended { waits_for: Suspended, in_progress: true, }
        "No stop request is sent while spec.suspend is true",
        "Set spec.suspend to false to continue.";
    /// The request is queued for a slot of the tenant's rate limit.
    WaitingForBudget { waits_for: Budget, in_progress: true, routine: true, }
        "The request waits for a slot of the tenant's rate limit", "";
    /// The namespace has more unfinished resources than the operator's `--max-unfinished-per-namespace`, and this one is
    /// not among the oldest.
    NamespaceLimit { waits_for: NamespaceLimit, in_progress: true, routine: true, }
        "The namespace has more unfinished WorkflowRunStops than the operator works on at a time",
        "It waits until older ones of the namespace have finished. Delete those that are no longer needed, or ask the operator's administrator to raise --max-unfinished-per-namespace.";
    /// The claim is stored, and the stop request is being sent.
    StopRequested { waits_for: New, in_progress: true, routine: true, no_effect: true, }
        "The stop request is being sent", "";
    /// Amperity accepted the stop. `Ready` has this reason only if the run is not followed.
    StopAccepted { result: Accepted, }
        "Amperity accepted the stop", "";
    /// A read showed that the run is stopping or stopped.
    ConfirmedByRead { waits_for: RunEnd, }
        "A read of the run showed that it is stopping or stopped", "";
    /// The stop was accepted, and the run is read until it ends.
    FollowingRun { waits_for: RunEnd, in_progress: true, routine: true, }
        "The stop was accepted, and the run is read until it ends", "";
    /// The run is stopped.
    RunStopped { result: Stopped, }
        "The run is stopped", "";
    /// The run succeeded or failed.
    RunEndedOtherwise { result: EndedOtherwise, }
        "The run ended on its own", "";
    /// The stop was accepted, and no end of the run was observed within `followTimeoutSeconds`.
    RunStillActive { result: StillActive, }
        "The stop was accepted, but no end of the run was observed before followTimeoutSeconds expired",
        "Look at the run in Amperity: tasks that had already started may run to their end.";
    /// The stop was accepted, and the run cannot be read.
    RunUnreadable { result: Accepted, }
        "The stop was accepted, but the run cannot be read, so its end is not known",
        "To have the end of a run recorded, use credentials that may read workflow runs.";
    /// The Secret or one of its keys is missing, unusable or not readable.
    CredentialsMissing { waits_for: Credentials, }
        "The credentials cannot be used",
        "Create or correct the Secret in the namespace of this resource: it needs the key token, or the keys clientId and clientSecret, and the operator must be allowed to read it. The operator reads it again at least once a minute.";
    /// 401, or the token endpoint refused the client.
    Unauthorized { waits_for: Credentials, no_effect: true, }
        "Amperity refused the credentials or the API version",
        "Put a valid token, or a valid clientId and clientSecret, of this tenant into the Secret, and check the operator's --amperity-api-version. The operator retries.";
    /// Amperity's own 403 to a stop.
    Forbidden { waits_for: Credentials, no_effect: true, }
        "The credentials do not have the permission to stop this run",
        "Use credentials that may run workflow actions in this tenant. The operator retries.";
    /// Created at or after `spec.notAfter`.
    Expired { result: Expired, }
        "The resource was created at or after its spec.notAfter, so no stop request was sent", "";
    /// Amperity's own 404, or a gateway's 404 to the stop and to two reads.
    RunNotFound { result: Failed, }
        "Amperity does not know this run in this tenant",
        "Check runId, tenant and base URL, then create a new WorkflowRunStop.";
    /// Amperity's own 405, 410, or another 4xx without another reason; its 400 or 422, and the run is active; its 400, 409
    /// or 422, and the run cannot be read; or a gateway's 4xx other than 404, and the same status to two reads.
    Rejected { result: Failed, }
        "The stop was rejected",
        "Check runId, tenant and the operator's --amperity-api-version, then create a new WorkflowRunStop.";
    /// Amperity's own 409, and the run is still active or not read yet.
    Conflict { waits_for: Retry, }
        "Amperity answered that the run cannot be stopped in its current state",
        "The operator retries. Set stopDeadlineSeconds to limit for how long.";
    /// 429.
    RateLimited { waits_for: Budget, routine: true, no_effect: true, }
        "Amperity's rate limit for the tenant is exceeded",
        "The operator retries. If this lasts, reduce the requests of the tenant's other clients: they share the limit.";
    /// 5xx, no answer to a read, or a request that had no effect.
    Unavailable { waits_for: Retry, }
        "Amperity is unavailable or did not carry out the request",
        "The operator retries as soon as that is safe.";
    /// No connection could be established.
    Unreachable { waits_for: Retry, no_effect: true, }
        "Amperity cannot be reached",
        "Check name resolution, network policies, proxies and certificates. The operator retries.";
    /// A stop request was sent, and it is not known whether it took effect.
    OutcomeUnknown { result: Unknown, waits_for: Outcome, in_progress: true, }
        "A stop request was sent and its outcome is not known",
        "Until this WorkflowRunStop finishes, the operator reads the run to learn the outcome. Once it has finished, look at the run in Amperity, and create a new WorkflowRunStop only if the run is still active.";
    /// The host is not in the operator's `--allowed-hosts`, or the URL is not https.
    EndpointNotAllowed { waits_for: Endpoint, }
        "The operator is not allowed to send requests to this endpoint",
        "Ask the operator's administrator to add the host to --allowed-hosts, or use an allowed https host: correct tokenUrl in the Secret, or delete this WorkflowRunStop and create one with another baseUrl.";
    /// A redirect, or a 4xx that is not Amperity's own, and the run is still active.
    UnexpectedAnswer { result: Failed, waits_for: Retry, }
        "The answer is not in the format of the Amperity API",
        "Check the base URL, and the gateways and proxies between the operator and Amperity. Once this WorkflowRunStop has finished, create a new one if the run must still be stopped.";
    /// `stopDeadlineSeconds` or `notAfter` passed before the stop was accepted.
    DeadlineExceeded { result: Failed, }
        "The stop was not accepted before its deadline (stopDeadlineSeconds or notAfter)",
        "Create a new WorkflowRunStop if the run must still be stopped.";
    /// The stored resource cannot be decoded. Only an event has this reason: no status is written that builds on one that
    /// is not known.
    Undecodable {}
        "The operator cannot decode this resource, and does not work on it",
        "Correct the field, or delete this WorkflowRunStop. The operator decodes the resource again when it changes.";
}

impl Reason {
    /// Returns the message of a condition with this reason: what happened, the detail unless it is empty, and what to do.
    /// The same reason and detail give the same message.
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

/// Sets one condition. Its transition time changes only if its status changes. A new `Ready` is put first, because some
/// tools show only the first condition.
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

/// Returns a condition whose transition time is `now`.
pub fn condition(
    type_: ConditionType,
    status: ConditionStatus,
    (reason, message): (Reason, String),
    generation: Option<i64>,
    now: &Time,
) -> Condition {
    Condition {
        type_: type_.as_str().to_owned(),
        status: status.as_str().to_owned(),
        reason: reason.as_str().to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: now.clone(),
    }
}

/// Returns the condition of one type, if it is set.
pub fn find(conditions: &[Condition], type_: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|known| known.type_ == type_.as_str())
}

/// Removes the condition of one type.
pub fn remove(conditions: &mut Vec<Condition>, type_: ConditionType) {
    conditions.retain(|known| known.type_ != type_.as_str());
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn each_wait_has_the_label_of_the_metrics() {
        let labels = "new suspended budget namespace_limit credentials endpoint answer outcome retry run_end";
        assert_eq!(WaitsFor::ALL.map(WaitsFor::as_str).join(" "), labels);
    }

    #[test]
    fn a_transition_time_changes_only_if_the_status_changes() {
        let mut conditions = vec![];
        let ready = |status, detail: &str, second| {
            let reason = (Reason::Unauthorized, Reason::Unauthorized.message(detail));
            condition(ConditionType::Ready, status, reason, Some(1), &at(second))
        };
        set(&mut conditions, ready(ConditionStatus::Unknown, "a", 1));
        set(&mut conditions, ready(ConditionStatus::Unknown, "b", 2));
        assert_eq!(conditions[0].last_transition_time, at(1));
        set(&mut conditions, ready(ConditionStatus::False, "b", 3));
        assert_eq!(conditions[0].last_transition_time, at(3));
        assert_eq!(conditions.len(), 1);
    }

    #[test]
    fn a_new_ready_is_put_first_and_existing_conditions_keep_their_order() {
        let of = |type_| condition(type_, ConditionStatus::True, (Reason::RunStopped, String::new()), None, &at(1));
        let types = |conditions: &[Condition]| conditions.iter().map(|one| one.type_.clone()).collect::<Vec<_>>();
        let mut conditions = vec![];
        set(&mut conditions, of(ConditionType::StopAccepted));
        set(&mut conditions, of(ConditionType::Ready));
        assert_eq!(types(&conditions), ["Ready", "StopAccepted"]);
        let mut older = vec![of(ConditionType::StopAccepted), of(ConditionType::Ready)];
        set(&mut older, of(ConditionType::Ready));
        assert_eq!(types(&older), ["StopAccepted", "Ready"]);
    }

    #[test]
    fn every_reason_of_a_status_is_final_or_says_what_an_unfinished_stop_waits_for() {
        for reason in Reason::ALL.iter().filter(|reason| **reason != Reason::Undecodable) {
            assert!(reason.result().is_some() || reason.waits_for().is_some(), "{reason:?}");
        }
    }

    #[test]
    fn a_final_failure_says_what_to_do_and_promises_no_retry() {
        use StopResult::{Failed, StillActive, Unknown};
        for reason in Reason::ALL {
            if let Some(StillActive | Unknown | Failed) = reason.result() {
                assert!(!reason.remedy().is_empty() && !reason.remedy().contains("retries"), "{reason:?}");
            }
        }
    }

    #[test]
    fn every_result_has_a_reason_and_is_serialized_as_it_is_named() {
        for result in StopResult::ALL {
            assert!(Reason::ALL.iter().any(|reason| reason.result() == Some(result)), "{result:?}");
            assert_eq!(serde_json::to_value(result).unwrap(), result.as_str());
        }
    }

    #[test]
    fn a_message_has_the_summary_the_detail_and_the_remedy_with_single_full_stops() {
        assert_eq!(
            Reason::Suspended.message(""),
            "No stop request is sent while spec.suspend is true. Set spec.suspend to false to continue."
        );
        assert_eq!(
            Reason::Unavailable.message("HTTP 503."),
            "Amperity is unavailable or did not carry out the request: HTTP 503. The operator retries as soon as that is safe."
        );
    }

    #[test]
    fn removing_a_condition_leaves_the_others() {
        let of = |type_| condition(type_, ConditionStatus::True, (Reason::RunStopped, String::new()), None, &at(1));
        let mut conditions =
            vec![of(ConditionType::Ready), of(ConditionType::Reconciling), of(ConditionType::RunEnded)];
        remove(&mut conditions, ConditionType::Reconciling);
        assert_eq!(conditions, [of(ConditionType::Ready), of(ConditionType::RunEnded)]);
        set(&mut conditions, of(ConditionType::StopAccepted));
        assert_eq!(conditions.last().unwrap().type_, "StopAccepted", "a new condition is put last");
    }

    #[test]
    fn only_these_reasons_exclude_an_effect_of_the_last_request() {
        let excluded = Reason::ALL.iter().filter(|reason| reason.excludes_an_effect());
        assert_eq!(
            excluded.map(|reason| reason.as_str()).collect::<Vec<_>>(),
            // StopRequested: the claim was too old, so that nothing was sent.
            ["StopRequested", "Unauthorized", "Forbidden", "RateLimited", "Unreachable"]
        );
    }
}
