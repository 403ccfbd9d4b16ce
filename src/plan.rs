//! The plan: dispatches in order, lifetimes turned into memory slots. Plain data; knows nothing of a device.

mod cut;
mod pack;
mod program;
mod texels;

use std::collections::HashMap;
use std::fmt;

use crate::fuse::fused;
use crate::graph::{Graph, GraphError, Source, Value};
use crate::op::{Access, BufferRef, Caps, Dispatch, Texel};
use crate::tensor::{ALIGNMENT, Spec};
use program::{Lives, Program, Step};
pub use texels::{Held, Texels};

/// Where a value lives on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// In a buffer of the plan that values share, from this byte on.
    Slot(usize, u64),
    /// The resident input of that position in [`Plan::residents`].
    Resident(usize),
    /// At this byte of the parameters.
    Parameter(u64),
    /// At this byte of the parameters' gradients.
    Gradient(u64),
    /// At this byte of the optimiser's moments of that order.
    Moment(usize, u64),
    /// At this byte of the states.
    State(u64),
    /// At this byte of the parameters' moving averages.
    Average(u64),
    /// At this byte of the states' moving averages.
    StateAverage(u64),
}

/// Names, shapes and byte offsets of what outlives a submission.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Arena {
    /// Name, spec and byte offset, in order.
    pub entries: Vec<(String, Spec, u64)>,
    /// Bytes in all.
    pub bytes: u64,
}

impl Arena {
    fn new<'a>(values: impl Iterator<Item = (&'a str, &'a Spec)>) -> Self {
        let mut arena = Arena::default();
        for (name, spec) in values {
            arena.entries.push((name.to_owned(), spec.clone(), arena.bytes));
            arena.bytes += spec.bytes().next_multiple_of(ALIGNMENT);
        }
        arena.bytes = arena.bytes.max(ALIGNMENT);
        arena
    }
}

/// A buffer with the range that a dispatch binds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Bound {
    /// The buffer.
    pub buffer: PlanBuffer,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// A buffer as the engine makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PlanBuffer {
    /// A slot of the plan.
    Slot(usize),
    /// A resident input, by position in [`Plan::residents`].
    Resident(usize),
    /// All parameters.
    Parameters,
    /// All parameter gradients.
    Gradients,
    /// Adam's moments.
    Moments(usize),
    /// All states.
    States,
    /// Moving averages of the parameters.
    Averages,
    /// Moving averages of the states.
    StateAverages,
    /// The step's numbers.
    Step,
}

/// A dispatch with its buffers resolved.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The operation's name.
    pub op: &'static str,
    /// Which of the operation's kernels ([`Op::variant`](crate::op::Op::variant)); empty where there is one way.
    pub variant: &'static str,
    /// Position of its node.
    pub node: usize,
    /// The kernel.
    pub dispatch: Dispatch,
    /// What each of the dispatch's bindings is.
    pub bound: Vec<Bound>,
    /// The textures in place of bindings with [`Access::Texels`].
    pub texels: Vec<Texels>,
    /// What the plan did with the node, such as `in place`; empty where it runs as the graph has it.
    pub note: String,
}

/// An input that stands in memory of its own, chosen before a submission.
#[derive(Clone, Debug)]
pub struct ResidentInput {
    /// Its name.
    pub name: String,
    /// Its shape and layout.
    pub spec: Spec,
    /// Where every kernel reads it as a whole through textures of these texels: it then stands in one, and is not copied.
    pub texel: Option<Texel>,
}

/// A texture that buffers are copied to, for kernels that read it ([`Forms::texels`](crate::op::Forms::texels)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Texture {
    /// What its texels hold.
    pub texel: Texel,
    /// Rows of [`Texel::ROW`] texels.
    pub rows: u32,
}

impl Texture {
    /// One that holds so many bytes. Never of 2ⁿ rows, for which llvmpipe compiles a kernel once more: with its cache empty it
    /// then also keeps the second form of a kernel under another name than the next process looks for.
    pub(crate) fn of(texel: Texel, bytes: u64) -> Texture {
        let rows = bytes.div_ceil(Texel::ROW * texel.bytes()).max(3) as u32;
        Texture {
            texel,
            rows: rows + u32::from(rows.is_power_of_two()),
        }
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> u64 {
        u64::from(self.rows) * Texel::ROW * self.texel.bytes()
    }
}

/// The moment of a plan at which most memory is in use.
#[derive(Clone, Debug, Default)]
pub struct Peak {
    /// Position of the node, and its operation.
    pub node: usize,
    /// The operation's name.
    pub op: &'static str,
    /// Bytes in use.
    pub bytes: u64,
    /// What is in use, with its bytes, the largest first: values by layer and operation, and the node's temporaries.
    pub values: Vec<(String, u64)>,
}

/// Everything that the engine needs to run a graph any number of times.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Kernels in order.
    pub launches: Vec<Launch>,
    /// Bytes of each slot.
    pub slots: Vec<u64>,
    /// What kernels read through, beside the slots.
    pub textures: Vec<Texture>,
    /// Where each live value of the graph is.
    pub places: HashMap<Value, Place>,
    /// The trained tensors.
    pub parameters: Arena,
    /// The persistent untrained tensors.
    pub states: Arena,
    /// Name, value and spec of the inputs.
    pub inputs: Vec<(String, Value, Spec)>,
    /// The inputs that are chosen before a submission.
    pub residents: Vec<ResidentInput>,
    /// Name, value and spec of what is read back.
    pub kept: Vec<(String, Value, Spec)>,
    /// When most of the slots is in use, and by what.
    pub peak: Peak,
}

impl Plan {
    /// Plans a graph for an adapter: operations are fused, nodes that nothing kept or changed depends on are dropped, values
    /// share slots where their lifetimes allow. Where it lowers the peak, values are made again rather than kept, outputs
    /// take over the memory of inputs, and nodes run over some planes at a time.
    ///
    /// # Errors
    /// Operations that don't fit the adapter's limits, also not in slabs.
    pub fn new(graph: &Graph, caps: &Caps) -> Result<Plan, GraphError> {
        let plan = Plan::make(graph, caps, true);
        match plan {
            // What an adapter has to spare in all may be more than one of its buffers holds.
            Err(GraphError::Limit { .. }) if caps.spare > 0 => {
                Plan::make(graph, &Caps { spare: 0, ..*caps }, true)
            }
            plan => plan,
        }
    }

    /// [`Plan::new`] with everything made once, as a whole and in memory of its own: more memory, the same results up to the
    /// rounding of sums over several planes. For comparisons.
    pub fn straight(graph: &Graph, caps: &Caps) -> Result<Plan, GraphError> {
        Plan::make(graph, caps, false)
    }

    fn make(graph: &Graph, caps: &Caps, save: bool) -> Result<Plan, GraphError> {
        let graph = &fused(graph, caps)?;
        let parameters = Arena::new(graph.parameters().map(|(_, v)| (v.name.as_str(), &v.spec)));
        let states = Arena::new(graph.states().map(|(_, v)| (v.name.as_str(), &v.spec)));
        let mut plan = Plan {
            places: fixed_places(graph, &parameters, &states),
            parameters,
            states,
            ..Plan::default()
        };
        for (i, info) in graph.values().iter().enumerate() {
            match info.source {
                Source::Input => plan.inputs.push((info.name.clone(), Value(i), info.spec.clone())),
                Source::Resident => plan.residents.push(ResidentInput {
                    name: info.name.clone(),
                    spec: info.spec.clone(),
                    texel: None,
                }),
                _ => {}
            }
        }
        for (name, value) in graph.kept() {
            plan.kept.push((name.clone(), *value, graph.spec(*value).clone()));
        }

        let mut program = Program::new(graph, caps, |v| plan.places.get(&v).copied())?;
        if save {
            cut::cut(&mut program)?;
        } else {
            program.steps.iter_mut().for_each(|step| step.over = None);
        }
        let lives = program.lives();
        program.settle(&lives)?;
        plan.peak = peak(&program, &lives);
        let layout = program.pack(&lives, plan.peak.bytes);
        for (i, place) in layout.values.iter().enumerate() {
            if let Some((slot, at)) = place {
                plan.places.insert(Value(i), Place::Slot(*slot, *at));
            }
        }
        plan.slots = layout.slots;
        for (step, scratch) in program.steps.iter().zip(&layout.scratch) {
            plan.launch(&program, step, scratch, caps)?;
        }
        texels::settle(&mut plan.residents, &plan.launches);
        plan.textures = texels::assign(&mut plan.launches, &plan.residents);
        Ok(plan)
    }

    /// Lets the launches of a plan that was made by hand read through textures, as those of a graph do; each copies what it reads.
    #[cfg(feature = "cli")] // for benchmarks
    pub(crate) fn through_texels(mut self, caps: &Caps) -> Plan {
        if caps.forms.texels {
            for launch in &mut self.launches {
                let read = launch.dispatch.bindings.iter().zip(&launch.bound);
                let sizes: HashMap<BufferRef, u64> = read
                    .map(|(binding, bound)| (binding.buffer, bound.size))
                    .collect();
                texels::read_texels(&mut launch.dispatch, |buffer| sizes.get(&buffer).copied());
            }
            self.textures = texels::assign(&mut self.launches, &self.residents);
            let texels = self.launches.iter_mut().flat_map(|launch| &mut launch.texels);
            texels.for_each(|texels| texels.copy = true);
        }
        self
    }

    /// Adds a step's kernels with their buffers.
    fn launch(
        &mut self,
        program: &Program,
        step: &Step,
        scratch: &[(usize, u64)],
        caps: &Caps,
    ) -> Result<(), GraphError> {
        let op = step.op.name();
        let mib = |bytes: u64| bytes >> 20;
        for value in step.inputs.iter().chain(&step.outputs) {
            let info = &program.values[value.0];
            if info.bytes() > caps.max_buffer {
                let reason = format!(
                    "{:?} takes {} MiB and this adapter's largest buffer is {} MiB",
                    info.spec,
                    mib(info.bytes()),
                    mib(caps.max_buffer)
                );
                return Err(GraphError::Limit { op, reason });
            }
        }
        for dispatch in step.dispatches.iter() {
            check_limits(op, dispatch)?;
            let mut bound = Vec::new();
            for binding in &dispatch.bindings {
                let of = |value: Value| {
                    let info = &program.values[value.0];
                    let (buffer, offset) = resolve(self.places[&value]);
                    (buffer, offset, info.window.unwrap_or((0, info.spec.bytes())))
                };
                let (buffer, offset, (first, end)) = match binding.buffer {
                    BufferRef::Input(i) => of(step.inputs[i]),
                    BufferRef::Output(i) => of(step.outputs[i]),
                    BufferRef::Scratch(i) => {
                        (PlanBuffer::Slot(scratch[i].0), scratch[i].1, (0, step.scratch[i]))
                    }
                    BufferRef::Parameters => (PlanBuffer::Parameters, 0, (0, self.parameters.bytes)),
                    BufferRef::Gradients => (PlanBuffer::Gradients, 0, (0, self.parameters.bytes)),
                    BufferRef::Moments(i) => (PlanBuffer::Moments(i), 0, (0, self.parameters.bytes)),
                    BufferRef::Averages => (PlanBuffer::Averages, 0, (0, self.parameters.bytes)),
                    BufferRef::States => (PlanBuffer::States, 0, (0, self.states.bytes)),
                    BufferRef::StateAverages => (PlanBuffer::StateAverages, 0, (0, self.states.bytes)),
                    BufferRef::Step => (PlanBuffer::Step, 0, (0, 16)),
                };
                let windowed = |v: &Value| program.values[v.0].window.is_some();
                let part = match binding.buffer {
                    BufferRef::Input(i) => windowed(&step.inputs[i]),
                    BufferRef::Output(i) => windowed(&step.outputs[i]),
                    _ => false,
                };
                assert!(
                    !part || binding.range.is_some(),
                    "{op} binds the whole of what exists in part"
                );
                let (from, to) = binding.range.unwrap_or((first, end));
                assert!(
                    first <= from && to <= end,
                    "{op} binds more than there is of a value"
                );
                if to - from > caps.max_binding {
                    let reason = format!(
                        "a binding of {} MiB exceeds this adapter's {} MiB",
                        mib(to - from),
                        mib(caps.max_binding)
                    );
                    return Err(GraphError::Limit { op, reason });
                }
                bound.push(Bound {
                    buffer,
                    offset: offset + from - first,
                    size: to - from,
                });
            }
            self.launches.push(Launch {
                op,
                variant: step.variant,
                node: step.node,
                dispatch: dispatch.clone(),
                bound,
                texels: Vec::new(),
                note: step.note.clone(),
            });
        }
        Ok(())
    }

    /// Device bytes of the slots: inputs, activations, gradients of activations, temporaries.
    pub fn slot_bytes(&self) -> u64 {
        self.slots.iter().sum()
    }

    /// Device bytes of the textures.
    pub fn texture_bytes(&self) -> u64 {
        self.textures.iter().map(Texture::bytes).sum()
    }

    /// Device bytes in all: slots, textures, parameters and states, and where the plan trains also gradients and moments.
    pub fn device_bytes(&self) -> u64 {
        let trains = self
            .places
            .values()
            .any(|place| matches!(place, Place::Moment(..)));
        self.slot_bytes() + self.texture_bytes() + self.weight_bytes(trains)
    }

    /// Device bytes of parameters and states, and where it trains also of gradients, moments and averages.
    pub fn weight_bytes(&self, trains: bool) -> u64 {
        let averages = u64::from(trains && self.has_averages());
        let copies = if trains { 4 } else { 1 };
        (copies + averages) * self.parameters.bytes + (1 + averages) * self.states.bytes
    }

    /// Whether a step keeps moving averages of what it trains.
    pub fn has_averages(&self) -> bool {
        self.places
            .values()
            .any(|place| matches!(place, Place::Average(..)))
    }

    /// Position of the first kernel of the first node that changes parameters; all there are, where none does. A training
    /// step's come last.
    pub fn update(&self) -> usize {
        let changes = |launch: &Launch| {
            let mut bindings = launch.dispatch.bindings.iter().zip(&launch.bound);
            bindings.any(|(binding, bound)| {
                bound.buffer == PlanBuffer::Parameters && binding.access == Access::ReadWrite
            })
        };
        let first = self.launches.iter().find(|launch| changes(launch));
        let of = |node| self.launches.iter().position(|launch| launch.node == node);
        first
            .and_then(|first| of(first.node))
            .unwrap_or(self.launches.len())
    }

    /// Floating-point operations of one submission.
    pub fn flops(&self) -> u64 {
        self.launches.iter().map(|l| l.dispatch.flops).sum()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / 1048576.0;
        for launch in &self.launches {
            let d = &launch.dispatch;
            let bytes: u64 = launch.bound.iter().map(|b| b.size).sum();
            writeln!(
                f,
                "{:4} {:24} {:14} {:28} {:>5}x{}x{} groups {:9.1} MFLOP {:8.2} MiB{}{}",
                launch.node,
                launch.op,
                launch.variant,
                d.kernel(),
                d.workgroups[0],
                d.workgroups[1],
                d.workgroups[2],
                d.flops as f64 / 1e6,
                mib(bytes),
                if launch.note.is_empty() { "" } else { "  " },
                launch.note
            )?;
        }
        let Peak {
            node,
            op,
            bytes,
            values,
        } = &self.peak;
        writeln!(f, "most in use at node {node}, {op}: {:.1} MiB", mib(*bytes))?;
        let (large, small): (Vec<_>, Vec<_>) = values.iter().partition(|(_, b)| b * 200 > *bytes);
        for (name, bytes) in large {
            writeln!(f, "{:10.2} MiB  {name}", mib(*bytes))?;
        }
        let rest: u64 = small.iter().map(|(_, bytes)| bytes).sum();
        writeln!(f, "{:10.2} MiB  {} smaller ones", mib(rest), small.len())?;
        write!(
            f,
            "{} dispatches, {:.2} GFLOP, {} slots of {:.1} MiB in all, textures of {:.1} MiB, parameters {:.2} MiB",
            self.launches.len(),
            self.flops() as f64 / 1e9,
            self.slots.len(),
            mib(self.slot_bytes()),
            mib(self.texture_bytes()),
            mib(self.parameters.bytes)
        )
    }
}

/// The buffer, and the value's first byte there.
fn resolve(place: Place) -> (PlanBuffer, u64) {
    match place {
        Place::Slot(slot, offset) => (PlanBuffer::Slot(slot), offset),
        Place::Resident(i) => (PlanBuffer::Resident(i), 0),
        Place::Parameter(offset) => (PlanBuffer::Parameters, offset),
        Place::Gradient(offset) => (PlanBuffer::Gradients, offset),
        Place::Moment(order, offset) => (PlanBuffer::Moments(order), offset),
        Place::State(offset) => (PlanBuffer::States, offset),
        Place::Average(offset) => (PlanBuffer::Averages, offset),
        Place::StateAverage(offset) => (PlanBuffer::StateAverages, offset),
    }
}

/// Places of what is in no slot.
fn fixed_places(graph: &Graph, parameters: &Arena, states: &Arena) -> HashMap<Value, Place> {
    let mut places = HashMap::new();
    for ((value, _), (_, _, offset)) in graph.parameters().zip(&parameters.entries) {
        places.insert(value, Place::Parameter(*offset));
    }
    for ((value, _), (_, _, offset)) in graph.states().zip(&states.entries) {
        places.insert(value, Place::State(*offset));
    }
    let offset = |places: &HashMap<Value, Place>, parameter: &Value| match places[parameter] {
        Place::Parameter(offset) => offset,
        _ => unreachable!("a parameter's place"),
    };
    for (parameter, gradient) in graph.parameter_gradients() {
        places.insert(*gradient, Place::Gradient(offset(&places, parameter)));
    }
    let mut residents = 0;
    for (i, info) in graph.values().iter().enumerate() {
        match info.source {
            Source::Resident => {
                places.insert(Value(i), Place::Resident(residents));
                residents += 1;
            }
            Source::Moment { order, parameter } => {
                let at = offset(&places, &parameter);
                places.insert(Value(i), Place::Moment(order, at));
            }
            Source::Average(of) => {
                let place = match places[&of] {
                    Place::Parameter(at) => Place::Average(at),
                    Place::State(at) => Place::StateAverage(at),
                    _ => unreachable!("a parameter's or state's place"),
                };
                places.insert(Value(i), place);
            }
            _ => {}
        }
    }
    places
}

fn peak(program: &Program, lives: &Lives) -> Peak {
    let usage = program.usage(lives);
    let Some(t) = (0..usage.len()).max_by_key(|t| (usage[*t], std::cmp::Reverse(*t))) else {
        return Peak::default();
    };
    let step = &program.steps[t];
    let there = |span: &Option<(usize, usize)>| span.is_some_and(|(from, to)| from <= t && t <= to);
    let mut values: Vec<(String, u64)> = lives
        .spans
        .iter()
        .zip(&program.values)
        .filter(|(span, _)| there(span))
        .map(|(_, info)| (format!("{} {:?}", info.name, info.spec), info.bytes()))
        .chain(step.scratch.iter().map(|bytes| ("temporary".to_owned(), *bytes)))
        .collect();
    values.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    Peak {
        node: step.node,
        op: step.op.name(),
        bytes: usage[t],
        values,
    }
}

fn check_limits(op: &'static str, dispatch: &Dispatch) -> Result<(), GraphError> {
    let storage = dispatch
        .bindings
        .iter()
        .filter(|b| matches!(b.access, Access::Read | Access::ReadWrite))
        .count();
    let reason = if storage > 8 {
        format!(
            "{} binds {storage} storage buffers, WebGPU promises 8",
            dispatch.shader.name
        )
    } else if dispatch.iterations > 65_535 {
        format!(
            "{} loops {} times an invocation, software Vulkan drops those past 65,535",
            dispatch.shader.name, dispatch.iterations
        )
    } else if dispatch.workgroups.iter().any(|g| *g > 65_535) {
        format!(
            "{} launches {:?} workgroups, WebGPU promises 65,535 an axis",
            dispatch.shader.name, dispatch.workgroups
        )
    } else {
        return Ok(());
    };
    Err(GraphError::Limit { op, reason })
}
