//! Owns what people do: they create stops, and change, suspend, delete and create them again.
//! Never touches a finished one.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    answers::any,
    runs::Run,
    secrets::{CLIENT, STATIC},
    world::World,
};

/// Somebody who creates a stop, and changes, deletes and creates it again.
pub async fn use_it(world: World, number: u64) {
    let name = format!("stop-{number}");
    let (namespaces, tenants) = {
        let inner = world.lock();
        (inner.namespaces(), inner.tenants())
    };
    let (namespace, tenant) = (any(&world, &namespaces), any(&world, &tenants));
    let key = format!("{namespace}/{name}");
    for life in 0..=world.below(2) {
        sleep(Duration::from_millis(world.below(60_000))).await;
        let (uid, id) = (format!("uid-{number}-{life}"), format!("wf-{number}-{life}"));
        let mut run = Run::new(&uid);
        run.draw_faults(&world);
        let ends = (world.below(4) == 0).then(|| Duration::from_secs(world.below(200)));
        let ended = any(&world, &["succeeded", "failed"]);
        run.ends = ends.map(|ends| (Instant::now() + ends, ended));
        let spec = draw_spec(&world, &id, tenant);
        let created = whole_seconds(world.date());
        let object = json!({
            "apiVersion": "workflow.amperity.com/v1alpha1",
            "kind": "WorkflowRunStop",
            "metadata": {"name": name, "namespace": namespace, "uid": uid, "generation": 1, "creationTimestamp": created},
            "spec": spec,
        });
        {
            let mut inner = world.lock();
            inner.tell(&format!(
                "{key} is created: {spec}; stops {:?}, reads {:?}, ends in {:?}",
                run.stop_fault, run.read_fault, ends
            ));
            inner.runs.insert(id, run);
            inner.put(&key, Some(object));
        }
        for _ in 0..world.below(3) {
            sleep(Duration::from_millis(world.below(40_000))).await;
            touch(&world, &key).await;
        }
        // In the end nobody keeps it suspended.
        sleep(Duration::from_millis(world.below(40_000))).await;
        change(&world, &key, |object| set(object, "suspend", json!(false)));
        if life == 0 && world.below(2) == 0 {
            sleep(Duration::from_millis(world.below(60_000))).await;
            world.tell(format!("{key} is deleted"));
            world.lock().put(&key, None);
        } else {
            return;
        }
    }
}

fn draw_spec(world: &World, id: &str, tenant: &str) -> Value {
    let secret = any(world, &[STATIC, STATIC, STATIC, CLIENT]);
    let suspended = world.below(6) == 0;
    let mut spec = json!({
        "runId": id,
        "tenant": tenant,
        "credentialsSecretRef": {"name": secret},
        "suspend": suspended,
    });
    if world.below(5) == 0 {
        spec["stopDeadlineSeconds"] = json!(world.below(120) + 1);
    }
    if world.below(8) == 0 {
        let ahead = jiff::SignedDuration::from_secs(world.below(180) as i64 - 60);
        spec["notAfter"] = json!(whole_seconds(world.date() + ahead));
    }
    if world.below(4) == 0 {
        spec["followTimeoutSeconds"] = json!(any(world, &[0, 5, 30, 120]));
    }
    spec
}

fn whole_seconds(date: jiff::Timestamp) -> String {
    jiff::Timestamp::from_second(date.as_second()).unwrap().to_string()
}

/// A small change while it is under way.
async fn touch(world: &World, key: &str) {
    match world.below(6) {
        0 => change(world, key, |object| {
            let other = if object["spec"]["credentialsSecretRef"]["name"] == CLIENT { STATIC } else { CLIENT };
            set(object, "credentialsSecretRef", json!({"name": other}));
        }),
        1 => {
            change(world, key, |object| set(object, "suspend", json!(true)));
            sleep(Duration::from_millis(world.below(20_000))).await;
        }
        2 => change(world, key, |object| set(object, "suspend", json!(false))),
        _ => change(world, key, |object| object["metadata"]["labels"]["touched"] = json!("yes")),
    }
}

fn set(object: &mut Value, field: &str, value: Value) {
    if object["spec"][field] != value {
        object["spec"][field] = value;
        object["metadata"]["generation"] = json!(object["metadata"]["generation"].as_u64().unwrap() + 1);
    }
}

fn change(world: &World, key: &str, how: impl FnOnce(&mut Value)) {
    let mut inner = world.lock();
    if let Some(before) = inner.objects.get(key).cloned()
        && !before["status"]["completionTime"].is_string()
    {
        let mut object = before.clone();
        how(&mut object);
        if object != before {
            inner.tell(&format!("{key} is changed: {}", object["spec"]));
            inner.put(key, Some(object));
        }
    }
}
