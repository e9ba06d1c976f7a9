//! Owns what people do: they create stops, and change, delete and create them again.
//! Never touches a finished one.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::world::{Run, World};

/// Somebody who creates a stop, and changes, deletes and creates it again.
pub async fn use_it(world: World, number: u64) {
    let name = format!("stop-{number}");
    for life in 0..=world.below(2) {
        sleep(Duration::from_millis(world.below(60_000))).await;
        let (uid, run) = (format!("uid-{number}-{life}"), format!("wf-{number}-{life}"));
        let ends = (world.below(4) == 0).then(|| Instant::now() + Duration::from_secs(world.below(200)));
        let ended = ["succeeded", "failed"][world.below(2) as usize];
        let readable = world.below(8) != 0;
        let state = Run {
            uid: uid.clone(),
            readable,
            state: "running",
            ends: ends.map(|at| (at, ended)),
            posts: vec![],
            hidden: None,
        };
        let suspended = world.below(6) == 0;
        let deadline = (world.below(5) == 0).then(|| world.below(120) + 1);
        let mut spec =
            json!({"runId": run, "tenant": "acme", "credentialsSecretRef": {"name": "amperity"}, "suspend": suspended});
        if let Some(deadline) = deadline {
            spec["stopDeadlineSeconds"] = json!(deadline);
        }
        let created = world.date(0).round(jiff::Unit::Second).unwrap();
        let object = json!({
            "apiVersion": "workflow.amperity.com/v1alpha1",
            "kind": "WorkflowRunStop",
            "metadata": {"name": name, "namespace": "sim", "uid": uid, "generation": 1, "creationTimestamp": created.to_string()},
            "spec": spec,
        });
        {
            let mut inner = world.lock();
            inner.tell(&format!("{name} is created for {run}{}", if suspended { ", suspended" } else { "" }));
            inner.runs.insert(run, state);
            inner.put(&name, Some(object));
        }
        for _ in 0..world.below(3) {
            sleep(Duration::from_millis(world.below(40_000))).await;
            change(&world, &name, |object| object["metadata"]["labels"]["touched"] = json!("yes"));
        }
        if suspended {
            sleep(Duration::from_millis(world.below(40_000))).await;
            change(&world, &name, |object| {
                object["spec"]["suspend"] = json!(false);
                object["metadata"]["generation"] = json!(object["metadata"]["generation"].as_u64().unwrap() + 1);
            });
        }
        if life == 0 && world.below(2) == 0 {
            sleep(Duration::from_millis(world.below(60_000))).await;
            world.tell(format!("{name} is deleted"));
            world.lock().put(&name, None);
        } else {
            return;
        }
    }
}

fn change(world: &World, name: &str, how: impl FnOnce(&mut Value)) {
    let mut inner = world.lock();
    if let Some(mut object) = inner.objects.get(name).cloned()
        && !object["status"]["completionTime"].is_string()
    {
        how(&mut object);
        inner.tell(&format!("{name} is changed"));
        inner.put(name, Some(object));
    }
}
