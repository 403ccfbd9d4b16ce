//! The graph as steps in order, which passes rewrite: what lives when, and what that takes.

use std::ops::Range;
use std::sync::Arc;

use super::Place;
use super::pack::{Item, Packing, pack};
use super::texels::read_texels;
use crate::graph::{Graph, GraphError, Source, Value};
use crate::op::{Access, BufferRef, Caps, Dispatch, Io, Op};
use crate::tensor::{ALIGNMENT, Spec};

/// Inputs up to so many bytes keep their memory, so that class weights need one upload for all submissions.
const SMALL_INPUT: u64 = 16 << 10;

/// What the program knows of a value.
#[derive(Clone, Debug)]
pub(super) struct Info {
    /// For listings.
    pub name: String,
    pub spec: Spec,
    /// The bytes of it that exist, where a pass made only a part of its planes; multiples of the alignment.
    pub window: Option<(u64, u64)>,
    /// Where it is, if not in a slot.
    pub place: Option<Place>,
    /// There from the start.
    pub input: bool,
    /// There to the end.
    pub kept: bool,
}

impl Info {
    pub(super) fn bytes(&self) -> u64 {
        self.window.map_or(self.spec.bytes(), |(from, to)| to - from)
    }
}

/// A node, or a part of one, with its kernels.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub op: Arc<dyn Op>,
    /// Position of the node in the graph.
    pub node: usize,
    pub inputs: Vec<Value>,
    pub outputs: Vec<Value>,
    /// The planes that it makes, where not all.
    pub planes: Option<Range<usize>>,
    /// An input, of this step or of one of the same slab, whose memory output 0 may take over at its last use.
    pub over: Option<Value>,
    /// What a pass did, for listings.
    pub note: String,
    /// [`Op::variant`].
    pub variant: &'static str,
    pub dispatches: Arc<[Dispatch]>,
    pub scratch: Vec<u64>,
}

impl Step {
    /// Floating-point operations.
    pub(super) fn flops(&self) -> u64 {
        self.dispatches.iter().map(|d| d.flops).sum()
    }

    fn touched(&self) -> impl Iterator<Item = Value> + use<'_> {
        self.inputs.iter().chain(&self.outputs).copied()
    }
}

#[derive(Clone, Debug)]
pub(super) struct Program {
    pub values: Vec<Info>,
    pub steps: Vec<Step>,
    pub caps: Caps,
}

/// First and last step that touches a value; those that share memory are one.
#[derive(Clone, Debug)]
pub(super) struct Lives {
    /// The value whose memory each value has.
    pub root: Vec<usize>,
    /// By root; `None` for what is in no slot.
    pub spans: Vec<Option<(usize, usize)>>,
}

impl Program {
    /// The nodes that something kept, placed or changed in place depends on.
    pub(super) fn new(
        graph: &Graph,
        caps: &Caps,
        place: impl Fn(Value) -> Option<Place>,
    ) -> Result<Program, GraphError> {
        let values = graph.values().iter().enumerate().map(|(i, info)| Info {
            name: match info.source {
                Source::Node(node, _) => format!("{}{}", layer(graph, node), info.name),
                _ => info.name.clone(),
            },
            spec: info.spec.clone(),
            window: None,
            place: place(Value(i)),
            input: info.source == Source::Input,
            kept: graph.kept().iter().any(|(_, v)| v.0 == i)
                || info.source == Source::Input && info.spec.bytes() <= SMALL_INPUT,
        });
        let mut program = Program {
            values: values.collect(),
            steps: Vec::new(),
            caps: *caps,
        };
        let live = live_nodes(graph);
        for (i, node) in graph.nodes().iter().enumerate().filter(|(i, _)| live[*i]) {
            let step = program.step(
                node.op.clone(),
                i,
                node.inputs.clone(),
                node.outputs.clone(),
                None,
            )?;
            program.steps.push(step);
        }
        Ok(program)
    }

    pub(super) fn specs(&self, values: &[Value]) -> Vec<Spec> {
        values.iter().map(|v| self.values[v.0].spec.clone()).collect()
    }

    /// A step with its kernels, which are those for an input of their own for every output.
    pub(super) fn step(
        &self,
        op: Arc<dyn Op>,
        node: usize,
        inputs: Vec<Value>,
        outputs: Vec<Value>,
        planes: Option<Range<usize>>,
    ) -> Result<Step, GraphError> {
        let over = self.takes_over(&*op, &inputs, &outputs);
        let mut step = Step {
            op,
            node,
            inputs,
            outputs,
            planes,
            over,
            note: String::new(),
            variant: "",
            dispatches: Arc::new([]),
            scratch: Vec::new(),
        };
        self.generate(&mut step, false)?;
        Ok(step)
    }

    /// The input whose memory the operation's output 0 may take over.
    pub(super) fn takes_over(&self, op: &dyn Op, inputs: &[Value], outputs: &[Value]) -> Option<Value> {
        let over = op.overwrites(&self.specs(inputs), &self.specs(outputs), &self.caps)?;
        let once = inputs.iter().filter(|v| **v == inputs[over]).count() == 1;
        once.then_some(inputs[over])
    }

    fn generate(&self, step: &mut Step, in_place: bool) -> Result<(), GraphError> {
        let (inputs, outputs) = (self.specs(&step.inputs), self.specs(&step.outputs));
        let mut io = Io::new(&inputs, &outputs);
        io.planes = step.planes.clone();
        io.in_place = in_place;
        step.variant = step.op.variant(&io, &self.caps);
        let mut dispatches = step.op.dispatches(&mut io, &self.caps)?;
        step.scratch = io.scratch;
        if self.caps.forms.texels {
            let bytes = |buffer| match buffer {
                BufferRef::Input(i) => Some(inputs[i].bytes()),
                BufferRef::Output(i) => Some(outputs[i].bytes()),
                BufferRef::Scratch(i) => Some(step.scratch[i]),
                _ => None,
            };
            dispatches.iter_mut().for_each(|d| read_texels(d, bytes));
        }
        step.dispatches = dispatches.into();
        Ok(())
    }

    /// Whether a step's output 0 lies where one of the step's own inputs was.
    fn is_in_place(&self, lives: &Lives, step: &Step) -> bool {
        step.outputs.first().is_some_and(|out| {
            step.over
                .is_some_and(|over| step.inputs.contains(&over) && lives.root[out.0] == lives.root[over.0])
        })
    }

    /// Kernels of the steps that run in place, once it is settled which do.
    pub(super) fn settle(&mut self, lives: &Lives) -> Result<(), GraphError> {
        for i in 0..self.steps.len() {
            if self.is_in_place(lives, &self.steps[i]) {
                let mut step = self.steps[i].clone();
                // What is read through a texture was copied before it is overwritten.
                if !self.reads_by_texels(&step) {
                    self.generate(&mut step, true)?;
                }
                step.note = match step.note.as_str() {
                    "" => "in place".into(),
                    note => format!("{note}, in place"),
                };
                self.steps[i] = step;
            }
        }
        Ok(())
    }

    /// Whether a step reads the value that its output takes over through textures alone.
    fn reads_by_texels(&self, step: &Step) -> bool {
        let over = step.inputs.iter().position(|v| Some(*v) == step.over);
        let over = over.map(BufferRef::Input);
        let bindings = step.dispatches.iter().flat_map(|d| &d.bindings);
        bindings
            .filter(|b| Some(b.buffer) == over)
            .all(|b| matches!(b.access, Access::Texels(_)))
    }

    pub(super) fn lives(&self) -> Lives {
        let count = self.values.len();
        let mut spans: Vec<Option<(usize, usize)>> = vec![None; count];
        let in_slot: Vec<bool> = self.values.iter().map(|info| info.place.is_none()).collect();
        let mut written = vec![0; count];
        for (t, step) in self.steps.iter().enumerate() {
            for v in step.touched().filter(|v| in_slot[v.0]) {
                let span = spans[v.0].get_or_insert((t, t));
                span.1 = t;
            }
            step.outputs.iter().for_each(|v| written[v.0] = t);
        }
        let end = self.steps.len().saturating_sub(1);
        for (i, info) in self.values.iter().enumerate().filter(|(i, _)| in_slot[*i]) {
            if info.input {
                spans[i].get_or_insert((0, 0)).0 = 0;
            }
            if info.kept
                && let Some(span) = &mut spans[i]
            {
                span.1 = end;
            }
        }
        let mut root: Vec<usize> = (0..count).collect();
        let own = spans.clone();
        for step in &self.steps {
            let (Some(over), Some(&out)) = (step.over, step.outputs.first()) else {
                continue;
            };
            let (over, out) = (over.0, out.0);
            let (Some(before), Some(after)) = (own[over], own[out]) else {
                continue;
            };
            // The last step that writes the output is the last that may read what was there.
            let same = self.values[over].window == self.values[out].window
                && self.values[over].spec.bytes() == self.values[out].spec.bytes();
            if root[out] == out && same && !self.values[over].kept && before.1 <= written[out] {
                root[out] = root[over];
                let span = spans[root[over]].as_mut().expect("the root is in a slot");
                span.1 = span.1.max(after.1);
                spans[out] = None;
            }
        }
        Lives { root, spans }
    }

    /// Bytes that are in use at each step.
    pub(super) fn usage(&self, lives: &Lives) -> Vec<u64> {
        let aligned = |bytes: u64| bytes.next_multiple_of(ALIGNMENT) as i64;
        let mut change = vec![0i64; self.steps.len() + 1];
        for (i, span) in lives.spans.iter().enumerate() {
            if let Some((from, to)) = span {
                change[*from] += aligned(self.values[i].bytes());
                change[(to + 1).min(self.steps.len())] -= aligned(self.values[i].bytes());
            }
        }
        let mut now = 0;
        let steps = self.steps.iter().zip(change);
        steps
            .map(|(step, change)| {
                now += change;
                now as u64 + step.scratch.iter().map(|b| aligned(*b) as u64).sum::<u64>()
            })
            .collect()
    }

    /// Places for every value in a slot and for the scratch of every step; values' items come first, by root.
    pub(super) fn pack(&self, lives: &Lives, least: u64) -> Layout {
        let mut items: Vec<Item> = Vec::new();
        let mut of_value = vec![usize::MAX; self.values.len()];
        for (i, span) in lives.spans.iter().enumerate() {
            if let Some((from, to)) = *span {
                of_value[i] = items.len();
                items.push(Item {
                    bytes: self.values[i].bytes(),
                    from,
                    to,
                    apart: Vec::new(),
                });
            }
        }
        let mut of_scratch = Vec::new();
        for (t, step) in self.steps.iter().enumerate() {
            of_scratch.push(items.len());
            let scratch = step.scratch.iter();
            items.extend(scratch.map(|bytes| Item {
                bytes: *bytes,
                from: t,
                to: t,
                apart: Vec::new(),
            }));
        }
        for (step, first) in self.steps.iter().zip(&of_scratch) {
            let item = |buffer: BufferRef| match buffer {
                BufferRef::Input(i) => of_value[lives.root[step.inputs[i].0]],
                BufferRef::Output(i) => of_value[lives.root[step.outputs[i].0]],
                BufferRef::Scratch(i) => first + i,
                _ => usize::MAX,
            };
            for dispatch in step.dispatches.iter() {
                // A uniform binding is read.
                let of = |access: Access| -> Vec<usize> {
                    let writes = access == Access::ReadWrite;
                    let bound = dispatch.bindings.iter();
                    let bound = bound.filter(|b| (b.access == Access::ReadWrite) == writes);
                    bound
                        .filter(|b| !matches!(b.access, Access::Texels(_)))
                        .map(|b| item(b.buffer))
                        .filter(|i| *i != usize::MAX)
                        .collect()
                };
                let (read, written) = (of(Access::Read), of(Access::ReadWrite));
                for &a in &read {
                    for &b in &written {
                        debug_assert_ne!(a, b, "{} reads and writes one buffer", step.op.name());
                        if !items[a].apart.contains(&b) {
                            items[a].apart.push(b);
                            items[b].apart.push(a);
                        }
                    }
                }
            }
        }
        let Packing { places, buffers } = pack(&items, least, self.caps.max_buffer);
        let value = |i: usize| places.get(of_value[lives.root[i]]).copied();
        Layout {
            values: (0..self.values.len()).map(value).collect(),
            scratch: self
                .steps
                .iter()
                .zip(&of_scratch)
                .map(|(step, first)| places[*first..first + step.scratch.len()].to_vec())
                .collect(),
            slots: buffers,
        }
    }
}

/// Slot and first byte of everything in slots.
pub(super) struct Layout {
    pub values: Vec<Option<(usize, u64)>>,
    pub scratch: Vec<Vec<(usize, u64)>>,
    pub slots: Vec<u64>,
}

/// The name of the layer that a node belongs to, as its parameters have it: `conv0 `.
fn layer(graph: &Graph, node: usize) -> String {
    let inputs = graph.nodes()[node].inputs.iter().map(|v| &graph.values()[v.0]);
    let mut parameters = inputs.filter(|info| matches!(info.source, Source::Parameter(_)));
    let name = |name: &str| format!("{} ", name.rsplit_once('.').map_or(name, |(layer, _)| layer));
    parameters.next().map_or(String::new(), |info| name(&info.name))
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
