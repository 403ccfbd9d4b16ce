use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use super::GpuError;
use super::device::{Device, Pipeline};
use super::memory::{Buffer, Texture};
use super::reading::{Numbers, Reading};
use crate::op::StepScalars;
use crate::op::Texel;
use crate::plan::{self, Arena, Held, Place, Plan, PlanBuffer, ResidentInput};
use crate::tensor::{ALIGNMENT, Spec, Tensor};

/// What names of moving averages begin with.
pub(crate) const AVERAGE: &str = "ema.";

/// Parameters and states on the device: what training changes, what several executables share.
#[derive(Debug)]
pub struct Weights {
    parameters: Buffer,
    states: Buffer,
    moments: Option<[Buffer; 2]>,
    gradients: Option<Buffer>,
    /// Of parameters and states.
    averages: Option<[Buffer; 2]>,
    layout: (Arena, Arena),
}

impl Weights {
    /// Buffers for a plan's parameters and states, all zero; with `training`, gradients, moments and the plan's averages too.
    pub async fn new(device: &Device, plan: &Plan, training: bool) -> Result<Weights, GpuError> {
        let bytes = plan.parameters.bytes;
        device.require(plan.weight_bytes(training), 0)?;
        let (mut moments, mut gradients, mut averages) = (None, None, None);
        if training && plan.has_averages() {
            averages = Some([
                device.buffer("averages of parameters", bytes).await?,
                device.buffer("averages of states", plan.states.bytes).await?,
            ]);
        }
        if training {
            gradients = Some(device.buffer("parameter gradients", bytes).await?);
            moments = Some([
                device.buffer("first moments", bytes).await?,
                device.buffer("second moments", bytes).await?,
            ]);
        }
        Ok(Weights {
            parameters: device.buffer("parameters", bytes).await?,
            states: device.buffer("states", plan.states.bytes).await?,
            moments,
            gradients,
            averages,
            layout: (plan.parameters.clone(), plan.states.clone()),
        })
    }

    /// Copies tensors to the device by name. Every parameter and state must be there with its shape.
    pub fn upload(&self, device: &Device, tensors: &HashMap<String, Tensor>) -> Result<(), GpuError> {
        for (buffer, arena) in [(&self.parameters, &self.layout.0), (&self.states, &self.layout.1)] {
            upload_arena(device, buffer, arena, tensors, "")?;
        }
        Ok(())
    }

    /// Copies to the device what else a training carries from step to step: the optimiser's moments, `adam.0.NAME` and
    /// `adam.1.NAME`, and where there are averages, `ema.NAME`.
    pub fn upload_moments(&self, device: &Device, tensors: &HashMap<String, Tensor>) -> Result<(), GpuError> {
        for (buffer, arena, prefix) in self.carried() {
            upload_arena(device, buffer, arena, tensors, &prefix)?;
        }
        Ok(())
    }

    /// What a training carries beside parameters and states: where it is, how it is laid out, and what its names begin with.
    fn carried(&self) -> impl Iterator<Item = (&Buffer, &Arena, String)> {
        let (parameters, states) = (&self.layout.0, &self.layout.1);
        let moments = self.moments.iter().flatten().enumerate();
        let moments = moments.map(move |(order, buffer)| (buffer, parameters, format!("adam.{order}.")));
        let averages = self.averages.iter().flatten().zip([parameters, states]);
        moments.chain(averages.map(|(buffer, arena)| (buffer, arena, AVERAGE.to_owned())))
    }

    /// Parameters and states by name.
    pub async fn download(&self, device: &Device) -> Result<Vec<(String, Tensor)>, GpuError> {
        let mut tensors = download_arena(device, &self.parameters, &self.layout.0, "").await?;
        tensors.extend(download_arena(device, &self.states, &self.layout.1, "").await?);
        Ok(tensors)
    }

    /// The optimiser's moments, and averages, by the names of [`Weights::upload_moments`]; empty where the weights are not for
    /// training.
    pub async fn download_moments(&self, device: &Device) -> Result<Vec<(String, Tensor)>, GpuError> {
        let mut tensors = Vec::new();
        for (buffer, arena, prefix) in self.carried() {
            tensors.extend(download_arena(device, buffer, arena, &prefix).await?);
        }
        Ok(tensors)
    }

    /// The parameters' gradients by name, as the last submission left them.
    pub async fn download_gradients(&self, device: &Device) -> Result<Vec<(String, Tensor)>, GpuError> {
        match &self.gradients {
            Some(buffer) => download_arena(device, buffer, &self.layout.0, "").await,
            None => Ok(Vec::new()),
        }
    }

    /// Starts reading back the gradients of all parameters, padding between them included.
    pub(crate) async fn begin_read_gradients(&self, device: &Device) -> Result<Numbers, GpuError> {
        Numbers::begin(device, self.gradients()?, self.layout.0.bytes).await
    }

    /// Starts reading back all states, padding between them included.
    pub(crate) async fn begin_read_states(&self, device: &Device) -> Result<Numbers, GpuError> {
        Numbers::begin(device, &self.states, self.layout.1.bytes).await
    }

    /// Replaces the gradients, as they were read back.
    pub(crate) fn write_gradients(&self, device: &Device, numbers: &[f32]) -> Result<(), GpuError> {
        device.write(self.gradients()?, 0, bytemuck::cast_slice(numbers));
        Ok(())
    }

    /// Replaces the states, as they were read back.
    pub(crate) fn write_states(&self, device: &Device, numbers: &[f32]) {
        device.write(&self.states, 0, bytemuck::cast_slice(numbers));
    }

    fn gradients(&self) -> Result<&Buffer, GpuError> {
        self.gradients.as_ref().ok_or_else(not_for_training)
    }
}

fn not_for_training() -> GpuError {
    GpuError::Tensor("these weights were not made for training".into())
}

fn upload_arena(
    device: &Device,
    buffer: &wgpu::Buffer,
    arena: &Arena,
    tensors: &HashMap<String, Tensor>,
    prefix: &str,
) -> Result<(), GpuError> {
    for (name, spec, offset) in &arena.entries {
        let name = format!("{prefix}{name}");
        let tensor = tensors
            .get(&name)
            .ok_or_else(|| GpuError::Tensor(format!("the weights have no tensor `{name}`")))?;
        if tensor.shape != spec.shape {
            let message = format!(
                "tensor `{name}` is {:?}, the network needs {:?}",
                tensor.shape, spec.shape
            );
            return Err(GpuError::Tensor(message));
        }
        device.write(
            buffer,
            *offset,
            bytemuck::cast_slice(&tensor.to_device(spec.layout)),
        );
    }
    Ok(())
}

async fn download_arena(
    device: &Device,
    buffer: &wgpu::Buffer,
    arena: &Arena,
    prefix: &str,
) -> Result<Vec<(String, Tensor)>, GpuError> {
    let data = device.read(buffer, 0, arena.bytes).await?;
    let tensor = |spec: &Spec, offset: u64| {
        let at = offset as usize / 4;
        Tensor::from_device(spec, &data[at..at + spec.device_len()])
    };
    Ok(arena
        .entries
        .iter()
        .map(|(name, spec, at)| (format!("{prefix}{name}"), tensor(spec, *at)))
        .collect())
}

/// A value in device memory of its own, for [`Executable::bind`]: a scan on the device that many submissions read.
#[derive(Clone, Debug)]
pub struct Resident {
    store: Arc<Mutex<Store>>,
    spec: Spec,
}

/// Where a resident value is: in a buffer, or where kernels read it, in a texture.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Store {
    Buffer(Buffer),
    Texels(Texture, Texel),
}

impl Resident {
    /// Copies a tensor to the device in the layout of `spec`, whose shape it has.
    pub async fn upload(device: &Device, tensor: &Tensor, spec: Spec) -> Result<Resident, GpuError> {
        if spec.shape != tensor.shape {
            let message = format!("a tensor {:?} can't be resident as {spec:?}", tensor.shape);
            return Err(GpuError::Tensor(message));
        }
        let buffer = device.buffer("resident", spec.bytes()).await?;
        let data = tensor.to_device(spec.layout);
        device.write(&buffer, 0, bytemuck::cast_slice(&data));
        Ok(Resident::new(buffer, spec))
    }

    fn new(buffer: Buffer, spec: Spec) -> Resident {
        Resident {
            store: Arc::new(Mutex::new(Store::Buffer(buffer))),
            spec,
        }
    }

    /// Where it is, moved there first unless it is where `texel` says: in a texture of those, or in a buffer.
    async fn stored_as(&self, device: &Device, texel: Option<Texel>) -> Result<Store, GpuError> {
        let now = self.store.lock().unwrap().clone();
        let bytes = self.spec.bytes();
        let mut encoder = device.device.create_command_encoder(&Default::default());
        let moved = match (&now, texel) {
            (Store::Buffer(_), None) => return Ok(now),
            (Store::Texels(_, has), Some(texel)) if *has == texel => return Ok(now),
            (Store::Buffer(buffer), Some(texel)) => {
                let texture = device.texture(&plan::Texture::of(texel, bytes)).await?;
                for (source, target, size) in texel_regions(buffer, 0, bytes, &texture, texel) {
                    encoder.copy_buffer_to_texture(source, target, size);
                }
                Store::Texels(texture, texel)
            }
            (Store::Texels(texture, has), _) => {
                let buffer = device.buffer("resident", bytes).await?;
                for (target, source, size) in texel_regions(&buffer, 0, bytes, texture, *has) {
                    encoder.copy_texture_to_buffer(source, target, size);
                }
                Store::Buffer(buffer)
            }
        };
        device.submit(encoder.finish());
        *self.store.lock().unwrap() = moved.clone();
        Ok(moved)
    }

    /// Bytes that it takes on the device.
    pub fn bytes(&self) -> u64 {
        self.spec.bytes()
    }
}

pub(super) struct Launch {
    pipeline: Arc<Pipeline>,
    label: &'static str,
    entries: Vec<Entry>,
    /// What is copied to textures before.
    copies: Vec<TexelCopy>,
    /// Absent while a resident input that it reads is not bound.
    group: Option<wgpu::BindGroup>,
    workgroups: [u32; 3],
}

/// What is bound where: the position is the binding.
struct Entry {
    buffer: EntryBuffer,
    offset: u64,
    size: u64,
    /// What is bound in the buffer's place.
    texels: Option<wgpu::TextureView>,
}

enum EntryBuffer {
    Fixed(Buffer),
    Resident(usize),
}

impl EntryBuffer {
    /// The buffer; none where it is of a resident input that is not bound, or stands in a texture.
    fn buffer<'b>(&'b self, residents: &'b [Option<Store>]) -> Option<&'b Buffer> {
        match self {
            EntryBuffer::Fixed(buffer) => Some(buffer),
            EntryBuffer::Resident(i) => match residents[*i].as_ref()? {
                Store::Buffer(buffer) => Some(buffer),
                Store::Texels(..) => None,
            },
        }
    }
}

/// A copy of what an entry binds to the texture that is read in its place.
struct TexelCopy {
    /// Position among the launch's entries.
    entry: usize,
    texture: Texture,
    texel: Texel,
}

/// Where a buffer's bytes stand in a texture: whole rows, and the rest.
fn texel_regions<'r>(
    buffer: &'r wgpu::Buffer,
    offset: u64,
    bytes: u64,
    texture: &'r wgpu::Texture,
    texel: Texel,
) -> impl Iterator<
    Item = (
        wgpu::TexelCopyBufferInfo<'r>,
        wgpu::TexelCopyTextureInfo<'r>,
        wgpu::Extent3d,
    ),
> {
    let row = Texel::ROW * texel.bytes();
    let (rows, rest) = (bytes / row, bytes % row);
    let parts = [(0, Texel::ROW, rows), (rows, rest / texel.bytes(), 1)];
    let some = parts.into_iter().filter(|(_, width, height)| width * height > 0);
    some.map(move |(y, width, height)| {
        let memory = wgpu::TexelCopyBufferInfo {
            buffer,
            layout: wgpu::TexelCopyBufferLayout {
                offset: offset + y * row,
                bytes_per_row: Some(row as u32),
                rows_per_image: None,
            },
        };
        let mut place = texture.as_image_copy();
        place.origin.y = y as u32;
        let size = wgpu::Extent3d {
            width: width as u32,
            height: height as u32,
            depth_or_array_layers: 1,
        };
        (memory, place, size)
    })
}

impl Launch {
    fn reads(&self, resident: usize) -> bool {
        self.entries
            .iter()
            .any(|e| matches!(e.buffer, EntryBuffer::Resident(i) if i == resident))
    }

    pub(super) fn copies(&self) -> bool {
        !self.copies.is_empty()
    }

    /// Copies what the launch reads through textures, before the pass that runs it.
    pub(super) fn copy(&self, encoder: &mut wgpu::CommandEncoder, residents: &[Option<Store>]) {
        for copy in &self.copies {
            let entry = &self.entries[copy.entry];
            let buffer = entry.buffer.buffer(residents).expect("residents were checked");
            let regions = texel_regions(buffer, entry.offset, entry.size, &copy.texture, copy.texel);
            for (source, target, size) in regions {
                encoder.copy_buffer_to_texture(source, target, size);
            }
        }
    }

    pub(super) fn record(&self, pass: &mut wgpu::ComputePass) {
        pass.set_pipeline(&self.pipeline.pipeline);
        pass.set_bind_group(0, &self.group, &[]);
        let [x, y, z] = self.workgroups;
        pass.dispatch_workgroups(x, y, z);
    }

    /// Makes the bind group, where every resident input that the launch reads is bound.
    fn bind(&mut self, device: &Device, residents: &[Option<Store>]) {
        let view = |entry: &Entry| match &entry.buffer {
            EntryBuffer::Resident(i) => match residents[*i].as_ref()? {
                Store::Texels(texture, _) => Some(texture.create_view(&Default::default())),
                Store::Buffer(_) => None,
            },
            EntryBuffer::Fixed(_) => None,
        };
        let views: Vec<_> = self.entries.iter().map(view).collect();
        let entries: Option<Vec<_>> = self
            .entries
            .iter()
            .enumerate()
            .map(|(i, entry)| {
                let resource = match (&entry.texels, &views[i]) {
                    (Some(view), _) | (None, Some(view)) => wgpu::BindingResource::TextureView(view),
                    (None, None) => wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                        buffer: entry.buffer.buffer(residents)?,
                        offset: entry.offset,
                        size: std::num::NonZeroU64::new(entry.size),
                    }),
                };
                Some(wgpu::BindGroupEntry {
                    binding: i as u32,
                    resource,
                })
            })
            .collect();
        self.group = entries.map(|entries| {
            device.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(self.label),
                layout: &self.pipeline.layout,
                entries: &entries,
            })
        });
    }
}

/// A plan with its buffers, pipelines and bind groups: made once, submitted every step.
pub struct Executable {
    plan: Plan,
    pub(super) launches: Vec<Launch>,
    pub(super) residents: Vec<Option<Store>>,
    slots: Vec<Buffer>,
    pub(super) step: Buffer,
}

impl std::fmt::Debug for Executable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.plan)
    }
}

impl Executable {
    /// Allocates the plan's slots and compiles its pipelines. The weights must have been made for a plan with the
    /// same parameters and states.
    pub async fn new(device: &Device, plan: Plan, weights: &Weights) -> Result<Executable, GpuError> {
        if (&plan.parameters, &plan.states) != (&weights.layout.0, &weights.layout.1) {
            return Err(GpuError::Tensor(
                "the plan's parameters differ from the weights'".into(),
            ));
        }
        device.require(plan.slot_bytes() + plan.texture_bytes(), 0)?;
        let mut slots = Vec::new();
        for (i, bytes) in plan.slots.iter().enumerate() {
            slots.push(device.buffer(&format!("slot {i}"), *bytes).await?);
        }
        let mut textures = Vec::new();
        for texture in &plan.textures {
            textures.push(device.texture(texture).await?);
        }
        let uniform = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let step = device.buffer_with("step", 16, uniform).await?;

        let mut words: Vec<u32> = Vec::new();
        let mut spans = Vec::new();
        for launch in &plan.launches {
            let from = words.len();
            words.extend(&launch.dispatch.params.words);
            words.resize(words.len().max(from + 1).next_multiple_of(4), 0);
            spans.push((from as u64 * 4, (words.len() - from) as u64 * 4));
            words.resize(words.len().next_multiple_of(ALIGNMENT as usize / 4), 0);
        }
        let params = device
            .buffer_with("kernel parameters", (words.len() as u64 * 4).max(16), uniform)
            .await?;
        device.write(&params, 0, bytemuck::cast_slice(&words));

        device.compile(plan.launches.iter().map(|l| &l.dispatch)).await?;
        let fixed = |buffer: &Buffer| EntryBuffer::Fixed(buffer.clone());
        let residents = vec![None; plan.residents.len()];
        let mut launches = Vec::new();
        for (launch, (offset, size)) in plan.launches.iter().zip(spans) {
            let pipeline = device.pipeline(&launch.dispatch).await?;
            let mut entries = vec![Entry {
                buffer: fixed(&params),
                offset,
                size,
                texels: None,
            }];
            for b in &launch.bound {
                let buffer = match b.buffer {
                    PlanBuffer::Resident(i) => EntryBuffer::Resident(i),
                    PlanBuffer::Slot(i) => fixed(&slots[i]),
                    PlanBuffer::Parameters => fixed(&weights.parameters),
                    PlanBuffer::States => fixed(&weights.states),
                    PlanBuffer::Gradients => fixed(weights.gradients()?),
                    PlanBuffer::Moments(i) => {
                        fixed(&weights.moments.as_ref().ok_or_else(not_for_training)?[i])
                    }
                    PlanBuffer::Averages => {
                        fixed(&weights.averages.as_ref().ok_or_else(not_for_training)?[0])
                    }
                    PlanBuffer::StateAverages => {
                        fixed(&weights.averages.as_ref().ok_or_else(not_for_training)?[1])
                    }
                    PlanBuffer::Step => fixed(&step),
                };
                entries.push(Entry {
                    buffer,
                    offset: b.offset,
                    size: b.size,
                    texels: None,
                });
            }
            let mut copies = Vec::new();
            for texels in &launch.texels {
                // The uniform comes before the plan's bindings.
                let entry = texels.binding + 1;
                let Held::Texture(t) = texels.held else { continue };
                let texture = &textures[t];
                entries[entry].texels = Some(texture.create_view(&Default::default()));
                copies.extend(texels.copy.then(|| TexelCopy {
                    entry,
                    texture: texture.clone(),
                    texel: plan.textures[t].texel,
                }));
            }
            let mut made = Launch {
                pipeline,
                label: launch.op,
                entries,
                copies,
                group: None,
                workgroups: launch.dispatch.workgroups,
            };
            let scope = device.device.push_error_scope(wgpu::ErrorFilter::Validation);
            made.bind(device, &residents);
            if let Some(error) = scope.pop().await {
                let label = format!("{} ({})", launch.op, launch.dispatch.kernel());
                return Err(device.failed(GpuError::Pipeline {
                    label,
                    reason: error.to_string(),
                }));
            }
            launches.push(made);
        }
        Ok(Executable {
            plan,
            launches,
            slots,
            step,
            residents,
        })
    }

    /// The plan behind it.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Copies a tensor to the input of that name; it takes effect with the next submission.
    pub fn upload(&self, device: &Device, name: &str, tensor: &Tensor) -> Result<(), GpuError> {
        let (_, value, spec) = self
            .plan
            .inputs
            .iter()
            .find(|(n, _, _)| n == name)
            .ok_or_else(|| GpuError::Tensor(format!("the graph has no input `{name}`")))?;
        if spec.shape != tensor.shape {
            let message = format!(
                "input `{name}` is {:?}, the graph takes {:?}",
                tensor.shape, spec.shape
            );
            return Err(GpuError::Tensor(message));
        }
        let Place::Slot(slot, offset) = self.plan.places[value] else {
            unreachable!("inputs live in slots")
        };
        device.write(
            &self.slots[slot],
            offset,
            bytemuck::cast_slice(&tensor.to_device(spec.layout)),
        );
        Ok(())
    }

    /// Makes the resident input of that name be read from there, from the next submission on. Nothing is copied, but for
    /// the first time that kernels read it through a texture, where it then stays.
    pub async fn bind(&mut self, device: &Device, name: &str, resident: &Resident) -> Result<(), GpuError> {
        let found = self.plan.residents.iter().position(|r| r.name == name);
        let i = found.ok_or_else(|| GpuError::Tensor(format!("the graph has no resident input `{name}`")))?;
        let ResidentInput { spec, texel, .. } = &self.plan.residents[i];
        if *spec != resident.spec {
            let message = format!(
                "resident input `{name}` is {:?}, the graph takes {spec:?}",
                resident.spec
            );
            return Err(GpuError::Tensor(message));
        }
        let store = Some(resident.stored_as(device, *texel).await?);
        if self.residents[i] != store {
            self.residents[i] = store;
            let launches = self.launches.iter_mut().filter(|launch| launch.reads(i));
            launches.for_each(|launch| launch.bind(device, &self.residents));
        }
        device.check()
    }

    /// A copy, on the device, of the kept value of that name as the last submission left it.
    pub async fn resident(&self, device: &Device, name: &str) -> Result<Resident, GpuError> {
        let (slot, offset, spec) = self.kept(name)?;
        let buffer = device.buffer("resident", spec.bytes()).await?;
        let mut encoder = device.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(&self.slots[slot], offset, &buffer, 0, spec.bytes());
        device.submit(encoder.finish());
        device.check()?;
        Ok(Resident::new(buffer, spec.clone()))
    }

    /// Submits every kernel in order and returns at once; results are there for [`Executable::read`].
    pub fn submit(&self, device: &Device, step: &StepScalars) -> Result<(), GpuError> {
        self.submit_launches(device, step, &self.launches)
    }

    /// Submits the kernels of a training step before those that change the parameters: kept values, gradients and states.
    pub fn submit_gradients(&self, device: &Device, step: &StepScalars) -> Result<(), GpuError> {
        self.submit_launches(device, step, &self.launches[..self.plan.update()])
    }

    /// Submits the kernels of a training step that change the parameters, by the gradients that are there.
    pub fn submit_update(&self, device: &Device, step: &StepScalars) -> Result<(), GpuError> {
        self.submit_launches(device, step, &self.launches[self.plan.update()..])
    }

    fn submit_launches(
        &self,
        device: &Device,
        step: &StepScalars,
        launches: &[Launch],
    ) -> Result<(), GpuError> {
        device.check()?;
        self.check_residents()?;
        device.write(&self.step, 0, bytemuck::bytes_of(step));
        device.run(launches, &self.residents);
        device.check()
    }

    pub(super) fn check_residents(&self) -> Result<(), GpuError> {
        match self.residents.iter().position(Option::is_none) {
            None => Ok(()),
            Some(i) => Err(GpuError::Tensor(format!(
                "the resident input `{}` was not bound",
                self.plan.residents[i].name
            ))),
        }
    }

    /// Submits the kernels in parts of about `flops` operations (a kernel is never divided) and waits for each: a
    /// browser stays responsive, and no submission is long enough for a watchdog. After each part `report` hears the
    /// share done, 0 to 1; `Break` ends the run there, with whatever the buffers hold.
    ///
    /// # Errors
    /// A device that failed.
    pub async fn submit_in_parts(
        &self,
        device: &Device,
        step: &StepScalars,
        flops: u64,
        report: &mut dyn FnMut(f64) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, GpuError> {
        device.check()?;
        self.check_residents()?;
        device.write(&self.step, 0, bytemuck::bytes_of(step));
        let all = self.plan.flops().max(1) as f64;
        let (mut first, mut part, mut done) = (0, 0, 0);
        for (i, launch) in self.plan.launches.iter().enumerate() {
            part += launch.dispatch.flops;
            if part < flops && i + 1 < self.launches.len() {
                continue;
            }
            device.run(&self.launches[first..=i], &self.residents);
            device.done().await?;
            (first, done, part) = (i + 1, done + part, 0);
            if report(done as f64 / all).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Submits each kernel alone and waits for it: seconds by launch, in the plan's order, by a clock in seconds
    /// (wall or processor time). For benchmarks; native only.
    pub fn submit_timed(
        &self,
        device: &Device,
        step: &StepScalars,
        clock: impl Fn() -> f64,
    ) -> Result<Vec<f64>, GpuError> {
        self.check_residents()?;
        device.write(&self.step, 0, bytemuck::bytes_of(step));
        device.wait()?;
        let mut seconds = Vec::new();
        for launch in &self.launches {
            let start = clock();
            device.run(std::slice::from_ref(launch), &self.residents);
            device.wait()?;
            seconds.push(clock() - start);
        }
        Ok(seconds)
    }

    /// The kept value of that name, as the last submission left it.
    pub async fn read(&self, device: &Device, name: &str) -> Result<Tensor, GpuError> {
        let (slot, offset, spec) = self.kept(name)?;
        let data = device.read(&self.slots[slot], offset, spec.bytes()).await?;
        Ok(Tensor::from_device(spec, &data))
    }

    /// Starts reading a kept value back, as the last submission leaves it; others may be submitted before
    /// [`Reading::finish`].
    pub async fn begin_read(&self, device: &Device, name: &str) -> Result<Reading, GpuError> {
        let (slot, offset, spec) = self.kept(name)?;
        Reading::begin(device, &self.slots[slot], offset, spec).await
    }

    fn kept(&self, name: &str) -> Result<(usize, u64, &Spec), GpuError> {
        let kept = self.plan.kept.iter().find(|(n, _, _)| n == name);
        let (_, value, spec) =
            kept.ok_or_else(|| GpuError::Tensor(format!("the graph keeps no `{name}`")))?;
        match self.plan.places[value] {
            Place::Slot(slot, offset) => Ok((slot, offset, spec)),
            _ => Err(GpuError::Tensor("only computed values are kept".into())),
        }
    }

    /// Fills every slot with a quiet NaN, so that a test sees what a kernel forgot to write.
    pub fn poison(&self, device: &Device) {
        for (slot, bytes) in self.slots.iter().zip(&self.plan.slots) {
            let garbage = vec![f32::NAN; *bytes as usize / 4];
            device.write(slot, 0, bytemuck::cast_slice(&garbage));
        }
    }
}

impl Device {
    /// Submits kernels in order, in a pass from one copy to textures to the next.
    fn run(&self, launches: &[Launch], residents: &[Option<Store>]) {
        let mut encoder = self.device.create_command_encoder(&Default::default());
        let mut rest = launches;
        while let Some((first, others)) = rest.split_first() {
            first.copy(&mut encoder, residents);
            let end = others.iter().position(Launch::copies).unwrap_or(others.len());
            let mut pass = encoder.begin_compute_pass(&Default::default());
            first.record(&mut pass);
            others[..end].iter().for_each(|launch| launch.record(&mut pass));
            rest = &others[end..];
        }
        self.submit(encoder.finish());
    }
}
