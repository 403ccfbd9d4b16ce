//! Printing that outlives its readers: a stdout or stderr that is closed or full stops no command.

use std::fmt::Arguments;
use std::io::{self, Write};
use std::sync::Mutex;

/// Why stdout takes no more.
static STDOUT: Mutex<Option<io::Error>> = Mutex::new(None);

/// Writes to stdout, unless it has failed before; [`finish`] reports that.
pub fn out(text: Arguments<'_>) {
    note_failure(|| io::stdout().write_fmt(text));
}

/// Writes a line to stderr, where someone still reads it.
pub fn err(text: Arguments<'_>) {
    // One call of write for a line, so that lines of several processes don't mix.
    let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// Whether all results were written to stdout. A reader that has closed its end has what it wanted, and is no failure.
///
/// # Errors
/// The system's reason, such as a full disk.
pub fn finish() -> io::Result<()> {
    note_failure(|| io::stdout().flush());
    match STDOUT.lock().expect("no panic while it is held").take() {
        Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

fn note_failure(write: impl FnOnce() -> io::Result<()>) {
    let mut failure = STDOUT.lock().expect("no panic while it is held");
    if failure.is_none() {
        *failure = write().err();
    }
}

/// Prints a line of results to stdout.
macro_rules! outln {
    ($($text:tt)*) => { $crate::cli::print::out(format_args!("{}\n", format_args!($($text)*))) };
}

/// Prints a line of progress or complaint to stderr.
macro_rules! errln {
    ($($text:tt)*) => { $crate::cli::print::err(format_args!($($text)*)) };
}

pub(crate) use {errln, outln};
