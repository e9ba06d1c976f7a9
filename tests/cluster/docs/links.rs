//! Owns the tests of links: every target exists.

use std::path::{Component, Path, PathBuf};

use super::markdown::{Document, ROOT, all};

/// Returns the targets of all links of a text, except in code.
fn targets(prose: &str) -> Vec<String> {
    let plain: String = prose.split('`').step_by(2).collect();
    let after = plain.split("](").skip(1);
    after.filter_map(|rest| rest.split_once(')').map(|(target, _)| target.to_owned())).collect()
}

/// Resolves `..`: `docs/../README.md` is `README.md`.
fn normalized(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut normalized, part| {
        match part {
            Component::ParentDir => assert!(normalized.pop(), "{} is outside of the repository", path.display()),
            Component::CurDir => {}
            Component::Normal(_) | Component::RootDir | Component::Prefix(_) => normalized.push(part),
        }
        normalized
    })
}

#[test]
fn every_relative_link_and_anchor_exists() {
    let mut broken = vec![];
    for document in all() {
        for target in targets(&document.prose()).iter().filter(|target| !target.contains("://")) {
            let (file, anchor) = target.split_once('#').unwrap_or((target.as_str(), ""));
            let folder = Path::new(&document.path).parent().unwrap();
            let path = if file.is_empty() { PathBuf::from(&document.path) } else { normalized(&folder.join(file)) };
            let path = path.to_str().unwrap();
            let exists = Path::new(ROOT).join(path).exists();
            let anchored = anchor.is_empty() || (exists && Document::at(path).anchors().iter().any(|at| at == anchor));
            if !exists || !anchored {
                broken.push(format!("{}: {target}", document.path));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn the_index_has_one_line_for_every_document() {
    let index = Document::at("docs/README.md").prose();
    let mut files: Vec<_> =
        all().into_iter().filter_map(|document| document.path.strip_prefix("docs/").map(str::to_owned)).collect();
    files.retain(|file| file != "README.md");
    for file in &files {
        assert_eq!(index.matches(&format!("- [{file}]({file}): ")).count(), 1, "{file}");
    }
    assert_eq!(index.matches("\n- ").count(), files.len());
}
