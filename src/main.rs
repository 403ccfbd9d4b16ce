//! The `obelisk` command-line program: parses, calls the library, prints. Results go to stdout, progress and logs to
//! stderr. Exit codes: 0 done, 1 the run failed, 2 wrong usage.

mod cli;

use clap::Parser;

fn main() -> std::process::ExitCode {
    let started = std::time::Instant::now();
    quiet_driver();
    let arguments = cli::Arguments::parse();
    cli::start_logging(arguments.verbose);
    match cli::run(arguments, started) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", cli::told(&error));
            std::process::ExitCode::from(if error.is::<cli::Usage>() { 2 } else { 1 })
        }
    }
}

/// Keeps Mesa's device selection layer from complaining about a missing XDG_RUNTIME_DIR on headless machines: this
/// program chooses the adapter itself.
#[allow(unsafe_code)] // the environment is changed before any thread exists
fn quiet_driver() {
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: the beginning of main; no other thread reads the environment.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}
