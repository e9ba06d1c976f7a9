//! Owns the watch of unfinished resources: it passes each change to the scheduler.
//! Never reads a status, and keeps no resource.

use std::{collections::HashSet, pin::pin, sync::Arc};

use futures::StreamExt;
use kube::Client;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;
use workflow_run_stop_api::{UNFINISHED, WorkflowRunStop};

use crate::observe::{reporter::Reporter, undecodable::Reports};
use crate::operator::{
    changes::Seen,
    list_watch::{Change, changes, paths},
    scheduler::Scheduler,
    step::StepEnd,
};
use crate::reconcile::context::Context;
use crate::stored_object::Decode;

/// Reconciles the unfinished resources.
pub struct Watch {
    /// The context of reconciliations.
    pub context: Arc<Context>,
    /// Reports each step.
    pub reporter: Reporter,
    /// Cancelled when no new work may be started.
    pub stop: CancellationToken,
    /// The largest number of resources of one namespace that are worked on at a time; `None` without a limit.
    pub limit: Option<usize>,
}

impl Decode for Seen {
    fn decode(json: &[u8]) -> Result<Self, serde_json::Error> {
        Ok(Self { resource: Box::new(WorkflowRunStop::decode(json)?), size: json.len() })
    }
}

impl Watch {
    /// Watches until `stop` is cancelled, and returns the steps that are still running. Sets `synced` when the first
    /// list of each namespace is complete.
    pub async fn run(&self, client: &Client, namespaces: &[String], synced: &watch::Sender<bool>) -> JoinSet<StepEnd> {
        let paths = paths(namespaces);
        let mut unlisted: HashSet<usize> = (0..paths.len()).collect();
        let mut listing = HashSet::new();
        let mut lists = vec![0_u32; paths.len()];
        let mut changes = pin!(changes::<Seen>(client, paths, UNFINISHED));
        let mut undecodable = Reports::default();
        let mut scheduler = Scheduler::new(self.context.clone(), self.reporter.clone(), self.stop.clone(), self.limit);
        // They take turns: neither a long list nor very many steps may keep the other from going on.
        let mut steps_first = true;
        loop {
            steps_first = !steps_first;
            let advance = async {
                scheduler.advance().await;
                None
            };
            let change = async { Some(changes.next().await) };
            let change = tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                change = in_order(steps_first, advance, change) => change,
            };
            let Some(change) = change else { continue };
            let Some((stream, change)) = change else { break };
            match change {
                Change::ListStarted => {
                    lists[stream] = lists[stream].wrapping_add(1);
                    listing.insert(stream);
                    self.context.budget.set_listing(true);
                }
                Change::Listed(seen) | Change::Applied(seen) => scheduler.see(stream, lists[stream], seen),
                Change::Deleted(uid) => scheduler.forget(&uid),
                // Nothing is done for it until it changes.
                Change::Undecodable(error) => {
                    undecodable.report(&error, &self.reporter.metrics, self.reporter.events.as_ref());
                    scheduler.forget(&error.id.uid);
                }
                Change::ListEnded => {
                    scheduler.list_ended(stream, lists[stream]);
                    listing.remove(&stream);
                    self.context.budget.set_listing(!listing.is_empty());
                    unlisted.remove(&stream);
                    if unlisted.is_empty() {
                        synced.send_replace(true);
                    }
                }
            }
            scheduler.start_due();
        }
        scheduler.into_tasks()
    }
}

/// Returns the result of the future that is ready first. If both are, `first_goes_first` decides.
async fn in_order<T>(first_goes_first: bool, first: impl Future<Output = T>, second: impl Future<Output = T>) -> T {
    let (mut first, mut second) = (pin!(first), pin!(second));
    if first_goes_first {
        tokio::select! { biased; result = &mut first => result, result = &mut second => result }
    } else {
        tokio::select! { biased; result = &mut second => result, result = &mut first => result }
    }
}
