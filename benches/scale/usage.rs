//! Owns what a process uses of memory and CPU, as Linux counts it.
//! Never judges what it measures.

use std::fs;

/// The clock ticks of `/proc/PID/stat` in a second. Linux has the same on all common machines.
const TICKS_PER_SECOND: f64 = 100.0;

/// Returns a size of the memory of a process in MiB: `VmRSS`, or `VmHWM` for the peak.
pub fn mebibytes(pid: u32, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).expect("the process runs");
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

/// Returns the CPU time that a process has used, in seconds.
pub fn cpu(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name of the program, in parentheses, is the second field.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks = |field: usize| fields[field - 3].parse::<f64>().unwrap();
    (ticks(14) + ticks(15)) / TICKS_PER_SECOND
}
