//! Disks and devices that fail, for tests: what a thread does with them is counted, and something of it does not happen.
//! Nothing else calls [`with`].

use std::cell::Cell;
use std::io;

/// What fails, from which operation on that changes the disk, or from which submission to a device on. Both count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The disk is full at this operation, and has room again afterwards.
    Full(usize),
    /// From this operation on nothing happens, tidying up included: the disk is as a crash or a kill would have left it.
    Crash(usize),
    /// The device is lost at this submission.
    Loss(usize),
    /// Each device is lost at each submission from this one on.
    Losses(usize),
}

/// What a thread did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Operations that change the disk, tried.
    pub operations: usize,
    /// Submissions to devices, tried.
    pub submissions: usize,
}

thread_local! {
    static FAULT: Cell<Option<Fault>> = const { Cell::new(None) };
    static COUNTS: Cell<Counts> = const { Cell::new(Counts { operations: 0, submissions: 0 }) };
}

/// Does `work` with this fault, on this thread. Returns what it gave, and what was counted.
pub fn with<T>(fault: Option<Fault>, work: impl FnOnce() -> T) -> (T, Counts) {
    COUNTS.take();
    FAULT.set(fault);
    let given = work();
    FAULT.take();
    (given, COUNTS.take())
}

/// Counts an operation that changes the disk.
///
/// # Errors
/// Where it is to fail.
pub(crate) fn operation() -> io::Result<()> {
    let mut counts = COUNTS.get();
    counts.operations += 1;
    COUNTS.set(counts);
    match FAULT.get() {
        Some(Fault::Full(n)) if counts.operations == n => Err(io::ErrorKind::StorageFull.into()),
        Some(Fault::Crash(n)) if counts.operations >= n => Err(io::Error::other("the test's crash")),
        _ => Ok(()),
    }
}

/// Whether files that were not finished stay, as after a crash.
pub(crate) fn nothing_is_tidied() -> bool {
    matches!(FAULT.get(), Some(Fault::Crash(_)))
}

/// Counts a submission to a device. Whether the device is lost at it.
pub(crate) fn is_lost_at_submission() -> bool {
    let mut counts = COUNTS.get();
    counts.submissions += 1;
    COUNTS.set(counts);
    match FAULT.get() {
        Some(Fault::Loss(n)) => counts.submissions == n,
        Some(Fault::Losses(n)) => counts.submissions >= n,
        _ => false,
    }
}
