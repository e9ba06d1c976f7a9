//! Owns the progress of what is waited for: a spinner on a terminal, else a line for each change.
//! Never writes to stdout.

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// How often the spinner turns.
const TURN: Duration = Duration::from_millis(120);

/// Where progress is shown.
pub enum Progress {
    /// Spinners, a line for each resource.
    Terminal(MultiProgress),
    /// Plain lines.
    Lines,
}

/// The progress of one resource.
pub enum Line {
    /// Its spinner.
    Spinner(ProgressBar),
    /// What was written last.
    Plain(String),
}

impl Progress {
    /// For so many resources.
    pub fn new(count: usize) -> Self {
        // More lines than a terminal has would only flicker.
        if std::io::stderr().is_terminal() && count <= 20 { Self::Terminal(MultiProgress::new()) } else { Self::Lines }
    }

    /// One more resource.
    pub fn line(&self, name: &str) -> Line {
        match self {
            Self::Terminal(all) => {
                let style = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg}");
                let bar = all.add(ProgressBar::new_spinner());
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
                bar.set_prefix(name.to_owned());
                bar.enable_steady_tick(TURN);
                Line::Spinner(bar)
            }
            Self::Lines => Line::Plain(String::new()),
        }
    }

    /// Leaves nothing behind on the terminal.
    pub fn clear(&self) {
        if let Self::Terminal(all) = self {
            // A terminal that is gone needs no clearing.
            drop(all.clear());
        }
    }
}

impl Line {
    /// Says what the resource is at.
    pub fn say(&mut self, name: &str, text: &str) {
        match self {
            Self::Spinner(bar) => bar.set_message(text.to_owned()),
            Self::Plain(last) if last != text => {
                text.clone_into(last);
                let _ = writeln!(std::io::stderr(), "{name}: {text}");
            }
            Self::Plain(_) => {}
        }
    }

    /// Its end is told elsewhere.
    pub fn end(self) {
        if let Self::Spinner(bar) = self {
            bar.finish_and_clear();
        }
    }
}
