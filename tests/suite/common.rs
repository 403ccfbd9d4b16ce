//! What every test of operations shares: the device, comparisons, stored PyTorch numbers, finite differences and
//! the reflection of shaders.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use obelisk::dataset::{Dataset, Fold};
use obelisk::gpu::{Device, DeviceOptions, Executable, Resident, Weights};
use obelisk::graph::{Graph, GraphError, Init, Source, Value};
use obelisk::op::{Access, Caps, Dispatch, StepScalars, Target, Texel};
use obelisk::plan::{Launch, Plan};
use obelisk::preprocess::{Overrides, Preprocessing};
use obelisk::tensor::Tensor;
use obelisk::train::TrainingData;
use proptest::test_runner::{Config as ProptestConfig, RngSeed};

/// Devices to test on: WebGPU's default limits without optional features, then the adapter's own; on a driver that runs on
/// the processor also one with the kernels meant for GPUs. Fails in CI when there is no adapter; elsewhere the test is
/// skipped with a word on stderr.
pub fn devices() -> &'static [Device] {
    static DEVICES: OnceLock<Vec<Device>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let open = |portable, kernels_for_gpus| {
            pollster::block_on(Device::open(&DeviceOptions {
                portable,
                kernels_for_gpus,
                ..Default::default()
            }))
        };
        match (open(true, false), open(false, false), open(false, true)) {
            (Ok(portable), Ok(own), Ok(_)) if !own.caps().target.is_cpu() => vec![portable, own],
            (Ok(portable), Ok(own), Ok(for_gpus)) => vec![portable, own, for_gpus],
            (Err(error), ..) | (_, Err(error), _) | (.., Err(error)) => {
                assert!(std::env::var_os("CI").is_none(), "no device in CI: {error}");
                eprintln!("SKIPPED: tests on a device ({error})");
                vec![]
            }
        }
    })
}

/// A file or folder of the test data in `../shared` beside the repository, or in `OBELISK_SHARED`. Where it is absent the
/// test fails in CI, and elsewhere it is skipped with a word on stderr.
pub fn shared(path: &str) -> Option<std::path::PathBuf> {
    let root = std::env::var_os("OBELISK_SHARED")
        .map(std::path::PathBuf::from)
        .unwrap_or_else(|| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"));
    let found = root.join(path);
    if found.exists() {
        return Some(found);
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "{} is not there, and CI must not skip what needs it",
        found.display()
    );
    eprintln!(
        "SKIPPED: {} is not there (OBELISK_SHARED names the folder of test data)",
        found.display()
    );
    None
}

/// How many random cases proptest tries, from a seed that is the same in every run. `PROPTEST_RNG_SEED=N` tries others; a
/// failure prints the least failing case.
pub fn random_cases(cases: u32) -> ProptestConfig {
    let mut config = ProptestConfig {
        cases,
        failure_persistence: None,
        ..Default::default()
    };
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(1);
    }
    if let RngSeed::Fixed(seed) = config.rng_seed {
        eprintln!("{cases} random cases, PROPTEST_RNG_SEED={seed}");
    }
    config
}

/// Tensors of a safetensors file by name: f32, u8 as f32; those of other types (`num_batches_tracked`) are left out.
pub fn read_tensors(path: &std::path::Path) -> HashMap<String, Tensor> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file =
        safetensors::SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    file.iter()
        .filter_map(|(name, view)| {
            let data = match view.dtype() {
                safetensors::Dtype::U8 => view.data().iter().map(|v| *v as f32).collect(),
                safetensors::Dtype::F32 => view
                    .data()
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                    .collect(),
                _ => return None,
            };
            Some((name.to_owned(), Tensor::new(view.shape(), data)))
        })
        .collect()
}

/// An array of a numpy archive (.npz) as f32: its shape and values.
pub fn npz(path: &std::path::Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = std::fs::read(path).unwrap();
    let archive = rawzip::ZipArchive::from_slice(&bytes[..]).unwrap();
    let wanted = format!("{name}.npy");
    let mut found = Vec::new();
    for header in archive.entries() {
        let header = header.unwrap();
        if header.file_path().as_bytes() == wanted.as_bytes() {
            let entry = archive.get_entry(header.wayfinder()).unwrap();
            match header.compression_method() {
                rawzip::CompressionMethod::STORE => found.extend_from_slice(entry.data()),
                _ => drop(
                    flate2::read::DeflateDecoder::new(entry.data())
                        .read_to_end(&mut found)
                        .unwrap(),
                ),
            }
        }
    }
    let length = u16::from_le_bytes([found[8], found[9]]) as usize;
    let header = std::str::from_utf8(&found[10..10 + length]).unwrap();
    assert!(header.contains("False"), "{header}"); // C order
    let shape = header
        .split("'shape': (")
        .nth(1)
        .unwrap()
        .split(')')
        .next()
        .unwrap();
    let shape: Vec<usize> = shape.split(',').filter_map(|n| n.trim().parse().ok()).collect();
    let data = &found[10 + length..];
    let values = match header {
        _ if header.contains("<f4") => data
            .as_chunks()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect(),
        _ if header.contains("<f2") => data
            .as_chunks()
            .0
            .iter()
            .map(|b| half::f16::from_le_bytes(*b).to_f32())
            .collect(),
        _ => panic!("{header}"),
    };
    (shape, values)
}

/// A file of stored reference values, `tests/reference/NAME`.
pub fn reference(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/reference")
        .join(name)
}

/// Asserts |a − b| ≤ `tolerance` × max(1e-6, largest |b|), naming the worst element.
pub fn assert_close(what: &str, actual: &Tensor, expected: &Tensor, tolerance: f32) {
    assert_eq!(actual.shape, expected.shape, "{what}: shapes");
    let scale = expected.data.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
    let difference = |i: usize| {
        let d = (actual.data[i] - expected.data[i]).abs();
        if d.is_nan() { f32::INFINITY } else { d }
    };
    let Some(worst) = (0..actual.data.len()).max_by(|a, b| difference(*a).total_cmp(&difference(*b))) else {
        return;
    };
    assert!(
        difference(worst) <= tolerance * scale,
        "{what} {:?}: at {:?} {} differs from {} by {:.3e} of the largest value {scale}",
        actual.shape,
        unravel(worst, &actual.shape),
        actual.data[worst],
        expected.data[worst],
        difference(worst) / scale,
    );
}

fn unravel(mut index: usize, shape: &[usize]) -> Vec<usize> {
    let mut at: Vec<usize> = shape
        .iter()
        .rev()
        .map(|n| {
            let i = index % n;
            index /= n;
            i
        })
        .collect();
    at.reverse();
    at
}

/// Numbers in [−1, 1), the same for the same seed, spread by a multiplicative hash.
pub fn noise(shape: &[usize], seed: u32) -> Tensor {
    Tensor::from_fn(shape, |i| {
        let mut h = (i as u32).wrapping_mul(0x9E37_79B1) ^ seed.wrapping_mul(0x85EB_CA6B);
        h ^= h >> 15;
        h = h.wrapping_mul(0x2C1B_3C6D);
        h ^= h >> 12;
        h = h.wrapping_mul(0x297A_2D39);
        h ^= h >> 15;
        h as f32 / 2f32.powi(31) - 1.0
    })
}

/// Inputs, parameters, states and moments of a graph by name.
pub type Data = HashMap<String, Tensor>;

/// Evaluates the graph's references on the host: every value by index.
pub fn evaluate(graph: &Graph, data: &Data, step: &StepScalars) -> Vec<Option<Tensor>> {
    let mut values: Vec<Option<Tensor>> = graph
        .values()
        .iter()
        .map(|info| match info.source {
            Source::Node(..) => None,
            Source::Moment { .. } => Some(
                data.get(&info.name)
                    .cloned()
                    .unwrap_or(Tensor::zeros(&info.spec.shape)),
            ),
            _ => Some(
                data.get(&info.name)
                    .unwrap_or_else(|| panic!("no data for `{}`", info.name))
                    .clone(),
            ),
        })
        .collect();
    graph.evaluate(&mut values, step);
    values
}

/// What a graph left on a device: kept values, parameters, states, moments and gradients (`grad:NAME`) by name.
pub fn run_on(device: &Device, graph: &Graph, data: &Data, step: &StepScalars) -> Data {
    run_plan_on(device, Plan::new(graph, device.caps()).unwrap(), data, step)
}

/// [`run_on`] of a plan, which may be for smaller limits than the device has.
pub fn run_plan_on(device: &Device, plan: Plan, data: &Data, step: &StepScalars) -> Data {
    reflect(&plan);
    pollster::block_on(async {
        let weights = Weights::new(device, &plan, true).await.unwrap();
        weights.upload(device, data).unwrap();
        let mut moments = data.clone();
        for (name, spec, _) in &plan.parameters.entries {
            for order in 0..2 {
                moments
                    .entry(format!("adam.{order}.{name}"))
                    .or_insert(Tensor::zeros(&spec.shape));
            }
        }
        weights.upload_moments(device, &moments).unwrap();
        let mut executable = Executable::new(device, plan, &weights).await.unwrap();
        executable.poison(device);
        for input in executable.plan().residents.clone() {
            let image = &data[&input.name];
            let resident = Resident::upload(device, image, input.spec).await.unwrap();
            executable.bind(device, &input.name, &resident).await.unwrap();
        }
        for (name, _, _) in executable.plan().inputs.clone() {
            executable.upload(device, &name, &data[&name]).unwrap();
        }
        executable.submit(device, step).unwrap();
        let mut out = Data::new();
        for (name, _, _) in executable.plan().kept.clone() {
            out.insert(name.clone(), executable.read(device, &name).await.unwrap());
        }
        out.extend(weights.download(device).await.unwrap());
        out.extend(weights.download_moments(device).await.unwrap());
        out.extend(
            weights
                .download_gradients(device)
                .await
                .unwrap()
                .into_iter()
                .map(|(n, t)| (format!("grad:{n}"), t)),
        );
        out
    })
}

/// Runs the graph on every device and compares what it keeps and changes with the references: once as it is, and once with
/// bindings of a third of its largest value, which splits small values as those of adapters split large ones. Operations that
/// read something as a whole may refuse that; where others then take kernels of their own, which take long to compile, tests
/// of their own do ([`check_with_binding`]).
pub fn check_on_devices(graph: &Graph, data: &Data, step: &StepScalars, tolerance: f32) {
    let expected = evaluate(graph, data, step);
    check_planned(graph, data, step, tolerance, &expected, |caps| {
        Some(Plan::new(graph, caps).unwrap())
    });
    let largest = graph
        .values()
        .iter()
        .map(|info| info.spec.bytes())
        .max()
        .unwrap_or(0);
    check_planned(graph, data, step, tolerance, &expected, |caps| {
        let small = Caps {
            max_binding: (largest / 3).next_multiple_of(256),
            ..*caps
        };
        let plan = match Plan::new(graph, &small) {
            Err(GraphError::Limit { .. }) => return None,
            plan => plan.unwrap(),
        };
        let known = kernels(&Plan::new(graph, caps).unwrap());
        kernels(&plan).is_subset(&known).then_some(plan)
    });
}

/// What a plan compiles.
fn kernels(plan: &Plan) -> HashSet<String> {
    let kernel = |launch: &Launch| {
        let d = &launch.dispatch;
        let parts: Vec<_> = d.shader().parts().iter().map(|part| part.as_ptr()).collect();
        format!("{}{parts:?}{:?}{:?}", d.kernel(), d.constants(), d.texels())
    };
    plan.launches.iter().map(kernel).collect()
}

/// [`check_on_devices`] with bindings of at most so many bytes.
pub fn check_with_binding(graph: &Graph, data: &Data, step: &StepScalars, tolerance: f32, binding: u64) {
    let expected = evaluate(graph, data, step);
    check_planned(graph, data, step, tolerance, &expected, |caps| {
        let caps = Caps {
            max_binding: caps.max_binding.min(binding),
            ..*caps
        };
        Some(Plan::new(graph, &caps).unwrap())
    });
}

fn check_planned(
    graph: &Graph,
    data: &Data,
    step: &StepScalars,
    tolerance: f32,
    expected: &[Option<Tensor>],
    plan: impl Fn(&Caps) -> Option<Plan>,
) {
    for device in devices() {
        let Some(plan) = plan(device.caps()) else { continue };
        let actual = run_plan_on(device, plan, data, step);
        let form = match device.caps().target {
            Target::CpuLanes(_) => "lanes",
            Target::Cpu => "processor",
            Target::Gpu => "GPU",
        };
        for (name, value) in graph.kept() {
            let want = expected[value.index()].as_ref().unwrap();
            assert_close(&format!("{form}: {name}"), &actual[name], want, tolerance);
        }
        for (value, info) in graph.parameters().chain(graph.states()) {
            let want = expected[value.index()].as_ref().unwrap();
            assert_close(
                &format!("{form}: {}", info.name),
                &actual[&info.name],
                want,
                tolerance,
            );
        }
        for (parameter, gradient) in graph.parameter_gradients() {
            let name = format!("grad:{}", graph.values()[parameter.index()].name);
            let want = expected[gradient.index()].as_ref().unwrap();
            assert_close(&format!("{form}: {name}"), &actual[&name], want, tolerance);
        }
    }
}

/// Checks an operation everywhere: GPU against reference for outputs and gradients, on every device, and gradients
/// against central differences of the reference. `build` adds the operation to inputs it declares (with
/// [`Graph::input`], or parameters) and returns the outputs; every input named in `differentiable` is differentiated.
/// `h` is the central difference's step, `difference_tolerance` its tolerance relative to the largest gradient.
pub fn check_op(
    build: impl Fn(&mut Graph) -> Vec<Value>,
    data: &Data,
    differentiable: &[&str],
    tolerance: f32,
    h: f32,
    difference_tolerance: f32,
) {
    let mut graph = Graph::new();
    let outputs = build(&mut graph);
    let mut data = data.clone();
    let mut pairs = Vec::new();
    for (i, output) in outputs.iter().enumerate() {
        let name = format!("upstream.{i}");
        let spec = graph.spec(*output).clone();
        data.insert(name.clone(), noise(&spec.shape, 77 + i as u32));
        let upstream = graph.input(&name, spec).unwrap();
        pairs.push((*output, upstream));
        graph.keep(&format!("output.{i}"), *output);
    }
    let wrt: Vec<Value> = differentiable
        .iter()
        .map(|n| graph.find(n).expect("a declared input"))
        .collect();
    let gradients = graph.gradients_from(&pairs, &wrt).unwrap();
    for (name, gradient) in differentiable.iter().zip(&gradients) {
        graph.keep(
            &format!("gradient of {name}"),
            gradient.expect("the outputs depend on the input"),
        );
    }
    check_on_devices(&graph, &data, &StepScalars::default(), tolerance);

    let values = evaluate(&graph, &data, &StepScalars::default());
    let mut forward = Graph::new();
    let outputs = build(&mut forward);
    let objective = |data: &Data| -> f64 {
        let values = evaluate(&forward, data, &StepScalars::default());
        outputs
            .iter()
            .enumerate()
            .map(|(i, output)| {
                let upstream = &data[&format!("upstream.{i}")];
                let y = values[output.index()].as_ref().unwrap();
                y.data
                    .iter()
                    .zip(&upstream.data)
                    .map(|(a, b)| *a as f64 * *b as f64)
                    .sum::<f64>()
            })
            .sum()
    };
    for (name, gradient) in differentiable.iter().zip(gradients) {
        let analytic = values[gradient.unwrap().index()].as_ref().unwrap();
        let count = analytic.data.len();
        // At most 60 elements of each input, spread evenly: each costs two evaluations.
        let chosen: Vec<usize> = (0..count.min(60)).map(|i| i * count / count.min(60)).collect();
        let numeric = chosen
            .iter()
            .map(|&i| {
                let shifted = |by: f32| {
                    let mut moved = data.clone();
                    moved.get_mut(*name).unwrap().data[i] += by;
                    objective(&moved)
                };
                ((shifted(h) - shifted(-h)) / (2.0 * h as f64)) as f32
            })
            .collect();
        let analytic: Vec<f32> = chosen.iter().map(|&i| analytic.data[i]).collect();
        assert_close(
            &format!("central differences of {name}"),
            &Tensor::new(&[chosen.len()], analytic),
            &Tensor::new(&[chosen.len()], numeric),
            difference_tolerance,
        );
    }
}

/// A graph's parameter with any start: tests upload their own data.
pub fn parameter(graph: &mut Graph, name: &str, shape: &[usize]) -> Value {
    graph.parameter(name, shape, Init::Constant(0.0)).unwrap()
}

/// Stored PyTorch numbers: cases of one operation with their attributes and tensors.
pub struct Goldens {
    /// Attributes by case.
    pub cases: BTreeMap<String, serde_json::Value>,
    tensors: HashMap<String, Tensor>,
}

impl Goldens {
    /// `tests/reference/ops/NAME.safetensors`.
    pub fn load(name: &str) -> Self {
        let path = reference(&format!("ops/{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let cases = serde_json::from_str(&header.metadata().as_ref().unwrap()["cases"]).unwrap();
        let tensors = read_tensors(&path);
        Goldens { cases, tensors }
    }

    /// The tensor `CASE/NAME`.
    pub fn get(&self, case: &str, name: &str) -> &Tensor {
        self.try_get(case, name)
            .unwrap_or_else(|| panic!("no golden {case}/{name}"))
    }

    /// Every tensor of a case by name.
    pub fn data(&self, case: &str) -> Data {
        let prefix = format!("{case}/");
        self.tensors
            .iter()
            .filter_map(|(name, t)| Some((name.strip_prefix(&prefix)?.to_owned(), t.clone())))
            .collect()
    }

    /// The tensor `CASE/NAME`, if stored.
    pub fn try_get(&self, case: &str, name: &str) -> Option<&Tensor> {
        self.tensors.get(&format!("{case}/{name}"))
    }
}

/// Checks a case of stored PyTorch numbers: the references against them, then every device against the references.
/// `build` adds the operation to inputs, parameters and states that it declares by the stored names and returns the
/// output; `differentiable` names those with a stored `grad_NAME`.
pub fn check_golden(
    goldens: &Goldens,
    case: &str,
    build: impl FnOnce(&mut Graph) -> Value,
    differentiable: &[&str],
    tolerance: f32,
) {
    let data = goldens.data(case);
    let mut graph = Graph::new();
    let output = build(&mut graph);
    graph.keep("output", output);
    if !differentiable.is_empty() {
        let spec = graph.spec(output).clone();
        let upstream = graph.input("upstream", spec).unwrap();
        let wrt: Vec<Value> = differentiable
            .iter()
            .map(|n| graph.find(n).expect("a declared input"))
            .collect();
        let gradients = graph.gradients_from(&[(output, upstream)], &wrt).unwrap();
        for (name, gradient) in differentiable.iter().zip(gradients) {
            graph.keep(
                &format!("grad_{name}"),
                gradient.expect("the output depends on it"),
            );
        }
    }
    let values = evaluate(&graph, &data, &StepScalars::default());
    for (name, value) in graph.kept() {
        let reference = values[value.index()].as_ref().unwrap();
        assert_close(
            &format!("{case}: reference of {name}"),
            reference,
            goldens.get(case, name),
            tolerance,
        );
    }
    check_on_devices(&graph, &data, &StepScalars::default(), tolerance);
}

/// Checks every kernel of a plan against its module by reflection: bindings' number, order and access, the uniform
/// struct's members by name, type and offset; validates with no capabilities (subgroups where declared) and
/// translates to SPIR-V, MSL and HLSL.
pub fn reflect(plan: &Plan) {
    static SEEN: std::sync::Mutex<Option<HashSet<String>>> = std::sync::Mutex::new(None);
    for launch in &plan.launches {
        let d = &launch.dispatch;
        let pieces: Vec<_> = d.shader().parts().iter().map(|part| part.as_ptr()).collect();
        let bound: Vec<Access> = d.bindings.iter().map(|binding| binding.access).collect();
        let key = format!(
            "{}{}{pieces:?}{:?}{}{}{bound:?}{}",
            d.shader().name(),
            d.entry(),
            d.constants(),
            d.params().of.name,
            d.params().words.len(),
            d.subgroups,
        );
        if SEEN.lock().unwrap().get_or_insert_default().insert(key) {
            reflect_dispatch(d);
        }
    }
}

fn texel(inner: &naga::TypeInner) -> Texel {
    let naga::TypeInner::Image {
        dim: naga::ImageDimension::D2,
        class: naga::ImageClass::Storage { format, access },
        ..
    } = inner
    else {
        panic!("{inner:?} is no storage texture");
    };
    assert_eq!(*access, naga::StorageAccess::LOAD);
    match format {
        naga::StorageFormat::R32Float => Texel::One,
        naga::StorageFormat::Rgba32Float => Texel::Four,
        other => panic!("{other:?}"),
    }
}

fn reflect_dispatch(d: &Dispatch) {
    let what = format!("shaders/{}.wgsl:{}", d.shader().name(), d.entry());
    let module = d.module().unwrap_or_else(|e| panic!("{what}: {e}"));
    // `Shader::texel` asks it as it stands on disk, and takes one with errors for one without textures.
    let on_disk = d.shader().specialise(&[]);
    naga::front::wgsl::parse_str(&on_disk)
        .unwrap_or_else(|e| panic!("{what}: {}", e.emit_to_string(&on_disk)));
    let capabilities = if d.subgroups {
        naga::valid::Capabilities::SUBGROUP
    } else {
        naga::valid::Capabilities::empty()
    };
    let info = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities)
        .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
        .subgroup_operations(naga::valid::SubgroupOperationSet::all())
        .validate(&module)
        .unwrap_or_else(|e| panic!("{what}: {}", e.emit_to_string(&d.source())));

    let entry = module
        .entry_points
        .iter()
        .position(|e| e.name == d.entry())
        .unwrap_or_else(|| panic!("{what}: no entry"));
    let used = info.get_entry_point(entry);
    let mut bindings = BTreeMap::new();
    for (handle, global) in module.global_variables.iter() {
        if let Some(at) = &global.binding
            && !used[handle].is_empty()
        {
            assert_eq!(at.group, 0, "{what}");
            bindings.insert(at.binding, global);
        }
    }
    for (&binding, global) in &bindings {
        let access = match global.space {
            naga::AddressSpace::Uniform => Access::Uniform,
            naga::AddressSpace::Storage { access } if access.contains(naga::StorageAccess::STORE) => {
                Access::ReadWrite
            }
            naga::AddressSpace::Storage { .. } => Access::Read,
            naga::AddressSpace::Handle => Access::Texels(texel(&module.types[global.ty].inner)),
            space => panic!("{what}: binding {binding} in {space:?}"),
        };
        match binding {
            0 => assert_eq!(access, Access::Uniform, "{what}: binding 0"),
            n => {
                let bound = d
                    .bindings
                    .get(n as usize - 1)
                    .unwrap_or_else(|| panic!("{what}: binding {n} is not bound"));
                assert_eq!(access, bound.access, "{what}: binding {n}");
            }
        }
    }
    if let Some(params) = bindings.get(&0) {
        let naga::TypeInner::Struct { span, .. } = module.types[params.ty].inner else {
            panic!("{what}: binding 0 is no struct")
        };
        let words = d.params().words.len();
        assert_eq!(span as usize, 4 * words, "{what}: bytes of the uniform");
        // Declared by Rust, it has Rust's members in Rust's order.
        let name = module.types[params.ty].name.as_deref();
        assert_eq!(name, Some(d.params().of.name), "{what}: struct of the uniform");
        assert!(
            d.shader().structs().contains(&d.params().of),
            "{what}: declared in the shader"
        );
    }

    translate(&what, &module, &info);
}

/// Translates a module to SPIR-V, MSL and HLSL.
pub fn translate(what: &str, module: &naga::Module, info: &naga::valid::ModuleInfo) {
    let spirv = naga::back::spv::Options {
        lang_version: (1, 3),
        ..Default::default()
    };
    naga::back::spv::write_vec(module, info, &spirv, None)
        .unwrap_or_else(|e| panic!("{what} to SPIR-V: {e}"));
    let msl = naga::back::msl::Options {
        fake_missing_bindings: true,
        lang_version: (2, 4),
        ..Default::default()
    };
    naga::back::msl::write_string(module, info, &msl, &Default::default())
        .unwrap_or_else(|e| panic!("{what} to MSL: {e}"));
    let hlsl = naga::back::hlsl::Options {
        fake_missing_bindings: true,
        shader_model: naga::back::hlsl::ShaderModel::V6_0,
        ..Default::default()
    };
    let pipeline = Default::default();
    let mut text = String::new();
    naga::back::hlsl::Writer::new(&mut text, &hlsl, &pipeline)
        .write(module, info, None)
        .unwrap_or_else(|e| panic!("{what} to HLSL: {e}"));
}

/// Some of the sample scans to train on and some held out, by their places, on a grid of `side` voxels along each axis of 64 mm.
pub fn samples(side: usize, train: &[usize], validation: &[usize]) -> (Dataset, TrainingData) {
    let dataset = Dataset::open(&examples()).unwrap();
    let overrides = Overrides {
        grid: Some([side; 3]),
        spacing: Some([64.0 / side as f64; 3]),
        ..Default::default()
    };
    let preprocessing = Preprocessing::derive(&dataset, overrides).unwrap();
    let fold = Fold {
        train: train.to_vec(),
        validation: validation.to_vec(),
    };
    let data = TrainingData::load(&dataset, preprocessing, Some(&fold)).unwrap();
    (dataset, data)
}

/// The folder of the sample scans.
pub fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data")
}
