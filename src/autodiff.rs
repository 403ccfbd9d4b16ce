//! Reverse-mode differentiation: one sweep over the nodes that adds gradient nodes to the same graph.

use crate::graph::{Graph, GraphError, Source, Value};
use crate::op::add::Add;
use crate::op::fill::Fill;
use crate::op::{Gradient, NodeView};

impl Graph {
    /// Adds the nodes that compute d`loss`/d`v` for every `v` in `wrt`; `loss` has one element. An entry is `None`
    /// where `loss` does not depend on the value.
    pub fn gradients(&mut self, loss: Value, wrt: &[Value]) -> Result<Vec<Option<Value>>, GraphError> {
        let shape = self.shape(loss).to_vec();
        let one = self.push1(Fill::new(&shape, 1.0), &[])?;
        self.gradients_from(&[(loss, one)], wrt)
    }

    /// [`Graph::gradients`] of Σ `upstream` · `output` over pairs of values of the same shape and layout.
    pub fn gradients_from(
        &mut self,
        outputs: &[(Value, Value)],
        wrt: &[Value],
    ) -> Result<Vec<Option<Value>>, GraphError> {
        let count = self.values().len();
        let nodes = self.nodes().len();
        let mut wanted = vec![false; count];
        for v in wrt {
            wanted[v.0] = true;
        }
        for node in self.nodes() {
            if node.inputs.iter().any(|v| wanted[v.0]) {
                node.outputs.iter().for_each(|v| wanted[v.0] = true);
            }
        }

        let mut gradient: Vec<Option<Value>> = vec![None; count];
        for (output, upstream) in outputs {
            gradient[output.0] = Some(*upstream);
        }
        for i in (0..nodes).rev() {
            let node = self.nodes()[i].clone();
            let upstream: Vec<_> = node.outputs.iter().map(|v| gradient[v.0]).collect();
            let wants: Vec<_> = node.inputs.iter().map(|v| wanted[v.0]).collect();
            if upstream.iter().all(Option::is_none) || !wants.contains(&true) {
                continue;
            }
            let view = NodeView {
                inputs: node.inputs.clone(),
                outputs: node.outputs.clone(),
            };
            let flows = node.op.gradient(self, &view, &upstream, &wants)?;
            assert_eq!(flows.len(), node.inputs.len(), "gradient of {}", node.op.name());
            for ((&input, flow), want) in node.inputs.iter().zip(flows).zip(wants) {
                let Gradient::Flows(new) = flow else { continue };
                if !want {
                    continue;
                }
                assert_eq!(
                    self.shape(new),
                    self.shape(input),
                    "gradient of {}",
                    node.op.name()
                );
                gradient[input.0] = Some(match gradient[input.0] {
                    None => new,
                    Some(sum) => self.push1(Add, &[sum, new])?,
                });
            }
        }
        Ok(wrt.iter().map(|v| gradient[v.0]).collect())
    }

    /// Gradients of `loss` with respect to every parameter, placed for the optimiser. Parameters that `loss` does not
    /// depend on keep a zero gradient.
    pub fn parameter_gradient_nodes(&mut self, loss: Value) -> Result<(), GraphError> {
        let parameters: Vec<Value> = self.parameters().map(|(v, _)| v).collect();
        let gradients = self.gradients(loss, &parameters)?;
        for (parameter, gradient) in parameters.into_iter().zip(gradients) {
            let Some(gradient) = gradient else { continue };
            // A gradient is placed once, at its parameter: one that two parameters share is copied by adding zero.
            let placed = self.parameter_gradients().iter().any(|(_, g)| *g == gradient);
            let made = matches!(self.values()[gradient.0].source, Source::Node(..));
            let own = if placed || !made {
                let shape = self.shape(gradient).to_vec();
                let zero = self.push1(Fill::new(&shape, 0.0), &[])?;
                self.push1(Add, &[gradient, zero])?
            } else {
                gradient
            };
            self.place_gradient(parameter, own);
        }
        Ok(())
    }
}
