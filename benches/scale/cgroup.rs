//! Owns a memory cgroup with the limit `LIMIT_MIB`, as a container has one.
//! Never exists without that variable, and never outlives its process.

use std::{fs, path::PathBuf};

/// The folder of the memory controller: of cgroup v2, and of v1.
const FOLDERS: [(&str, &str); 2] =
    [("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")];

/// A memory cgroup.
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Creates a cgroup; `None` without `LIMIT_MIB`, or where this machine does not allow it, which is printed.
    pub fn create() -> Option<Self> {
        let limit: u64 = std::env::var("LIMIT_MIB").ok()?.parse().expect("LIMIT_MIB is a number");
        for (folder, file) in FOLDERS {
            let path = PathBuf::from(folder).join(format!("workflow-run-stop-scale-{}", std::process::id()));
            if fs::create_dir(&path).is_err() {
                continue;
            }
            let cgroup = Self(path);
            if fs::write(cgroup.0.join(file), (limit << 20).to_string()).is_ok() {
                return Some(cgroup);
            }
        }
        println!("this machine allows no memory cgroup; the operator runs without a limit");
        None
    }

    /// Returns the file into which a process writes its id to join.
    pub fn members(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }

    /// Returns the peak of the memory that the limit counts, in MiB; `None` if it is not known.
    pub fn peak(&self) -> Option<f64> {
        let read = |file| fs::read_to_string(self.0.join(file)).ok()?.trim().parse::<f64>().ok();
        Some(read("memory.peak").or_else(|| read("memory.max_usage_in_bytes"))? / f64::from(1 << 20))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Fails while the operator still ends.
        let _ = fs::remove_dir(&self.0);
    }
}
