//! Owns waiting for the end of one stop, through whatever happens to the connection.
//! Never gives up by itself, but where nothing can come any more.

use std::{pin::pin, time::Duration};

use futures::StreamExt;
use kube::{
    Api,
    runtime::{WatchStreamExt, watcher, watcher::watch_object},
};
use tokio::time::{Instant, sleep_until};

use crate::amperity::http::reason;
use crate::plugin::{
    progress::Progress,
    words::{at, not_looked_at},
};
use crate::resource::WorkflowRunStop;

/// An operator that runs has looked at a resource by then.
const LOOKED_AT_WITHIN: Duration = Duration::from_secs(10);

/// How waiting ended.
pub enum Ended {
    /// The resource finished.
    Finished(Box<WorkflowRunStop>),
    /// There is nothing to wait for any more, and why.
    Gone(String),
}

/// Waits until a resource finished or is gone.
pub async fn wait(api: &Api<WorkflowRunStop>, stop: &WorkflowRunStop, progress: &Progress) -> Ended {
    let name = stop.name();
    let mut line = progress.line(name);
    line.say(name, "waits for the operator");
    let mut changes = pin!(watch_object(api.clone(), name).default_backoff());
    let mut seen = false;
    let impatient = Instant::now() + LOOKED_AT_WITHIN;
    loop {
        let change = tokio::select! {
            change = changes.next() => change,
            () = sleep_until(impatient), if !seen => {
                seen = true;
                line.say(name, &not_looked_at(stop));
                continue;
            }
        };
        match change {
            Some(Ok(Some(now))) if now.uid() == stop.uid() => {
                if now.is_finished() {
                    line.end();
                    return Ended::Finished(Box::new(now));
                }
                if let Some(at) = at(&now) {
                    seen = true;
                    line.say(name, &at);
                }
            }
            Some(Ok(Some(_) | None)) => {
                line.end();
                return Ended::Gone(format!("{name} was deleted before it ended; what became of the run is not known"));
            }
            Some(Err(error)) => match forbidden(&error) {
                Some(why) => {
                    line.end();
                    return Ended::Gone(format!("{name} was created, but cannot be watched: {why}"));
                }
                // The API server is away for a while, say.
                None => line.say(name, &format!("the API server does not answer ({}); trying again", reason(&error))),
            },
            None => {
                line.end();
                return Ended::Gone(format!("the watch of {name} ended"));
            }
        }
    }
}

fn forbidden(error: &watcher::Error) -> Option<String> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(status),
        watcher::Error::WatchError(status) => Some(status),
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => None,
    }
    .filter(|status| status.is_forbidden())
    .map(|status| status.message.clone())
}
