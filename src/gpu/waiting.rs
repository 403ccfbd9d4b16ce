//! Waiting for the device, in one place. wgpu answers only while someone polls it. Browsers do so by themselves, and futures
//! resolve there when the device says so. Natively the thread that polls the future polls the device, too, and sleeps in the
//! driver until the work is done.

use super::GpuError;
use super::device::Device;

impl Device {
    /// Blocks until everything submitted is done: for benchmarks and other code that is not asynchronous. Browsers can't.
    ///
    /// # Errors
    /// A device that failed.
    pub fn wait(&self) -> Result<(), GpuError> {
        self.poll(None)?;
        self.check()
    }

    /// Blocks until a submission, or everything submitted, is done and its callbacks have run.
    pub(super) fn poll(&self, submission: Option<wgpu::SubmissionIndex>) -> Result<(), GpuError> {
        let wait = wgpu::PollType::Wait {
            submission_index: submission,
            timeout: None,
        };
        self.device
            .poll(wait)
            .map_err(|e| GpuError::Device(e.to_string()))?;
        Ok(())
    }

    /// Resolves when everything submitted is done.
    pub(crate) async fn done(&self) -> Result<(), GpuError> {
        let (send, receive) = futures_channel::oneshot::channel();
        self.queue.on_submitted_work_done(move || {
            // The receiver is gone only if this future was dropped.
            let _ = send.send(());
        });
        #[cfg(not(target_arch = "wasm32"))]
        self.poll(None)?;
        receive
            .await
            .map_err(|_| GpuError::Device("it dropped its work".into()))?;
        self.check()
    }
}
