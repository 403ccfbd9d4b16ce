//! The plan: dispatches in order, lifetimes turned into memory slots. Plain data; knows nothing of a device.

use std::collections::HashMap;
use std::fmt;

use crate::graph::{Graph, GraphError, Source, Value};
use crate::op::{BufferRef, Caps, Dispatch, Io};
use crate::tensor::Spec;

/// Offsets in the arenas are multiples of this: WebGPU's `minStorageBufferOffsetAlignment`.
pub const ALIGNMENT: u64 = 256;

/// Where a value lives on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A buffer of the plan that values share in turn.
    Slot(usize),
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
    /// The step's numbers.
    Step,
}

/// A dispatch with its buffers resolved.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The operation's name.
    pub op: &'static str,
    /// Position of its node.
    pub node: usize,
    /// The kernel.
    pub dispatch: Dispatch,
    /// What each of the dispatch's bindings is.
    pub bound: Vec<Bound>,
}

/// Everything that the engine needs to run a graph again and again.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Kernels in order.
    pub launches: Vec<Launch>,
    /// Bytes of each slot.
    pub slots: Vec<u64>,
    /// Where each live value of the graph is.
    pub places: HashMap<Value, Place>,
    /// The trained tensors.
    pub parameters: Arena,
    /// The persistent untrained tensors.
    pub states: Arena,
    /// Name, value and spec of the inputs.
    pub inputs: Vec<(String, Value, Spec)>,
    /// Name and spec of the inputs whose buffers are chosen before a submission.
    pub residents: Vec<(String, Spec)>,
    /// Name, value and spec of what is read back.
    pub kept: Vec<(String, Value, Spec)>,
}

impl Plan {
    /// Plans a graph for an adapter: nodes that nothing kept or changed depends on are dropped, values share slots
    /// where their lifetimes allow.
    pub fn new(graph: &Graph, caps: &Caps) -> Result<Plan, GraphError> {
        let parameters = Arena::new(graph.parameters().map(|(_, v)| (v.name.as_str(), &v.spec)));
        let states = Arena::new(graph.states().map(|(_, v)| (v.name.as_str(), &v.spec)));
        let mut places = HashMap::new();
        for ((value, _), (_, _, offset)) in graph.parameters().zip(&parameters.entries) {
            places.insert(value, Place::Parameter(*offset));
        }
        for ((value, _), (_, _, offset)) in graph.states().zip(&states.entries) {
            places.insert(value, Place::State(*offset));
        }
        for (parameter, gradient) in graph.parameter_gradients() {
            let Place::Parameter(offset) = places[parameter] else {
                unreachable!("a parameter's place")
            };
            places.insert(*gradient, Place::Gradient(offset));
        }

        let live = live_nodes(graph);
        let last_use = last_uses(graph, &live);
        let mut slots = Slots::default();
        let mut inputs = Vec::new();
        let mut residents = Vec::new();
        for (i, info) in graph.values().iter().enumerate() {
            let value = Value(i);
            match info.source {
                Source::Input => {
                    inputs.push((info.name.clone(), value, info.spec.clone()));
                    let place = Place::Slot(slots.take(info.spec.bytes()));
                    places.insert(value, place);
                }
                Source::Resident => {
                    places.insert(value, Place::Resident(residents.len()));
                    residents.push((info.name.clone(), info.spec.clone()));
                }
                Source::Moment { order, parameter } => {
                    let Place::Parameter(offset) = places[&parameter] else {
                        unreachable!("a parameter's place")
                    };
                    places.insert(value, Place::Moment(order, offset));
                }
                _ => {}
            }
        }

        let mut launches = Vec::new();
        for (index, node) in graph.nodes().iter().enumerate().filter(|(i, _)| live[*i]) {
            let op = node.op.name();
            let in_specs: Vec<Spec> = node.inputs.iter().map(|v| graph.spec(*v).clone()).collect();
            let out_specs: Vec<Spec> = node.outputs.iter().map(|v| graph.spec(*v).clone()).collect();
            let mut io = Io::new(&in_specs, &out_specs);
            let dispatches = node.op.dispatches(&mut io, caps)?;
            for (&value, spec) in node.outputs.iter().zip(&out_specs) {
                places
                    .entry(value)
                    .or_insert_with(|| Place::Slot(slots.take(spec.bytes())));
            }
            let scratch: Vec<usize> = io.scratch.iter().map(|bytes| slots.take(*bytes)).collect();
            for spec in in_specs.iter().chain(&out_specs) {
                if spec.bytes() > caps.max_buffer {
                    let reason = format!(
                        "{spec:?} takes {} MiB and this adapter's largest buffer is {} MiB; use a smaller grid or batch",
                        spec.bytes() >> 20,
                        caps.max_buffer >> 20
                    );
                    return Err(GraphError::Limit { op, reason });
                }
            }

            for dispatch in dispatches {
                check_limits(op, &dispatch)?;
                let bound = dispatch
                    .bindings
                    .iter()
                    .map(|binding| {
                        let (buffer, offset, size) = match binding.buffer {
                            BufferRef::Input(i) => resolve(places[&node.inputs[i]], in_specs[i].bytes()),
                            BufferRef::Output(i) => resolve(places[&node.outputs[i]], out_specs[i].bytes()),
                            BufferRef::Scratch(i) => (PlanBuffer::Slot(scratch[i]), 0, io.scratch[i]),
                            BufferRef::Parameters => (PlanBuffer::Parameters, 0, parameters.bytes),
                            BufferRef::Gradients => (PlanBuffer::Gradients, 0, parameters.bytes),
                            BufferRef::Moments(i) => (PlanBuffer::Moments(i), 0, parameters.bytes),
                            BufferRef::Step => (PlanBuffer::Step, 0, 16),
                        };
                        let (from, to) = binding.range.unwrap_or((0, size));
                        if to - from > caps.max_binding {
                            let reason = format!(
                                "a binding of {} MiB exceeds this adapter's {} MiB; use a smaller grid or batch",
                                (to - from) >> 20,
                                caps.max_binding >> 20
                            );
                            return Err(GraphError::Limit { op, reason });
                        }
                        Ok(Bound { buffer, offset: offset + from, size: to - from })
                    })
                    .collect::<Result<_, _>>()?;
                launches.push(Launch {
                    op,
                    node: index,
                    dispatch,
                    bound,
                });
            }

            scratch.iter().for_each(|slot| slots.give(*slot));
            let mut done: Vec<Value> = node.inputs.iter().chain(&node.outputs).copied().collect();
            done.sort();
            done.dedup();
            for value in done {
                if last_use[value.0] == Some(index)
                    && let Place::Slot(slot) = places[&value]
                {
                    slots.give(slot);
                }
            }
        }
        let kept = graph
            .kept()
            .iter()
            .map(|(n, v)| (n.clone(), *v, graph.spec(*v).clone()))
            .collect();
        Ok(Plan {
            launches,
            slots: slots.sizes,
            places,
            parameters,
            states,
            inputs,
            residents,
            kept,
        })
    }

    /// Device bytes of the slots: inputs, activations, gradients of activations, temporaries.
    pub fn slot_bytes(&self) -> u64 {
        self.slots.iter().sum()
    }

    /// Device bytes in all: slots, parameters and states, and where the plan trains also gradients and moments.
    pub fn device_bytes(&self) -> u64 {
        let trains = self
            .places
            .values()
            .any(|place| matches!(place, Place::Moment(..)));
        let copies = if trains { 4 } else { 1 };
        self.slot_bytes() + copies * self.parameters.bytes + self.states.bytes
    }

    /// Floating-point operations of one submission.
    pub fn flops(&self) -> u64 {
        self.launches.iter().map(|l| l.dispatch.flops).sum()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for launch in &self.launches {
            let d = &launch.dispatch;
            let bytes: u64 = launch.bound.iter().map(|b| b.size).sum();
            writeln!(
                f,
                "{:4} {:24} {:28} {:>5}x{}x{} groups {:9.1} MFLOP {:8.2} MiB",
                launch.node,
                launch.op,
                format!("{}:{}", d.shader.name, d.entry),
                d.workgroups[0],
                d.workgroups[1],
                d.workgroups[2],
                d.flops as f64 / 1e6,
                bytes as f64 / 1048576.0
            )?;
        }
        write!(
            f,
            "{} dispatches, {:.2} GFLOP, {} slots of {:.1} MiB in all, parameters {:.2} MiB",
            self.launches.len(),
            self.flops() as f64 / 1e9,
            self.slots.len(),
            self.slot_bytes() as f64 / 1048576.0,
            self.parameters.bytes as f64 / 1048576.0
        )
    }
}

fn resolve(place: Place, bytes: u64) -> (PlanBuffer, u64, u64) {
    match place {
        Place::Slot(slot) => (PlanBuffer::Slot(slot), 0, bytes),
        Place::Resident(i) => (PlanBuffer::Resident(i), 0, bytes),
        Place::Parameter(offset) => (PlanBuffer::Parameters, offset, bytes),
        Place::Gradient(offset) => (PlanBuffer::Gradients, offset, bytes),
        Place::Moment(order, offset) => (PlanBuffer::Moments(order), offset, bytes),
        Place::State(offset) => (PlanBuffer::States, offset, bytes),
    }
}

fn check_limits(op: &'static str, dispatch: &Dispatch) -> Result<(), GraphError> {
    let storage = dispatch
        .bindings
        .iter()
        .filter(|b| b.access != crate::op::Access::Uniform)
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

/// Nodes that a kept value, a placed gradient or a change in place depends on.
fn live_nodes(graph: &Graph) -> Vec<bool> {
    let mut wanted = vec![false; graph.values().len()];
    graph.kept().iter().for_each(|(_, v)| wanted[v.0] = true);
    graph
        .parameter_gradients()
        .iter()
        .for_each(|(_, g)| wanted[g.0] = true);
    let mut live = vec![false; graph.nodes().len()];
    for (i, node) in graph.nodes().iter().enumerate().rev() {
        live[i] = !node.op.writes(node.inputs.len()).is_empty() || node.outputs.iter().any(|v| wanted[v.0]);
        if live[i] {
            node.inputs.iter().for_each(|v| wanted[v.0] = true);
        }
    }
    live
}

/// The last live node that touches each value; `None` for kept values, which live on.
fn last_uses(graph: &Graph, live: &[bool]) -> Vec<Option<usize>> {
    let mut last = vec![None; graph.values().len()];
    for (i, node) in graph.nodes().iter().enumerate().filter(|(i, _)| live[*i]) {
        for v in node.inputs.iter().chain(&node.outputs) {
            last[v.0] = Some(i);
        }
    }
    graph.kept().iter().for_each(|(_, v)| last[v.0] = None);
    last
}

/// Buffers that values share in turn: a value takes the free slot that fits it best, or grows the largest free one.
#[derive(Default)]
struct Slots {
    sizes: Vec<u64>,
    free: Vec<usize>,
}

impl Slots {
    fn take(&mut self, bytes: u64) -> usize {
        let fits = (0..self.free.len())
            .filter(|i| self.sizes[self.free[*i]] >= bytes)
            .min_by_key(|i| (self.sizes[self.free[*i]], self.free[*i]));
        let largest = || (0..self.free.len()).max_by_key(|i| (self.sizes[self.free[*i]], self.free[*i]));
        match fits.or_else(largest) {
            Some(i) => {
                let slot = self.free.swap_remove(i);
                self.sizes[slot] = self.sizes[slot].max(bytes);
                slot
            }
            None => {
                self.sizes.push(bytes);
                self.sizes.len() - 1
            }
        }
    }

    fn give(&mut self, slot: usize) {
        debug_assert!(!self.free.contains(&slot), "slot {slot} given back twice");
        self.free.push(slot);
    }
}
