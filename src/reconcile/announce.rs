//! Owns writing a status that only says what a resource waits for.
//! Never writes a status that claims more, and never more than the limit of announcements allows.

use tokio::time::Instant;
use workflow_run_stop_api::conditions::Reason;

use crate::reconcile::{
    context::Context,
    facts::Facts,
    outcome,
    step_report::{Done, Requeue, StepOutcome},
    store::WriteResult,
    tracked::{Announcement, Tracked},
};

impl Context {
    /// Writes what the resource waits for, if that changed. If too many announcements were written recently, it is kept
    /// for later.
    ///
    /// # Errors
    /// As [`crate::reconcile::store::Store::write`].
    pub async fn announce(&self, tracked: &mut Tracked, reason: Reason, detail: &str, requeue: Requeue) -> Done {
        tracked.unannounced = None;
        let status = outcome::waiting(&tracked.resource, reason, detail, self.step_time());
        if tracked.resource.status.as_ref() == Some(&status) {
            return Ok((StepOutcome::Unchanged, requeue));
        }
        if !self.announcements.take(Instant::now()) {
            tracked.unannounced = Some(Announcement { reason, detail: detail.into() });
            return Ok((StepOutcome::Unchanged, requeue));
        }
        self.write_announcement(tracked, reason, detail, requeue).await
    }

    /// Writes what the resource waits for, unless it changed in a part that matters.
    ///
    /// # Errors
    /// As [`crate::reconcile::store::Store::write`].
    pub async fn write_announcement(
        &self,
        tracked: &mut Tracked,
        reason: Reason,
        detail: &str,
        requeue: Requeue,
    ) -> Done {
        loop {
            let known = tracked.facts();
            let status = outcome::waiting(&tracked.resource, reason, detail, self.step_time());
            match self.store.write(&tracked.resource, &status).await? {
                WriteResult::Changed(now) if !Facts::of(&now).outdate(&known, false) => tracked.resource = now,
                WriteResult::Same => return Ok((StepOutcome::Unchanged, requeue)),
                WriteResult::Stored(stored) => {
                    tracked.resource = stored;
                    return Ok((StepOutcome::Updated, requeue));
                }
                written @ (WriteResult::Changed(_) | WriteResult::Gone) => {
                    return Ok((StepOutcome::Unchanged, tracked.take(written)));
                }
            }
        }
    }
}
