//! Owns the settings that several benches read from the environment.
//! Never has a default of its own.

/// Returns the value of a variable, or `usual` if it is unset or empty.
pub fn variable(name: &str, usual: &str) -> String {
    std::env::var(name).ok().filter(|text| !text.is_empty()).unwrap_or_else(|| usual.to_owned())
}

/// Returns true if `SMALL` asks for a small round, which only shows that a bench works.
pub fn is_small() -> bool {
    variable("SMALL", "0") != "0"
}
