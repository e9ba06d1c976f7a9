//! Owns the paths of programs of other packages of this workspace: cargo gives a test only those of its own package.
//! Never returns a program that is older than its source: cargo builds it first.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::LazyLock,
};

/// The programs of the workspace, built at the first use in this process.
static PROGRAMS: LazyLock<Vec<PathBuf>> = LazyLock::new(build);

/// Builds the programs of this workspace, once per process, and returns the path of one.
///
/// All of them are built, as by `make`, so that cargo builds their dependencies only once.
///
/// # Panics
/// If cargo cannot build them, or if there is no program of this name.
pub fn binary(name: &str) -> PathBuf {
    let found = PROGRAMS.iter().find(|path| path.file_stem().is_some_and(|stem| stem == name));
    found.unwrap_or_else(|| panic!("the workspace has no program {name}")).clone()
}

fn build() -> Vec<PathBuf> {
    let workspace =
        Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("tests/lab is two levels below the workspace");
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--locked", "--workspace", "--bins", "--message-format=json-render-diagnostics"])
        .current_dir(workspace)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo can be started");
    assert!(output.status.success(), "cargo cannot build the workspace: {}", output.status);
    let messages = String::from_utf8_lossy(&output.stdout);
    let executable =
        |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["executable"].as_str().map(PathBuf::from);
    messages.lines().filter_map(executable).collect()
}
