//! What the command prints, and what it does when that can't be written.
//!
//! A reader that closed the pipe (`| head`) wants no more: the rest is not printed, the command goes on to its end, and
//! the exit code says how it went. Any other failure (a full disk) is an error.

use std::fmt::Arguments;
use std::io::{Error, ErrorKind, Result, Write};

/// Prints a line to standard output, as `println!`, which panics where this fails.
macro_rules! say {
    ($($text:tt)*) => { $crate::stdio::print(format_args!("{}\n", format_args!($($text)*))) };
}

/// Prints a line to standard error, as `eprintln!`. One that can't be written is lost; the exit code stays.
macro_rules! complain {
    ($($text:tt)*) => { $crate::stdio::print_error(format_args!("{}\n", format_args!($($text)*))) };
}

pub(crate) use {complain, say};

/// Prints text to standard output as it is.
pub fn print(text: Arguments) -> Result<()> {
    let mut out = std::io::stdout().lock();
    unless_closed(out.write_fmt(text).and_then(|()| out.flush()))
}

pub fn print_error(text: Arguments) {
    let _ = std::io::stderr().lock().write_fmt(text);
}

/// Takes a closed pipe for success.
pub fn unless_closed(result: Result<()>) -> Result<()> {
    result.or_else(|e: Error| if e.kind() == ErrorKind::BrokenPipe { Ok(()) } else { Err(e) })
}
