//! Copies from the device to the host.

use futures_channel::oneshot::Receiver;

use super::GpuError;
use super::device::Device;
use super::memory::Buffer;
use crate::tensor::{Spec, Tensor};

/// A value on its way to the host. The device goes on with what is submitted after it.
#[derive(Debug)]
pub struct Reading {
    copy: Copy,
    spec: Spec,
}

impl Reading {
    pub(super) async fn begin(
        device: &Device,
        buffer: &wgpu::Buffer,
        offset: u64,
        spec: &Spec,
    ) -> Result<Reading, GpuError> {
        Ok(Reading {
            copy: Copy::begin(device, buffer, offset, spec.bytes()).await?,
            spec: spec.clone(),
        })
    }

    /// The value, when it has arrived. Waits for the work before it, not for what was submitted since.
    pub async fn finish(self, device: &Device) -> Result<Tensor, GpuError> {
        let data = self.copy.finish(device).await?;
        Ok(Tensor::from_device(&self.spec, &data))
    }
}

/// Numbers of an arena on their way to the host, as they stand on the device.
#[derive(Debug)]
pub(crate) struct Numbers(Copy);

impl Numbers {
    pub(super) async fn begin(
        device: &Device,
        buffer: &wgpu::Buffer,
        bytes: u64,
    ) -> Result<Numbers, GpuError> {
        Ok(Numbers(Copy::begin(device, buffer, 0, bytes).await?))
    }

    /// The numbers, when they have arrived. Waits for the work before them, not for what was submitted since.
    pub(crate) async fn finish(self, device: &Device) -> Result<Vec<f32>, GpuError> {
        self.0.finish(device).await
    }
}

#[derive(Debug)]
struct Copy {
    staging: Buffer,
    mapped: Receiver<Result<(), wgpu::BufferAsyncError>>,
    submission: wgpu::SubmissionIndex,
}

impl Copy {
    async fn begin(
        device: &Device,
        buffer: &wgpu::Buffer,
        offset: u64,
        bytes: u64,
    ) -> Result<Copy, GpuError> {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let staging = device.buffer_with("read-back", bytes, usage).await?;
        let mut encoder = device.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(buffer, offset, &staging, 0, bytes);
        let submission = device.submit(encoder.finish());
        let (send, mapped) = futures_channel::oneshot::channel();
        staging.slice(..).map_async(wgpu::MapMode::Read, move |result| {
            // The receiver is gone only if this future was dropped.
            let _ = send.send(result);
        });
        Ok(Copy {
            staging,
            mapped,
            submission,
        })
    }

    async fn finish(self, device: &Device) -> Result<Vec<f32>, GpuError> {
        let failed =
            |reason: String| device.failed(GpuError::Device(format!("reading back failed: {reason}")));
        device.polled(Some(self.submission)).await?;
        self.mapped
            .await
            .map_err(|e| failed(e.to_string()))?
            .map_err(|e| failed(e.to_string()))?;
        device.check()?;
        let view = self
            .staging
            .slice(..)
            .get_mapped_range()
            .map_err(|e| failed(e.to_string()))?;
        let data = bytemuck::cast_slice(&view).to_vec();
        drop(view);
        self.staging.unmap();
        Ok(data)
    }
}

impl Device {
    pub(super) async fn read(
        &self,
        buffer: &wgpu::Buffer,
        offset: u64,
        bytes: u64,
    ) -> Result<Vec<f32>, GpuError> {
        Copy::begin(self, buffer, offset, bytes).await?.finish(self).await
    }
}
