//! Owns where the result of a bench goes: to the output, and into the folder `BENCH_OUT` if there is one.
//! Never judges a result.

use std::{fs, path::Path};

/// Prints a result in Markdown, and writes it to this file.
pub fn publish(file: &str, text: &str) {
    println!("\n{text}");
    write(file, text);
}

/// Writes a file of a result.
pub fn write(file: &str, content: &str) {
    if let Some(folder) = std::env::var_os("BENCH_OUT") {
        fs::create_dir_all(&folder).unwrap();
        fs::write(Path::new(&folder).join(file), content).unwrap();
    }
}
