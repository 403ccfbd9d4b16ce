//! The graph: values and the nodes that compute them. Pure data; shapes are checked on insertion.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

use crate::op::{Op, StepScalars};
use crate::tensor::{Elements, Spec, Tensor};

/// A value of a [`Graph`]; cheap to copy, meaningful only with its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(pub(crate) usize);

impl Value {
    /// Position in [`Graph::values`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Init {
    /// Every element this number.
    Constant(f32),
    /// N(0, σ²).
    Normal(f32),
    /// N(0, 2 / (fan_in + fan_out)): Xavier's rule; fan in Cin/groups·k³, fan out Cout·k³ (the published script).
    XavierNormal {
        /// Inputs of one output element.
        fan_in: usize,
        /// Outputs of one input element.
        fan_out: usize,
    },
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Source {
    /// Uploaded before each submission.
    Input,
    /// In a buffer that outlives the submissions and is chosen before each: a scan that many steps read.
    Resident,
    /// A trained tensor.
    Parameter(Init),
    /// Persists between submissions and is saved with the weights, but no gradient flows to it: running statistics,
    /// frozen offsets.
    State(Init),
    /// The optimiser's running moment of a parameter: zero at first, saved for resuming, not with the weights.
    Moment {
        /// 0 for the mean of the gradient, 1 for the mean of its square.
        order: usize,
        /// Whose gradient it follows.
        parameter: Value,
    },
    /// The moving average of a parameter or state: saved for resuming, and what is predicted with where a training keeps one.
    Average(Value),
    /// Output `.1` of node `.0`.
    Node(usize, usize),
}

/// A value's description.
#[derive(Clone, Debug)]
pub struct ValueInfo {
    /// Shape and layout.
    pub spec: Spec,
    /// Where it comes from.
    pub source: Source,
    /// Name of an input, parameter or state; for outputs of nodes, the operation's.
    pub name: String,
}

/// An operation with its inputs and outputs.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it computes.
    pub op: Arc<dyn Op>,
    /// What it reads.
    pub inputs: Vec<Value>,
    /// What it makes.
    pub outputs: Vec<Value>,
}

/// An operation that its inputs don't fit, or a graph that can't be planned on an adapter.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// The inputs don't fit the operation.
    #[error("{op}: {reason} (inputs: {inputs:?})")]
    Shape {
        /// The operation.
        op: &'static str,
        /// What it was given.
        inputs: Vec<Spec>,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// The adapter's limits are too small for the operation.
    #[error("{op}: {reason}")]
    Limit {
        /// The operation.
        op: &'static str,
        /// Which limit, what was needed, what to do.
        reason: String,
    },
    /// A value of more elements than kernels can count.
    #[error(
        "{name}: {spec:?} has more than the {} elements that a tensor can have here",
        Elements::MOST
    )]
    Size {
        /// The value's name, or the operation's that makes it.
        name: String,
        /// Its shape.
        spec: Spec,
    },
    /// A parameter or input declared twice, or not declared.
    #[error("{0}")]
    Name(String),
}

/// Whether one node alone reads a value.
pub(crate) type Sole<'a> = &'a dyn Fn(Value) -> bool;

impl GraphError {
    /// A shape error of `op`.
    pub fn shape(op: &'static str, inputs: &[Spec], reason: impl Into<String>) -> Self {
        GraphError::Shape {
            op,
            inputs: inputs.to_vec(),
            reason: reason.into(),
        }
    }
}

/// Values and nodes in the order of their insertion, which is the order of their execution.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    values: Vec<ValueInfo>,
    nodes: Vec<Node>,
    names: HashMap<String, Value>,
    kept: Vec<(String, Value)>,
    parameter_gradients: Vec<(Value, Value)>,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// A value uploaded before each submission.
    pub fn input(&mut self, name: &str, spec: Spec) -> Result<Value, GraphError> {
        self.declare(name, spec, Source::Input)
    }

    /// A value in a device buffer of its own that is chosen before a submission, not copied: see
    /// [`crate::gpu::Executable::bind`].
    pub fn resident(&mut self, name: &str, spec: Spec) -> Result<Value, GraphError> {
        self.declare(name, spec, Source::Resident)
    }

    /// A trained tensor (flat). Its name is its name in weight files.
    pub fn parameter(&mut self, name: &str, shape: &[usize], init: Init) -> Result<Value, GraphError> {
        self.declare(name, Spec::flat(shape), Source::Parameter(init))
    }

    /// A persistent tensor (flat) that is saved with the weights but not trained by gradient.
    pub fn state(&mut self, name: &str, shape: &[usize], init: Init) -> Result<Value, GraphError> {
        self.declare(name, Spec::flat(shape), Source::State(init))
    }

    /// The optimiser's running moment of a parameter.
    pub fn moment(&mut self, order: usize, parameter: Value) -> Result<Value, GraphError> {
        let ValueInfo { spec, name, .. } = self.values[parameter.0].clone();
        self.declare(
            &format!("adam.{order}.{name}"),
            spec,
            Source::Moment { order, parameter },
        )
    }

    /// The moving average of a parameter or state.
    pub fn average(&mut self, of: Value) -> Result<Value, GraphError> {
        let ValueInfo { spec, name, .. } = self.values[of.0].clone();
        self.declare(&format!("ema.{name}"), spec, Source::Average(of))
    }

    fn declare(&mut self, name: &str, spec: Spec, source: Source) -> Result<Value, GraphError> {
        if self.names.contains_key(name) {
            return Err(GraphError::Name(format!(
                "`{name}` is declared twice in the graph"
            )));
        }
        let value = self.add_value(spec, source, name)?;
        self.names.insert(name.to_owned(), value);
        Ok(value)
    }

    fn add_value(&mut self, spec: Spec, source: Source, name: &str) -> Result<Value, GraphError> {
        if spec.elements().is_none() {
            return Err(GraphError::Size {
                name: name.to_owned(),
                spec,
            });
        }
        let name = name.to_owned();
        self.values.push(ValueInfo { spec, source, name });
        Ok(Value(self.values.len() - 1))
    }

    /// Adds a node; its outputs' shapes are inferred, and errors name the operation and the shapes.
    pub fn push(&mut self, op: impl Op + 'static, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        let specs: Vec<Spec> = inputs.iter().map(|v| self.spec(*v).clone()).collect();
        let outputs = op.outputs(&specs)?;
        for &i in &op.writes(inputs.len()) {
            if matches!(
                self.values[inputs[i].0].source,
                Source::Input | Source::Resident | Source::Node(..)
            ) {
                let reason = format!("input {i} is changed in place, so it must be a parameter or a state");
                return Err(GraphError::shape(op.name(), &specs, reason));
            }
        }
        let node = self.nodes.len();
        let name = op.name();
        let outputs: Vec<Value> = outputs
            .into_iter()
            .enumerate()
            .map(|(i, spec)| self.add_value(spec, Source::Node(node, i), name))
            .collect::<Result<_, _>>()?;
        self.nodes.push(Node {
            op: Arc::new(op),
            inputs: inputs.to_vec(),
            outputs: outputs.clone(),
        });
        Ok(outputs)
    }

    /// [`Graph::push`] for an operation with one output.
    pub fn push1(&mut self, op: impl Op + 'static, inputs: &[Value]) -> Result<Value, GraphError> {
        let outputs = self.push(op, inputs)?;
        assert_eq!(
            outputs.len(),
            1,
            "{} has one output",
            self.nodes.last().unwrap().op.name()
        );
        Ok(outputs[0])
    }

    /// Marks a value to be read back under a name; its memory is not reused.
    pub fn keep(&mut self, name: &str, value: Value) {
        self.kept.push((name.to_owned(), value));
    }

    /// Places `gradient` with the other parameters' gradients, where [`crate::op::BufferRef::Gradients`] finds it.
    pub fn place_gradient(&mut self, parameter: Value, gradient: Value) {
        self.parameter_gradients.push((parameter, gradient));
    }

    /// Values marked by [`Graph::keep`].
    pub fn kept(&self) -> &[(String, Value)] {
        &self.kept
    }

    /// The graph without what comes after the kept values: of a training step, gradients and the update.
    pub(crate) fn up_to_kept(&self) -> Graph {
        let mut graph = self.clone();
        let kept = graph.kept.iter().map(|(_, value)| value.0);
        let values = kept.max().map_or(graph.values.len(), |last| last + 1);
        graph.values.truncate(values);
        let is_before = |node: &Node| node.inputs.iter().chain(&node.outputs).all(|v| v.0 < values);
        graph.nodes.retain(is_before);
        graph.names.retain(|_, value| value.0 < values);
        graph.parameter_gradients.clear();
        graph
    }

    /// Pairs of a parameter and its gradient.
    pub fn parameter_gradients(&self) -> &[(Value, Value)] {
        &self.parameter_gradients
    }

    /// The operation that made a value, where it is an `O`, and its inputs.
    pub fn producer<O: Op>(&self, value: Value) -> Option<(&O, &[Value])> {
        let Source::Node(node, _) = self.values[value.0].source else {
            return None;
        };
        let node = &self.nodes[node];
        let op: &dyn Any = &*node.op;
        Some((op.downcast_ref()?, &node.inputs))
    }

    /// The graph with nodes replaced: `rewrite` may add nodes that do the work of this operation on these inputs, and of nodes
    /// before it, and returns what stands for the outputs. Nodes that nothing reads any more stay.
    pub(crate) fn rewritten(
        &self,
        rewrite: impl Fn(&mut Graph, &dyn Op, &[Value], Sole) -> Result<Option<Vec<Value>>, GraphError>,
    ) -> Result<Graph, GraphError> {
        let mut readers = vec![0; self.values.len()];
        let read = self.nodes.iter().flat_map(|node| &node.inputs);
        read.for_each(|v| readers[v.0] += 1);
        let named = self.kept.iter().map(|(_, v)| v);
        let placed = self.parameter_gradients.iter().map(|(_, v)| v);
        named.chain(placed).for_each(|v| readers[v.0] += 2);

        let mut graph = Graph {
            nodes: Vec::new(),
            ..self.clone()
        };
        let mut now: Vec<Value> = (0..self.values.len()).map(Value).collect();
        for node in &self.nodes {
            let inputs: Vec<Value> = node.inputs.iter().map(|v| now[v.0]).collect();
            let sole = |v: Value| readers.get(v.0) == Some(&1);
            match rewrite(&mut graph, &*node.op, &inputs, &sole)? {
                None => {
                    for (i, output) in node.outputs.iter().enumerate() {
                        graph.values[output.0].source = Source::Node(graph.nodes.len(), i);
                    }
                    graph.nodes.push(Node {
                        inputs,
                        ..node.clone()
                    });
                }
                Some(outputs) => {
                    readers.resize(graph.values.len(), 0);
                    for (old, new) in node.outputs.iter().zip(outputs) {
                        readers[new.0] = readers[old.0];
                        now[old.0] = new;
                    }
                }
            }
        }
        graph.kept.iter_mut().for_each(|(_, v)| *v = now[v.0]);
        let placed = graph.parameter_gradients.iter_mut();
        placed.for_each(|(_, gradient)| *gradient = now[gradient.0]);
        Ok(graph)
    }

    /// Shape and layout of a value.
    pub fn spec(&self, value: Value) -> &Spec {
        &self.values[value.0].spec
    }

    /// Logical shape of a value.
    pub fn shape(&self, value: Value) -> &[usize] {
        &self.values[value.0].spec.shape
    }

    /// All values.
    pub fn values(&self) -> &[ValueInfo] {
        &self.values
    }

    /// All nodes in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The input, parameter or state of that name.
    pub fn find(&self, name: &str) -> Option<Value> {
        self.names.get(name).copied()
    }

    /// The trained values in order of declaration.
    pub fn parameters(&self) -> impl Iterator<Item = (Value, &ValueInfo)> {
        self.of_source(|s| matches!(s, Source::Parameter(_)))
    }

    /// The persistent untrained values in order of declaration.
    pub fn states(&self) -> impl Iterator<Item = (Value, &ValueInfo)> {
        self.of_source(|s| matches!(s, Source::State(_)))
    }

    fn of_source(&self, keep: impl Fn(&Source) -> bool) -> impl Iterator<Item = (Value, &ValueInfo)> {
        self.values
            .iter()
            .enumerate()
            .filter(move |(_, v)| keep(&v.source))
            .map(|(i, v)| (Value(i), v))
    }

    /// Number of trained numbers.
    pub fn parameter_count(&self) -> usize {
        self.parameters().map(|(_, v)| v.spec.count()).sum()
    }

    /// Runs every node's reference on the host. `values` holds the inputs, parameters and states by index and is
    /// filled with every node's outputs; parameters and states change in place as the operations say.
    pub fn evaluate(&self, values: &mut Vec<Option<Tensor>>, step: &StepScalars) {
        values.resize(self.values.len(), None);
        for node in &self.nodes {
            let inputs: Vec<&Tensor> = node
                .inputs
                .iter()
                .map(|v| {
                    values[v.0]
                        .as_ref()
                        .unwrap_or_else(|| panic!("no data for `{}`", self.values[v.0].name))
                })
                .collect();
            let mut results = node.op.reference(&inputs, step).into_iter();
            for (&output, result) in node.outputs.iter().zip(results.by_ref()) {
                assert_eq!(
                    result.shape,
                    self.shape(output),
                    "reference of {}",
                    node.op.name()
                );
                values[output.0] = Some(result);
            }
            for (i, result) in node.op.writes(node.inputs.len()).into_iter().zip(results) {
                values[node.inputs[i].0] = Some(result);
            }
        }
    }
}
