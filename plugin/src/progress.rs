//! Owns the display while the plugin waits: on a terminal one spinner for each stop, otherwise one plain line for each
//! change.
//! Never writes to stdout.

use std::{io::IsTerminal, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use workflow_run_stop_common::output::stderr_line;

const TICK: Duration = Duration::from_millis(120);

/// The display of all stops on stderr.
pub struct Progress {
    spinners: Option<MultiProgress>,
}

impl Progress {
    /// Uses spinners if stderr is a terminal that can draw them.
    pub fn new() -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        let is_terminal = std::io::stderr().is_terminal() && !dumb;
        Self { spinners: is_terminal.then(MultiProgress::new) }
    }

    /// Adds the line of one stop.
    pub fn line(&self, name: &str) -> Line {
        let spinner = self.spinners.as_ref().map(|spinners| {
            let style = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg}");
            let spinner = spinners.add(ProgressBar::new_spinner());
            spinner.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            spinner.set_prefix(name.to_owned());
            spinner.enable_steady_tick(TICK);
            spinner
        });
        Line { name: name.to_owned(), spinner, shown: String::new() }
    }

    /// Runs a function that writes to the terminal while the spinners are hidden.
    pub fn suspend<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.spinners {
            Some(spinners) => spinners.suspend(write),
            None => write(),
        }
    }
}

/// The display of one stop. Dropping it removes the spinner.
pub struct Line {
    name: String,
    spinner: Option<ProgressBar>,
    shown: String,
}

impl Line {
    /// Shows the progress, unless the same text is shown already.
    pub fn update(&mut self, text: &str) {
        if self.shown == text {
            return;
        }
        text.clone_into(&mut self.shown);
        match &self.spinner {
            Some(spinner) => spinner.set_message(text.to_owned()),
            None => stderr_line(&format!("{}: {text}", self.name)),
        }
    }

    /// Prints a warning that stays on the terminal.
    pub fn warn(&self, text: &str) {
        let warning = format!("{}: warning: {text}", self.name);
        match &self.spinner {
            Some(spinner) => spinner.suspend(|| stderr_line(&warning)),
            None => stderr_line(&warning),
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}
