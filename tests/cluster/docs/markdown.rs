//! Owns parsing of the documents: fenced blocks and the marks before them, headings and tables.
//! Never depends on the content of a document.

use std::fs;

pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A Markdown document.
pub struct Document {
    /// The path relative to the repository's root.
    pub path: String,
    pub text: String,
}

/// A fenced block.
pub struct Block {
    /// File and line, such as `README.md:17`.
    pub place: String,
    pub language: String,
    /// The comment on the line before, such as `<!-- outside: it needs a registry -->`.
    pub mark: Option<Mark>,
    pub text: String,
}

/// An instruction to the tests, from the comment before a block.
#[derive(Debug, PartialEq, Eq)]
pub enum Mark {
    /// Commands that no test runs, with the reason.
    Outside(String),
    /// A part of a manifest, with a description.
    Fragment(String),
    /// Values of the chart.
    Values,
    /// The content of a file of this name, for the commands that follow.
    File(String),
}

impl Mark {
    fn of(line: &str, place: &str) -> Option<Self> {
        let text = line.strip_prefix("<!--")?.strip_suffix("-->")?.trim();
        let (kind, rest) = text.split_once(": ").unwrap_or((text, ""));
        match (kind, rest.is_empty()) {
            ("outside", false) => Some(Self::Outside(rest.to_owned())),
            ("fragment", false) => Some(Self::Fragment(rest.to_owned())),
            ("file", false) => Some(Self::File(rest.to_owned())),
            ("values", true) => Some(Self::Values),
            _ => panic!("{place}: unknown mark <!-- {text} -->"),
        }
    }
}

/// Returns the documents at the top, in docs/, and the README of the chart.
pub fn all() -> Vec<Document> {
    let mut paths: Vec<_> = fs::read_dir(format!("{ROOT}/docs"))
        .unwrap()
        .map(|entry| format!("docs/{}", entry.unwrap().file_name().into_string().unwrap()))
        .filter(|path| path.ends_with(".md"))
        .collect();
    paths.sort();
    paths.splice(0..0, ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"].map(str::to_owned));
    paths.push("charts/workflow-run-stop-operator/README.md".to_owned());
    paths.into_iter().map(|path| Document { text: read(&path), path }).collect()
}

/// Reads a file of the repository.
pub fn read(path: &str) -> String {
    fs::read_to_string(format!("{ROOT}/{path}")).unwrap_or_else(|error| panic!("{path}: {error}"))
}

impl Document {
    pub fn at(path: &str) -> Self {
        Self { path: path.to_owned(), text: read(path) }
    }

    /// Returns whether another program generates the document.
    pub fn is_generated(&self) -> bool {
        self.path.starts_with("charts/")
    }

    /// Returns the fenced blocks.
    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks = vec![];
        let (mut open, mut before): (Option<Block>, &str) = (None, "");
        for (number, line) in self.text.lines().enumerate() {
            match (open.as_mut(), line.trim_start().strip_prefix("```")) {
                (None, Some(language)) => {
                    assert!(line.starts_with("```"), "{}:{}: an indented block", self.path, number + 1);
                    let place = format!("{}:{}", self.path, number + 1);
                    let mark = Mark::of(before, &place);
                    open = Some(Block { place, language: language.to_owned(), mark, text: String::new() });
                }
                (None, None) => {}
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (Some(block), None) => {
                    block.text.push_str(line);
                    block.text.push('\n');
                }
            }
            before = line;
        }
        assert!(open.is_none(), "{}: an unterminated block", self.path);
        blocks
    }

    /// Returns the text without its blocks.
    pub fn prose(&self) -> String {
        let mut fenced = false;
        let outside = |line: &&str| {
            let fence = line.starts_with("```");
            fenced ^= fence;
            !fenced && !fence
        };
        self.text.lines().filter(outside).collect::<Vec<_>>().join("\n")
    }

    /// Returns the anchors of the headings, as GitHub generates them.
    pub fn anchors(&self) -> Vec<String> {
        let prose = self.prose();
        let headings = prose.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#'));
        let anchor = |heading: &str| {
            let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
        };
        headings.map(anchor).collect()
    }

    /// Returns the section below a heading, up to the next heading of the same or a higher level.
    pub fn section(&self, heading: &str) -> String {
        let level = heading.split(' ').next().unwrap().len();
        let mut lines = self.text.lines().skip_while(|line| *line != heading);
        assert!(lines.next().is_some(), "{} has no heading '{heading}'", self.path);
        let ends = |line: &&str| {
            let hashes = line.chars().take_while(|c| *c == '#').count();
            0 < hashes && hashes <= level && line.chars().nth(hashes) == Some(' ')
        };
        lines.take_while(|line| !ends(line)).collect::<Vec<_>>().join("\n")
    }
}

/// Returns the cells of all table rows whose first cell starts with code.
pub fn rows(text: &str) -> Vec<Vec<String>> {
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells = row.trim_matches('|').split(" | ").map(|cell| cell.trim().trim_end_matches('|').trim().to_owned());
        cells.collect()
    })
    .collect()
}

/// Returns the code spans of a text.
pub fn codes(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}
