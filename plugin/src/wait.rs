//! Owns waiting for the end of one stop: it is watched through lost connections until it has finished, is gone, or time is up.
//! Never changes anything in the cluster.

use std::{pin::pin, time::Duration};

use futures::StreamExt;
use kube::{
    Api,
    runtime::{
        WatchStreamExt,
        watcher::{self, watch_object},
    },
};
use tokio::time::{Instant, sleep, sleep_until};
use workflow_run_stop_api::WorkflowRunStop;
use workflow_run_stop_common::error::watch_status;

use crate::cluster::explained;
use crate::progress::Line;
use crate::refusal::explain;
use crate::words::{is_unseen, one_line, progress};

/// A running operator looks at a new stop within a second.
const UNSEEN_FOR_LONG: Duration = Duration::from_secs(5);

/// How the wait for one stop ended.
pub enum Waited {
    /// It has finished.
    Finished(Box<WorkflowRunStop>),
    /// It was deleted, or deleted and created anew, before its end was seen.
    Gone,
    /// The time was over; the stop as last seen.
    TimedOut(Box<WorkflowRunStop>),
    /// The cluster does not let us look.
    Refused(String),
}

/// Waits for the end of a stop, and tells on the line what changes.
pub async fn wait(api: Api<WorkflowRunStop>, created: WorkflowRunStop, until: Instant, line: &mut Line) -> Waited {
    let name = created.name().to_owned();
    let mut versions = pin!(watch_object(api, &name).default_backoff());
    let (mut seen_once, mut last) = (false, created);
    let mut warning = pin!(sleep(UNSEEN_FOR_LONG));
    let mut warned = false;
    line.says(&progress(&last));
    loop {
        tokio::select! {
            version = versions.next() => match version {
                Some(Ok(Some(stop))) if stop.uid() == last.uid() => {
                    seen_once = true;
                    last = stop;
                    if last.is_finished() {
                        return Waited::Finished(Box::new(last));
                    }
                    line.says(&progress(&last));
                }
                Some(Ok(_)) => return Waited::Gone,
                // What works once may fail for a while, in every way, as long as an API server starts anew.
                Some(Err(error)) => {
                    let (why, is_refused) = why(&error, last.namespace());
                    if is_refused && !seen_once {
                        return Waited::Refused(why);
                    }
                    line.says(&one_line(&format!("the cluster cannot be asked right now, still waiting: {why}")));
                }
                None => return Waited::TimedOut(Box::new(last)),
            },
            () = &mut warning, if !warned => {
                warned = true;
                if is_unseen(&last) {
                    line.warns(&format!(
                        "no operator has looked at it yet: is one running, and does it watch the namespace {}?",
                        last.namespace()
                    ));
                }
            }
            () = sleep_until(until) => return Waited::TimedOut(Box::new(last)),
        }
    }
}

/// Why a watch failed, and whether the cluster does not let us look, rather than being away.
fn why(error: &watcher::Error, namespace: &str) -> (String, bool) {
    match watch_status(error) {
        Some(status) => (explain(status, "list and watch", namespace), matches!(status.code, 401 | 403 | 404)),
        None => (explained(error), false),
    }
}
