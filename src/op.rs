//! The contract of an operation: shapes, dispatches, gradient, reference — one file per operation in `op/`.

pub mod activation;
pub mod add;
pub mod affine_grid;
pub mod arg_max;
pub mod average;
pub mod avg_pool3d;
pub mod axis_filter;
pub mod batch_norm;
pub mod concat;
pub mod conv3d;
pub mod cross_entropy;
pub mod dropout;
pub mod fill;
mod fixed_point;
pub mod grid_sample;
pub mod hard_mining;
pub mod instance_norm;
pub mod intensities;
pub mod interleave;
pub mod join;
pub mod layout;
pub mod linear;
mod logits;
pub mod max_pool3d;
pub mod nearest;
mod norm;
pub mod obelisk_layer;
pub mod obelisk_sample;
pub mod optimiser;
pub mod paint;
pub mod probabilities;
mod random;
pub mod scale;
mod separable;
pub mod soft_dice;
pub mod turn_offsets;
pub mod upsample;
pub mod warp_grid;

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use crate::graph::{Graph, GraphError, Value};
#[cfg(feature = "onnx")]
pub(crate) use crate::onnx::{self, Attribute};
pub use crate::params;
pub(crate) use crate::shader::own as shader;
pub use crate::shader::{self, Params, Shader, Texel, Uniform};
use crate::tensor::ALIGNMENT;
pub use crate::tensor::{Layout, Spec, Tensor};

/// Planes that a kernel may compute at once: a plan's slabs hold whole pairs, but for the last.
pub const PLANES_AT_ONCE: usize = 2;

/// The planes of each input that an operation reads; `None` for an input that it reads as a whole.
pub type Reads = Vec<Option<Range<usize>>>;

/// What a node of the graph computes. Everything about one kind of node stands in one file, and nothing central
/// lists the operations.
pub trait Op: Any + fmt::Debug + Send + Sync {
    /// The field's name for it, as errors and plans print it: `conv3d`, `batch_norm`.
    fn name(&self) -> &'static str;

    /// Shapes and layouts of the outputs, or why the inputs don't fit. Called once, on insertion.
    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError>;

    /// The kernels that compute the outputs, in order, as plain data. Only an operation that [`Op::expand`]s has none.
    fn dispatches(&self, _io: &mut Io, _caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        Err(GraphError::Name(format!("{} has no kernels", self.name())))
    }

    /// Of an operation that is a composition of others: adds these to the graph and returns what stands for its outputs. Plans run
    /// them in its place; gradients are nodes of their own by then.
    fn expand(&self, _graph: &mut Graph, _inputs: &[Value]) -> Result<Option<Vec<Value>>, GraphError> {
        Ok(None)
    }

    /// Which of its kernels the operation runs for these shapes on this adapter, for listings; empty where there is one way.
    fn variant(&self, _io: &Io, _caps: &Caps) -> &'static str {
        ""
    }

    /// Adds the nodes that carry the outputs' gradients to the inputs. `upstream` has one entry per output, `None`
    /// where nothing depends on it; `wanted[i]` is false where input `i` needs no gradient (return
    /// [`Gradient::Stops`] there). Returns one entry per input. Without this method an operation has no gradient, as those
    /// of a backward pass have none, and the error names it.
    fn gradient(
        &self,
        _graph: &mut Graph,
        _node: &NodeView,
        _upstream: &[Option<Value>],
        _wanted: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let reason = format!(
            "{} has no gradient, and gradients of gradients are not offered",
            self.name()
        );
        Err(GraphError::Name(reason))
    }

    /// The slow and obvious computation on the host: the outputs, then the new contents of each input that
    /// [`Op::writes`] names. Sums run in f64.
    fn reference(&self, inputs: &[&Tensor], step: &StepScalars) -> Vec<Tensor>;

    /// Inputs (parameters, states, moments) that the operation changes in place, of a node with so many inputs.
    fn writes(&self, _inputs: usize) -> Vec<usize> {
        Vec::new()
    }

    /// An operation that computes output 0 again from values that are there: its inputs, or other outputs. For what costs
    /// little beside the memory that it makes; a plan then need not keep the output for late readers.
    fn rematerialise(&self, _node: &NodeView, _inputs: &[Spec]) -> Option<(Arc<dyn Op>, Vec<Value>)> {
        None
    }

    /// For operations that can work on some planes alone (`Io::planes`): the planes of each input that these planes of
    /// output 0 take, `None` for an input that is read as a whole. A plane is one of the N·D runs of a map or of a flat volume
    /// of one channel that have one n and one depth. Kernels bind no more of those inputs and of the output.
    fn reads(&self, _: &[Spec], _: &[Spec], _planes: Range<usize>) -> Option<Reads> {
        None
    }

    /// How many planes there are for [`Op::reads`]: those of output 0. Operations that sum over planes take those of an
    /// input, and from the second part on add to the output.
    fn planes(&self, _inputs: &[Spec], outputs: &[Spec]) -> usize {
        outputs[0].planes()
    }

    /// An input whose memory output 0 may take over where nothing reads the input later: each invocation reads of it
    /// only what it then writes itself. With [`Io::in_place`] the kernels bind output 0 and not that input.
    fn overwrites(&self, _inputs: &[Spec], _outputs: &[Spec], _caps: &Caps) -> Option<usize> {
        None
    }

    /// Writes what the operation computes as ONNX's operators and returns the names of its outputs there, of the first at least.
    /// Operations that no inference graph has leave it out, and the error names them.
    ///
    /// # Errors
    /// What ONNX has no operators for.
    #[cfg(feature = "onnx")]
    fn onnx(&self, _to: &mut onnx::Writer, _call: &onnx::Call) -> Result<Vec<String>, String> {
        Err("it is not written in ONNX".into())
    }
}

/// The values around a node, for [`Op::gradient`].
#[derive(Clone, Debug)]
pub struct NodeView {
    /// The node's inputs.
    pub inputs: Vec<Value>,
    /// The node's outputs.
    pub outputs: Vec<Value>,
}

/// What [`Op::gradient`] says of one input.
#[derive(Clone, Copy, Debug)]
pub enum Gradient {
    /// The gradient with respect to this input.
    Flows(Value),
    /// No gradient flows to this input.
    Stops,
}

params! {
    /// Numbers that change from one submission to the next, in a uniform buffer of their own ([`BufferRef::Step`]).
    #[repr(C)]
    #[derive(Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
    pub struct StepScalars {
        /// Optimiser steps already done; the first step sees 0.
        step: u32,
        /// Seed of the run's random streams on the device (dropout).
        seed: u32,
        /// Adam's learning rate in this step.
        learning_rate: f32,
        /// L2 penalty added to the gradient.
        weight_decay: f32,
    }
}

/// What runs the shaders, as far as kernels differ by it. Decided once, where the device opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A GPU: many invocations at once, workgroups that share memory behind barriers.
    Gpu,
    /// A driver that runs shaders on the processor (SwiftShader): few invocations, costly barriers.
    Cpu,
    /// The same with subgroups of at least eight (llvmpipe): so many lanes, which hand values round by shuffles.
    CpuLanes(u32),
}

impl Target {
    /// Of a driver, by whether it runs on the processor and by the least and most invocations of its subgroups.
    pub fn new(cpu: bool, subgroups: Option<(u32, u32)>) -> Target {
        match subgroups {
            _ if !cpu => Target::Gpu,
            Some((least, most)) if least >= 8 => Target::CpuLanes(most),
            _ => Target::Cpu,
        }
    }

    /// Whether shaders run on the processor.
    pub fn is_cpu(self) -> bool {
        self != Target::Gpu
    }

    /// Lanes of a subgroup, where handing values round by shuffles beats loading them in each lane: a driver on the processor
    /// reads a uniform address lane by lane, a GPU once.
    pub fn lanes(self) -> Option<u32> {
        match self {
            Target::CpuLanes(lanes) => Some(lanes),
            _ => None,
        }
    }
}

/// What of the adapter decides a kernel's variant and split.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Caps {
    /// Largest storage binding in bytes; WebGPU promises 128 MiB.
    pub max_binding: u64,
    /// Largest buffer in bytes; WebGPU promises 256 MiB.
    pub max_buffer: u64,
    /// What runs the shaders.
    pub target: Target,
    /// Choices that don't follow from these properties.
    pub forms: Forms,
    /// Bytes that a plan's slots may take before the plan gives time for less. Slabs leave a GPU half idle (benches/kernels.md).
    pub spare: u64,
}

impl Caps {
    /// What every WebGPU device has.
    pub const PORTABLE: Caps = Caps {
        max_binding: 128 << 20,
        max_buffer: 256 << 20,
        target: Target::Gpu,
        forms: Forms::PORTABLE,
        spare: 0,
    };

    /// The same for kernels that had better not work on small parts, because they write much or add to what is there.
    pub fn whole(&self) -> Caps {
        Caps {
            forms: Forms::PORTABLE,
            ..*self
        }
    }

    /// Bytes that kernels bind at once where they can work on a part: fewer than they may where each binding takes a
    /// texture as large.
    pub fn part(&self) -> u64 {
        match self.forms.texels {
            true => self.max_binding.min(16 << 20),
            false => self.max_binding,
        }
    }
}

/// The variants of kernels that the adapter's properties don't decide: built in, or measured on it ([`crate::tune`]). A training
/// records them; what another version wrote is read as far as this one knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Forms {
    /// Kernels read storage buffers through textures, after a copy; for drivers on the CPU. llvmpipe loads from buffers lane by
    /// lane and from storage textures as a vector. It pays for the smallest bindings, too (benches/kernels.md).
    pub texels: bool,
}

impl Forms {
    /// Buffers.
    pub const PORTABLE: Forms = Forms { texels: false };
    /// Buffers read through textures.
    pub const TEXELS: Forms = Forms { texels: true };
}

/// `texels=on` or `texels=off`, which [`FormsChoice`](crate::gpu::FormsChoice) parses.
impl fmt::Display for Forms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "texels={}", if self.texels { "on" } else { "off" })
    }
}

/// The specs around a node and its temporaries, for [`Op::dispatches`].
#[derive(Debug)]
pub struct Io<'a> {
    /// Specs of the inputs.
    pub inputs: &'a [Spec],
    /// Specs of the outputs.
    pub outputs: &'a [Spec],
    /// Bytes of each temporary asked for with [`Io::scratch`].
    pub scratch: Vec<u64>,
    /// The planes (n, z) of the output to make, of an operation that can make some; `None` for all.
    pub planes: Option<Range<usize>>,
    /// Output 0 lies where the input is that [`Op::overwrites`] named.
    pub in_place: bool,
}

impl<'a> Io<'a> {
    /// Of a node whose inputs and outputs are these.
    pub fn new(inputs: &'a [Spec], outputs: &'a [Spec]) -> Self {
        Io {
            inputs,
            outputs,
            scratch: Vec::new(),
            planes: None,
            in_place: false,
        }
    }

    /// [`slices`] of the planes to make.
    pub fn slices(&self, specs: &[&Spec], caps: &Caps) -> Vec<Slices> {
        let planes = self.planes.clone().unwrap_or(0..specs[0].planes());
        slices_of(specs, planes, caps)
    }

    /// [`ranges`] of the planes of output 0 to make.
    pub fn ranges(&self, caps: &Caps) -> impl Iterator<Item = (u64, u64)> + use<> {
        let spec = &self.outputs[0];
        let whole = (0, spec.bytes());
        let part = self.planes.clone().map(|planes| planes_bytes(spec, &planes));
        let (from, to) = part.unwrap_or(whole);
        ranges(to - from, caps).map(move |(a, b)| (from + a, from + b))
    }

    /// A temporary that lives for this node only; its contents start undefined.
    pub fn scratch(&mut self, bytes: u64) -> BufferRef {
        self.scratch.push(bytes.next_multiple_of(16).max(16));
        BufferRef::Scratch(self.scratch.len() - 1)
    }
}

/// A buffer as a dispatch names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BufferRef {
    /// The node's input by position.
    Input(usize),
    /// The node's output by position.
    Output(usize),
    /// The node's temporary by position.
    Scratch(usize),
    /// All parameters, each at a multiple of 256 bytes.
    Parameters,
    /// The gradients of all parameters, laid out as the parameters are.
    Gradients,
    /// Adam's first (0) or second (1) moments, laid out as the parameters are.
    Moments(usize),
    /// Moving averages of all parameters, laid out as they are.
    Averages,
    /// All states, each at a multiple of 256 bytes.
    States,
    /// Moving averages of all states, laid out as they are.
    StateAverages,
    /// The [`StepScalars`], as a uniform.
    Step,
}

/// How a dispatch uses a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// `var<storage, read>`
    Read,
    /// As [`Access::Read`], through a texture that the range is copied to before ([`Forms::texels`]); the plan makes these.
    Texels(Texel),
    /// `var<storage, read_write>`
    ReadWrite,
    /// `var<uniform>`
    Uniform,
}

/// One entry of a dispatch's bind group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Binding {
    /// What is bound.
    pub buffer: BufferRef,
    /// How the shader declares it.
    pub access: Access,
    /// Bytes from and to, multiples of 4 and `from` of 256; `None` binds the whole value.
    pub range: Option<(u64, u64)>,
}

/// A whole value, read.
pub fn read(buffer: BufferRef) -> Binding {
    Binding {
        buffer,
        access: Access::Read,
        range: None,
    }
}

/// A whole value, read and written.
pub fn write(buffer: BufferRef) -> Binding {
    Binding {
        buffer,
        access: Access::ReadWrite,
        range: None,
    }
}

/// A whole value, read as a uniform.
pub fn uniform(buffer: BufferRef) -> Binding {
    Binding {
        buffer,
        access: Access::Uniform,
        range: None,
    }
}

/// The [`StepScalars`].
pub fn step() -> Binding {
    uniform(BufferRef::Step)
}

impl Binding {
    /// Binds only these bytes of the value.
    pub fn range(mut self, from: u64, to: u64) -> Self {
        self.range = Some((from, to));
        self
    }
}

/// One kernel launch, as data: it can be printed, compared and tested without a device. What decides whether its loops end is
/// changed from outside of the crate by [`Dispatch::with_constants`] and [`Dispatch::with_params`] only.
///
/// In WGSL, `@group(0) @binding(0)` is the uniform whose struct [`params!`](crate::params) declared, and the buffers follow from
/// binding 1 on (a test reflects this).
#[derive(Clone, Debug)]
pub struct Dispatch {
    pub(crate) shader: Shader,
    pub(crate) constants: Vec<(&'static str, u32)>,
    pub(crate) entry: &'static str,
    /// Whether the module uses subgroup operations (only for [`Target::CpuLanes`]).
    pub subgroups: bool,
    pub(crate) params: Uniform,
    /// Buffers from binding 1 on.
    pub bindings: Vec<Binding>,
    /// Workgroups on each axis.
    pub workgroups: [u32; 3],
    /// The most loop iterations of one invocation, nested loops multiplied out. Software Vulkan drops those past
    /// 65,535 silently, so a plan refuses more.
    pub iterations: u64,
    /// Floating-point operations, for reports.
    pub flops: u64,
}

impl Dispatch {
    /// A launch of one workgroup with nothing bound; the caller fills in the rest.
    pub fn new(shader: Shader, entry: &'static str) -> Self {
        Dispatch {
            shader,
            constants: Vec::new(),
            entry,
            subgroups: false,
            params: Uniform::NONE,
            bindings: Vec::new(),
            workgroups: [1, 1, 1],
            iterations: 1,
            flops: 0,
        }
    }

    /// Sets the values of the module's constants.
    pub fn with_constants(mut self, constants: Vec<(&'static str, u32)>) -> Self {
        self.shader.loops_end = false;
        self.constants = constants;
        self
    }

    /// Sets the uniform at binding 0: a struct that [`params!`](crate::params) declared.
    pub fn with_params(mut self, params: impl Into<Uniform>) -> Self {
        self.shader.loops_end = false;
        self.params = params.into();
        self
    }

    /// Sets the buffers from binding 1 on.
    pub fn with_bindings(mut self, bindings: Vec<Binding>) -> Self {
        self.bindings = bindings;
        self
    }

    /// Sets the workgroups on each axis.
    pub fn with_workgroups(mut self, workgroups: [u32; 3]) -> Self {
        self.workgroups = workgroups;
        self
    }

    /// Has the module compiled without the counters that end its loops. To be said last: other constants or parameters take
    /// it back.
    ///
    /// # Safety
    /// Every loop of the entry point ends, with these constants and parameters and whatever the buffers hold. A loop without an
    /// end is undefined behaviour on the device.
    #[allow(unsafe_code)] // declares it; nothing is done here
    pub unsafe fn assume_loops_end(mut self) -> Self {
        self.shader.loops_end = true;
        self
    }

    /// The module, as anyone may use it: with its loops counted.
    pub fn shader(&self) -> Shader {
        Shader {
            loops_end: false,
            ..self.shader
        }
    }

    /// Values of the module's constants.
    pub fn constants(&self) -> &[(&'static str, u32)] {
        &self.constants
    }

    /// Entry point.
    pub fn entry(&self) -> &'static str {
        self.entry
    }

    /// The uniform at binding 0.
    pub fn params(&self) -> &Uniform {
        &self.params
    }

    /// Module and entry point as plans, errors and reports name them: `conv3d:main`.
    pub fn kernel(&self) -> String {
        format!("{}:{}", self.shader.name, self.entry)
    }

    /// What is read through textures, by the shader's number of the binding.
    pub fn texels(&self) -> Vec<(usize, Texel)> {
        let texel = |(i, b): (usize, &Binding)| match b.access {
            Access::Texels(texel) => Some((i + 1, texel)),
            _ => None,
        };
        self.bindings.iter().enumerate().filter_map(texel).collect()
    }

    /// The module's text for this launch, in which [`Dispatch::texels`] are still buffers.
    pub fn source(&self) -> String {
        self.shader.specialise(&self.constants)
    }

    /// The module for this launch, as natively run.
    ///
    /// # Errors
    /// What is wrong with the text, and where.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn module(&self) -> Result<naga::Module, String> {
        let mut module = shader::texels::parse(&self.source())?;
        shader::texels::read_through(&mut module, &self.texels());
        Ok(module)
    }
}

/// A size as a member of a kernel's uniform: `u32` or `i32`.
///
/// # Panics
/// On a size beyond the type; the graph refuses values that have so many elements.
pub fn int<T: TryFrom<usize>>(size: usize) -> T {
    T::try_from(size).unwrap_or_else(|_| panic!("{size} does not fit a kernel's parameter"))
}

/// Byte ranges that cut a value of `bytes` into pieces that an adapter can bind, for kernels that treat every vec4
/// alike.
pub fn ranges(bytes: u64, caps: &Caps) -> impl Iterator<Item = (u64, u64)> + use<> {
    let most = caps.part() / ALIGNMENT * ALIGNMENT;
    (0..bytes.div_ceil(most)).map(move |i| (i * most, bytes.min((i + 1) * most)))
}

/// Workgroups on two axes for `count` invocations in groups of `size`: more than 65,535 groups fold into y.
/// The shader's index is `(group.y * groups.x + group.x) * size + local`, and it returns beyond `count`.
pub fn linear_groups(count: usize, size: usize) -> [u32; 3] {
    let groups = count.div_ceil(size).max(1);
    let x = groups.min(65_535);
    [x as u32, groups.div_ceil(x) as u32, 1]
}

/// A run of whole slices: of the N·D planes of a map `[N, C, D, H, W]` or of a one-channel flat volume, those of one
/// `n` and depth with all channels, which are contiguous in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slices {
    /// The first slice, counted over N·D.
    pub first: usize,
    /// Slices in the run.
    pub count: usize,
    last: bool,
}

/// The bytes of some planes of a value, from a multiple of what bindings may start at.
pub(crate) fn planes_bytes(spec: &Spec, planes: &Range<usize>) -> (u64, u64) {
    let bytes = slice_bytes(spec);
    let last = planes.end >= spec.planes();
    let to = if last {
        spec.bytes()
    } else {
        planes.end as u64 * bytes
    };
    (planes.start as u64 * bytes / ALIGNMENT * ALIGNMENT, to)
}

fn slice_bytes(spec: &Spec) -> u64 {
    spec.plane_bytes().expect("a map, or one channel")
}

/// Slices at whose multiples each value may be bound.
pub(crate) fn aligned_slices<'a>(specs: impl IntoIterator<Item = &'a Spec>) -> usize {
    let step = specs.into_iter().fold(1, |step: u64, spec| {
        let mut whole = 1;
        while !(slice_bytes(spec) * whole).is_multiple_of(ALIGNMENT) {
            whole *= 2;
        }
        step.max(whole) // powers of two: the largest is a multiple of the others
    });
    step as usize
}

impl Slices {
    /// Binds only this run of the value.
    pub fn of(&self, spec: &Spec, binding: Binding) -> Binding {
        let bytes = slice_bytes(spec);
        let to = if self.last {
            spec.bytes()
        } else {
            bytes * (self.first + self.count) as u64
        };
        binding.range(bytes * self.first as u64, to)
    }
}

/// Runs of slices that cut five-dimensional values of the same N, D, H, W (maps, and flat volumes of one channel) at
/// the same places, so that an adapter can bind each run of each. One run where everything fits.
pub fn slices(specs: &[&Spec], caps: &Caps) -> Vec<Slices> {
    slices_of(specs, 0..specs[0].planes(), caps)
}

/// [`slices`] of some planes; the first must be one at which each value may be bound.
pub(crate) fn slices_of(specs: &[&Spec], planes: Range<usize>, caps: &Caps) -> Vec<Slices> {
    let total = planes.len();
    let step = aligned_slices(specs.iter().copied());
    let fits = specs
        .iter()
        .map(|spec| (caps.part() / slice_bytes(spec)) as usize)
        .min()
        .expect("at least one value");
    let most = if fits >= total {
        total
    } else {
        (fits / step * step).max(step)
    };
    (0..total.div_ceil(most))
        .map(|i| Slices {
            first: planes.start + i * most,
            count: most.min(total - i * most),
            last: planes.start + total.min((i + 1) * most) >= specs[0].planes(),
        })
        .collect()
}

/// Invocations (a multiple of 64) for the first stage of a reduction over `elements`, each of which leaves `columns`
/// partial results of a vec4. Enough to fill a GPU, at least 8 elements an invocation, partials of a few MiB at most.
pub fn reduction_threads(elements: usize, columns: usize) -> usize {
    let most = (65_536 / columns).max(64);
    elements.div_ceil(8).clamp(1, most).next_multiple_of(64)
}

/// [`reduction_threads`] for `shaders/common/walk.wgsl`: on a CPU longer walks, at least 256 elements an invocation.
pub fn walk_threads(elements: usize, columns: usize, caps: &Caps) -> usize {
    let fewer = if caps.target.is_cpu() { 32 } else { 1 };
    reduction_threads(elements.div_ceil(fewer), columns)
}

/// Invocations that leave one partial result of a reduction's first stage, and the constant of `shaders/common/workgroup_reduction.wgsl`.
pub fn workgroup_reduction(caps: &Caps) -> (usize, (&'static str, u32)) {
    match caps.target.is_cpu() {
        true => (1, ("BY_WORKGROUP", 0)),
        false => (64, ("BY_WORKGROUP", 1)),
    }
}

params! {
    /// How the invocations of a reduction walk the elements (`shaders/common/walk.wgsl`); the first member of their uniforms.
    pub struct Walk {
        /// Slices bound · plane.
        elements: u32,
        /// H · W.
        plane: u32,
        /// Vec4s between one slice and the next are blocks · plane.
        blocks: u32,
        /// Elements of eight invocations, a multiple of eight.
        run: u32,
        /// A step of eight: elements on in the plane,
        in_plane: u32,
        /// and on in memory, unless the plane ends.
        at: u32,
        /// A struct in a uniform takes a multiple of 16 bytes.
        unused_0: u32,
        /// See `unused_0`.
        unused_1: u32,
    }
}

/// `threads` invocations (a multiple of 64) walk `slices` slices whose planes have `plane` elements and are `blocks` planes
/// apart.
pub fn walk(slices: usize, plane: usize, blocks: usize, threads: usize) -> Walk {
    let elements = slices * plane;
    Walk {
        elements: int(elements),
        plane: int(plane),
        blocks: int(blocks),
        run: int(8 * elements.div_ceil(threads)),
        in_plane: int(8 % plane),
        at: int(8 / plane * blocks * plane + 8 % plane),
        unused_0: 0,
        unused_1: 0,
    }
}

/// Workgroups for kernels whose workgroup (64 invocations) covers `64 * vectors` elements of one plane:
/// x over a plane's elements, y and z over planes (`group.z * groups.y + group.y`; the shader returns beyond them).
pub fn plane_groups(plane: usize, vectors: usize, planes: usize) -> [u32; 3] {
    let y = planes.clamp(1, 65_535);
    [
        plane.div_ceil(64 * vectors) as u32,
        y as u32,
        planes.div_ceil(y) as u32,
    ]
}

/// [`Op::reads`] of operations that make each voxel from the same voxel of their five-dimensional inputs; whatever else they
/// read, as a whole.
pub fn same_planes(inputs: &[Spec], outputs: &[Spec], planes: Range<usize>) -> Option<Reads> {
    let [_, _, d, h, w] = outputs[0].ncdhw()?;
    let contiguous = |spec: &Spec| spec.plane_bytes().is_some();
    let alike = |spec: &Spec| spec.ncdhw().is_some_and(|s| s[2..] == [d, h, w]) && contiguous(spec);
    let read = |spec: &Spec| alike(spec).then(|| planes.clone());
    contiguous(&outputs[0]).then(|| inputs.iter().map(read).collect())
}
