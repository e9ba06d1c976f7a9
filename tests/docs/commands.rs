//! What the documents tell to type works: every `sh` block is run, in the order of its document, or says why it is not.

use std::fmt::Write;

use tokio::sync::Semaphore;

use crate::markdown::{Block, Document, Mark, all};
use crate::stage::Stage;

/// Each has a control plane of its own, which is half a GiB.
static AT_ONCE: Semaphore = Semaphore::const_new(2);

/// What is there before the first command of a document.
enum Begins {
    /// An empty cluster.
    WithNothing,
    /// The operator, by the chart.
    Installed,
    /// The operator, a Secret with a token, and what the commands in here leave behind.
    With(&'static str),
}
use Begins::{Installed, With, WithNothing};

/// Installs the operator as docs/getting-started.md does.
const INSTALL: &str = "helm install workflow-run-stop-operator charts/workflow-run-stop-operator \
    --namespace workflow-run-stop-operator --create-namespace >/dev/null
kubectl create secret generic amperity --from-literal=token=good-token\n";

// What has to stand in the output, beside that no command fails.
macro_rules! documents {
    ($($test:ident: $path:literal $begins:expr, $shows:expr;)*) => {
        /// The documents that have commands.
        const RUN: &[&str] = &[$($path,)*];
        $(
            #[tokio::test]
            async fn $test() {
                run($path, $begins, &$shows).await;
            }
        )*
    };
}

documents! {
    the_commands_of_the_readme_work: "README.md" WithNothing, ["condition met"];
    the_commands_of_getting_started_work: "docs/getting-started.md" WithNothing, ["canceled   Stopped   True    RunStopped", "WorkflowRunStops can be listed"];
    the_commands_of_gitops_work: "docs/gitops.md" With("kubectl create namespace argocd"), ["argocd-cm serverside-applied", "stop-"];
    the_commands_of_operations_work: "docs/operations.md" Installed, ["REVISION: 3", "workflowrunstops.workflow.amperity.com\" deleted"];
    the_commands_of_security_work: "docs/security.md" Installed, ["events.events.k8s.io", "secret/amperity configured"];
    the_commands_of_reasons_work: "docs/reasons.md" With(STOPPED), ["The run is stopped: its state is canceled."];
    the_commands_of_alerts_work: "docs/alerts.md" With(STOPPED_AND_WITHOUT_A_SECRET), ["CredentialsMissing", "StopAccepted", "yes"];
    the_commands_of_kubectl_plugin_work: "docs/kubectl-plugin.md" Installed, ["Stopped (RunStopped): The run is stopped: its state is canceled.", "stop-wf-20240619-14418-6uhqse created (server dry run)"];
    the_commands_of_faq_work: "docs/faq.md" With(STOPPED), ["\"httpStatus\":200", "\" deleted from"];
}

/// A stop that has ended.
const STOPPED: &str = "sed 's/wf-demo-1/wf-20240619-14418-6UhqSe/' examples/stop.yaml | kubectl apply -f -
kubectl wait wrs/stop-nightly --for=condition=Ready --timeout=60s";

/// The same, and one that waits for its Secret.
const STOPPED_AND_WITHOUT_A_SECRET: &str = "sed 's/wf-demo-1/wf-20240619-14418-6UhqSe/' examples/stop.yaml | kubectl apply -f -
sed 's/stop-nightly/stop-secretless/; s/name: amperity/name: none/' examples/stop.yaml | kubectl apply -f -
kubectl wait wrs/stop-nightly --for=condition=Ready --timeout=60s
kubectl wait wrs/stop-secretless --for=jsonpath='{.status.conditions[?(@.type==\"Ready\")].reason}'=CredentialsMissing --timeout=60s";

/// What is typed at a block; nothing where it is outside.
fn typed(block: &Block) -> String {
    match (block.language.as_str(), &block.mark) {
        ("sh", None) => block.text.clone(),
        (_, Some(Mark::File(name))) => format!("cat >{name} <<'END_OF_BLOCK'\n{}END_OF_BLOCK\n", block.text),
        _ => String::new(),
    }
}

async fn run(path: &str, begins: Begins, shows: &[&str]) {
    let _turn = AT_ONCE.acquire().await.unwrap();
    let stage = Stage::new(&path.replace('/', "-")).await;
    let mut script = match begins {
        WithNothing => String::new(),
        Installed => INSTALL.to_owned(),
        With(more) => format!("{INSTALL}{more}\n"),
    };
    let blocks = Document::at(path).blocks();
    let mut typed_any = false;
    for block in &blocks {
        let typed = typed(block);
        typed_any |= !typed.is_empty();
        // A name that tells which block failed.
        write!(script, "printf '%s\\n' '--- {}'\n{typed}", block.place).unwrap();
    }
    assert!(typed_any, "{path} has no commands any more: take it out of `documents!`");
    let ended = tokio::select! {
        ended = stage.sh(&script) => ended,
        () = stage.nodes() => unreachable!("a watch does not end"),
    };
    assert!(ended.status.success(), "{path}: {}, after\n{}", ended.status, ended.output);
    for shown in shows {
        assert!(ended.output.contains(shown), "{path} does not show '{shown}' but\n{}", ended.output);
    }
    stage.end().await;
}

#[test]
fn every_document_with_commands_is_run() {
    for document in all().iter().filter(|document| !document.is_generated()) {
        let typed = document.blocks().iter().any(|block| !typed(block).is_empty());
        assert_eq!(
            typed,
            RUN.contains(&document.path.as_str()),
            "{}: a test runs it where it has commands",
            document.path
        );
    }
}

#[test]
fn every_block_is_of_a_kind_that_the_tests_know() {
    for block in all().iter().filter(|document| !document.is_generated()).flat_map(Document::blocks) {
        let is_known = match (block.language.as_str(), &block.mark) {
            ("sh", None | Some(Mark::Outside(_))) => true,
            ("yaml", None | Some(Mark::Fragment(_) | Mark::Values | Mark::File(_))) => true,
            // Pictures, and what programs print.
            ("text" | "promql", None) => true,
            _ => false,
        };
        assert!(is_known, "{}: a block of '{}' with the mark {:?}", block.place, block.language, block.mark);
    }
}

#[tokio::test]
async fn the_api_server_takes_every_manifest_and_the_chart_all_values() {
    let _turn = AT_ONCE.acquire().await.unwrap();
    let stage = Stage::new("manifests").await;
    stage.apply_crd().await;
    let mut count = 0;
    for block in all().iter().flat_map(Document::blocks).filter(|block| block.language == "yaml") {
        let program = match block.mark {
            Some(Mark::Fragment(_)) => continue,
            Some(Mark::Values) => {
                "helm template release charts/workflow-run-stop-operator --kube-version 1.37.0 --values -"
            }
            _ => "kubectl apply --dry-run=server --filename -",
        };
        let ended = stage.fed(program, &block.text).await;
        assert!(ended.status.success(), "{}: {}", block.place, ended.output);
        count += 1;
    }
    assert!(3 < count);
    stage.end().await;
}
