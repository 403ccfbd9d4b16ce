//! Waiting for the device, in one place. wgpu answers only while someone polls it. Browsers do so by themselves. Natively a
//! thread of the device's own does so while a future waits, and sleeps in the driver until the work is done, so that no future
//! blocks the thread of whoever polls it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::GpuError;
use super::device::Device;

#[cfg(not(target_arch = "wasm32"))]
pub(super) use native::Poller;

impl Device {
    /// Blocks until everything submitted is done: for benchmarks and other code that is not asynchronous. Browsers can't.
    ///
    /// # Errors
    /// A device that failed.
    pub fn wait(&self) -> Result<(), GpuError> {
        poll(&self.device, None).map_err(|error| self.failed(error))?;
        self.check()
    }

    /// Resolves when a submission, or everything submitted, is done and its callbacks have run.
    #[cfg(not(target_arch = "wasm32"))]
    pub(super) async fn polled(&self, submission: Option<wgpu::SubmissionIndex>) -> Result<(), GpuError> {
        let polled = self.poller.poll(submission).await;
        polled.map_err(|error| self.failed(error))
    }

    /// Callbacks run by themselves.
    #[cfg(target_arch = "wasm32")]
    pub(super) async fn polled(&self, _: Option<wgpu::SubmissionIndex>) -> Result<(), GpuError> {
        Ok(())
    }

    /// Resolves when everything submitted is done.
    pub(crate) async fn done(&self) -> Result<(), GpuError> {
        let (send, receive) = futures_channel::oneshot::channel();
        self.queue.on_submitted_work_done(move || {
            // The receiver is gone only if this future was dropped.
            let _ = send.send(());
        });
        self.polled(None).await?;
        receive
            .await
            .map_err(|_| self.failed(GpuError::Device("it dropped its work".into())))?;
        self.check()
    }
}

/// Blocks until a submission, or everything submitted, is done and its callbacks have run.
pub(super) fn poll(device: &wgpu::Device, submission: Option<wgpu::SubmissionIndex>) -> Result<(), GpuError> {
    let wait = wgpu::PollType::Wait {
        submission_index: submission,
        timeout: None,
    };
    // wgpu panics where a device is lost while someone waits for it.
    match catch_unwind(AssertUnwindSafe(|| device.poll(wait))) {
        Ok(polled) => polled
            .map(drop)
            .map_err(|error| GpuError::Device(error.to_string())),
        Err(_) => Err(GpuError::Device("it could not be waited for".into())),
    }
}

#[cfg(not(target_arch = "wasm32"))]
mod native {
    use std::sync::mpsc::{Sender, channel};
    use std::thread::{Builder, JoinHandle};

    use futures_channel::oneshot;

    use super::{GpuError, poll};

    type Wait = (
        Option<wgpu::SubmissionIndex>,
        oneshot::Sender<Result<(), GpuError>>,
    );

    /// The thread that polls a device. It ends with the device.
    #[derive(Debug)]
    pub(in crate::gpu) struct Poller {
        waits: Option<Sender<Wait>>,
        thread: Option<JoinHandle<()>>,
    }

    impl Poller {
        pub(in crate::gpu) fn start(device: &wgpu::Device) -> Result<Poller, GpuError> {
            let (waits, receive) = channel::<Wait>();
            let device = device.clone();
            let run = move || {
                for (submission, done) in receive {
                    // The receiver is gone only if its future was dropped.
                    let _ = done.send(poll(&device, submission));
                }
            };
            let thread = Builder::new().name("obelisk device".into()).spawn(run);
            Ok(Poller {
                waits: Some(waits),
                thread: Some(thread.map_err(|e| GpuError::Device(format!("it gets no thread: {e}")))?),
            })
        }

        pub(super) async fn poll(&self, submission: Option<wgpu::SubmissionIndex>) -> Result<(), GpuError> {
            let ended = || GpuError::Device("nothing polls it any more".into());
            let (done, polled) = oneshot::channel();
            let waits = self.waits.as_ref().expect("it lives as long as the device");
            waits.send((submission, done)).map_err(|_| ended())?;
            polled.await.map_err(|_| ended())?
        }
    }

    impl Drop for Poller {
        fn drop(&mut self) {
            self.waits = None; // which ends the thread
            if let Some(thread) = self.thread.take() {
                let _ = thread.join();
            }
        }
    }
}
