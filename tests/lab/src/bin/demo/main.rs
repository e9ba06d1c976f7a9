//! Owns the demo from beginning to end: start, samples, table, verdict, and the exit code.
//! Never reaches a cluster or an Amperity but those that it starts itself.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the demo is there to be read in a terminal")]

mod operator;
mod samples;
mod show;
mod signals;
mod stage;
mod verdict;

use std::{error::Error, fs, path::Path, process::ExitCode, time::Duration};

use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams},
};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use crate::{samples::Sample, show::LiveTable, signals::Signals, stage::Stage};

const NAMESPACE: &str = "default";
const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples");

/// All samples have finished by then; usually it takes ten seconds.
const FINISHES_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);

/// With all that comes before and after; more only where the API server does not answer.
const PERFORMS_WITHIN: Duration = Duration::from_secs(90);

/// What ended the demo before its time.
pub enum Ended {
    /// Something is wrong, as the text says.
    Failed(String),
    /// A signal came; the exit code.
    Interrupted(u8),
}

type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let keep = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => false,
        ["--keep"] => true,
        _ => {
            eprintln!("usage: demo [--keep]");
            return ExitCode::from(2);
        }
    };
    let ended = match Signals::listen() {
        Ok(mut signals) => run(keep, &mut signals).await,
        Err(error) => Err(Ended::Failed(format!("signals cannot be caught: {error}"))),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(Ended::Failed(why)) => {
            eprintln!("demo: failed: {why}");
            ExitCode::FAILURE
        }
        Err(Ended::Interrupted(code)) => {
            eprintln!("demo: interrupted; everything it started has ended");
            ExitCode::from(code)
        }
    }
}

/// One run; whatever comes of it, what it started has ended.
async fn run(keep: bool, signals: &mut Signals) -> Result<(), Ended> {
    let stage = Stage::start(signals).await?;
    let mut ended = tokio::select! {
        outcome = timeout(PERFORMS_WITHIN, perform(&stage)) => match outcome {
            Ok(outcome) => outcome.map_err(|why| Ended::Failed(why.to_string())),
            Err(_) => Err(Ended::Failed("the API server does not answer".to_owned())),
        },
        fault = stage.broke() => Err(Ended::Failed(fault)),
        code = signals.next() => Err(Ended::Interrupted(code)),
    };
    if let Err(Ended::Failed(why)) = &ended {
        eprintln!("\nthe end of the operator's log:\n{}\n", stage.operator.log_tail());
        if keep {
            // The last word comes only after Ctrl-C.
            eprintln!("demo: failed: {why}");
        }
    }
    if keep && !matches!(ended, Err(Ended::Interrupted(_))) {
        say_what_to_try(&stage);
        tokio::select! {
            fault = stage.broke() => ended = Err(Ended::Failed(fault)),
            // That is how it is meant to end.
            _ = signals.next() => println!("\nending everything"),
        }
    }
    stage.end().await;
    ended
}

/// Applies the samples, shows them until all have finished, and compares.
async fn perform(stage: &Stage) -> Outcome {
    let client = stage.client();
    // The API server makes this namespace itself, a moment after its start.
    apply_text(&client, "{apiVersion: v1, kind: Namespace, metadata: {name: default}}").await?;
    let samples = samples::samples();
    for file in std::iter::once(samples::SECRET).chain(samples.iter().map(|sample| sample.file)) {
        let text = fs::read_to_string(Path::new(EXAMPLES).join(file)).map_err(|error| format!("{file}: {error}"))?;
        apply_text(&client, &text).await.map_err(|error| format!("examples/{file} was not applied: {error}"))?;
        println!("applied         examples/{file}");
    }
    let resources = finished(&client, &samples).await?;
    println!();
    show::wide(&client).await?;
    let resource = |name: &str| resources.iter().find(|resource| resource["metadata"]["name"] == name);
    let mut differences = Vec::new();
    for sample in &samples {
        let resource = resource(sample.name).ok_or_else(|| format!("{} is gone", sample.name))?;
        if sample.name == samples::FAILING {
            show::status(sample.name, resource);
        }
        differences.extend(verdict::differences(sample, resource, &stage.amperity));
    }
    if !differences.is_empty() {
        return Err(differences.join("\n").into());
    }
    println!(
        "Each of the {} stops ended as it must, and Amperity received exactly one request for each.",
        samples.len()
    );
    Ok(())
}

/// Shows the table until every sample has finished; all resources as they are then.
async fn finished(client: &Client, samples: &[Sample]) -> Result<Vec<Value>, Box<dyn Error + Send + Sync>> {
    let stops: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), NAMESPACE, &resource("workflow.amperity.com/v1alpha1", "WorkflowRunStop"));
    let mut live = LiveTable::new(client.clone());
    let deadline = Instant::now() + FINISHES_WITHIN;
    loop {
        // In this order, so that the last picture shows all ends.
        let list = stops.list(&ListParams::default()).await?;
        live.show().await?;
        let resources: Vec<_> = list.items.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
        let is_finished = |name: &str| {
            resources.iter().any(|resource| resource["metadata"]["name"] == name && verdict::is_finished(resource))
        };
        let missing: Vec<_> = samples.iter().map(|sample| sample.name).filter(|name| !is_finished(name)).collect();
        if missing.is_empty() {
            return Ok(resources);
        }
        if deadline <= Instant::now() {
            let (seconds, missing) = (FINISHES_WITHIN.as_secs(), missing.join(", "));
            return Err(format!("not finished after {seconds} s: {missing}").into());
        }
        sleep(POLL).await;
    }
}

/// Applies every document of a manifest as `kubectl apply --server-side` does.
async fn apply_text(client: &Client, text: &str) -> Outcome {
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let document = Value::deserialize(document)?;
        let word = |pointer: &str| document.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let of = resource(word("/apiVersion"), word("/kind"));
        let api: Api<DynamicObject> = match of.kind.as_str() {
            "Namespace" => Api::all_with(client.clone(), &of),
            _ => Api::namespaced_with(client.clone(), NAMESPACE, &of),
        };
        api.patch(word("/metadata/name"), &PatchParams::apply("demo"), &Patch::Apply(&document)).await?;
    }
    Ok(())
}

fn resource(api_version: &str, kind: &str) -> ApiResource {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

fn say_what_to_try(stage: &Stage) {
    let kubeconfig = stage.plane.kubeconfig_path();
    println!(
        "\nEverything keeps running until Ctrl-C. In another terminal, in this folder:

  export KUBECONFIG={}
  kubectl get wrs -w
  kubectl apply -f examples/stop-another.yaml
  kubectl wait wrs/stop-another --for=condition=Ready --timeout=1m
  kubectl describe wrs stop-failing
  kubectl explain wrs.status
  tail -f {}

Without kubectl: export PATH=\"$(sh tests/lab/control-plane/build.sh kubectl):$PATH\" builds one.
Nobody can add a run to the simulated Amperity from outside, but these of the tenant {} are still there:

{}
  sed 's/stop-nightly/mine/; s/wf-demo-1/wf-demo-9/' examples/stop.yaml | kubectl apply -f -",
        kubeconfig.display(),
        stage.operator.log_path().display(),
        samples::TENANT,
        samples::SPARE_RUNS,
    );
}
