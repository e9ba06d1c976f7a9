//! Owns the workload: users who create stops, and change, suspend, delete and create them again.
//! Never changes a finished stop.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    answers::pick,
    runs::Run,
    secrets::{CLIENT, STATIC},
    world::World,
};

/// Creates one stop, changes it while it is unfinished, and sometimes deletes and creates it again.
pub async fn run_user(world: World, number: u64) {
    let name = format!("stop-{number}");
    let (namespaces, tenants) = {
        let inner = world.lock();
        (inner.namespaces(), inner.tenants())
    };
    let (namespace, tenant) = (pick(&world, &namespaces), pick(&world, &tenants));
    let key = format!("{namespace}/{name}");
    for generation in 0..=world.below(2) {
        sleep(Duration::from_millis(world.below(60_000))).await;
        let (uid, id) = (format!("uid-{number}-{generation}"), format!("wf-{number}-{generation}"));
        let mut run = Run::new(&uid);
        run.draw_faults(&world);
        let ends_after = (world.below(4) == 0).then(|| Duration::from_secs(world.below(200)));
        let end_state = pick(&world, &["succeeded", "failed"]);
        run.next_state = ends_after.map(|wait| (Instant::now() + wait, end_state));
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
            inner.log(&format!(
                "{key} is created: {spec}; stop fault {:?}, read fault {:?}, ends after {:?}",
                run.stop_fault, run.read_fault, ends_after
            ));
            inner.runs.insert(id, run);
            inner.put(&key, Some(object));
        }
        for _ in 0..world.below(3) {
            sleep(Duration::from_millis(world.below(40_000))).await;
            make_small_change(&world, &key).await;
        }
        // A suspended stop never finishes, so in the end it is resumed.
        sleep(Duration::from_millis(world.below(40_000))).await;
        change(&world, &key, |object| set(object, "suspend", json!(false)));
        if generation == 0 && world.below(2) == 0 {
            sleep(Duration::from_millis(world.below(60_000))).await;
            world.log(format!("{key} is deleted"));
            world.lock().put(&key, None);
        } else {
            return;
        }
    }
}

fn draw_spec(world: &World, id: &str, tenant: &str) -> Value {
    let secret = pick(world, &[STATIC, STATIC, STATIC, CLIENT]);
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
        spec["followTimeoutSeconds"] = json!(pick(world, &[0, 5, 30, 120]));
    }
    spec
}

fn whole_seconds(date: jiff::Timestamp) -> String {
    jiff::Timestamp::from_second(date.as_second()).unwrap().to_string()
}

/// Makes one small change of an unfinished stop.
async fn make_small_change(world: &World, key: &str) {
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
        _ => change(world, key, |object| object["metadata"]["labels"]["changed"] = json!("yes")),
    }
}

/// Sets a field of the spec, and raises the generation if that is a change.
fn set(object: &mut Value, field: &str, value: Value) {
    if object["spec"][field] != value {
        object["spec"][field] = value;
        object["metadata"]["generation"] = json!(object["metadata"]["generation"].as_u64().unwrap() + 1);
    }
}

/// Applies a change to the stored object, unless it is finished or gone.
fn change(world: &World, key: &str, apply: impl FnOnce(&mut Value)) {
    let mut inner = world.lock();
    if let Some(before) = inner.objects.get(key).cloned()
        && !before["status"]["completionTime"].is_string()
    {
        let mut object = before.clone();
        apply(&mut object);
        if object != before {
            inner.log(&format!("{key} is changed: {}", object["spec"]));
            inner.put(key, Some(object));
        }
    }
}
