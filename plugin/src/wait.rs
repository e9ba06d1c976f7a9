//! Owns waiting for the result of one stop: it watches the stop, across lost connections, until it has finished or was
//! deleted, or until the deadline.
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

use crate::api_error;
use crate::cluster::error_chain;
use crate::messages::{is_unprocessed, one_line, progress};
use crate::progress::Line;

/// The time after which a warning says that no operator has processed the stop. A running operator processes a new stop
/// within a second.
const UNPROCESSED_WARNING_AFTER: Duration = Duration::from_secs(5);

/// The result of the wait for one stop.
pub enum WaitResult {
    /// The stop has finished.
    Finished(Box<WorkflowRunStop>),
    /// The stop was deleted, or deleted and created anew, before its result was read.
    Deleted,
    /// The deadline has passed; the stop as last seen.
    TimedOut(Box<WorkflowRunStop>),
    /// The API server does not allow the stop to be watched, with the reason.
    Refused(String),
}

/// Waits for the result of a stop, and shows its progress on the line.
pub async fn wait(
    api: Api<WorkflowRunStop>,
    created: WorkflowRunStop,
    deadline: Instant,
    line: &mut Line,
) -> WaitResult {
    let name = created.name().to_owned();
    let mut versions = pin!(watch_object(api, &name).default_backoff());
    let (mut seen_once, mut last) = (false, created);
    let mut warning_time = pin!(sleep(UNPROCESSED_WARNING_AFTER));
    let mut checked = false;
    line.update(&progress(&last));
    loop {
        tokio::select! {
            version = versions.next() => match version {
                Some(Ok(Some(stop))) if stop.uid() == last.uid() => {
                    seen_once = true;
                    last = stop;
                    if last.is_finished() {
                        return WaitResult::Finished(Box::new(last));
                    }
                    line.update(&progress(&last));
                }
                Some(Ok(_)) => return WaitResult::Deleted,
                // A watch that has worked before may fail in any way while an API server restarts.
                Some(Err(error)) => {
                    let failure = WatchFailure::new(&error, last.namespace());
                    if failure.is_refused && !seen_once {
                        return WaitResult::Refused(failure.message);
                    }
                    line.update(&one_line(&format!("waiting: {}, still retrying: {}", failure.summary, failure.message)));
                }
                None => return WaitResult::TimedOut(Box::new(last)),
            },
            () = &mut warning_time, if !checked => {
                checked = true;
                if is_unprocessed(&last) {
                    line.warn(&format!(
                        "no operator has processed it yet: check that one is running and watches the namespace {}",
                        last.namespace()
                    ));
                }
            }
            () = sleep_until(deadline) => return WaitResult::TimedOut(Box::new(last)),
        }
    }
}

/// The message for a failed watch.
struct WatchFailure {
    summary: &'static str,
    message: String,
    /// The API server does not allow the watch, rather than being unavailable.
    is_refused: bool,
}

impl WatchFailure {
    fn new(error: &watcher::Error, namespace: &str) -> Self {
        match watch_status(error) {
            Some(status) => Self {
                summary: "the API server returned an error",
                message: api_error::message(status, "list and watch", namespace),
                is_refused: matches!(status.code, 401 | 403 | 404),
            },
            None => Self { summary: "cannot reach the API server", message: error_chain(error), is_refused: false },
        }
    }
}
