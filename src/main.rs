//! The `obelisk` command-line program: parses, calls the library, prints. Results go to stdout, progress and logs to
//! stderr. Exit codes: 0 done, 1 the run failed, 2 wrong usage, 130 and 143 stopped by SIGINT and SIGTERM.
#![deny(clippy::print_stdout, clippy::print_stderr)] // they panic where nobody reads; `cli::print` does not
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod cli;

use std::process::ExitCode;

use clap::Parser;
use cli::interrupt;
use cli::print::{self, errln};

fn main() -> ExitCode {
    let started = std::time::Instant::now();
    instruct_driver();
    let code = match cli::Arguments::try_parse() {
        Ok(arguments) => {
            cli::start_logging(arguments.verbose);
            if let Err(error) = interrupt::listen() {
                errln!("signals can't be heard ({error}): they stop the program without a word");
            }
            cli::run(arguments, started).map_or_else(|error| cli::report(&error), |()| 0)
        }
        Err(refusal) => print_refusal(&refusal),
    };
    match (print::finish(), code) {
        (Err(error), 0) => {
            errln!("error: stdout: {error}");
            ExitCode::from(1)
        }
        _ => ExitCode::from(code),
    }
}

/// Prints the parser's complaint, or the help or version that were asked for, and returns the exit code.
fn print_refusal(refusal: &clap::Error) -> u8 {
    match (refusal.print(), refusal.use_stderr()) {
        (Err(error), false) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            errln!("error: stdout: {error}");
            1
        }
        _ => refusal.exit_code() as u8,
    }
}

/// Tells Mesa what it asks the environment: that its device selection layer need not complain of a missing XDG_RUNTIME_DIR on
/// headless machines, since this program chooses the adapter itself, and that it keep no shaders where the disk has no room.
#[allow(unsafe_code)] // the environment is changed before any thread exists
fn instruct_driver() {
    let set = |name: &str, value: &str| {
        // SAFETY: the beginning of main; no other thread reads the environment.
        unsafe { std::env::set_var(name, value) }
    };
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        set("NODEVICE_SELECT", "1");
    }
    if !has_room_for_shaders() {
        set("MESA_SHADER_CACHE_DISABLE", "true");
    }
}

/// Whether the disk takes Mesa's cache of shaders, whose index it writes through memory: a full disk ends the process (SIGBUS).
fn has_room_for_shaders() -> bool {
    #[cfg(unix)]
    {
        /// Ten times the index.
        const LEAST: u64 = 16 << 20;
        let named = std::env::var_os("MESA_SHADER_CACHE_DIR").map(std::path::PathBuf::from);
        let folder = named.or_else(dirs::cache_dir).unwrap_or_default();
        let disk = folder
            .ancestors()
            .find_map(|folder| rustix::fs::statvfs(folder).ok());
        disk.is_none_or(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) >= LEAST)
    }
    #[cfg(not(unix))]
    true
}
