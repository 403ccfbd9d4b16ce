//! Memory of the host: how much is free, and checks before something large is allocated, so that a scan or a setting
//! that asks for too much ends in an error instead of in an abort.

use std::sync::atomic::{AtomicU64, Ordering};

/// What this process may have in all; `u64::MAX` while no limit is set.
static LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);

/// Fewer bytes are granted without asking the operating system.
const SMALL: u64 = 16 << 20;

/// Why something is not allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{} of memory are needed, and {} are {}", size(*needed), size(*available), match limited {
    true => "left of the limit",
    false => "free",
})]
pub struct TooLarge {
    /// Bytes that would be allocated.
    pub needed: u64,
    /// Bytes that may be.
    pub available: u64,
    /// Whether it is the limit that refuses ([`set_limit`]), and not the machine.
    pub limited: bool,
}

impl TooLarge {
    /// The part of what is needed that there is memory for, in whole per cent.
    pub fn fits(&self) -> u64 {
        (self.available as f64 / self.needed.max(1) as f64 * 100.0) as u64
    }
}

/// Limits what this process takes in all, whatever the machine has; `None` lifts the limit. What runs on a driver for the
/// processor counts.
pub fn set_limit(bytes: Option<u64>) {
    LIMIT.store(bytes.unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// Bytes that can be allocated now: what the machine, and the container that the process runs in, have free, or what is left of
/// the limit where that is less. Where the system does not say, the limit alone counts.
pub fn available() -> u64 {
    free().unwrap_or(u64::MAX).min(left())
}

/// What the process has not taken yet of its limit.
fn left() -> u64 {
    match LIMIT.load(Ordering::Relaxed) {
        u64::MAX => u64::MAX,
        limit => limit.saturating_sub(taken().unwrap_or(0)),
    }
}

/// Whether so many bytes can be allocated.
///
/// # Errors
/// More than [`available`] bytes.
pub fn require(bytes: u64) -> Result<(), TooLarge> {
    match LIMIT.load(Ordering::Relaxed) == u64::MAX && bytes <= SMALL {
        true => Ok(()),
        false => check(bytes, free().unwrap_or(u64::MAX), left()),
    }
}

fn check(needed: u64, free: u64, left: u64) -> Result<(), TooLarge> {
    let available = free.min(left);
    match needed <= available {
        true => Ok(()),
        false => Err(TooLarge {
            needed,
            available,
            limited: left < free,
        }),
    }
}

/// So many zeros.
///
/// # Errors
/// More than there is memory for.
pub fn zeros(count: usize) -> Result<Vec<f32>, TooLarge> {
    let needed = bytes(&[count], size_of::<f32>());
    require(needed)?;
    let mut zeros = Vec::new();
    zeros.try_reserve_exact(count).map_err(|_| TooLarge {
        needed,
        available: available(),
        limited: false,
    })?;
    zeros.resize(count, 0.0);
    Ok(zeros)
}

/// Bytes of an array of this shape whose elements have `element` bytes; `u64::MAX` where they can't be counted.
pub fn bytes(shape: &[usize], element: usize) -> u64 {
    let sizes = shape.iter().map(|n| *n as u64);
    sizes.fold(element as u64, u64::saturating_mul)
}

/// A number of bytes in words: `1.6 GB`.
pub fn size(bytes: u64) -> String {
    match bytes {
        u64::MAX => "more bytes than can be counted".into(),
        b if b >= 1_000_000_000 => format!("{:.1} GB", b as f64 / 1e9),
        b => format!("{:.0} MB", b as f64 / 1e6),
    }
}

#[cfg(not(target_arch = "wasm32"))]
fn free() -> Option<u64> {
    let mut system = sysinfo::System::new().ok()?;
    system.refresh_memory();
    let machine = Some(system.available_memory()).filter(|bytes| *bytes > 0);
    // what files are cached in counts as used there, but gives way
    let container = system
        .cgroup_limits()
        .map(|limits| limits.total_memory.saturating_sub(limits.rss));
    machine.into_iter().chain(container).min()
}

/// Bytes that the process has in the machine's memory.
#[cfg(not(target_arch = "wasm32"))]
fn taken() -> Option<u64> {
    use sysinfo::{ProcessRefreshKind, ProcessesToUpdate};
    let pid = sysinfo::get_current_pid().ok()?;
    let mut system = sysinfo::System::new().ok()?;
    let memory = ProcessRefreshKind::nothing().with_memory();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, memory);
    Some(system.process(pid)?.memory())
}

/// The page's.
#[cfg(target_arch = "wasm32")]
fn taken() -> Option<u64> {
    Some(65_536 * core::arch::wasm32::memory_size::<0>() as u64)
}

/// A page can grow to 4 GiB.
#[cfg(target_arch = "wasm32")]
fn free() -> Option<u64> {
    Some((1 << 32) - 65_536 * core::arch::wasm32::memory_size::<0>() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_has_not_is_refused() {
        let free = available();
        assert!((1 << 24..1 << 50).contains(&free), "{free}");
        assert_eq!(require(1 << 20), Ok(()));
        let refused = zeros(1 << 60).unwrap_err();
        assert_eq!(refused.needed, 1 << 62);
        assert!(refused.to_string().contains("are free"), "{refused}");
        assert_eq!(zeros(usize::MAX).unwrap_err().needed, u64::MAX);
        assert_eq!(zeros(5).unwrap(), [0.0; 5]);
        assert_eq!(bytes(&[1 << 40, 1 << 40], 4), u64::MAX);
        assert_eq!(size(1_600_000_000), "1.6 GB");
        assert_eq!(size(20_000_000), "20 MB");
        let taken = taken().unwrap();
        assert!((1 << 20..1 << 40).contains(&taken), "{taken}");
    }

    #[test]
    fn the_limit_or_the_machine_refuses_whichever_is_less() {
        let mib = |n: u64| n << 20;
        assert_eq!(check(mib(30), mib(30), mib(40)), Ok(()));
        let machine = check(mib(40), mib(30), mib(40)).unwrap_err();
        assert_eq!((machine.available, machine.limited), (mib(30), false));
        let limit = check(mib(40), mib(50), mib(5)).unwrap_err();
        assert_eq!((limit.available, limit.limited), (mib(5), true));
        assert!(
            limit.to_string().ends_with("5 MB are left of the limit"),
            "{limit}"
        );
        assert_eq!(limit.fits(), 12);
    }
}
