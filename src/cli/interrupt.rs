//! SIGINT and SIGTERM: a command that has something to save finishes what it is at, saves, and says how to go on; any other
//! ends at once, and so does every command at the second signal. Exit codes as shells have them: 130 and 143.

use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

use super::print::errln;

/// The signal that has come, or 0.
static SIGNAL: LazyLock<Arc<AtomicUsize>> = LazyLock::new(Arc::default);
/// What is finished before the command ends, where there is something.
static FINISHING: Mutex<Option<&'static str>> = Mutex::new(None);
/// How to go on, where a command that ends at once can be gone on with.
static GOING_ON: Mutex<Option<String>> = Mutex::new(None);
/// Seldom enough to cost nothing, often enough for whoever waits.
const POLL: Duration = Duration::from_millis(50);

/// Listens from now on.
///
/// # Errors
/// The system's refusal.
pub fn listen() -> io::Result<()> {
    let once = Arc::new(AtomicBool::new(false));
    for number in [SIGINT, SIGTERM] {
        // In this order: the first signal finds `once` unset.
        flag::register_conditional_shutdown(number, 128 + number, once.clone())?;
        flag::register(number, once.clone())?;
        flag::register_usize(number, SIGNAL.clone(), number as usize)?;
    }
    // Handlers may do next to nothing, not even print.
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(|| {
            while SIGNAL.load(SeqCst) == 0 {
                std::thread::sleep(POLL);
            }
            let finishing = FINISHING.lock().expect("no panic while it is held");
            match *finishing {
                Some(what) => errln!("stopping after {what}; a second signal stops at once"),
                None => {
                    match &*GOING_ON.lock().expect("no panic while it is held") {
                        Some(told) => errln!("stopped; {told}"),
                        None => errln!("stopped"),
                    }
                    low_level::exit(128 + SIGNAL.load(SeqCst) as i32);
                }
            }
        })
        .map(|_| ())
}

/// Says how to go on, should a signal end the command.
pub fn say(told: String) {
    *GOING_ON.lock().expect("no panic while it is held") = Some(told);
}

/// While it lives, a first signal ends nothing; whoever asks hears of it.
#[derive(Debug)]
pub struct Finishing(());

impl Finishing {
    /// Says what is finished before the command ends.
    pub fn first(what: &'static str) -> Finishing {
        *FINISHING.lock().expect("no panic while it is held") = Some(what);
        Finishing(())
    }

    /// `Break` once a signal has come.
    pub fn flow(&self) -> ControlFlow<()> {
        match SIGNAL.load(SeqCst) {
            0 => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    }
}

impl Drop for Finishing {
    fn drop(&mut self) {
        *FINISHING.lock().expect("no panic while it is held") = None;
    }
}

/// A command that ended early because a signal said so.
#[derive(Debug, thiserror::Error)]
#[error("{told}")]
pub struct Interrupted {
    signal: usize,
    told: String,
}

impl Interrupted {
    /// The end of a command that heard of a signal; `told` says what is saved and how to go on.
    pub fn after(told: String) -> Interrupted {
        let signal = SIGNAL.load(SeqCst);
        Interrupted { signal, told }
    }

    /// 128 and the signal's number; SIGTERM's where another rank has heard it.
    pub fn exit_code(&self) -> u8 {
        let signal = if self.signal == 0 {
            SIGTERM as usize
        } else {
            self.signal
        };
        128 + signal as u8
    }
}
