use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::GpuError;
use super::cache::PipelineCache;
use super::forms::{self, DeviceForms, FormsChoice, FormsLimits, FormsSource};
use super::memory::{Buffer, Charge, Counted, Ledger, Memory, Texture};
#[cfg(not(target_arch = "wasm32"))]
use super::waiting::Poller;
use super::waiting::poll;
use crate::faults;
use crate::host_memory::{self, TooLarge};
use crate::op::{Access, Caps, Dispatch, Forms, Shader, Target, Texel};
use crate::plan;
use crate::shader::Struct;

/// Which adapter to use and how much of it.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    /// Part of the adapter's name, or its number in [`adapters`]; `None` takes the fastest kind.
    pub adapter: Option<String>,
    /// `vulkan`, `metal`, `dx12` or `webgpu`; `None` takes any.
    pub backend: Option<String>,
    /// Use only what every WebGPU device has: default limits, no optional features.
    pub portable: bool,
    /// Use the kernels that are meant for GPUs where a driver runs on the processor, too: tests of kernels do, so that
    /// they need no GPU.
    pub kernels_for_gpus: bool,
    /// The largest binding and the largest buffer to use, in bytes, where the adapter has larger ones: what a smaller adapter would do.
    pub most: Option<(u64, u64)>,
    /// Which forms of the kernels.
    pub forms: FormsChoice,
    /// A folder to keep measured forms and compiled pipelines in from one process to the next; these where the backend gives
    /// them out (Vulkan).
    pub cache: Option<PathBuf>,
}

/// An adapter as `obelisk info` shows it.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct AdapterSummary {
    /// Its name.
    pub name: String,
    /// `vulkan`, `metal`, `dx12`, `webgpu`.
    pub backend: String,
    /// `discrete GPU`, `integrated GPU`, `CPU` …
    pub kind: String,
    /// Driver and version.
    pub driver: String,
    /// Largest storage binding in MiB.
    pub max_binding_mib: u64,
    /// Largest buffer in MiB.
    pub max_buffer_mib: u64,
    /// Storage buffers a shader stage can bind.
    pub storage_buffers: u32,
    /// Invocations a workgroup can have.
    pub invocations: u32,
    /// Workgroup memory in KiB.
    pub workgroup_kib: u32,
    /// Least and most invocations of a subgroup, where the adapter has subgroup operations.
    pub subgroups: Option<(u32, u32)>,
    /// Whether shaders can use 16-bit floats.
    pub f16: bool,
    /// Whether the adapter can time its work.
    pub timestamps: bool,
}

fn instance(backend: Option<&str>) -> Result<wgpu::Instance, GpuError> {
    let backends = match backend {
        None => wgpu::Backends::PRIMARY,
        Some("vulkan") => wgpu::Backends::VULKAN,
        Some("metal") => wgpu::Backends::METAL,
        Some("dx12") => wgpu::Backends::DX12,
        Some("webgpu") => wgpu::Backends::BROWSER_WEBGPU,
        Some(other) => {
            let message = format!("backend `{other}` is unknown; choose vulkan, metal, dx12 or webgpu");
            return Err(GpuError::NoAdapter(message));
        }
    };
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = backends;
    // Software Vulkan is how this program runs without a GPU, whether or not it declares itself conformant.
    descriptor.flags |= wgpu::InstanceFlags::ALLOW_UNDERLYING_NONCOMPLIANT_ADAPTER;
    Ok(wgpu::Instance::new(descriptor))
}

fn rank(kind: wgpu::DeviceType) -> u32 {
    match kind {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    }
}

async fn candidates(backend: Option<&str>) -> Result<Vec<wgpu::Adapter>, GpuError> {
    let instance = instance(backend)?;
    #[cfg(not(target_arch = "wasm32"))]
    let mut found = instance.enumerate_adapters(wgpu::Backends::all()).await;
    #[cfg(target_arch = "wasm32")]
    let mut found: Vec<wgpu::Adapter> = instance
        .request_adapter(&wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        })
        .await
        .into_iter()
        .collect();
    found.retain(|a| {
        a.get_downlevel_capabilities()
            .flags
            .contains(wgpu::DownlevelFlags::COMPUTE_SHADERS)
    });
    found.sort_by_key(|a| rank(a.get_info().device_type));
    Ok(found)
}

fn summary(adapter: &wgpu::Adapter) -> AdapterSummary {
    let info = adapter.get_info();
    let limits = adapter.limits();
    let features = adapter.features();
    AdapterSummary {
        name: info.name.clone(),
        backend: info.backend.to_str().to_owned(),
        kind: match info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete GPU",
            wgpu::DeviceType::IntegratedGpu => "integrated GPU",
            wgpu::DeviceType::VirtualGpu => "virtual GPU",
            wgpu::DeviceType::Cpu => "CPU",
            wgpu::DeviceType::Other => "other",
        }
        .to_owned(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        max_binding_mib: limits.max_storage_buffer_binding_size >> 20,
        max_buffer_mib: limits.max_buffer_size >> 20,
        storage_buffers: limits.max_storage_buffers_per_shader_stage,
        invocations: limits.max_compute_invocations_per_workgroup,
        workgroup_kib: limits.max_compute_workgroup_storage_size >> 10,
        subgroups: subgroups(&info, features),
        f16: features.contains(wgpu::Features::SHADER_F16),
        timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
    }
}

fn subgroups(info: &wgpu::AdapterInfo, features: wgpu::Features) -> Option<(u32, u32)> {
    features
        .contains(wgpu::Features::SUBGROUP)
        .then_some((info.subgroup_min_size, info.subgroup_max_size))
}

/// The adapters that can run compute shaders, the fastest kind first.
pub async fn adapters(backend: Option<&str>) -> Result<Vec<AdapterSummary>, GpuError> {
    Ok(candidates(backend).await?.iter().map(summary).collect())
}

/// What to do when there is no adapter.
#[cfg(target_arch = "wasm32")]
const INSTALL: &str = "the browser offers no WebGPU adapter. Update the browser (Chrome or Edge 113, Safari 26, Firefox \
    141 or later) and the graphics driver, and allow hardware acceleration in its settings";
#[cfg(not(target_arch = "wasm32"))]
const INSTALL: &str = "no GPU adapter was found. Linux: install your GPU's Vulkan driver, or software Vulkan \
    (Debian, Ubuntu: `apt install mesa-vulkan-drivers libvulkan1`; Fedora: `dnf install mesa-vulkan-drivers \
    vulkan-loader`). macOS: Metal comes with the system. Windows: update the graphics driver (DirectX 12)";

/// [`Caps::spare`] of GPUs: what graphics cards have, and what a tab may take on a phone.
const SPARE: u64 = if cfg!(target_arch = "wasm32") {
    512 << 20
} else {
    2 << 30
};

pub(super) struct Pipeline {
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) layout: wgpu::BindGroupLayout,
}

/// An open device with its compiled pipelines. Shared by executables; methods take `&self`.
pub struct Device {
    #[cfg(not(target_arch = "wasm32"))]
    pub(super) poller: Poller,
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    caps: Caps,
    /// Whether its memory is the machine's.
    shares_memory: bool,
    forms: DeviceForms,
    summary: AdapterSummary,
    pipelines: Mutex<HashMap<String, Arc<Pipeline>>>,
    cache: Option<PipelineCache>,
    failure: Arc<Mutex<Option<GpuError>>>,
    ledger: Arc<Ledger>,
    /// What wgpu stages for writes that no submission has taken yet.
    staged: Mutex<Vec<Charge>>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device")
            .field("adapter", &self.summary.name)
            .field("caps", &self.caps)
            .finish()
    }
}

/// What makes a pipeline another: the module with its pieces and structs, whether its loops are counted, the entry point and
/// the values of constants.
fn pipeline_key(dispatch: &Dispatch) -> String {
    let Shader { parts, structs, .. } = dispatch.shader;
    let parts: Vec<*const u8> = parts.iter().map(|part| part.as_ptr()).collect();
    let structs: Vec<*const Struct> = structs.iter().map(|s| *s as *const Struct).collect();
    format!(
        "{}{parts:?}{structs:?}{:?}{:?}{:?}",
        dispatch.kernel(),
        dispatch.shader.loops_end,
        dispatch.constants,
        dispatch.texels()
    )
}

/// What wgpu compiles: the module where it was changed, else the text, which wgpu parses and shows in its errors.
#[cfg(not(target_arch = "wasm32"))]
fn shader_source(dispatch: &Dispatch) -> Result<wgpu::ShaderSource<'static>, String> {
    use std::borrow::Cow;
    Ok(match dispatch.texels().as_slice() {
        [] => wgpu::ShaderSource::Wgsl(dispatch.source().into()),
        _ => wgpu::ShaderSource::Naga(Cow::Owned(dispatch.module()?)),
    })
}

/// What the browser compiles.
#[cfg(target_arch = "wasm32")]
fn shader_source(dispatch: &Dispatch) -> Result<wgpu::ShaderSource<'static>, String> {
    let mut text = dispatch.source();
    if dispatch.subgroups {
        // Browsers want the directive, naga rejects it natively. Their analysis of uniformity can't know what the
        // plan sees to: that all lanes of a subgroup work on the same part of a sum.
        text.insert_str(0, "enable subgroups;\ndiagnostic(off, subgroup_uniformity);\n");
    }
    Ok(wgpu::ShaderSource::Wgsl(text.into()))
}

fn texel_format(texel: Texel) -> wgpu::TextureFormat {
    match texel {
        Texel::One => wgpu::TextureFormat::R32Float,
        Texel::Four => wgpu::TextureFormat::Rgba32Float,
    }
}

impl Device {
    /// Opens the adapter that `options` ask for, or the fastest kind there is.
    pub async fn open(options: &DeviceOptions) -> Result<Device, GpuError> {
        let found = candidates(options.backend.as_deref()).await?;
        if found.is_empty() {
            return Err(GpuError::NoAdapter(INSTALL.to_owned()));
        }
        let adapter = match &options.adapter {
            None => &found[0],
            Some(wanted) => {
                let by_number = wanted.parse::<usize>().ok().and_then(|i| found.get(i));
                let wanted_name = wanted.to_lowercase();
                let by_name = || {
                    found
                        .iter()
                        .find(|a| a.get_info().name.to_lowercase().contains(&wanted_name))
                };
                by_number.or_else(by_name).ok_or_else(|| {
                    let names: Vec<String> = found
                        .iter()
                        .enumerate()
                        .map(|(i, a)| format!("{i}: {}", a.get_info().name))
                        .collect();
                    GpuError::NoAdapter(format!(
                        "no adapter matches `{wanted}`; found {}",
                        names.join(", ")
                    ))
                })?
            }
        };
        let info = adapter.get_info();
        let (features, mut limits) = if options.portable {
            (wgpu::Features::empty(), wgpu::Limits::default())
        } else {
            let mut wish = wgpu::Features::SUBGROUP | wgpu::Features::TIMESTAMP_QUERY;
            wish.set(wgpu::Features::PIPELINE_CACHE, options.cache.is_some());
            (adapter.features() & wish, adapter.limits())
        };
        if let Some((binding, buffer)) = options.most {
            limits.max_storage_buffer_binding_size = limits.max_storage_buffer_binding_size.min(binding);
            limits.max_buffer_size = limits.max_buffer_size.min(buffer);
        }
        let cpu = info.device_type == wgpu::DeviceType::Cpu && !options.kernels_for_gpus;
        let built_in = Forms {
            // SwiftShader, the other driver on the CPU, is a third slower through textures.
            texels: cpu && info.driver == "llvmpipe",
        };
        // What is meant for every device is not what one adapter likes best.
        let own = !options.portable && !options.kernels_for_gpus;
        let folder = options.cache.as_ref().filter(|_| own);
        let forms = DeviceForms::settle(
            options.forms,
            built_in,
            folder.map(|folder| forms::file(folder, &info)),
            FormsLimits {
                adapter: info.name.clone(),
                cpu,
                texture_side: limits.max_texture_dimension_2d,
            },
        )?;
        let (device, queue) = adapter
            .request_device(&wgpu::DeviceDescriptor {
                label: Some("obelisk"),
                required_features: features,
                required_limits: limits.clone(),
                ..Default::default()
            })
            .await
            .map_err(|e| GpuError::NoDevice {
                adapter: info.name.clone(),
                reason: e.to_string(),
            })?;

        let failure = Arc::new(Mutex::new(None));
        let lost = failure.clone();
        device.set_device_lost_callback(move |reason, message| {
            let message = match reason {
                wgpu::DeviceLostReason::Destroyed => "it was destroyed",
                _ => &message,
            };
            // Before what else was reported: that follows from it.
            *lost.lock().unwrap() = Some(GpuError::Lost(message.to_owned()));
        });
        let uncaptured = failure.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            let error = GpuError::Device(error.to_string());
            uncaptured.lock().unwrap().get_or_insert(error);
        }));
        let caps = Caps {
            // Through textures no more than any adapter's hold.
            max_binding: match forms.forms.texels {
                true => limits
                    .max_storage_buffer_binding_size
                    .min(Caps::PORTABLE.max_binding),
                false => limits.max_storage_buffer_binding_size,
            },
            max_buffer: limits.max_buffer_size,
            target: Target::new(cpu, subgroups(&info, features)),
            forms: forms.forms,
            spare: if cpu { 64 << 20 } else { SPARE },
        };
        let folder = options.cache.as_ref();
        let cache = folder.and_then(|folder| PipelineCache::open(&device, &info, folder));
        tracing::debug!(adapter = info.name, ?caps, "device opened");
        Ok(Device {
            #[cfg(not(target_arch = "wasm32"))]
            poller: Poller::start(&device)?,
            device,
            queue,
            caps,
            shares_memory: cfg!(not(target_arch = "wasm32"))
                && matches!(
                    info.device_type,
                    wgpu::DeviceType::Cpu | wgpu::DeviceType::IntegratedGpu
                ),
            forms,
            summary: summary(adapter),
            pipelines: Mutex::new(HashMap::new()),
            cache,
            failure,
            ledger: Arc::default(),
            staged: Mutex::default(),
        })
    }

    /// What decides the kernels' forms and splits.
    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    /// Where the forms in [`Device::caps`] come from.
    pub fn forms_source(&self) -> &FormsSource {
        &self.forms.source
    }

    /// Whether forms that are measured are kept for later processes.
    pub fn keeps_forms(&self) -> bool {
        self.forms.are_kept()
    }

    /// Keeps measured forms for later devices on this adapter, where there is a folder for them; a file that can't be written
    /// is reported.
    pub fn keep_forms(&self, forms: &Forms) {
        self.forms.keep(forms);
    }

    /// Whether kernels of these forms can run on the device.
    ///
    /// # Errors
    /// [`GpuError::Forms`]: what is in the way.
    pub fn allow_forms(&self, forms: &Forms) -> Result<(), GpuError> {
        self.forms.allow(forms)
    }

    /// The adapter behind the device.
    pub fn adapter(&self) -> &AdapterSummary {
        &self.summary
    }

    /// The bytes of the buffers that this device holds, and the most that it held.
    pub fn memory(&self) -> Memory {
        self.ledger.memory(&self.device)
    }

    /// Whether there is memory for so many bytes on the device and so many on the host, which are the same memory for drivers on
    /// the processor and for GPUs without their own. What other GPUs have is known only once something is allocated.
    ///
    /// # Errors
    /// More than there is.
    pub fn require(&self, device: u64, host: u64) -> Result<(), TooLarge> {
        let shared = if self.shares_memory { device } else { 0 };
        host_memory::require(host.saturating_add(shared))
    }

    /// Resets the peak to what is live.
    pub fn reset_peak(&self) {
        self.ledger.reset_peak();
    }

    /// The first error that the device reported outside a scope, if any.
    pub(super) fn check(&self) -> Result<(), GpuError> {
        match &*self.failure.lock().unwrap() {
            Some(GpuError::Lost(message)) => Err(GpuError::Lost(message.clone())),
            Some(GpuError::Device(message)) => Err(GpuError::Device(message.clone())),
            _ => Ok(()),
        }
    }

    /// Whether the device is gone: reset by its driver, switched off, destroyed. What was on it is gone as well; the adapter
    /// may give another device.
    pub fn is_lost(&self) -> bool {
        let is_lost = || matches!(*self.failure.lock().unwrap(), Some(GpuError::Lost(_)));
        // Some losses are reported by the next poll.
        is_lost() || {
            let _ = poll(&self.device, None);
            is_lost()
        }
    }

    /// The error of an operation that failed, or the loss that it follows from.
    pub(super) fn failed(&self, error: GpuError) -> GpuError {
        match self.is_lost() {
            true => self.check().err().unwrap_or(error),
            false => error,
        }
    }

    pub(super) async fn buffer(&self, label: &str, bytes: u64) -> Result<Buffer, GpuError> {
        let usage = wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::UNIFORM
            | wgpu::BufferUsages::COPY_SRC
            | wgpu::BufferUsages::COPY_DST;
        self.buffer_with(label, bytes, usage).await
    }

    pub(super) async fn buffer_with(
        &self,
        label: &str,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<Buffer, GpuError> {
        let make = || {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: bytes,
                usage,
                mapped_at_creation: false,
            })
        };
        self.counted(label, bytes, make).await
    }

    /// A texture that kernels read, to and from which buffers are copied.
    pub(super) async fn texture(&self, texture: &plan::Texture) -> Result<Texture, GpuError> {
        let label = "texels";
        let make = || {
            self.device.create_texture(&wgpu::TextureDescriptor {
                label: Some(label),
                size: wgpu::Extent3d {
                    width: Texel::ROW as u32,
                    height: texture.rows,
                    depth_or_array_layers: 1,
                },
                mip_level_count: 1,
                sample_count: 1,
                dimension: wgpu::TextureDimension::D2,
                format: texel_format(texture.texel),
                usage: wgpu::TextureUsages::STORAGE_BINDING
                    | wgpu::TextureUsages::COPY_DST
                    | wgpu::TextureUsages::COPY_SRC,
                view_formats: &[],
            })
        };
        self.counted(label, texture.bytes(), make).await
    }

    /// What `make` makes, of so many bytes, or why the device has no room for it.
    async fn counted<T>(
        &self,
        label: &str,
        bytes: u64,
        make: impl FnOnce() -> T,
    ) -> Result<Counted<T>, GpuError> {
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let made = make();
        let error = match memory.pop().await {
            Some(error) => Some(error),
            None => validation.pop().await,
        };
        match error {
            None => Ok(Counted::new(made, self.ledger.charge(&self.device, bytes))),
            Some(e) => Err(self.failed(GpuError::OutOfMemory {
                label: label.into(),
                mib: bytes >> 20,
                reason: e.to_string(),
            })),
        }
    }

    /// Copies bytes to a buffer before the next submission runs. wgpu stages a copy, which counts until then.
    pub(super) fn write(&self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) {
        self.queue.write_buffer(buffer, offset, bytes);
        let charge = self.ledger.charge(&self.device, bytes.len() as u64);
        self.staged.lock().unwrap().push(charge);
    }

    /// Submits recorded work; what was staged for it stops counting when it is done.
    pub(super) fn submit(&self, commands: wgpu::CommandBuffer) -> wgpu::SubmissionIndex {
        if faults::is_lost_at_submission() {
            self.device.destroy();
        }
        let submission = self.queue.submit([commands]);
        let staged = std::mem::take(&mut *self.staged.lock().unwrap());
        if !staged.is_empty() {
            self.queue.on_submitted_work_done(move || drop(staged));
        }
        submission
    }

    /// Bytes of compiled pipelines that came from the disk: `None` where the cache is off or the backend has none,
    /// `Some(0)` where there were none yet.
    pub fn cached_pipeline_bytes(&self) -> Option<usize> {
        self.cache.as_ref().map(|cache| cache.loaded.unwrap_or(0))
    }

    /// Compiles the pipelines that dispatches need and that are not there yet, on all cores.
    pub(super) async fn compile(&self, dispatches: impl Iterator<Item = &Dispatch>) -> Result<(), GpuError> {
        let mut missing: Vec<&Dispatch> = Vec::new();
        {
            let pipelines = self.pipelines.lock().unwrap();
            let mut keys = HashSet::new();
            missing.extend(dispatches.filter(|d| {
                let key = pipeline_key(d);
                !pipelines.contains_key(&key) && keys.insert(key)
            }));
        }
        if missing.is_empty() {
            return Ok(());
        }
        #[cfg(target_arch = "wasm32")]
        for dispatch in missing {
            self.pipeline(dispatch).await?;
        }
        #[cfg(not(target_arch = "wasm32"))]
        self.compile_in_threads(&missing)?;
        if let Some(cache) = &self.cache {
            cache.save();
        }
        Ok(())
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn compile_in_threads(&self, missing: &[&Dispatch]) -> Result<(), GpuError> {
        let next = std::sync::atomic::AtomicUsize::new(0);
        let work = || -> Result<(), GpuError> {
            while let Some(dispatch) = missing.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                // wgpu's error scopes belong to the thread that opens them, and natively they answer at once
                pollster::block_on(self.pipeline(dispatch))?;
            }
            Ok(())
        };
        let threads = std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(missing.len());
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let own = work();
            let join = |other: std::thread::ScopedJoinHandle<'_, _>| match other.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            others.into_iter().map(join).fold(own, Result::and)
        })
    }

    pub(super) async fn pipeline(&self, dispatch: &Dispatch) -> Result<Arc<Pipeline>, GpuError> {
        let label = dispatch.kernel();
        let key = pipeline_key(dispatch);
        if let Some(pipeline) = self.pipelines.lock().unwrap().get(&key) {
            return Ok(pipeline.clone());
        }
        let source = shader_source(dispatch).map_err(|reason| GpuError::Pipeline {
            label: label.clone(),
            reason,
        })?;
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let module = self.module(&label, source, dispatch.shader.loops_end);
        let buffer = |ty| wgpu::BindingType::Buffer {
            ty,
            has_dynamic_offset: false,
            min_binding_size: None,
        };
        let entry = |binding: usize, access: Access| wgpu::BindGroupLayoutEntry {
            binding: binding as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: match access {
                Access::Uniform => buffer(wgpu::BufferBindingType::Uniform),
                Access::Read => buffer(wgpu::BufferBindingType::Storage { read_only: true }),
                Access::ReadWrite => buffer(wgpu::BufferBindingType::Storage { read_only: false }),
                Access::Texels(texel) => wgpu::BindingType::StorageTexture {
                    access: wgpu::StorageTextureAccess::ReadOnly,
                    format: texel_format(texel),
                    view_dimension: wgpu::TextureViewDimension::D2,
                },
            },
            count: None,
        };
        let entries: Vec<_> = std::iter::once(entry(0, Access::Uniform))
            .chain(
                dispatch
                    .bindings
                    .iter()
                    .enumerate()
                    .map(|(i, b)| entry(i + 1, b.access)),
            )
            .collect();
        let layout = self
            .device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some(&label),
                entries: &entries,
            });
        let pipeline_layout = self
            .device
            .create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(&label),
                bind_group_layouts: &[Some(&layout)],
                immediate_size: 0,
            });
        let pipeline = self
            .device
            .create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(&label),
                layout: Some(&pipeline_layout),
                module: &module,
                entry_point: Some(dispatch.entry),
                compilation_options: Default::default(),
                cache: self.cache.as_ref().map(|c| &c.cache),
            });
        if let Some(error) = scope.pop().await {
            return Err(self.failed(GpuError::Pipeline {
                label,
                reason: error.to_string(),
            }));
        }
        let pipeline = Arc::new(Pipeline { pipeline, layout });
        self.pipelines.lock().unwrap().insert(key, pipeline.clone());
        Ok(pipeline)
    }

    #[allow(unsafe_code)] // wgpu's only way to leave out the loop counters
    fn module(&self, label: &str, source: wgpu::ShaderSource<'_>, loops_end: bool) -> wgpu::ShaderModule {
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(label),
            source,
        };
        // Bounds stay checked. A loop whose end is known carries no counter, which would keep drivers from unrolling it.
        let checks = wgpu::ShaderRuntimeChecks {
            force_loop_bounding: !loops_end,
            ..wgpu::ShaderRuntimeChecks::checked()
        };
        // SAFETY: loops without a counter end: the kernel is as this crate's operations made it, whose loops have bounds that the
        // plan checks (at most 65,535 iterations), or `Dispatch::assume_loops_end` has the caller's word.
        unsafe { self.device.create_shader_module_trusted(descriptor, checks) }
    }
}
