//! Owns the contract: `WorkflowRunStop`, its spec, status, validation rules and printer columns.
//! Never decides anything and knows no client, clock or API: plain data with a schema.

pub mod conditions;
mod status;
pub mod workflow_run;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

pub use self::status::{Claim, ClaimEnded, StopRequest, UnclearAnswer, WorkflowRunStopStatus};

/// The default of `followTimeoutSeconds`: one hour.
const DEFAULT_FOLLOW_TIMEOUT_SECONDS: i32 = 3600;

/// The field selector that matches just the unfinished resources: those without a completion time.
pub const UNFINISHED: &str = "status.completionTime=";

/// The field selector that matches the finished resources which are to be deleted some time later.
pub const EXPIRING: &str = "status.completionTime!=,spec.ttlSecondsAfterFinished!=";

/// What to stop, and how.
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
    doc = "Asks Amperity once to stop one workflow run, follows the run to its end, and records the outcome in the status.",
    selectable = ".status.completionTime",
    selectable = ".status.result",
    selectable = ".spec.tenant",
    selectable = ".spec.ttlSecondsAfterFinished",
    printcolumn(name = "Run", type_ = "string", json_path = ".spec.runId", description = "The workflow run to stop"),
    printcolumn(name = "Tenant", type_ = "string", json_path = ".spec.tenant", description = "The tenant that owns the run"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state", description = "The run's state as last returned"),
    printcolumn(name = "Result", type_ = "string", json_path = ".status.result", description = "The result in one word, once finished"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status", description = "True: finished with success. False: failed or failing. Unknown: in progress"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", description = "Why it is so"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Accepted", type_ = "date", json_path = ".status.stopRequest.acceptedTime", priority = "1", description = "How long ago the stop was accepted"),
    printcolumn(name = "Attempts", type_ = "integer", json_path = ".status.stopRequest.attempts", priority = "1", description = "How many stop requests were claimed"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = "1", description = "What happened and what to do"),
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
    /// The id of the workflow run to stop, for example `wf-20240619-14418-6UhqSe`. Immutable.
    /// Not the id of a configuration (`cg-`, `og-`, `cc-`) and not of a task (`wft-`).
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z0-9._~-]+$')")
            .message("runId may have only letters, digits, '.', '_', '~' and '-'; give the id of a run, such as wf-20240619-14418-6UhqSe"),
        validation = Rule::new("self == oldSelf")
            .message("runId is immutable; create a new WorkflowRunStop for another run"),
        validation = Rule::new("self != '.' && self != '..'").message("runId must be the id of a run"),
        validation = Rule::new("!self.startsWith('cg-') && !self.startsWith('og-') && !self.startsWith('cc-')")
            .message("runId names a configuration (cg-, og-, cc-); give the id of its run, which starts with wf-"),
        validation = Rule::new("!self.startsWith('wft-')")
            .message("runId names a task (wft-); give the id of the run that the task belongs to, which starts with wf-"),
    )]
    pub run_id: String,

    /// The id of the tenant that owns the run, for example `acme2-max`. Sent in the header
    /// `amperity-tenant` and put in place of `{tenant}` in the base URL. Immutable.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?$')")
            .message("tenant may have only letters, digits, '-' and '_', and begins and ends with a letter or digit, such as acme2-max"),
        validation = Rule::new("self == oldSelf")
            .message("tenant is immutable; create a new WorkflowRunStop for another tenant"),
    )]
    pub tenant: String,

    /// The base URL of the tenant's API, in place of the operator's own, for example
    /// `https://{tenant}.amperity.com/api`. Only https, and the operator must allow the host. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    #[x_kube(
        validation = Rule::new(r"self.matches('^https://[^\\s/?#@]+(/[^\\s?#]*)?$')")
            .message("baseUrl must be an https URL without user, query and fragment, such as https://{tenant}.amperity.com/api"),
        validation = Rule::new("self == oldSelf")
            .message("baseUrl is immutable; create a new WorkflowRunStop for another endpoint"),
    )]
    pub base_url: Option<String>,

    /// The Secret of the same namespace that holds the credentials.
    pub credentials_secret_ref: CredentialsSecretRef,

    /// Holds the stop until set to false; no effect once a stop request may have taken effect.
    #[serde(default)]
    pub suspend: bool,

    /// How many seconds after the creation of this resource the last stop request may be sent.
    /// Without it there is no such limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub stop_deadline_seconds: Option<i32>,

    /// No stop request is sent at or after this time, for example `2026-11-26T06:00:00Z`. A resource that is created later
    /// finishes at once with the result `Expired` and is Ready: a stop that is declared in Git does no harm when it is
    /// applied to a rebuilt or second cluster. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,9})?(Z|[+-]\d{2}:\d{2})$"))]
    #[x_kube(
        validation = Rule::new("timestamp('2000-01-01T00:00:00Z') <= self && self < timestamp('2200-01-01T00:00:00Z')")
            .message("notAfter must lie between the years 2000 and 2200"),
        validation = Rule::new("self == oldSelf")
            .message("notAfter is immutable; create a new WorkflowRunStop with another deadline"),
    )]
    pub not_after: Option<Time>,

    /// Why the run is stopped, for people; repeated in events and in the operator's log. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(
        validation = Rule::new(r"self.matches('^[^\\p{Cc}\\p{Zl}\\p{Zp}]*$')")
            .message("reason must be one line without control characters"),
        validation = Rule::new("self == oldSelf")
            .message("reason is immutable; create a new WorkflowRunStop to state another one"),
    )]
    pub reason: Option<String>,

    /// How many seconds to follow the run after the stop was accepted, at most 604800 (a week); 0 does not
    /// follow it. 3600 where nothing is said.
    #[serde(default = "default_follow_timeout")]
    #[schemars(range(min = 0, max = 604_800))]
    pub follow_timeout_seconds: i32,

    /// How many seconds after it finished this resource is deleted. Without it, it is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub ttl_seconds_after_finished: Option<i32>,
}

/// Names a Secret of the same namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct CredentialsSecretRef {
    /// The Secret's name. It holds the key `token`, or `clientId` and `clientSecret` and
    /// optionally `tokenUrl`.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
}

fn default_follow_timeout() -> i32 {
    DEFAULT_FOLLOW_TIMEOUT_SECONDS
}

impl WorkflowRunStopSpec {
    /// A spec with all defaults.
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
    /// The resource's uid; empty only for an object that no API server has stored.
    pub fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    /// When it was created; long ago for an object that no API server has stored.
    pub fn created(&self) -> Timestamp {
        self.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |Time(created)| *created)
    }

    /// The version of the stored object.
    pub fn resource_version(&self) -> &str {
        self.metadata.resource_version.as_deref().unwrap_or_default()
    }

    /// The resource's namespace.
    pub fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// The resource's name.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// The stop request, once something is known of one.
    pub fn stop_request(&self) -> Option<&StopRequest> {
        self.status.as_ref()?.stop_request.as_ref()
    }

    /// When it was learned that the API accepted the stop.
    pub fn accepted_time(&self) -> Option<&Time> {
        self.stop_request()?.accepted_time.as_ref()
    }

    /// The claim of a stop request that may be in flight or whose outcome is not known.
    pub fn claim(&self) -> Option<&Claim> {
        self.stop_request()?.claim.as_ref()
    }

    /// True once the outcome stands in the status for good.
    pub fn is_finished(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.completion_time.is_some())
    }
}
