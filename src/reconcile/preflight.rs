//! Owns the preparation of a request: endpoint, credentials, and the turn of its slot.
//! Never claims, and never sends a stop request.

use workflow_run_stop_api::{WorkflowRunStop, conditions::Reason};

use crate::amperity::{
    budget::Slot,
    endpoint::{Endpoint, EndpointError, RunId},
};
use crate::reconcile::{
    access::{Access, Blocked, RetryWhen, denied, near_turn},
    context::Context,
};

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
    /// Returns the endpoint and the run of a resource.
    ///
    /// # Errors
    /// If the operator may not send requests there, or the id is not that of a run.
    pub fn endpoint(&self, resource: &WorkflowRunStop) -> Result<(Endpoint, RunId), EndpointError> {
        let spec = &resource.spec;
        let endpoint = self.endpoints.of(&spec.tenant, spec.base_url.as_deref())?;
        Ok((endpoint, RunId::parse(&spec.run_id)?))
    }

    /// Gets everything that one request needs, besides the slot that the step has.
    ///
    /// # Errors
    /// If no request can be sent now. Nothing was sent or claimed, except a token request.
    pub async fn preflight(&self, resource: &WorkflowRunStop, slot: Slot) -> Result<Prepared, Blocked> {
        let (endpoint, run_id) = self
            .endpoint(resource)
            .map_err(|error| denied(Reason::EndpointNotAllowed, error.to_string(), RetryWhen::OnChange))?;
        // The step was queued for an older version of the resource.
        let requester = slot.requester().clone();
        if *requester.secret != *resource.spec.credentials_secret_ref.name {
            return Err(Blocked::Changed);
        }
        if *slot.key() != endpoint.budget_key() {
            let detail = "the tenant or the base URL was changed, which only another version of the CRD allows; delete the resource and create it anew";
            return Err(denied(Reason::EndpointNotAllowed, detail.to_owned(), RetryWhen::OnChange));
        }
        let (access, slot) = self.access(&requester, &endpoint, slot).await?;
        near_turn(&slot).await?;
        if self.was_refused(&access) { Err(Blocked::Changed) } else { Ok(Prepared { endpoint, run_id, access, slot }) }
    }
}
