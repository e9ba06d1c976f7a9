//! Owns the preparation of a request: endpoint, credentials, and a slot of the budget.
//! Never claims, and never sends a stop request.

use std::{pin::pin, time::Duration};

use tokio::time::timeout;
use workflow_run_stop_api::conditions::Reason;

use crate::amperity::{
    budget::Slot,
    endpoint::{Endpoint, EndpointError, RunId},
    purpose::Purpose,
};
use crate::reconcile::{
    access::{Access, Blocked, Needs, RetryWhen, denied},
    context::Context,
    outcome,
    store::WriteResult,
    tracked::Tracked,
};
use crate::rng;

/// The time in the queue after which the status says `WaitingForBudget`. Jitter makes it up to twice as long.
const PATIENCE: Duration = Duration::from_secs(2);

/// Everything that one request needs.
pub struct Prepared {
    /// The endpoint of the tenant.
    pub endpoint: Endpoint,
    /// The run.
    pub run_id: RunId,
    /// The credentials.
    pub access: Access,
    /// The right to send the request within the rate limit.
    pub slot: Slot,
}

impl Context {
    /// Gets everything that one request needs. If a stop waits long for the rate limit, its status says so, and the Secret
    /// is read again before the stop goes on.
    ///
    /// # Errors
    /// If no request can be sent now. Nothing was sent or claimed.
    pub async fn preflight(&self, tracked: &mut Tracked, purpose: Purpose) -> Result<Prepared, Blocked> {
        let spec = &tracked.resource.spec;
        let not_allowed =
            |error: EndpointError| denied(Reason::EndpointNotAllowed, error.to_string(), RetryWhen::OnChange);
        let endpoint = self.endpoints.of(&spec.tenant, spec.base_url.as_deref()).map_err(not_allowed)?;
        let run_id = RunId::parse(&spec.run_id).map_err(not_allowed)?;
        let key = endpoint.budget_key();
        let needs = Needs::of(&tracked.resource, purpose);
        let mut ready = pin!(async {
            let access = self.access(&needs, &endpoint).await?;
            let slot = self.budget.acquire(&key, purpose, needs.created).await;
            Ok::<_, Blocked>(Prepared { endpoint: endpoint.clone(), run_id: run_id.clone(), access, slot })
        });
        // Jitter: waiting stops should not all write at once.
        let patience = PATIENCE.mul_f64(1.0 + rng::unit());
        if let Ok(ready) = timeout(patience, ready.as_mut()).await {
            let prepared = ready?;
            let refused = self.was_refused(&prepared.access);
            return if refused { Err(Blocked::Changed) } else { Ok(prepared) };
        }
        let prepared = loop {
            // The wait may also be for a slow answer to a token request.
            if purpose == Purpose::Stop && self.budget.has_waiting_requests(&key) {
                let status = outcome::waiting(&tracked.resource, Reason::WaitingForBudget, "", self.step_time());
                tokio::select! {
                    biased;
                    // A granted slot does not wait for this write, because other requests queue behind the slot.
                    ready = ready.as_mut() => break ready?,
                    written = self.store.announce(&tracked.resource, status) => match written? {
                        WriteResult::Stored(stored) => tracked.resource = *stored,
                        WriteResult::Same => {}
                        written @ (WriteResult::Changed(_) | WriteResult::Gone) => {
                            tracked.take(written);
                            return Err(Blocked::Changed);
                        }
                    },
                }
                break ready.await?;
            }
            if let Ok(ready) = timeout(patience, ready.as_mut()).await {
                break ready?;
            }
        };
        let current = self.is_current(&needs, &prepared.access).await?;
        if current { Ok(prepared) } else { Err(Blocked::Changed) }
    }
}
