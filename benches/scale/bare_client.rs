//! Owns the yardstick of a list: a program that lists the unfinished stops as the operator does, with kube alone.
//! Never does anything with them but counting.

use std::{process::Stdio, time::Duration};

use futures::{StreamExt, TryStreamExt};
use kube::{
    Api, Client,
    api::{WatchEvent, WatchParams},
};
use lab::control_plane::ControlPlane;
use tokio::{process::Command, time::Instant};
use workflow_run_stop_api::{UNFINISHED, WorkflowRunStop};

/// The argument that makes this program list.
pub const ARGUMENT: &str = "bare-client";

/// Lists the unfinished stops and prints their number.
pub async fn list(client: Client) {
    let params = WatchParams { send_initial_events: true, ..WatchParams::default().fields(UNFINISHED) };
    let stops = Api::<WorkflowRunStop>::all(client);
    let mut events = stops.watch(&params, "").await.unwrap().boxed();
    let mut count = 0;
    while let Some(event) = events.try_next().await.unwrap() {
        match event {
            WatchEvent::Bookmark(bookmark)
                if bookmark.metadata.annotations.contains_key("k8s.io/initial-events-end") =>
            {
                break;
            }
            WatchEvent::Added(_) => count += 1,
            WatchEvent::Modified(_) | WatchEvent::Deleted(_) | WatchEvent::Bookmark(_) | WatchEvent::Error(_) => {}
        }
    }
    println!("{count}");
}

/// Runs this program as a process of its own. Returns the number of stops, and the time from its start to its end.
pub async fn run(cluster: &ControlPlane) -> (usize, Duration) {
    let start = Instant::now();
    let output = Command::new(std::env::current_exe().unwrap())
        .env("KUBECONFIG", cluster.kubeconfig_path())
        .arg(ARGUMENT)
        .stderr(Stdio::inherit())
        .output()
        .await
        .unwrap();
    let took = start.elapsed();
    (String::from_utf8(output.stdout).unwrap().trim().parse().expect("the bare client prints a number"), took)
}

/// Waits until the API server serves this number of unfinished stops. Returns the time of the last list.
pub async fn wait_for(cluster: &ControlPlane, count: usize) -> Duration {
    loop {
        let (found, took) = run(cluster).await;
        if found == count {
            return took;
        }
        println!("the API server serves {found} of {count} stops");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
