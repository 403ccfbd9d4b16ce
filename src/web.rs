//! The interface for JavaScript: open the browser's GPU, read weights and a scan, segment, get labels and volumes. Also
//! looks at single slices, and trains.
//!
//! It runs in a page or a worker. Everything heavy waits for the device in parts, so that messages and drawing go on;
//! reading a scan and bringing labels back to its grid run on the calling thread, which is why the app uses a worker.
//! Every error is a JavaScript `Error` with a message for the user; its `name` is `ScanError`, `WeightsError`,
//! `DeviceError`, `TooLargeError` or `AbortError`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use js_sys::Function;
use wasm_bindgen::prelude::*;
use web_sys::AbortSignal;

use crate::error_kind::{ErrorKind, Kinded};
use crate::gpu::{Device, DeviceOptions};
use crate::host_memory;
use crate::model;
use crate::nnunet::{self, Choice};
use crate::plan::Plan;
use crate::predict::points::PointPredictor;
use crate::predict::{self, PredictError, Predictor};
use crate::preprocess::tiles;
use crate::train::{Event, Settings, TrainingCase, TrainingData, train_in_memory};
use crate::volume::{self, Geometry, SAME_PLACE, Volume, VolumeError, resample};
use crate::weights;

#[wasm_bindgen(start)]
fn start() {
    std::panic::set_hook(Box::new(|info| wasm_bindgen::throw_str(&info.to_string())));
}

fn error(name: &str, message: impl std::fmt::Display) -> JsValue {
    let error = js_sys::Error::new(&message.to_string());
    error.set_name(name);
    error.into()
}

/// The JavaScript error of one of the program's.
fn raised(e: impl Kinded) -> JsValue {
    match e.kind() {
        ErrorKind::Scan => error("ScanError", e),
        ErrorKind::Weights => error("WeightsError", e),
        ErrorKind::Device => error("DeviceError", e),
        ErrorKind::TooLarge => error("TooLargeError", e),
        ErrorKind::Stopped => error("AbortError", "Stopped."),
    }
}

fn go_on(signal: &Option<AbortSignal>) -> ControlFlow<()> {
    match signal.as_ref().is_some_and(AbortSignal::aborted) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}

/// The browser's GPU.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Gpu {
    device: Rc<Device>,
}

#[wasm_bindgen]
impl Gpu {
    /// Opens the fastest adapter that the browser offers.
    ///
    /// # Errors
    /// `DeviceError`: no WebGPU, no adapter, or an adapter that gives no device.
    pub async fn open() -> Result<Gpu, JsValue> {
        let device = Device::open(&DeviceOptions::default()).await.map_err(raised)?;
        Ok(Gpu {
            device: Rc::new(device),
        })
    }

    /// Maker and architecture, as far as the browser gives them.
    #[wasm_bindgen(getter)]
    pub fn name(&self) -> String {
        self.device.adapter().name.clone()
    }

    /// Whether the adapter runs on the CPU.
    #[wasm_bindgen(getter)]
    pub fn software(&self) -> bool {
        self.device.caps().target.is_cpu()
    }

    /// Largest buffer in MiB.
    #[wasm_bindgen(getter, js_name = maxBufferMib)]
    pub fn max_buffer_mib(&self) -> f64 {
        self.device.adapter().max_buffer_mib as f64
    }

    /// The most memory that buffers took on this device at once, in MiB.
    #[wasm_bindgen(getter, js_name = peakMib)]
    pub fn peak_mib(&self) -> f64 {
        mib(self.device.memory().peak)
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

/// A label of a network: the number in label files and its name.
#[wasm_bindgen(getter_with_clone)]
#[derive(Clone, Debug)]
pub struct Label {
    /// The number in label files.
    pub value: i32,
    /// What it is called.
    pub name: String,
}

/// A network with its weights.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Model {
    model: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Trained or imported by this program.
    Own(weights::Model),
    /// nnU-Net's.
    Nnunet(Arc<nnunet::Model>),
}

impl Model {
    fn own(model: weights::Model) -> Result<Model, JsValue> {
        model::find(&model.info.arch).map_err(|e| error("WeightsError", e))?;
        Ok(Model {
            model: Kind::Own(model),
        })
    }

    fn nnunet(model: nnunet::Model) -> Model {
        Model {
            model: Kind::Nnunet(Arc::new(model)),
        }
    }

    /// Networks that train and look at slices are this program's.
    fn info(&self) -> Result<&weights::Model, JsValue> {
        match &self.model {
            Kind::Own(model) => Ok(model),
            Kind::Nnunet(_) => Err(error("WeightsError", "nnU-Net's models segment whole scans only")),
        }
    }
}

#[wasm_bindgen]
impl Model {
    /// Reads the bytes of a `.safetensors` file that this program trained or imported, of a published network's checkpoint,
    /// or of a model of nnU-Net's, archive or checkpoint; `name` is for messages. Nothing in it is executed.
    ///
    /// # Errors
    /// `WeightsError`: other bytes, or a network that this version does not know.
    pub fn parse(bytes: &[u8], name: &str) -> Result<Model, JsValue> {
        let path = Path::new(name);
        if nnunet::is_model_bytes(bytes) {
            let model = nnunet::Model::from_bytes(bytes, path, &Choice::default());
            return Ok(Model::nnunet(model.map_err(raised)?));
        }
        Model::own(weights::Model::from_bytes(bytes, path).map_err(raised)?)
    }

    /// Reads the files of a folder: a network of brainchop's (`model.json` beside its weights) or a results folder of
    /// nnU-Net's. `paths` are those of `files` in the folder `name`.
    ///
    /// # Errors
    /// `WeightsError`: what is missing, damaged or not run here.
    #[wasm_bindgen(js_name = fromFiles)]
    pub fn from_files(
        paths: Vec<String>,
        files: Vec<js_sys::Uint8Array>,
        name: &str,
    ) -> Result<Model, JsValue> {
        let files: BTreeMap<String, Vec<u8>> = paths
            .into_iter()
            .zip(files.iter().map(js_sys::Uint8Array::to_vec))
            .collect();
        if files.contains_key("model.json") {
            let model = weights::Model::from_brainchop(&files, name, None);
            return Model::own(model.map_err(raised)?);
        }
        let model = nnunet::Model::from_files(&files, Path::new(name), &Choice::default());
        Ok(Model::nnunet(model.map_err(raised)?))
    }

    /// The network's name.
    #[wasm_bindgen(getter)]
    pub fn arch(&self) -> String {
        match &self.model {
            Kind::Own(model) => model.info.arch.clone(),
            Kind::Nnunet(model) => {
                let (dataset, configuration) = (&model.plan.dataset, &model.plan.configuration);
                format!(
                    "nnU-Net, {dataset}, {configuration}, folds {}",
                    model.names.join(", ")
                )
            }
        }
    }

    /// Passes through the network a tile, where it is mirrored as the model allows; 1 where it can't be.
    #[wasm_bindgen(getter)]
    pub fn mirrorings(&self) -> usize {
        match &self.model {
            Kind::Own(_) => 1,
            Kind::Nnunet(model) => model.plan.mirrored_axes().len(),
        }
    }

    /// The labels in order; the first is the background.
    #[wasm_bindgen(getter)]
    pub fn labels(&self) -> Vec<Label> {
        let label = |l: &crate::dataset::Label| Label {
            value: l.value,
            name: l.name.clone(),
        };
        match &self.model {
            Kind::Own(model) => model.info.preprocessing.labels.iter().map(label).collect(),
            Kind::Nnunet(model) => model.labels().iter().map(label).collect(),
        }
    }

    /// The scan's channels that it takes, in order.
    #[wasm_bindgen(getter)]
    pub fn channels(&self) -> Vec<String> {
        match &self.model {
            Kind::Own(model) => {
                let channels = &model.info.preprocessing.channels;
                channels.iter().map(|c| c.name.clone()).collect()
            }
            Kind::Nnunet(model) => model.plan.channels.iter().map(|c| c.name.clone()).collect(),
        }
    }

    /// What a scan will need on this device, before anything is compiled or allocated; `mirroring` as in [`Segmenter::create`].
    ///
    /// # Errors
    /// `ScanError`: a scan that the network can't take. `TooLargeError`: more than the adapter holds.
    pub fn estimate(&self, gpu: &Gpu, scan: &Scan, mirroring: bool) -> Result<Estimate, JsValue> {
        match &self.model {
            Kind::Own(model) => estimate_own(model, gpu, scan),
            Kind::Nnunet(model) => estimate_nnunet(model, gpu, scan, mirroring),
        }
    }

    /// Whether it can look at single slices ([`Live`]).
    #[wasm_bindgen(getter)]
    pub fn live(&self) -> bool {
        match &self.model {
            Kind::Own(model) => model::find(&model.info.arch).is_ok_and(|network| network.points.is_some()),
            Kind::Nnunet(_) => false,
        }
    }

    /// The bytes of its `.safetensors` file, for [`Model::parse`] and for the command line.
    ///
    /// # Errors
    /// None for networks that this interface made.
    #[wasm_bindgen(js_name = toBytes)]
    pub fn to_bytes(&self) -> Result<Vec<u8>, JsValue> {
        let name = Path::new("weights");
        match &self.model {
            Kind::Own(model) => model.to_bytes(name),
            Kind::Nnunet(model) => model.to_bytes(name),
        }
        .map_err(raised)
    }

    /// Numbers in its tensors, of one fold.
    #[wasm_bindgen(getter)]
    pub fn parameters(&self) -> f64 {
        let tensors = match &self.model {
            Kind::Own(model) => &model.tensors,
            Kind::Nnunet(model) => &model.folds[0],
        };
        tensors.values().map(|t| t.data.len() as f64).sum()
    }
}

fn estimate_own(model: &weights::Model, gpu: &Gpu, scan: &Scan) -> Result<Estimate, JsValue> {
    let preprocessing = &model.info.preprocessing;
    let scan = &scan.volume;
    let placement = preprocessing
        .check_channels(scan)
        .and_then(|()| preprocessing.place(&scan.geometry, &scan.source))
        .map_err(raised)?;
    let keep = predict::kept(preprocessing, &placement);
    let host = placement
        .bytes(scan.channels)
        .max(predict::host_bytes(preprocessing, &placement, keep));
    host_memory::require(host).map_err(|e| raised(PredictError::from(e)))?;
    let shape = placement.shape();
    let grid = preprocessing.grid.unwrap_or(shape);
    let network = &model::find(&model.info.arch).map_err(raised)?;
    let planned = predict::plan_in_slabs(&gpu.device, network, preprocessing, grid, keep);
    let (plan, slabs) = planned.map_err(raised)?;
    let tiles = tiles(shape, grid).len() * slabs.each.len();
    Ok(Estimate::of(&plan, tiles, tiles))
}

fn estimate_nnunet(
    model: &nnunet::Model,
    gpu: &Gpu,
    scan: &Scan,
    mirroring: bool,
) -> Result<Estimate, JsValue> {
    let (found, taken) = (scan.volume.channels, model.plan.channels.len());
    if found != taken {
        let message = format!("the scan has {found} channels, the model takes {taken}");
        return Err(error("ScanError", message));
    }
    let tiles = nnunet::tile_count(&model.plan, &scan.volume.geometry).map_err(raised)?;
    let graph = nnunet::graph(&model.plan).map_err(raised)?;
    let plan = Plan::new(&graph, gpu.device.caps()).map_err(raised)?;
    let mirrorings = if mirroring {
        model.plan.mirrored_axes().len()
    } else {
        1
    };
    let passes = tiles * mirrorings * model.folds.len();
    Ok(Estimate::of(&plan, tiles, passes))
}

impl Estimate {
    fn of(plan: &Plan, tiles: usize, passes: usize) -> Estimate {
        let read_back: u64 = plan.kept.iter().map(|(_, _, spec)| spec.bytes()).sum();
        Estimate {
            tiles,
            memory_mib: mib(plan.slot_bytes() + plan.parameters.bytes + plan.states.bytes + read_back),
            gflop: plan.flops() as f64 * passes as f64 / 1e9,
        }
    }
}

/// A scan.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Scan {
    volume: Volume,
}

#[wasm_bindgen]
impl Scan {
    /// Reads the bytes of a `.nii` or `.nii.gz` file; `name` is for messages.
    ///
    /// # Errors
    /// `ScanError`: what is wrong with the file and what to do.
    pub fn parse(bytes: &[u8], name: &str) -> Result<Scan, JsValue> {
        let volume = volume::read_bytes(bytes, Path::new(name)).map_err(raised)?;
        Ok(Scan { volume })
    }

    /// Voxels along the file's three axes.
    #[wasm_bindgen(getter)]
    pub fn shape(&self) -> Vec<u32> {
        self.volume.geometry.shape.map(|n| n as u32).to_vec()
    }

    /// Millimetres from voxel to voxel along each axis; 0 where the file declares none.
    #[wasm_bindgen(getter)]
    pub fn spacing(&self) -> Vec<f64> {
        self.volume.geometry.spacing.to_vec()
    }

    /// Which way each axis points, such as `RAS`.
    #[wasm_bindgen(getter)]
    pub fn orientation(&self) -> String {
        self.volume.geometry.orientation.to_string()
    }

    /// Its channels: the length of the file's fourth axis.
    #[wasm_bindgen(getter)]
    pub fn channels(&self) -> usize {
        self.volume.channels
    }

    /// Voxels that were not finite and have been replaced.
    #[wasm_bindgen(getter, js_name = nonFinite)]
    pub fn non_finite(&self) -> f64 {
        self.volume.non_finite as f64
    }
}

/// What a scan will need.
#[wasm_bindgen]
#[derive(Clone, Copy, Debug)]
pub struct Estimate {
    /// Pieces of the network's grid that cover the scan.
    pub tiles: usize,
    /// Device memory in MiB: the plan's buffers, the weights, and reading the result back.
    #[wasm_bindgen(js_name = memoryMib)]
    pub memory_mib: f64,
    /// Floating-point operations in all, in 10⁹.
    pub gflop: f64,
}

/// A label's volume in a scan.
#[wasm_bindgen(getter_with_clone)]
#[derive(Clone, Debug)]
pub struct LabelVolume {
    /// The number in label files.
    pub value: i32,
    /// What it is called.
    pub name: String,
    /// Voxels of the scan that have it.
    pub voxels: f64,
    /// Their volume in millilitres; absent where the scan declares no voxel size.
    pub ml: Option<f64>,
}

/// Labels on the scan's own grid.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Segmentation {
    labels: Vec<i32>,
    names: Vec<crate::dataset::Label>,
    geometry: Geometry,
}

#[wasm_bindgen]
impl Segmentation {
    /// The label map as a NIfTI file in the scan's geometry, compressed (`.nii.gz`) or not.
    ///
    /// # Errors
    /// None for labels of this interface.
    pub fn nifti(&self, compress: bool) -> Result<Vec<u8>, JsValue> {
        volume::encode_labels(&self.labels, &self.geometry, compress).map_err(|e| error("ScanError", e))
    }

    /// Voxels and millilitres of each label but the background, in the network's order.
    pub fn volumes(&self) -> Vec<LabelVolume> {
        let declared = !self.geometry.spacing.contains(&0.0);
        let voxel_ml = glam::DMat3::from_mat4(self.geometry.affine).determinant().abs() / 1000.0;
        let volume = |label: &crate::dataset::Label| {
            let voxels = self.labels.iter().filter(|v| **v == label.value).count() as f64;
            LabelVolume {
                value: label.value,
                name: label.name.clone(),
                voxels,
                ml: declared.then_some(voxels * voxel_ml),
            }
        };
        self.names.iter().skip(1).map(volume).collect()
    }
}

/// A network on a device, ready to segment.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Segmenter {
    device: Rc<Device>,
    network: Ready,
}

#[derive(Debug)]
enum Ready {
    Own(Box<Predictor>),
    Nnunet(Box<nnunet::Segmenter>, Vec<crate::dataset::Label>),
}

#[wasm_bindgen]
impl Segmenter {
    /// Plans the network, allocates its buffers and compiles its shaders (for networks without a grid of their own,
    /// when a scan comes). `mirroring` runs tiles of nnU-Net's models mirrored as well, as the model allows.
    ///
    /// # Errors
    /// `WeightsError`: tensors that are missing or of other shapes. `TooLargeError`: more than the adapter holds.
    /// `DeviceError`: a device that failed.
    pub async fn create(gpu: &Gpu, model: &Model, mirroring: bool) -> Result<Segmenter, JsValue> {
        let device = gpu.device.clone();
        let network = match &model.model {
            Kind::Own(model) => {
                let info = &model.info;
                let network = &model::find(&info.arch).map_err(raised)?;
                let predictor =
                    Predictor::with_weights(&device, network, &info.preprocessing, &model.tensors);
                Ready::Own(Box::new(predictor.await.map_err(raised)?))
            }
            Kind::Nnunet(model) => {
                let segmenter = nnunet::Segmenter::new(&device, model.clone(), mirroring).await;
                Ready::Nnunet(Box::new(segmenter.map_err(raised)?), model.labels())
            }
        };
        Ok(Segmenter { device, network })
    }

    /// Segments the scan. `progress` is called with the share done, 0 to 1; aborting `signal` stops the run at the
    /// next part.
    ///
    /// # Errors
    /// Those of [`Segmenter::create`] and [`Model::estimate`]; `AbortError` after `signal`.
    pub async fn segment(
        &mut self,
        scan: &Scan,
        progress: Option<Function>,
        signal: Option<AbortSignal>,
    ) -> Result<Segmentation, JsValue> {
        let mut watch = |share: f64| {
            if let Some(progress) = &progress {
                // What the callback throws is its own affair.
                let _ = progress.call1(&JsValue::NULL, &share.into());
            }
            go_on(&signal)
        };
        let (labels, names) = match &mut self.network {
            Ready::Own(predictor) => {
                let labels = predictor
                    .labels_watched(&self.device, &scan.volume, &mut watch)
                    .await;
                let names = predictor.preprocessing().labels.clone();
                (labels.map_err(raised)?, names)
            }
            Ready::Nnunet(segmenter, names) => {
                let scans = vec![scan.volume.clone()];
                let labels = segmenter.labels(&self.device, scans, &mut watch).await;
                (labels.map_err(raised)?, names.clone())
            }
        };
        Ok(Segmentation {
            labels,
            names,
            geometry: scan.volume.geometry.clone(),
        })
    }
}

/// Single slices of a scan, for networks that need not see a whole volume: the original OBELISK and its variants.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Live {
    device: Rc<Device>,
    predictor: PointPredictor,
    shape: [usize; 3],
}

#[wasm_bindgen]
impl Live {
    /// Uploads and smooths the scan; it stays on the device.
    ///
    /// # Errors
    /// `WeightsError`: a network that sees whole images only. Else those of [`Segmenter::segment`].
    pub async fn create(gpu: &Gpu, model: &Model, scan: &Scan) -> Result<Live, JsValue> {
        let weights::Model { info, tensors, .. } = model.info()?;
        let network = &model::find(&info.arch).map_err(raised)?;
        let mut predictor = PointPredictor::new(network, &info.preprocessing, tensors).map_err(raised)?;
        predictor.load(&gpu.device, &scan.volume).await.map_err(raised)?;
        Ok(Live {
            device: gpu.device.clone(),
            predictor,
            shape: scan.volume.geometry.shape,
        })
    }

    /// Label values of the plane of scan voxels at `index` along `axis` (0, 1 or 2), the first of its two axes fastest.
    /// The network looks at one location of `step` × `step` voxels; its logits are interpolated between them.
    ///
    /// # Errors
    /// `ScanError`: a plane outside the scan. `DeviceError`: a device that failed.
    pub async fn slice(&mut self, axis: usize, index: usize, step: usize) -> Result<Vec<i32>, JsValue> {
        if axis > 2 || index >= self.shape[axis.min(2)] || step == 0 {
            let message = format!(
                "there is no plane {index} along axis {axis} of {:?} voxels",
                self.shape
            );
            return Err(error("ScanError", message));
        }
        let [u, v] = [[1, 2], [0, 2], [0, 1]][axis];
        let [width, height] = [self.shape[u], self.shape[v]];
        let [across, down] = [width.div_ceil(step), height.div_ceil(step)];
        // The middle of the i-th of n equal parts of m voxels.
        let middle = |i: usize, n: usize, m: usize| (i as f64 + 0.5) * m as f64 / n as f64 - 0.5;
        let mut points = Vec::with_capacity(across * down);
        for j in 0..down {
            for i in 0..across {
                let mut point = [index as f64; 3];
                point[u] = middle(i, across, width);
                point[v] = middle(j, down, height);
                points.push(point);
            }
        }
        let logits = self.predictor.at(&self.device, &points).await.map_err(raised)?;
        let labels = &self.predictor.preprocessing().labels;
        let classes = resample::argmax(&logits.data, labels.len(), [1, down, across], [1, height, width]);
        Ok(classes.into_iter().map(|c| labels[c as usize].value).collect())
    }
}

/// Cases to train a network on, here in the browser.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Trainer {
    data: TrainingData,
}

#[wasm_bindgen]
impl Trainer {
    /// No cases yet; scans are read, and labels named, as `like` has it. `grid` is the network's input in voxels along
    /// D, H, W; absent to take that of `like`.
    ///
    /// # Errors
    /// `WeightsError`: a grid that is not three numbers.
    #[wasm_bindgen(constructor)]
    pub fn new(like: &Model, grid: Option<Vec<usize>>) -> Result<Trainer, JsValue> {
        let mut preprocessing = like.info()?.info.preprocessing.clone();
        if let Some(grid) = grid {
            let grid: [usize; 3] = grid
                .try_into()
                .map_err(|_| error("WeightsError", "a grid has three numbers"))?;
            preprocessing.grid = Some(grid);
        }
        Ok(Trainer {
            data: TrainingData {
                dataset: "browser".into(),
                preprocessing,
                training: Vec::new(),
                validation: Vec::new(),
                synthesis: None,
            },
        })
    }

    /// Adds the bytes of a scan and its label map.
    ///
    /// # Errors
    /// `ScanError`: files that can't be read, of different grids, or with values that no label has.
    #[wasm_bindgen(js_name = addCase)]
    pub fn add_case(&mut self, image: &[u8], labels: &[u8], name: &str) -> Result<(), JsValue> {
        let preprocessing = &self.data.preprocessing;
        let read = || -> Result<TrainingCase, VolumeError> {
            let scan = volume::read_bytes(image, Path::new(name))?;
            let map = volume::read_bytes(labels, &Path::new(name).with_extension("labels"))?;
            if let Some(difference) = map.geometry.difference(&scan.geometry, SAME_PLACE) {
                let problem = format!("its labels are not on its grid: {difference}");
                let path = name.into();
                return Err(VolumeError::Format { path, problem });
            }
            Ok(TrainingCase {
                id: name.into(),
                image: preprocessing.prepare_image(&scan)?.image,
                labels: preprocessing.prepare_labels(&map)?,
            })
        };
        let case = read().map_err(raised)?;
        self.data.training.push(case);
        Ok(())
    }

    /// Trains a network of that name from the start with the program's defaults, for so many epochs; `steps` are an
    /// epoch's where a network trains at random locations, absent for the default. `step` is called after every step with
    /// the share done, the loss and the epoch, from 1; aborting `signal` ends the training there. Resolves to the trained
    /// network.
    ///
    /// # Errors
    /// `WeightsError`: no such network, or one that can't be trained on this grid. `TooLargeError`, `DeviceError`.
    pub async fn train(
        &self,
        gpu: &Gpu,
        arch: &str,
        epochs: usize,
        steps: Option<usize>,
        step: Option<Function>,
        signal: Option<AbortSignal>,
    ) -> Result<Model, JsValue> {
        let defaults = Settings::new("browser".into(), arch);
        let settings = Settings {
            epochs,
            steps: defaults.steps.map(|default| steps.unwrap_or(default)),
            ..defaults
        };
        let report = |event: Event| {
            if let (
                Event::Step {
                    epoch,
                    done,
                    steps,
                    loss,
                    ..
                },
                Some(step),
            ) = (event, &step)
            {
                let share = ((epoch - 1) * steps + done) as f64 / (epochs * steps) as f64;
                // What the callback throws is its own affair.
                let _ = step.call3(&JsValue::NULL, &share.into(), &loss.into(), &epoch.into());
            }
            go_on(&signal)
        };
        let model = train_in_memory(&gpu.device, &settings, &self.data, report)
            .await
            .map_err(raised)?;
        Model::own(model)
    }
}
