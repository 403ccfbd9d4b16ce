//! Adds an operation, y = x², from outside the crate: shapes, kernel, gradient, reference. Then differentiates
//! Σ y with it, on the device and on the host, and prints both.
//!
//! `cargo run --release --example add_an_operation`

use obelisk::gpu::{Device, DeviceOptions, Executable, Weights};
use obelisk::op::*;
use obelisk::plan::Plan;

params! {
    /// The uniform of `square.wgsl`.
    struct SquareParams {
        /// Vec4s of the range.
        count: u32,
    }
}

const SHADER: Shader = obelisk::shader!("square.wgsl"; SquareParams);

/// y = x², any layout. With `gradient`, inputs x and dy, output 2·x·dy.
#[derive(Debug)]
pub struct Square {
    /// Whether this is the gradient.
    pub gradient: bool,
}

impl Op for Square {
    fn name(&self) -> &'static str {
        if self.gradient {
            "square_gradient"
        } else {
            "square"
        }
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let wanted = if self.gradient { 2 } else { 1 };
        if inputs.len() != wanted || inputs.iter().any(|s| s != &inputs[0]) {
            return Err(GraphError::shape(
                self.name(),
                inputs,
                format!("takes {wanted} values of one shape"),
            ));
        }
        Ok(vec![inputs[0].clone()])
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        let second = Input(io.inputs.len() - 1);
        let launch = |(from, to): (u64, u64)| {
            let count = (to - from) as usize / 16;
            Dispatch::new(SHADER, "main")
                .with_constants(vec![("GRADIENT", self.gradient as u32)])
                .with_params(SquareParams { count: int(count) })
                .with_bindings(vec![
                    read(Input(0)).range(from, to),
                    read(second).range(from, to),
                    write(Output(0)).range(from, to),
                ])
                .with_workgroups(linear_groups(count, 64))
        };
        // A value beyond the adapter's binding limit is cut into ranges that fit.
        Ok(ranges(io.outputs[0].bytes(), caps).map(launch).collect())
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        node: &NodeView,
        upstream: &[Option<Value>],
        wanted: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        if self.gradient {
            // Nothing here differentiates twice.
            return Ok(vec![Gradient::Stops; wanted.len()]);
        }
        let upstream = upstream[0].expect("the one output has a gradient");
        let dx = graph.push1(Square { gradient: true }, &[node.inputs[0], upstream])?;
        Ok(vec![Gradient::Flows(dx)])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let x = inputs[0];
        vec![Tensor::from_fn(&x.shape, |i| match self.gradient {
            false => x.data[i] * x.data[i],
            true => 2.0 * x.data[i] * inputs[1].data[i],
        })]
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut graph = Graph::new();
    let x = graph.input("x", Spec::flat(&[5]))?;
    let y = graph.push1(Square { gradient: false }, &[x])?;
    let ones = graph.push1(fill::Fill::new(&[5], 1.0), &[])?;
    let dx = graph.gradients_from(&[(y, ones)], &[x])?[0].expect("y depends on x");
    graph.keep("y", y);
    graph.keep("dx", dx);

    let data = Tensor::new(&[5], vec![-2.0, -0.5, 0.0, 1.0, 3.0]);
    let mut values = vec![Some(data.clone())];
    graph.evaluate(&mut values, &StepScalars::default());

    pollster::block_on(async {
        let device = Device::open(&DeviceOptions::default()).await?;
        let plan = Plan::new(&graph, device.caps())?;
        println!("{plan}");
        let weights = Weights::new(&device, &plan, false).await?;
        let executable = Executable::new(&device, plan, &weights).await?;
        executable.upload(&device, "x", &data)?;
        executable.submit(&device, &StepScalars::default())?;
        for (name, value) in [("y", y), ("dx", dx)] {
            let on_device = executable.read(&device, name).await?;
            let on_host = values[value.index()].as_ref().expect("evaluated");
            println!("{name}: device {:?}, host {:?}", on_device.data, on_host.data);
            assert_eq!(&on_device, on_host);
        }
        Ok(())
    })
}
