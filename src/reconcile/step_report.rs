//! Owns what a step returns: what it did and when to look again.
//! Never tells anybody: that is done above.

use tokio::time::Instant;
use workflow_run_stop_api::WorkflowRunStopStatus;

use crate::reconcile::store::StoreError;

/// When to look at a resource again, unless it changes before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requeue {
    /// At once.
    Now,
    /// Then.
    At(Instant),
    /// When it changes.
    OnChange,
}

impl Requeue {
    /// The same, but not later than `latest`.
    #[must_use]
    pub fn bounded(self, latest: Option<Instant>) -> Self {
        match (self, latest) {
            (Self::Now, _) | (_, None) => self,
            (Self::OnChange, Some(latest)) => Self::At(latest),
            (Self::At(then), Some(latest)) => Self::At(then.min(latest)),
        }
    }
}

/// What a step did, for those who tell it.
#[derive(Debug)]
pub struct StepReport {
    /// What was done.
    pub outcome: StepOutcome,
    /// When to look again.
    pub requeue: Requeue,
}

/// What was done in a step.
#[derive(Debug)]
pub enum StepOutcome {
    /// Nothing but to look.
    Unchanged,
    /// A stop request was sent (or not, as its class tells) and answered, and the outcome is recorded.
    StopAttempted {
        /// The class of the answer.
        class: &'static str,
        /// When it was written, if it was.
        sent: Option<Instant>,
        /// Whether the end was written along with it.
        finished: bool,
        /// The status that the answer makes, where it is not stored: the resource is gone or finished, or another
        /// replica has taken over the claim.
        unstored: Option<Box<WorkflowRunStopStatus>>,
    },
    /// The run was read.
    RunRead,
    /// The status tells something new.
    Updated,
    /// The resource finished.
    Finished,
    /// The API server gave no usable answer.
    Failed(StoreError),
}
