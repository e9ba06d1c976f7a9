//! Owns writing to stdout and stderr.
//! Never fails because the reader of a pipe has closed it.

use std::io::{self, ErrorKind, Write};

/// Writes to stdout. A reader that has closed the pipe, such as `head`, is not an error.
///
/// # Errors
/// If stdout cannot be written for another reason.
pub fn stdout(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Writes one line to stderr. Errors are ignored.
pub fn stderr_line(text: &str) {
    // There is no other place to report an error to.
    let _ = writeln!(io::stderr(), "{text}");
}
