//! Owns what is shown while it waits: on a terminal one spinner for each stop, otherwise one plain line for each change.
//! Never writes to stdout.

use std::{io::IsTerminal, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use workflow_run_stop_common::output::stderr_line;

const TICK: Duration = Duration::from_millis(120);

/// The place on stderr where it is shown.
pub struct Progress {
    spinners: Option<MultiProgress>,
}

impl Progress {
    /// Spinners where somebody looks at them.
    pub fn new() -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        let somebody_looks = std::io::stderr().is_terminal() && !dumb;
        Self { spinners: somebody_looks.then(MultiProgress::new) }
    }

    /// The line of one stop.
    pub fn line(&self, name: &str) -> Line {
        let spinner = self.spinners.as_ref().map(|spinners| {
            let style = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg}");
            let spinner = spinners.add(ProgressBar::new_spinner());
            spinner.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            spinner.set_prefix(name.to_owned());
            spinner.enable_steady_tick(TICK);
            spinner
        });
        Line { name: name.to_owned(), spinner, said: String::new() }
    }

    /// Does what writes to the terminal while the spinners are out of its way.
    pub fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.spinners {
            Some(spinners) => spinners.suspend(write),
            None => write(),
        }
    }
}

/// What is shown of one stop. It goes away with its end.
pub struct Line {
    name: String,
    spinner: Option<ProgressBar>,
    said: String,
}

impl Line {
    /// How far it is; shown once where nothing changes.
    pub fn says(&mut self, text: &str) {
        if self.said == text {
            return;
        }
        text.clone_into(&mut self.said);
        match &self.spinner {
            Some(spinner) => spinner.set_message(text.to_owned()),
            None => stderr_line(&format!("{}: {text}", self.name)),
        }
    }

    /// What stays to be read.
    pub fn warns(&self, text: &str) {
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
