//! The inside of the Python package: networks that segment numpy arrays, reading and writing of scans, and metrics.
//!
//! Python's lock is free while a network runs, and Ctrl-C stops it at the next part. `../obelisk/__init__.py` documents the
//! functions for Python's users.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use glam::DMat4;
use numpy::{
    IntoPyArray, PyArray2, PyArrayDyn, PyArrayMethods, PyReadonlyArray2, PyReadonlyArrayDyn,
    PyUntypedArrayMethods,
};
use obelisk::error_kind::{ErrorKind, Kinded};
use obelisk::gpu;
use obelisk::metrics::{self, METRICS, Scoring, Surfaces};
use obelisk::model::{self, Network};
use obelisk::nnunet;
use obelisk::predict::Predictor;
use obelisk::predict::ensemble::{Agreed, Ensemble};
use obelisk::volume::{self, Geometry, SpatialHeader, Volume};
use obelisk::weights;
use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

create_exception!(obelisk, Error, PyException, "What went wrong, for a user.");
create_exception!(
    obelisk,
    ScanError,
    Error,
    "A scan or label map that can't be read, written or taken."
);
create_exception!(
    obelisk,
    WeightsError_,
    Error,
    "Weights that can't be read, are damaged or not run here."
);
create_exception!(
    obelisk,
    DeviceError,
    Error,
    "No adapter, or a device that failed."
);
create_exception!(
    obelisk,
    TooLargeError,
    Error,
    "More than the device's or the machine's memory."
);

/// The Python error of one of the program's.
fn raised(e: impl Kinded) -> PyErr {
    let message = e.to_string();
    match e.kind() {
        ErrorKind::Scan => ScanError::new_err(message),
        ErrorKind::Weights => WeightsError_::new_err(message),
        ErrorKind::Device => DeviceError::new_err(message),
        ErrorKind::TooLarge => TooLargeError::new_err(message),
        ErrorKind::Stopped => Error::new_err(message),
    }
}

/// Voxels and their affine.
type Read<'py> = (Bound<'py, PyArrayDyn<f32>>, Bound<'py, PyArray2<f64>>);

/// A 4 × 4 matrix from voxel indices to millimetres.
type Affine<'py> = PyReadonlyArray2<'py, f64>;

fn geometry(shape: [usize; 3], affine: &Affine<'_>) -> PyResult<Geometry> {
    if affine.shape() != [4, 4] {
        let message = format!(
            "an affine is an array of 4 × 4 numbers, this one has the shape {:?}",
            affine.shape()
        );
        return Err(PyValueError::new_err(message));
    }
    let rows: Vec<f64> = affine.as_array().iter().copied().collect();
    let rows: [f64; 16] = rows.try_into().expect("16 numbers");
    let affine = DMat4::from_cols_array(&rows).transpose();
    SpatialHeader::from_affine(affine)
        .geometry(shape)
        .map_err(ScanError::new_err)
}

fn affine_array<'py>(py: Python<'py>, affine: DMat4) -> Bound<'py, PyArray2<f64>> {
    let rows = affine.transpose().to_cols_array().to_vec();
    let array = rows.into_pyarray(py);
    array.reshape([4, 4]).expect("16 numbers")
}

/// A scan of an array `[X, Y, Z]` or `[C, X, Y, Z]`.
fn scan(array: &PyReadonlyArrayDyn<'_, f32>, affine: &Affine<'_>) -> PyResult<Volume> {
    let (channels, shape) = match *array.shape() {
        [x, y, z] => (1, [x, y, z]),
        [c, x, y, z] => (c, [x, y, z]),
        _ => {
            let message = format!(
                "a scan is an array [X, Y, Z] or [channels, X, Y, Z], this one has the shape {:?}",
                array.shape()
            );
            return Err(PyValueError::new_err(message));
        }
    };
    if array.len() == 0 {
        return Err(PyValueError::new_err(format!(
            "the scan has no voxels: {:?}",
            array.shape()
        )));
    }
    let data: Vec<f32> = array.as_array().iter().copied().collect();
    let wrong = data.iter().filter(|v| !v.is_finite()).count();
    if wrong > 0 {
        let message = format!("{wrong} voxels of the scan are not finite; numpy.nan_to_num replaces them");
        return Err(ScanError::new_err(message));
    }
    Ok(Volume {
        data,
        channels,
        geometry: geometry(shape, affine)?,
        non_finite: 0,
        source: "the array".into(),
    })
}

fn shaped<'py, T: numpy::Element>(
    py: Python<'py>,
    values: Vec<T>,
    shape: &[usize],
) -> Bound<'py, PyArrayDyn<T>> {
    values
        .into_pyarray(py)
        .reshape(shape)
        .expect("as many values as the shape has")
}

/// Asks Python for Ctrl-C between parts of a run, and keeps what it raises.
fn watched<T>(run: impl FnOnce(&mut dyn FnMut(f64) -> ControlFlow<()>) -> PyResult<T>) -> PyResult<T> {
    let mut raised = None;
    let result = run(&mut |_| match Python::attach(|py| py.check_signals()) {
        Ok(()) => ControlFlow::Continue(()),
        Err(e) => {
            raised = Some(e);
            ControlFlow::Break(())
        }
    });
    match raised {
        Some(e) => Err(e),
        None => result,
    }
}

/// A network on a device.
#[pyclass(frozen, module = "obelisk")]
struct Model {
    device: Arc<gpu::Device>,
    network: Kind,
}

enum Kind {
    Own(Box<Own>),
    Nnunet(Box<Nnunet>),
}

/// A network of this program's, and what is made of it when it is first needed.
struct Own {
    model: weights::Model,
    network: Network,
    predictor: Mutex<Option<Predictor>>,
    /// As the scan is, and mirrored along all axes too.
    ensembles: Mutex<[Option<Ensemble>; 2]>,
}

/// A model of nnU-Net's, likewise.
struct Nnunet {
    model: Arc<nnunet::Model>,
    segmenters: Mutex<[Option<nnunet::Segmenter>; 2]>,
}

/// What is behind a lock, also after another thread has panicked with it: it is made anew or asked again then.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Own {
    /// Mean probabilities of a scan, and of it mirrored along all axes if asked for.
    fn agree(&self, device: &gpu::Device, scan: &Volume, mirroring: bool) -> PyResult<Agreed> {
        let ensemble = &mut locked(&self.ensembles)[usize::from(mirroring)];
        let agreed = async {
            if ensemble.is_none() {
                let member = (self.network, &self.model.info.preprocessing, &self.model.tensors);
                let axes: &[usize] = if mirroring { &[0, 1, 2] } else { &[] };
                *ensemble = Some(Ensemble::new(device, &[member], axes).await?);
            }
            let ensemble = ensemble.as_mut().expect("made above");
            ensemble.agree(device, scan).await
        };
        pollster::block_on(agreed).map_err(raised)
    }

    fn segment(&self, device: &gpu::Device, scan: &Volume, mirroring: bool) -> PyResult<Vec<i32>> {
        let preprocessing = &self.model.info.preprocessing;
        if mirroring {
            return Ok(self.agree(device, scan, true)?.labels(preprocessing));
        }
        let predictor = &mut *locked(&self.predictor);
        watched(|watch| {
            let labels = async {
                if predictor.is_none() {
                    let tensors = &self.model.tensors;
                    let made = Predictor::with_weights(device, &self.network, preprocessing, tensors);
                    *predictor = Some(made.await?);
                }
                let predictor = predictor.as_mut().expect("made above");
                predictor.labels_watched(device, scan, watch).await
            };
            pollster::block_on(labels).map_err(raised)
        })
    }
}

impl Nnunet {
    fn segment(&self, device: &gpu::Device, scan: Volume, mirroring: bool) -> PyResult<Vec<i32>> {
        let segmenter = &mut locked(&self.segmenters)[usize::from(mirroring)];
        watched(|watch| {
            let labels = async {
                if segmenter.is_none() {
                    *segmenter = Some(nnunet::Segmenter::new(device, self.model.clone(), mirroring).await?);
                }
                let segmenter = segmenter.as_mut().expect("made above");
                segmenter.labels(device, vec![scan], watch).await
            };
            pollster::block_on(labels).map_err(raised)
        })
    }
}

#[pymethods]
impl Model {
    #[getter]
    fn arch(&self) -> String {
        match &self.network {
            Kind::Own(own) => own.model.info.arch.clone(),
            Kind::Nnunet(own) => {
                format!(
                    "nnU-Net, {}, {}",
                    own.model.plan.dataset, own.model.plan.configuration
                )
            }
        }
    }

    #[getter]
    fn labels<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let labels = match &self.network {
            Kind::Own(own) => own.model.info.preprocessing.labels.clone(),
            Kind::Nnunet(own) => own.model.labels(),
        };
        let names = PyDict::new(py);
        for label in labels {
            names.set_item(label.value, label.name)?;
        }
        Ok(names)
    }

    #[getter]
    fn channels(&self) -> Vec<String> {
        match &self.network {
            Kind::Own(own) => own
                .model
                .info
                .preprocessing
                .channels
                .iter()
                .map(|c| c.name.clone())
                .collect(),
            Kind::Nnunet(own) => own.model.plan.channels.iter().map(|c| c.name.clone()).collect(),
        }
    }

    #[getter]
    fn device(&self) -> String {
        self.device.adapter().name.clone()
    }

    #[pyo3(signature = (scan, affine, *, mirroring=false))]
    fn predict<'py>(
        &self,
        py: Python<'py>,
        scan: PyReadonlyArrayDyn<'py, f32>,
        affine: Affine<'py>,
        mirroring: bool,
    ) -> PyResult<Bound<'py, PyArrayDyn<i32>>> {
        let scan = crate::scan(&scan, &affine)?;
        let shape = scan.geometry.shape;
        let labels = py.detach(|| match &self.network {
            Kind::Own(own) => own.segment(&self.device, &scan, mirroring),
            Kind::Nnunet(own) => own.segment(&self.device, scan, mirroring),
        })?;
        Ok(shaped(py, labels, &shape))
    }

    #[pyo3(signature = (scan, affine, *, mirroring=false))]
    fn probabilities<'py>(
        &self,
        py: Python<'py>,
        scan: PyReadonlyArrayDyn<'py, f32>,
        affine: Affine<'py>,
        mirroring: bool,
    ) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        let scan = crate::scan(&scan, &affine)?;
        let [x, y, z] = scan.geometry.shape;
        let (count, values) = py.detach(|| {
            let Kind::Own(own) = &self.network else {
                return Err(WeightsError_::new_err("nnU-Net's models give labels only"));
            };
            let agreed = own.agree(&self.device, &scan, mirroring)?;
            let count = agreed.probabilities.shape[0];
            let values: Vec<f32> = (0..count).flat_map(|label| agreed.probability(label)).collect();
            PyResult::Ok((count, values))
        })?;
        Ok(shaped(py, values, &[count, x, y, z]))
    }

    fn __repr__(&self) -> String {
        format!("<obelisk.Model {} on {}>", self.arch(), self.device())
    }
}

#[pyfunction]
#[pyo3(signature = (path, *, adapter=None, configuration=None, folds=Vec::new()))]
fn load(
    py: Python<'_>,
    path: PathBuf,
    adapter: Option<String>,
    configuration: Option<String>,
    folds: Vec<String>,
) -> PyResult<Model> {
    py.detach(|| {
        let options = gpu::DeviceOptions {
            adapter,
            ..Default::default()
        };
        let device = Arc::new(pollster::block_on(gpu::Device::open(&options)).map_err(raised)?);
        if nnunet::is_model(&path) {
            let choice = nnunet::Choice { configuration, folds };
            let model = nnunet::Model::open(&path, &choice).map_err(raised)?;
            return Ok(Model {
                device,
                network: Kind::Nnunet(Box::new(Nnunet {
                    model: Arc::new(model),
                    segmenters: Mutex::default(),
                })),
            });
        }
        if configuration.is_some() || !folds.is_empty() {
            return Err(PyValueError::new_err(
                "only nnU-Net's models have configurations and folds",
            ));
        }
        let model = weights::Model::open(&path, None).map_err(raised)?;
        let network = model::find(&model.info.arch).map_err(raised)?;
        Ok(Model {
            device,
            network: Kind::Own(Box::new(Own {
                model,
                network,
                predictor: Mutex::default(),
                ensembles: Mutex::default(),
            })),
        })
    })
}

#[pyfunction]
fn adapters() -> PyResult<Vec<String>> {
    let found = pollster::block_on(gpu::adapters(None)).map_err(raised)?;
    Ok(found.into_iter().map(|adapter| adapter.name).collect())
}

#[pyfunction]
fn read<'py>(py: Python<'py>, path: PathBuf) -> PyResult<Read<'py>> {
    let scan = py.detach(|| volume::read(&path)).map_err(raised)?;
    let [x, y, z] = scan.geometry.shape;
    let affine = affine_array(py, scan.geometry.affine);
    let array = match scan.channels {
        1 => shaped(py, scan.data, &[x, y, z]),
        channels => shaped(py, scan.data, &[channels, x, y, z]),
    };
    Ok((array, affine))
}

#[pyfunction]
#[pyo3(signature = (path, labels, affine, *, overwrite=false))]
fn write_labels(
    path: PathBuf,
    labels: PyReadonlyArrayDyn<'_, i32>,
    affine: Affine<'_>,
    overwrite: bool,
) -> PyResult<()> {
    let geometry = geometry(three(&labels, "a label map")?, &affine)?;
    let labels: Vec<i32> = labels.as_array().iter().copied().collect();
    volume::write_labels(&path, &labels, &geometry, overwrite).map_err(raised)
}

/// The shape of a label map.
fn three(labels: &PyReadonlyArrayDyn<'_, i32>, what: &str) -> PyResult<[usize; 3]> {
    <[usize; 3]>::try_from(labels.shape()).map_err(|_| {
        PyValueError::new_err(format!(
            "{what} is an array [X, Y, Z], this one has the shape {:?}",
            labels.shape()
        ))
    })
}

#[pyfunction]
#[pyo3(signature = (prediction, reference, spacing, *, metrics="all", tolerance=1.0, ignore=None))]
fn evaluate<'py>(
    py: Python<'py>,
    prediction: PyReadonlyArrayDyn<'py, i32>,
    reference: PyReadonlyArrayDyn<'py, i32>,
    spacing: [f64; 3],
    metrics: &str,
    tolerance: f64,
    ignore: Option<i32>,
) -> PyResult<Bound<'py, PyDict>> {
    let shape = three(&prediction, "the prediction")?;
    if three(&reference, "the reference")? != shape {
        let message = format!(
            "the prediction has the shape {shape:?}, the reference {:?}",
            reference.shape()
        );
        return Err(PyValueError::new_err(message));
    }
    if spacing
        .iter()
        .chain([&tolerance])
        .any(|v| !(v.is_finite() && *v > 0.0))
    {
        let message = "spacings and the tolerance are millimetres above 0";
        return Err(PyValueError::new_err(message));
    }
    let surfaces = Surfaces {
        tolerance,
        ..Surfaces::default()
    };
    let choice = metrics::Choice::parse(metrics).map_err(PyValueError::new_err)?;
    let scoring = Scoring::new(choice, surfaces);
    let values = |map: &PyReadonlyArrayDyn<'_, i32>| map.as_array().iter().copied().collect::<Vec<i32>>();
    let (prediction, reference) = (values(&prediction), values(&reference));
    let scores = py
        .detach(|| {
            metrics::Comparison::new(&prediction, &reference, shape, spacing, ignore)
                .scores(&scoring, |_| true)
        })
        .map_err(|e| TooLargeError::new_err(e.to_string()))?;
    let labels = PyDict::new(py);
    for (label, values) in scores {
        let by_name = PyDict::new(py);
        for metric in scoring.chosen().metrics() {
            by_name.set_item(METRICS[metric].name, values[metric])?;
        }
        labels.set_item(label, by_name)?;
    }
    Ok(labels)
}

#[pymodule]
fn _obelisk(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<Model>()?;
    for function in [
        wrap_pyfunction!(load, module)?,
        wrap_pyfunction!(adapters, module)?,
        wrap_pyfunction!(read, module)?,
        wrap_pyfunction!(write_labels, module)?,
        wrap_pyfunction!(evaluate, module)?,
    ] {
        module.add_function(function)?;
    }
    module.add("Error", py.get_type::<Error>())?;
    module.add("ScanError", py.get_type::<ScanError>())?;
    module.add("WeightsError", py.get_type::<WeightsError_>())?;
    module.add("DeviceError", py.get_type::<DeviceError>())?;
    module.add("TooLargeError", py.get_type::<TooLargeError>())
}
