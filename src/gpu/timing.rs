//! Times of single kernels by the adapter's own clock.

use super::GpuError;
use super::device::Device;
use super::executable::{Executable, Launch, Store};
use crate::op::StepScalars;

/// Kernels timed by one query set: WebGPU allows 4096 queries, and each kernel takes two.
const CHUNK: usize = 2048;

impl Executable {
    /// Submits every kernel in a pass of its own between two timestamps: seconds by launch, in the plan's order. `None`
    /// where the device has no timestamps; for benchmarks.
    pub async fn submit_with_timestamps(
        &self,
        device: &Device,
        step: &StepScalars,
    ) -> Result<Option<Vec<f64>>, GpuError> {
        if !device.device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            return Ok(None);
        }
        self.check_residents()?;
        device.write(&self.step, 0, bytemuck::bytes_of(step));
        let mut seconds = Vec::with_capacity(self.launches.len());
        for launches in self.launches.chunks(CHUNK) {
            seconds.extend(timed(device, launches, &self.residents).await?);
        }
        Ok(Some(seconds))
    }
}

/// The time of a launch is from before its copies to textures to its end.
async fn timed(
    device: &Device,
    launches: &[Launch],
    residents: &[Option<Store>],
) -> Result<Vec<f64>, GpuError> {
    let count = 2 * launches.len() as u32;
    let queries = device.device.create_query_set(&wgpu::QuerySetDescriptor {
        label: Some("timestamps"),
        ty: wgpu::QueryType::Timestamp,
        count,
    });
    let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
    let ticks = device.buffer_with("timestamps", 8 * count as u64, usage).await?;
    let mut encoder = device.device.create_command_encoder(&Default::default());
    for (launch, first) in launches.iter().zip((0..).step_by(2)) {
        let pass = |encoder: &mut wgpu::CommandEncoder,
                    from: Option<u32>,
                    to: Option<u32>,
                    launch: Option<&Launch>| {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: None,
                timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                    query_set: &queries,
                    beginning_of_pass_write_index: from,
                    end_of_pass_write_index: to,
                }),
            });
            if let Some(launch) = launch {
                launch.record(&mut pass);
            }
        };
        if launch.copies() {
            pass(&mut encoder, Some(first), None, None);
            launch.copy(&mut encoder, residents);
            pass(&mut encoder, None, Some(first + 1), Some(launch));
        } else {
            pass(&mut encoder, Some(first), Some(first + 1), Some(launch));
        }
    }
    encoder.resolve_query_set(&queries, 0..count, &ticks, 0);
    device.submit(encoder.finish());
    let words = device.read(&ticks, 0, 8 * count as u64).await?;
    let tick = |i: usize| u64::from(words[2 * i].to_bits()) | u64::from(words[2 * i + 1].to_bits()) << 32;
    let nanoseconds = device.queue.get_timestamp_period() as f64;
    Ok((0..launches.len())
        .map(|i| tick(2 * i + 1).saturating_sub(tick(2 * i)) as f64 * nanoseconds * 1e-9)
        .collect())
}
