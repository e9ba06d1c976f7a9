//! Owns reading a run: on which connection, and what the answer says about the credentials.
//! Never writes a status.

use std::pin::Pin;

use tokio::time::timeout;

use crate::amperity::{
    answer::{ReadAnswer, ReadFailure},
    budget::Slot,
    credentials::Refusal,
    endpoint::{Endpoint, RunId},
};
use crate::reconcile::{
    access::{Access, Blocked, MAX_SLOT_WAIT},
    context::Context,
    outcome::Retry,
    preflight::Prepared,
    tracked::Tracked,
};

/// Resolves when a step must stop waiting, because the replica takes no new work. Ignored between a claim and its record.
pub type Interrupt<'a> = Pin<&'a mut (dyn Future<Output = ()> + Send)>;

/// The purpose of a read.
#[derive(Clone, Copy)]
pub enum Reading {
    /// It decides whether another stop request is sent: it has a connection of its own, on which no other answer can come.
    ToDecide,
    /// It follows an accepted stop: it may use the connection of an earlier read.
    ToFollow,
}

impl Context {
    /// Reads the run. Returns `None` if interrupted.
    ///
    /// # Errors
    /// If the run cannot be read now.
    pub async fn read(
        &self,
        tracked: &Tracked,
        (slot, interrupt): (Slot, Interrupt<'_>),
        reading: Reading,
    ) -> Option<Result<ReadAnswer, Blocked>> {
        let read = async {
            let Prepared { endpoint, run_id, access, slot } = self.preflight(&tracked.resource, slot).await?;
            self.read_with((&endpoint, &access), &run_id, (slot, reading)).await
        };
        tokio::select! {
            biased;
            () = interrupt => None,
            answer = read => Some(answer),
        }
    }

    /// Reads the run once. If a cached token was refused, returns `Changed`, so that a new one is fetched first.
    ///
    /// # Errors
    /// If the run has to be read anew.
    pub async fn read_with(
        &self,
        (endpoint, access): (&Endpoint, &Access),
        run_id: &RunId,
        (slot, reading): (Slot, Reading),
    ) -> Result<ReadAnswer, Blocked> {
        let requester = slot.requester().clone();
        let answer = match reading {
            Reading::ToDecide => self.amperity.read(endpoint, run_id, &access.token, slot).await,
            Reading::ToFollow => match self.amperity.read_again(endpoint, run_id, &access.token, slot).await {
                Some(answer) => answer,
                None => {
                    let next = self.budget.acquire(&access.key().budget, &requester);
                    let slot = timeout(MAX_SLOT_WAIT, next).await.map_err(|_| Blocked::Changed)?;
                    self.amperity.read(endpoint, run_id, &access.token, slot).await
                }
            },
        };
        match &answer {
            ReadAnswer::Run(_) => self.may_read(access),
            ReadAnswer::Failed(ReadFailure::Unauthorized(info)) => {
                if self.refused(access, Refusal::Unauthorized, &info.detail()) == Retry::AtOnce {
                    return Err(Blocked::Changed);
                }
            }
            ReadAnswer::Failed(_) | ReadAnswer::Unreadable(_) => {}
        }
        Ok(answer)
    }
}
