//! Owns the resource `WorkflowRunStop`: spec, status, validation rules and printer columns.
//! Never does IO and never reads a clock: plain data with a schema.

pub mod conditions;
mod status;
pub mod workflow_run;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

pub use self::status::{Claim, ClaimEnded, StopRequest, UnclearAnswer, WorkflowRunStopStatus};

/// The default of `followTimeoutSeconds`, one hour.
const DEFAULT_FOLLOW_TIMEOUT_SECONDS: i32 = 3600;

/// The field selector of the unfinished resources: those without a completion time.
pub const UNFINISHED: &str = "status.completionTime=";

/// The field selector of the finished resources that have a TTL.
pub const EXPIRING: &str = "status.completionTime!=,spec.ttlSecondsAfterFinished!=";

/// The stop to carry out: the run, the credentials, and the time limits.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "workflow.amperity.com",
    version = "v1alpha1",
    kind = "WorkflowRunStop",
    plural = "workflowrunstops",
    singular = "workflowrunstop",
    shortname = "wrs",
    category = "amperity",
    namespaced,
    status = "WorkflowRunStopStatus",
    derive = "PartialEq",
    doc = "An order to stop one Amperity workflow run. The operator asks Amperity once to stop the run, reads the run until it ends, and records the outcome in the status. A finished WorkflowRunStop is a record: create a new one for another stop.",
    selectable = ".status.completionTime",
    selectable = ".status.result",
    selectable = ".spec.tenant",
    selectable = ".spec.ttlSecondsAfterFinished",
    printcolumn(name = "Run", type_ = "string", json_path = ".spec.runId", description = "The ID of the workflow run to stop"),
    printcolumn(name = "Tenant", type_ = "string", json_path = ".spec.tenant", description = "The tenant that owns the run"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state", description = "The run's state as Amperity last returned it, such as stopping or canceled"),
    printcolumn(name = "Result", type_ = "string", json_path = ".status.result", description = "The outcome in one word; empty until the stop has finished"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status", description = "True: finished with success. False: finished without success, or failing now. Unknown: in progress"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", description = "The reason of the condition Ready, such as RunStopped or CredentialsMissing"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "The time since this resource was created"),
    printcolumn(name = "Accepted", type_ = "date", json_path = ".status.stopRequest.acceptedTime", priority = "1", description = "The time since Amperity accepted the stop"),
    printcolumn(name = "Attempts", type_ = "integer", json_path = ".status.stopRequest.attempts", priority = "1", description = "The number of stop requests that were claimed; each was sent at most once"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = "1", description = "The message of the condition Ready: what happened, and what to do"),
    validation = Rule::new("!has(oldSelf.status) || !has(oldSelf.status.completionTime) || self.spec == oldSelf.spec")
        .message("a finished WorkflowRunStop is a record and its spec cannot change; create a new one to stop a run again"),
)]
#[x_kube(
    validation = Rule::new("has(self.baseUrl) == has(oldSelf.baseUrl)")
        .message("baseUrl cannot be added or removed; delete this WorkflowRunStop and create a new one"),
    validation = Rule::new("has(self.notAfter) == has(oldSelf.notAfter)")
        .message("notAfter cannot be added or removed; delete this WorkflowRunStop and create a new one"),
    validation = Rule::new("has(self.reason) == has(oldSelf.reason)")
        .message("reason cannot be added or removed; delete this WorkflowRunStop and create a new one"),
)]
pub struct WorkflowRunStopSpec {
    /// The ID of the workflow run to stop, for example `wf-20240619-14418-6UhqSe`. The IDs of configurations (`cg-`, `og-`,
    /// `cc-`) and of tasks (`wft-`) are rejected. Immutable.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z0-9._~-]+$')")
            .message("runId may have only letters, digits, '.', '_', '~' and '-'; give the id of a run, such as wf-20240619-14418-6UhqSe"),
        validation = Rule::new("self == oldSelf")
            .message("runId is immutable; create a new WorkflowRunStop for another run"),
        validation = Rule::new("self != '.' && self != '..'").message("runId must not be '.' or '..'; give the id of a run, such as wf-20240619-14418-6UhqSe"),
        validation = Rule::new("!self.startsWith('cg-') && !self.startsWith('og-') && !self.startsWith('cc-')")
            .message("runId names a configuration (cg-, og-, cc-); give the id of its run, which starts with wf-"),
        validation = Rule::new("!self.startsWith('wft-')")
            .message("runId names a task (wft-); give the id of the run that the task belongs to, which starts with wf-"),
    )]
    pub run_id: String,

    /// The ID of the tenant that owns the run, for example `acme2-max`. It is sent in the header `amperity-tenant` and
    /// replaces `{tenant}` in the base URL. Immutable.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?$')")
            .message("tenant may have only letters, digits, '-' and '_', and must begin and end with a letter or digit, such as acme2-max"),
        validation = Rule::new("self == oldSelf")
            .message("tenant is immutable; create a new WorkflowRunStop for another tenant"),
    )]
    pub tenant: String,

    /// The base URL of the Amperity API, for example `https://{tenant}.amperity.com/api`. It must be https, and its host
    /// must be in the operator's `--allowed-hosts`. Defaults to the operator's `--amperity-base-url`. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    #[x_kube(
        validation = Rule::new(r"self.matches('^https://[^\\s/?#@]+(/[^\\s?#]*)?$')")
            .message("baseUrl must be an https URL without user, query and fragment, such as https://{tenant}.amperity.com/api"),
        validation = Rule::new("self == oldSelf")
            .message("baseUrl is immutable; create a new WorkflowRunStop for another endpoint"),
    )]
    pub base_url: Option<String>,

    /// The Secret with the credentials for the Amperity API, in the namespace of this resource. A changed Secret is picked
    /// up without a restart.
    pub credentials_secret_ref: CredentialsSecretRef,

    /// Suspends the stop. While this field is true, the operator sends no stop request; set it to false to resume. It
    /// has no effect while the outcome of a stop request is open, or after the stop was accepted. Defaults to false.
    #[serde(default)]
    pub suspend: bool,

    /// The number of seconds, counted from the creation of this resource, during which stop requests may be sent. A stop
    /// that was not accepted by then finishes with the reason `DeadlineExceeded`; if the outcome of a request is still open,
    /// the operator determines it first. Defaults to no limit. For stops in Git, use `notAfter` instead, because
    /// `stopDeadlineSeconds` starts again if the resource is deleted and created again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub stop_deadline_seconds: Option<i32>,

    /// The deadline of the stop as a time, for example `2026-11-26T06:00:00Z`. No stop request is sent at or after it. A
    /// stop that was not accepted by then finishes with the reason `DeadlineExceeded`. A resource that is created at or after
    /// this time finishes at once with the result `Expired` and is Ready. Set `notAfter` for every stop in Git: if the
    /// manifest is applied later, to a rebuilt or second cluster, it then stops nothing. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,9})?(Z|[+-]\d{2}:\d{2})$"))]
    #[x_kube(
        validation = Rule::new("timestamp('2000-01-01T00:00:00Z') <= self && self < timestamp('2200-01-01T00:00:00Z')")
            .message("notAfter must lie between the years 2000 and 2200"),
        validation = Rule::new("self == oldSelf")
            .message("notAfter is immutable; create a new WorkflowRunStop with another deadline"),
    )]
    pub not_after: Option<Time>,

    /// The reason for the stop, in one line for people. The operator repeats it in its events and its log. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(
        validation = Rule::new(r"self.matches('^[^\\p{Cc}\\p{Zl}\\p{Zp}]*$')")
            .message("reason must be one line without control characters"),
        validation = Rule::new("self == oldSelf")
            .message("reason is immutable; create a new WorkflowRunStop with another reason"),
    )]
    pub reason: Option<String>,

    /// The number of seconds during which the operator reads the run after the stop was accepted, to record how the run
    /// ends. If no end was observed by then, the resource finishes with the reason `RunStillActive`. With 0 the resource
    /// finishes as soon as the stop is accepted. At most 604800 (one week). Defaults to 3600 (one hour).
    #[serde(default = "default_follow_timeout")]
    #[schemars(range(min = 0, max = 604_800))]
    pub follow_timeout_seconds: i32,

    /// The number of seconds, counted from `status.completionTime`, after which the resource is deleted. By default it is
    /// kept. Do not set it for stops in Git: the GitOps tool would create the deleted resource again, which is a new stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub ttl_seconds_after_finished: Option<i32>,
}

/// A reference to a Secret in the namespace of the resource.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct CredentialsSecretRef {
    /// The name of the Secret. It must have the key `token`, or the keys `clientId` and `clientSecret` and optionally
    /// `tokenUrl`. If the Secret has both a token and client credentials, `token` is used.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
}

fn default_follow_timeout() -> i32 {
    DEFAULT_FOLLOW_TIMEOUT_SECONDS
}

impl WorkflowRunStopSpec {
    /// Returns a spec with the defaults in all optional fields.
    pub fn new(run_id: &str, tenant: &str, secret: &str) -> Self {
        Self {
            run_id: run_id.to_owned(),
            tenant: tenant.to_owned(),
            base_url: None,
            credentials_secret_ref: CredentialsSecretRef { name: secret.to_owned() },
            suspend: false,
            stop_deadline_seconds: None,
            not_after: None,
            reason: None,
            follow_timeout_seconds: DEFAULT_FOLLOW_TIMEOUT_SECONDS,
            ttl_seconds_after_finished: None,
        }
    }
}

impl WorkflowRunStop {
    /// Returns the uid; empty for an object that was not stored by an API server.
    pub fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    /// Returns the creation time; the Unix epoch for an object that was not stored by an API server.
    pub fn created(&self) -> Timestamp {
        self.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |Time(created)| *created)
    }

    /// Returns the resource version; empty for an object that was not stored by an API server.
    pub fn resource_version(&self) -> &str {
        self.metadata.resource_version.as_deref().unwrap_or_default()
    }

    /// Returns the namespace; empty if it is not set.
    pub fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// Returns the name; empty if it is not set.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// Returns the record of the stop requests, once there is one.
    pub fn stop_request(&self) -> Option<&StopRequest> {
        self.status.as_ref()?.stop_request.as_ref()
    }

    /// Returns the time at which the operator learned that Amperity accepted the stop.
    pub fn accepted_time(&self) -> Option<&Time> {
        self.stop_request()?.accepted_time.as_ref()
    }

    /// Returns the claim of a stop request that may be in flight or whose outcome is not known.
    pub fn claim(&self) -> Option<&Claim> {
        self.stop_request()?.claim.as_ref()
    }

    /// Returns true if the resource has finished: its status does not change any more.
    pub fn is_finished(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.completion_time.is_some())
    }
}
