//! What the program's buffers and textures take on the device: each is made in one place and counts until it is dropped.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of the buffers that a device holds: slots, weights, uniforms, queries, and what is staged for uploads and
/// read-backs, and textures that kernels read. They count as long as their owner, staged uploads until the device has copied them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Memory {
    /// Bytes now.
    pub live: u64,
    /// The most bytes there were at once since the device was opened or the peak was reset.
    pub peak: u64,
    /// What the backend's own allocator says, where it has one (Vulkan, DirectX 12).
    pub allocator: Option<AllocatorMemory>,
}

/// The backend's view of the same memory: alignment, wgpu's own buffers and blocks that are not full included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct AllocatorMemory {
    /// Bytes handed out now.
    pub allocated: u64,
    /// The most bytes handed out at the moments when the program's own count reached a new peak.
    pub allocated_peak: u64,
    /// Bytes that the blocks behind them take now.
    pub reserved: u64,
    /// The most that the blocks took at those moments.
    pub reserved_peak: u64,
}

/// The counters of one device, shared with everything that counts.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    live: AtomicU64,
    peak: AtomicU64,
    allocated_peak: AtomicU64,
    reserved_peak: AtomicU64,
}

impl Ledger {
    /// Counts `bytes` until the answer is dropped. The backend's allocator is asked at new peaks only, because its
    /// report lists every allocation.
    pub(super) fn charge(self: &Arc<Ledger>, device: &wgpu::Device, bytes: u64) -> Charge {
        let live = self.live.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if self.peak.fetch_max(live, Ordering::Relaxed) < live {
            self.ask_allocator(device);
        }
        Charge {
            ledger: self.clone(),
            bytes,
        }
    }

    fn ask_allocator(&self, device: &wgpu::Device) -> Option<AllocatorMemory> {
        let report = device.generate_allocator_report()?;
        let (allocated, reserved) = (report.total_allocated_bytes, report.total_reserved_bytes);
        let allocated_peak = self.allocated_peak.fetch_max(allocated, Ordering::Relaxed);
        let reserved_peak = self.reserved_peak.fetch_max(reserved, Ordering::Relaxed);
        Some(AllocatorMemory {
            allocated,
            allocated_peak: allocated_peak.max(allocated),
            reserved,
            reserved_peak: reserved_peak.max(reserved),
        })
    }

    pub(super) fn memory(&self, device: &wgpu::Device) -> Memory {
        Memory {
            live: self.live.load(Ordering::Relaxed),
            peak: self.peak.load(Ordering::Relaxed),
            allocator: self.ask_allocator(device),
        }
    }

    pub(super) fn reset_peak(&self) {
        self.peak
            .store(self.live.load(Ordering::Relaxed), Ordering::Relaxed);
        self.allocated_peak.store(0, Ordering::Relaxed);
        self.reserved_peak.store(0, Ordering::Relaxed);
    }
}

/// Bytes that count as live until this is dropped.
#[derive(Debug)]
pub(super) struct Charge {
    ledger: Arc<Ledger>,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.ledger.live.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A wgpu buffer or texture that counts as live until its last clone is dropped.
#[derive(Clone, Debug)]
pub(super) struct Counted<T> {
    resource: T,
    _charge: Arc<Charge>,
}

pub(super) type Buffer = Counted<wgpu::Buffer>;
pub(super) type Texture = Counted<wgpu::Texture>;

impl<T> Counted<T> {
    pub(super) fn new(resource: T, charge: Charge) -> Counted<T> {
        Counted {
            resource,
            _charge: Arc::new(charge),
        }
    }
}

/// The same one.
impl<T: PartialEq> PartialEq for Counted<T> {
    fn eq(&self, other: &Self) -> bool {
        self.resource == other.resource
    }
}

impl<T> Deref for Counted<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.resource
    }
}
