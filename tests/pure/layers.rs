//! Checks the structural rules of the code: reads src/ and reports each file that breaks one.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Every file with its layer: it may import only from lower ones. The entry of a folder is its mod.rs.
const LAYERS: &[(&str, u8)] = &[
    ("clock", 0),
    ("rng", 0),
    ("fault_injection", 0),
    ("metric_labels", 0),
    ("json_stream", 0),
    ("stored_object", 0),
    ("bounded_map", 0),
    ("fair_share", 0),
    ("turns", 0),
    ("fair_queue", 1),
    ("amperity::endpoint", 0),
    ("amperity::answer_memory", 1),
    ("amperity::run", 2),
    ("amperity::reply", 3),
    ("amperity::answer", 4),
    ("amperity::adaptive_rate", 0),
    ("amperity::purpose", 0),
    ("amperity::step_shares", 1),
    ("amperity::wait_queue", 1),
    ("amperity::tenant_budget", 2),
    ("amperity::budgets", 3),
    ("amperity::budget", 4),
    ("amperity::credentials", 1),
    ("amperity::json_repair", 0),
    ("amperity::lenient_json", 3),
    ("amperity::json_part", 4),
    ("amperity::body_fields", 5),
    ("amperity::body", 6),
    ("amperity::decode", 7),
    ("amperity::connector", 0),
    ("amperity::kept_connections", 0),
    ("amperity::content", 0),
    ("amperity::transport", 5),
    ("amperity::request_metrics", 5),
    ("amperity::client", 8),
    ("amperity", 8),
    ("reconcile::backoff", 1),
    ("reconcile::facts", 2),
    ("reconcile::resource_id", 0),
    ("reconcile::decide", 3),
    ("reconcile::announcements", 3),
    ("reconcile::status_builder", 5),
    ("reconcile::outcome", 6),
    ("reconcile::store_error", 3),
    ("reconcile::api_turns", 3),
    ("reconcile::api_response", 4),
    ("reconcile::secret", 5),
    ("reconcile::store", 6),
    ("reconcile::context", 9),
    ("reconcile::step_report", 9),
    ("reconcile::tracked", 10),
    ("reconcile::access", 11),
    ("reconcile::announce", 11),
    ("reconcile::preflight", 12),
    ("reconcile::reading", 13),
    ("reconcile", 14),
    ("observe::backlog", 15),
    ("observe::event_filter", 15),
    ("observe::event_queue", 16),
    ("observe::events", 17),
    ("observe::metrics", 18),
    ("observe::reporter", 19),
    ("observe::undecodable", 19),
    ("observe", 19),
    ("operator::http_server", 0),
    ("operator::leader_election", 15),
    ("operator::health", 20),
    ("operator::response_stream", 1),
    ("operator::list_watch", 2),
    ("operator::index", 20),
    ("operator::step", 21),
    ("operator::scheduler", 22),
    ("operator::waiting", 23),
    ("operator::changes", 24),
    ("operator::watch", 25),
    ("operator::ttl", 21),
    ("operator", 26),
    ("config", 26),
    ("main", 27),
    ("lib", 27),
];

/// Files that do no IO, read no clock, use no randomness and write no log, and import only each other.
const PURE: &[&str] = &[
    "fair_share",
    "json_stream",
    "stored_object",
    "amperity::reply",
    "amperity::answer",
    "amperity::answer_memory",
    "amperity::endpoint",
    "amperity::purpose",
    "amperity::run",
    "amperity::json_repair",
    "amperity::lenient_json",
    "amperity::json_part",
    "amperity::body_fields",
    "amperity::body",
    "amperity::decode",
    "reconcile::backoff",
    "reconcile::facts",
    "reconcile::decide",
    "reconcile::status_builder",
    "reconcile::outcome",
    "observe::event_filter",
];

const IMPURE: &[&str] =
    &["tokio", "hyper", "kube::Client", "::now()", "tracing", "rand::", "async ", ".await", "std::fs", "std::env"];

/// Code that may occur only once, and its file.
const ONCE: &[(&str, &str)] =
    &[("amperity.stop(", "reconcile"), ("patch_subresource", "reconcile::store"), ("Timestamp::now()", "main")];

/// The limit for the lines of a file, without its tests, which are at its end.
const MAX_LINES: usize = 400;

struct Source {
    name: String,
    text: String,
    /// Without comments and tests.
    code: String,
}

fn sources() -> Vec<Source> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, found) } else { found.push(path) }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = vec![];
    walk(&root, &mut found);
    let source = |path: PathBuf| {
        let name = path.strip_prefix(&root).unwrap().with_extension("").to_string_lossy().replace('/', "::");
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        let code: Vec<_> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        Source { name: name.trim_end_matches("::mod").to_owned(), code: code.join("\n"), text }
    };
    found.into_iter().map(source).collect()
}

/// Fails with the message of every file for which `wrong` returns one.
fn check(wrong: impl Fn(&Source) -> Option<String>) {
    let wrong: Vec<_> =
        sources().iter().filter_map(|source| Some(format!("{}: {}", source.name, wrong(source)?))).collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn layer(name: &str) -> Option<u8> {
    LAYERS.iter().find(|(known, _)| *known == name).map(|(_, layer)| *layer)
}

/// Returns the modules that a file imports, as named in LAYERS.
fn imports(source: &Source) -> Vec<&'static str> {
    let code: String = source.code.split_whitespace().collect();
    let mut trees: Vec<String> =
        code.split("crate::").skip(1).map(|rest| rest.split(';').next().unwrap().to_owned()).collect();
    // `use crate::a::{b, c::{d}}` names a::b and a::c.
    let mut paths = vec![];
    for tree in &mut trees {
        match tree.split_once("::{") {
            Some((parent, inner)) if !parent.contains(['(', '{', '.', '<', ',']) => {
                let mut depth = 0;
                let flat: String = inner
                    .chars()
                    .filter(|c| {
                        depth += i32::from(*c == '{');
                        let keep = depth == 0;
                        depth -= i32::from(*c == '}');
                        keep
                    })
                    .collect();
                paths.extend(flat.split(',').filter(|part| part.len() > 1).map(|part| format!("{parent}::{part}")));
            }
            _ => paths.push(tree.clone()),
        }
    }
    let known = |path: &String| {
        let words: Vec<_> = path
            .split("::")
            .map(|word| word.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap())
            .collect();
        let two = words.iter().take(2).copied().collect::<Vec<_>>().join("::");
        LAYERS
            .iter()
            .map(|(name, _)| *name)
            .find(|name| *name == two)
            .or_else(|| LAYERS.iter().map(|(name, _)| *name).find(|name| *name == words[0]))
    };
    paths.iter().filter_map(known).collect()
}

#[test]
fn every_file_imports_only_from_lower_layers() {
    check(|source| {
        let Some(own) = layer(&source.name) else { return Some("has no layer: add it to LAYERS".into()) };
        let wrong = imports(source).into_iter().find(|import| own <= layer(import).unwrap())?;
        Some(format!("(layer {own}) imports {wrong} (layer {})", layer(wrong).unwrap()))
    });
}

#[test]
fn amperity_does_not_use_kubernetes_or_the_resource() {
    check(|source| {
        if !source.name.starts_with("amperity") {
            return None;
        }
        // It may use the types of a run that the status repeats.
        let code = source.code.replace("workflow_run_stop_api::workflow_run::", "");
        let used = ["kube::", "k8s_openapi", "workflow_run_stop_api"].into_iter().find(|word| code.contains(word))?;
        Some(format!("uses {used}"))
    });
}

#[test]
fn pure_files_use_no_io_clock_randomness_or_log() {
    check(|source| {
        if !PURE.contains(&source.name.as_str()) {
            return None;
        }
        let impure = IMPURE.iter().find(|word| source.code.contains(**word)).map(|word| format!("uses {word}"));
        let import =
            imports(source).into_iter().find(|import| !PURE.contains(import)).map(|import| format!("imports {import}"));
        impure.or(import)
    });
}

#[test]
fn every_file_starts_with_owns_and_never() {
    check(|source| {
        let has_both = source.text.starts_with("//! Owns ") && source.text.contains("\n//! Never ");
        (!has_both).then(|| "does not start with `//! Owns` and `//! Never`".into())
    });
}

#[test]
fn no_file_is_longer_than_400_lines() {
    check(|source| {
        let lines = source.text.split("#[cfg(test)]").next().unwrap().lines().count();
        (MAX_LINES < lines).then(|| format!("has {lines} lines before its tests; split it"))
    });
}

#[test]
fn code_that_may_occur_only_once_is_in_its_one_file() {
    check(|source| {
        let (word, place) = ONCE.iter().find(|(word, place)| source.name != *place && source.code.contains(word))?;
        Some(format!("contains {word}, which belongs to {place}"))
    });
    for (word, place) in ONCE {
        let here = sources().into_iter().find(|source| source.name == *place).unwrap();
        assert_eq!(here.code.matches(word).count(), 1, "{word} in {place}");
    }
}

#[test]
fn no_file_repeats_the_name_of_a_reason() {
    let reasons = workflow_run_stop_api::conditions::Reason::ALL;
    check(|source| {
        let literal = |name: &str| source.code.contains(&format!("\"{name}\""));
        reasons
            .iter()
            .map(|reason| reason.as_str())
            .find(|name| literal(name))
            .map(|name| format!("contains \"{name}\""))
    });
}
