//! What checks cost, beside what they guard: `cargo bench --bench checks`. Each line is the median of some runs.

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use obelisk::dataset::Dataset;
use obelisk::gpu::{Device, DeviceOptions};
use obelisk::host_memory;
use obelisk::model;
use obelisk::predict::Predictor;
use obelisk::train::Settings;
use obelisk::volume;
use obelisk::weights::Model;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = repository.join("examples/weights/hippocampus.safetensors");
    let model = Model::load(&file)?;
    let bytes = model.to_bytes(&file)?;
    let numbers: Vec<f32> = model.tensors.values().flat_map(|t| &t.data).copied().collect();
    // parameters and Adam's two moments
    let checkpoint = bytes.repeat(3);
    let moments = numbers.repeat(3);
    let dataset = Dataset::open(&repository.join("examples/data"))?;
    let scan_file = &dataset.cases[0].images[0];
    let scan = volume::read(scan_file)?;
    let grid = model.info.preprocessing.grid.expect("the sample's grid");
    let logits = vec![0.5f32; model.info.preprocessing.labels.len() * grid.iter().product::<usize>()];
    let large = vec![0.5f32; 4 * 512 * 512 * 100];
    let settings = toml::to_string(&Settings::new("data".into(), "obelisk-hybrid"))?;

    let finite = |values: &[f32]| values.iter().all(|v| v.is_finite());
    row("CRC-32 of weights", bytes.len(), || crc32fast::hash(&bytes));
    row("weights are finite", 4 * numbers.len(), || finite(&numbers));
    row("weights read, with every check", bytes.len(), || {
        Model::from_bytes(&bytes, &file).is_ok()
    });
    row("CRC-32 of a checkpoint", checkpoint.len(), || {
        crc32fast::hash(&checkpoint)
    });
    row("a checkpoint is finite", 4 * moments.len(), || finite(&moments));
    row("logits are finite", 4 * logits.len(), || finite(&logits));
    row(
        "logits of 512×512×100, 4 labels, are finite",
        4 * large.len(),
        || finite(&large),
    );
    row("free memory is asked", 0, || {
        host_memory::require(1 << 25).is_ok()
    });
    row("settings are checked", settings.len(), || {
        Settings::parse(&settings).is_ok()
    });
    row("a case's headers are compared", 0, || {
        let of = |path| volume::read_geometry(path).expect("a header").0;
        of(scan_file).difference(&of(&dataset.cases[0].label), volume::SAME_PLACE)
    });

    let device = pollster::block_on(Device::open(&DeviceOptions::default()))?;
    let network = &model::find(&model.info.arch)?;
    let predictor = Predictor::with_weights(&device, network, &model.info.preprocessing, &model.tensors);
    let mut predictor = pollster::block_on(predictor)?;
    println!("{} ({})", device.adapter().name, device.adapter().driver);
    row("prediction of a sample scan", 4 * scan.data.len(), || {
        pollster::block_on(predictor.labels(&device, &scan)).expect("labels")
    });
    Ok(())
}

fn row<T>(what: &str, bytes: usize, mut run: impl FnMut() -> T) {
    let mut times: Vec<f64> = Vec::new();
    while times.len() < 5 || (times.len() < 200 && times.iter().sum::<f64>() < 0.5) {
        let start = Instant::now();
        black_box(run());
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    println!(
        "{what:<48} {:>9.1} MB {:>10.3} ms",
        bytes as f64 / 1e6,
        1e3 * times[times.len() / 2]
    );
}
