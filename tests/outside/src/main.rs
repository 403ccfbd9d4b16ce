//! Uses obelisk as a dependent does: an operation with a shader of its own beside the crate's shared pieces, and a
//! prediction with shipped weights. `outside WEIGHTS SCAN` fails where a result is wrong.
#![forbid(unsafe_code)]

use std::error::Error;
use std::path::Path;

use obelisk::gpu::{Device, DeviceOptions, Executable, Weights};
use obelisk::model;
use obelisk::op::{
    BufferRef, Caps, Dispatch, Graph, GraphError, Io, Op, Shader, Spec, StepScalars, Tensor, int,
    linear_groups, read, write,
};
use obelisk::plan::Plan;
use obelisk::predict::Predictor;
use obelisk::volume::{self, Volume};
use obelisk::weights::Model;

obelisk::params! {
    struct Square {
        count: u32,
        row: u32,
    }
}

const SQUARE: Shader = obelisk::shader!("square.wgsl", "common/divide"; Square);

/// y = x² of a flat tensor `[rows, columns]`.
#[derive(Debug)]
struct Squares;

impl Op for Squares {
    fn name(&self) -> &'static str {
        "squares"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        match inputs {
            [x] if x.shape.len() == 2 => Ok(vec![x.clone()]),
            _ => Err(GraphError::shape(self.name(), inputs, "takes one matrix")),
        }
    }

    fn dispatches(&self, io: &mut Io, _: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        let [rows, columns] = io.inputs[0].shape[..] else {
            unreachable!("checked on insertion")
        };
        let params = Square {
            count: int(rows * columns),
            row: int(columns),
        };
        let mut dispatch = Dispatch::new(SQUARE, "main")
            .with_params(params)
            .with_bindings(vec![read(BufferRef::Input(0)), write(BufferRef::Output(0))])
            .with_workgroups(linear_groups(rows, 64));
        dispatch.iterations = columns as u64;
        Ok(vec![dispatch])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let x = inputs[0];
        vec![Tensor::from_fn(&x.shape, |i| x.data[i] * x.data[i])]
    }
}

async fn own_operation(device: &Device) -> Result<(), Box<dyn Error>> {
    let mut graph = Graph::new();
    let x = graph.input("x", Spec::flat(&[70, 3]))?;
    let y = graph.push1(Squares, &[x])?;
    graph.keep("y", y);
    let data = Tensor::from_fn(&[70, 3], |i| i as f32 - 100.0);
    let plan = Plan::new(&graph, device.caps())?;
    let weights = Weights::new(device, &plan, false).await?;
    let executable = Executable::new(device, plan, &weights).await?;
    executable.upload(device, "x", &data)?;
    executable.submit(device, &StepScalars::default())?;
    let on_device = executable.read(device, "y").await?;
    let on_host = Squares.reference(&[&data], &StepScalars::default()).remove(0);
    if on_device != on_host {
        return Err(format!("{:?} instead of {:?}", on_device.data, on_host.data).into());
    }
    println!("70 x 3 numbers squared");
    Ok(())
}

async fn prediction(device: &Device, weights: &Path, scan: &Path) -> Result<(), Box<dyn Error>> {
    let model = Model::load(weights)?;
    let network = &model::find(&model.info.arch)?;
    let scan: Volume = volume::read(scan)?;
    let preprocessing = &model.info.preprocessing;
    let mut predictor = Predictor::with_weights(device, network, preprocessing, &model.tensors).await?;
    let labels = predictor.labels(device, &scan).await?;
    if labels.len() != scan.geometry.voxels() {
        return Err(format!("{} labels of {} voxels", labels.len(), scan.geometry.voxels()).into());
    }
    for label in &preprocessing.labels {
        let count = labels.iter().filter(|value| **value == label.value).count();
        println!("{}: {count} voxels", label.name);
        // A hippocampus has both parts, of hundreds of voxels each.
        if count < 100 {
            return Err(format!("{} has {count} voxels", label.name).into());
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [weights, scan] = arguments.as_slice() else {
        return Err("outside WEIGHTS SCAN".into());
    };
    pollster::block_on(async {
        let device = Device::open(&DeviceOptions::default()).await?;
        println!("{}", device.adapter().name);
        own_operation(&device).await?;
        prediction(&device, Path::new(weights), Path::new(scan)).await
    })
}
