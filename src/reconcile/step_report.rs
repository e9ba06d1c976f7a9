//! Owns the result of one reconciliation: its outcome, and when to requeue the resource.
//! Never logs or emits anything: `observe` does.

use tokio::time::Instant;
use workflow_run_stop_api::WorkflowRunStopStatus;

use crate::reconcile::{decide::Decision, store::StoreError};

/// The time of the next reconciliation, unless the resource changes before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requeue {
    /// At once.
    Now,
    /// At this time.
    At(Instant),
    /// Only when the resource changes.
    OnChange,
}

impl Requeue {
    /// Returns this time, or `latest` if that is earlier.
    #[must_use]
    pub fn bounded(self, latest: Option<Instant>) -> Self {
        match (self, latest) {
            (Self::Now, _) | (_, None) => self,
            (Self::OnChange, Some(latest)) => Self::At(latest),
            (Self::At(then), Some(latest)) => Self::At(then.min(latest)),
        }
    }
}

/// The outcome of a step and the next one.
pub type Done = Result<(StepOutcome, Requeue), StoreError>;

/// The result of one reconciliation.
#[derive(Debug)]
pub struct StepReport {
    /// The decision that the step carried out.
    pub decision: Decision,
    /// The outcome of the step.
    pub outcome: StepOutcome,
    /// The next reconciliation.
    pub requeue: Requeue,
}

/// The outcome of a step.
#[derive(Debug)]
pub enum StepOutcome {
    /// Nothing was written.
    Unchanged,
    /// A stop request was claimed, and sent unless the class says otherwise.
    StopAttempted {
        /// The class of the answer.
        class: &'static str,
        /// The time at which the request was written; `None` if it was not sent.
        sent: Option<Instant>,
        /// True if the same write finished the resource.
        finished: bool,
        /// The status that could not be stored: the resource is gone or finished, or another replica has taken over the
        /// claim. `None` if it was stored, or if no request was sent.
        unstored: Option<Box<WorkflowRunStopStatus>>,
    },
    /// The run was read, and the status written.
    RunRead,
    /// The status says something new about what the resource waits for.
    Updated,
    /// The resource finished.
    Finished,
    /// A request to the API server failed.
    Failed(StoreError),
}
