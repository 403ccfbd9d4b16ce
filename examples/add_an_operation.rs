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

/// y = x², any layout.
#[derive(Debug)]
pub struct Square;

/// dx = 2·x·dy; inputs x and dy. It defines no gradient of its own: nothing here is differentiated twice.
#[derive(Debug)]
struct SquareGradient;

impl Op for Square {
    fn name(&self) -> &'static str {
        "square"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let [x] = inputs else {
            return Err(GraphError::shape(self.name(), inputs, "takes one value"));
        };
        Ok(vec![x.clone()])
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        Ok(launches(io, caps, 0))
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        node: &NodeView,
        upstream: &[Option<Value>],
        _: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let upstream = upstream[0].expect("the one output has a gradient");
        let dx = graph.push1(SquareGradient, &[node.inputs[0], upstream])?;
        Ok(vec![Gradient::Flows(dx)])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let x = inputs[0];
        vec![Tensor::from_fn(&x.shape, |i| x.data[i] * x.data[i])]
    }
}

impl Op for SquareGradient {
    fn name(&self) -> &'static str {
        "square_gradient"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        match inputs {
            [x, dy] if x == dy => Ok(vec![x.clone()]),
            _ => Err(GraphError::shape(
                self.name(),
                inputs,
                "takes two values of one shape",
            )),
        }
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        Ok(launches(io, caps, 1))
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let [x, dy] = inputs else {
            unreachable!("two inputs")
        };
        vec![Tensor::from_fn(&x.shape, |i| 2.0 * x.data[i] * dy.data[i])]
    }
}

/// One kernel does both; where it has no dy, it binds x twice.
fn launches(io: &Io, caps: &Caps, gradient: u32) -> Vec<Dispatch> {
    use BufferRef::*;
    let second = Input(io.inputs.len() - 1);
    let launch = |(from, to): (u64, u64)| {
        let count = (to - from) as usize / 16;
        Dispatch::new(SHADER, "main")
            .with_constants(vec![("GRADIENT", gradient)])
            .with_params(SquareParams { count: int(count) })
            .with_bindings(vec![
                read(Input(0)).range(from, to),
                read(second).range(from, to),
                write(Output(0)).range(from, to),
            ])
            .with_workgroups(linear_groups(count, 64))
    };
    // A value beyond the adapter's binding limit is cut into ranges that fit.
    ranges(io.outputs[0].bytes(), caps).map(launch).collect()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut graph = Graph::new();
    let x = graph.input("x", Spec::flat(&[5]))?;
    let y = graph.push1(Square, &[x])?;
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
