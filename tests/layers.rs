//! Structural rules of the code: reads src/ and fails where a file breaks one.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Every file with its floor: it imports only from lower ones. A folder's own number is its mod.rs.
const FLOORS: &[(&str, u8)] = &[
    ("clock", 0),
    ("rng", 0),
    ("fault_injection", 0),
    ("metric_labels", 0),
    ("amperity::endpoint", 0),
    ("amperity::run", 0),
    ("amperity::reply", 1),
    ("amperity::answer", 2),
    ("amperity::adaptive_rate", 0),
    ("amperity::purpose", 0),
    ("amperity::budget", 1),
    ("amperity::credentials", 1),
    ("amperity::json_repair", 0),
    ("amperity::lenient_json", 1),
    ("amperity::decode", 2),
    ("amperity::transport", 3),
    ("amperity::request_metrics", 3),
    ("amperity::client", 4),
    ("amperity", 4),
    ("reconcile::backoff", 1),
    ("reconcile::decide", 3),
    ("reconcile::status_builder", 4),
    ("reconcile::outcome", 5),
    ("reconcile::store_error", 4),
    ("reconcile::store", 5),
    ("reconcile::context", 6),
    ("reconcile::step_report", 6),
    ("reconcile::tracked", 7),
    ("reconcile::preflight", 8),
    ("reconcile", 9),
    ("observe::backlog", 10),
    ("observe::event_filter", 10),
    ("observe::events", 11),
    ("observe::metrics", 12),
    ("observe::reporter", 13),
    ("observe", 13),
    ("operator::leader_election", 10),
    ("operator::health", 14),
    ("operator::watch", 14),
    ("operator::ttl", 15),
    ("operator", 16),
    ("config", 16),
    ("main", 17),
    ("lib", 17),
];

/// Files that do no IO, read no clock, use no randomness and write no log, and import only each other.
const PURE: &[&str] = &[
    "amperity::reply",
    "amperity::answer",
    "amperity::endpoint",
    "amperity::run",
    "amperity::json_repair",
    "amperity::lenient_json",
    "amperity::decode",
    "reconcile::backoff",
    "reconcile::decide",
    "reconcile::status_builder",
    "reconcile::outcome",
    "observe::event_filter",
];

const IMPURE: &[&str] =
    &["tokio", "reqwest", "kube::Client", "::now()", "tracing", "rand::", "async ", ".await", "std::fs", "std::env"];

/// What may be done in one file only, once, and where.
const ONCE: &[(&str, &str)] = &[
    ("amperity.stop(", "reconcile"),
    ("decide(&tracked.resource", "reconcile"),
    ("patch_status", "reconcile::store"),
    ("Timestamp::now()", "main"),
];

/// Tests of a file stand at its end and do not count.
const LONGEST: usize = 400;

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

fn fail_where(wrong: impl Fn(&Source) -> Option<String>) {
    let wrong: Vec<_> =
        sources().iter().filter_map(|source| Some(format!("{}: {}", source.name, wrong(source)?))).collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn floor(name: &str) -> Option<u8> {
    FLOORS.iter().find(|(known, _)| *known == name).map(|(_, floor)| *floor)
}

/// The modules that a file imports, as named in FLOORS.
fn imports(source: &Source) -> Vec<&'static str> {
    let code: String = source.code.split_whitespace().collect();
    let mut trees: Vec<String> =
        code.split("crate::").skip(1).map(|rest| rest.split(';').next().unwrap().to_owned()).collect();
    // `use crate::a::{b, c::{d}}` names a::b and a::c.
    let mut paths = vec![];
    for tree in &mut trees {
        match tree.split_once("::{") {
            Some((room, inner)) if !room.contains(['(', '{', '.', '<', ',']) => {
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
                paths.extend(flat.split(',').filter(|part| part.len() > 1).map(|part| format!("{room}::{part}")));
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
        FLOORS
            .iter()
            .map(|(name, _)| *name)
            .find(|name| *name == two)
            .or_else(|| FLOORS.iter().map(|(name, _)| *name).find(|name| *name == words[0]))
    };
    paths.iter().filter_map(known).collect()
}

#[test]
fn every_file_imports_only_from_lower_floors() {
    fail_where(|source| {
        let Some(own) = floor(&source.name) else { return Some("has no floor: add it to FLOORS".into()) };
        let wrong = imports(source).into_iter().find(|import| own <= floor(import).unwrap())?;
        Some(format!("(floor {own}) imports {wrong} (floor {})", floor(wrong).unwrap()))
    });
}

#[test]
fn amperity_knows_no_kubernetes_client_and_no_resource() {
    fail_where(|source| {
        if !source.name.starts_with("amperity") {
            return None;
        }
        // Of the API crate it needs the parts of a run that the status repeats.
        let code = source.code.replace("workflow_run_stop_api::workflow_run::", "");
        let met = ["kube::", "k8s_openapi", "workflow_run_stop_api"].into_iter().find(|word| code.contains(word))?;
        Some(format!("knows {met}"))
    });
}

#[test]
fn pure_files_do_no_io_read_no_clock_and_use_no_randomness() {
    fail_where(|source| {
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
fn every_file_says_what_it_owns_and_what_it_never_does() {
    fail_where(|source| {
        let told = source.text.starts_with("//! Owns ") && source.text.contains("\n//! Never ");
        (!told).then(|| "does not begin with `//! Owns` and `//! Never`".into())
    });
}

#[test]
fn files_stay_short_enough_to_read() {
    fail_where(|source| {
        let lines = source.text.split("#[cfg(test)]").next().unwrap().lines().count();
        (LONGEST < lines).then(|| format!("has {lines} lines before its tests; look for the seam"))
    });
}

#[test]
fn what_may_happen_in_one_place_only_happens_there() {
    fail_where(|source| {
        let (word, place) = ONCE.iter().find(|(word, place)| source.name != *place && source.code.contains(word))?;
        Some(format!("{word} belongs to {place}"))
    });
    for (word, place) in ONCE {
        let here = sources().into_iter().find(|source| source.name == *place).unwrap();
        assert_eq!(here.code.matches(word).count(), 1, "{word} in {place}");
    }
}

#[test]
fn every_reason_is_spelled_in_one_file() {
    let reasons = workflow_run_stop_api::conditions::Reason::ALL;
    fail_where(|source| {
        let literal = |name: &str| source.code.contains(&format!("\"{name}\""));
        reasons.iter().map(|reason| reason.as_str()).find(|name| literal(name)).map(|name| format!("spells {name}"))
    });
}
