//! Scans, datasets and tables with damaged bytes: every one is read or refused, without a panic, within the time of a test,
//! and without an allocation of a gigabyte. A program of its own, because its allocator watches the largest request.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::Path;

use obelisk::dataset::Dataset;
use obelisk::predict::points::table::{self, Axes};
use obelisk::prepare::cropping_list;
use obelisk::volume;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The system's allocator, which remembers each thread's largest request.
struct Watched;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

#[allow(unsafe_code)]
// SAFETY: every call goes on to the system's allocator as it came; a cell without a destructor needs no allocation.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

fn note(size: usize) {
    LARGEST.with(|largest| largest.set(largest.get().max(size)));
}

const GIGABYTE: usize = 1 << 30;
/// `OBELISK_TEST_SEED` replaces it.
const SEED: u64 = 20_190_701;

fn rounds(few: usize) -> usize {
    let factor = std::env::var("OBELISK_TEST_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok());
    few * factor.unwrap_or(1)
}

/// Gives `read` damaged copies of the seeds; it says whether it took them. Counts are printed.
fn mutate(what: &str, seeds: &[Vec<u8>], count: usize, mut read: impl FnMut(&[u8]) -> bool) {
    let seed = std::env::var("OBELISK_TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(SEED);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (mut taken, mut largest) = (0, 0);
    let start = std::time::Instant::now();
    let count = rounds(count);
    for round in 0..count {
        let mut bytes = seeds[round % seeds.len()].clone();
        damage(&mut bytes, &mut random);
        LARGEST.with(|l| l.set(0));
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| read(&bytes)));
        let peak = LARGEST.with(Cell::get);
        let name = format!("obelisk_hostile_{}", std::process::id());
        let kept = || {
            let path = std::env::temp_dir().join(name);
            fs::write(&path, &bytes).unwrap();
            format!("{what}: round {round} of seed {seed}, kept as {}", path.display())
        };
        match result {
            Ok(true) => taken += 1,
            Ok(false) => {}
            Err(_) => panic!("{} panicked", kept()),
        }
        assert!(peak < GIGABYTE, "{} asked for {peak} bytes", kept());
        largest = largest.max(peak);
    }
    eprintln!(
        "{what}: {count} damaged inputs of {} (seed {seed}), {taken} read, {} refused, at most {largest} bytes at once, {:.1} s",
        seeds.len(),
        count - taken,
        start.elapsed().as_secs_f64()
    );
    assert!(count > taken, "{what}: nothing was refused");
}

/// One to eight changes: bits, bytes, extreme numbers, and pieces that are cut out, doubled or inserted.
fn damage(bytes: &mut Vec<u8>, random: &mut ChaCha8Rng) {
    let mut below = |n: usize| (random.next_u64() % n.max(1) as u64) as usize;
    for _ in 0..=below(8) {
        let at = below(bytes.len());
        let length = 1 + below(16);
        let end = bytes.len().min(at + length);
        match below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << below(8),
            1 if at < bytes.len() => bytes[at] = below(256) as u8,
            2 => bytes[at..end].fill([0, 0xff, 0x7f, 0x80][below(4)]),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            5 => {
                let tokens: [&[u8]; 12] = [
                    b"-1",
                    b"1e999",
                    b"nan",
                    b"99999999999999999999",
                    b"\"",
                    b"[",
                    b"{}",
                    b"null",
                    b";",
                    b",",
                    b"\n",
                    b"\xff",
                ];
                let token = tokens[below(12)];
                bytes.splice(at..end, token.iter().copied());
            }
            6 => bytes.truncate(bytes.len() - below(bytes.len() / 4)),
            _ => {
                let numbers =
                    [i64::MAX, i64::MIN, -1, 1 << 31, 1 << 15, 0x7ff0_0000_0000_0000].map(i64::to_le_bytes);
                let number = numbers[below(6)];
                let end = bytes.len().min(at + 8);
                bytes[at..end].copy_from_slice(&number[..end - at]);
            }
        }
    }
}

fn reference(folder: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)
}

fn files(folder: &str, ending: &str) -> Vec<Vec<u8>> {
    let mut paths: Vec<_> = fs::read_dir(reference(folder))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    paths.retain(|path| path.to_string_lossy().ends_with(ending));
    paths.sort();
    paths.into_iter().map(|path| fs::read(path).unwrap()).collect()
}

/// A read volume holds nothing that later steps can't have.
fn sound(volume: &volume::Volume) -> bool {
    let geometry = &volume.geometry;
    assert_eq!(volume.data.len(), volume.channels * geometry.voxels());
    assert!(volume.data.iter().all(|v| v.is_finite()));
    assert!(geometry.affine.is_finite() && geometry.affine.inverse().is_finite());
    assert!(geometry.spacing.iter().all(|s| s.is_finite() && *s >= 0.0));
    let bytes = volume::encode_labels(&vec![1; geometry.voxels()], geometry, false).unwrap();
    let back = volume::read_bytes(&bytes, Path::new("back.nii")).unwrap();
    assert_eq!(back.geometry.shape, geometry.shape);
    true
}

#[test]
fn nifti() {
    let seeds = files("tests/reference/nifti", ".nii");
    mutate("NIfTI", &seeds, 20_000, |bytes| {
        volume::read_bytes(bytes, Path::new("a.nii")).is_ok_and(|volume| sound(&volume))
    });
}

#[test]
fn gzip() {
    let seeds = files("tests/reference/nifti", ".nii.gz");
    mutate("gzip", &seeds, 10_000, |bytes| {
        volume::read_bytes(bytes, Path::new("a.nii.gz")).is_ok_and(|volume| sound(&volume))
    });
}

/// Damage inside what was compressed, behind right checksums.
#[test]
fn nifti_in_gzip() {
    use std::io::Write;
    let seeds = files("tests/reference/nifti", ".nii");
    mutate("NIfTI in gzip", &seeds, 5_000, |bytes| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        let bytes = encoder.finish().unwrap();
        volume::read_bytes(&bytes, Path::new("a.nii.gz")).is_ok_and(|volume| sound(&volume))
    });
}

/// A folder with three tiny cases in both layouts.
fn dataset(folder: &Path) {
    let scan = fs::read(reference("tests/reference/nifti/uint8.nii")).unwrap();
    for sub in ["imagesTr", "labelsTr"] {
        fs::create_dir(folder.join(sub)).unwrap();
        for id in ["a", "b", "c"] {
            fs::write(folder.join(sub).join(format!("{id}.nii")), &scan).unwrap();
            fs::write(folder.join(sub).join(format!("{id}_0000.nii")), &scan).unwrap();
        }
    }
    for id in ["a", "b", "c"] {
        fs::remove_file(folder.join("labelsTr").join(format!("{id}_0000.nii"))).unwrap();
    }
}

const DECATHLON: &str = r#"{"name": "n", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver", "7": "ignore"},
 "numTraining": 3, "training": [{"image": "./imagesTr/a.nii", "label": "./labelsTr/a.nii"},
 {"image": "./imagesTr/b.nii", "label": "./labelsTr/b.nii"}, {"image": "imagesTr/c.nii", "label": "labelsTr/c.nii"}]}"#;
const NNUNET: &str = r#"{"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "ignore": 2}, "numTraining": 3,
 "file_ending": ".nii"}"#;

fn opened(folder: &Path) -> bool {
    let Ok(dataset) = Dataset::open(folder) else {
        return false;
    };
    assert!(dataset.labels.len() >= 2 && dataset.labels[0].value == 0 && !dataset.channels.is_empty());
    let folds = dataset.folds(None);
    if let Ok(folds) = &folds {
        assert!(!folds.is_empty());
    }
    for fold in [0, 1, usize::MAX] {
        let _ = dataset.fold(None, fold);
    }
    true
}

#[test]
fn dataset_json() {
    let folder = tempfile::tempdir().unwrap();
    dataset(folder.path());
    let seeds = [DECATHLON, NNUNET].map(|text| text.as_bytes().to_vec());
    mutate("dataset.json", &seeds, 10_000, |bytes| {
        fs::write(folder.path().join("dataset.json"), bytes).unwrap();
        opened(folder.path())
    });
}

#[test]
fn splits() {
    let folder = tempfile::tempdir().unwrap();
    dataset(folder.path());
    fs::write(folder.path().join("dataset.json"), DECATHLON).unwrap();
    let seeds = [
        br#"[{"train": ["a", "b"], "val": ["c"]}, {"train": ["b", "c"], "val": ["a"]}]"#.to_vec(),
        b"[]".to_vec(),
    ];
    mutate("splits_final.json", &seeds, 10_000, |bytes| {
        fs::write(folder.path().join("splits_final.json"), bytes).unwrap();
        opened(folder.path())
    });
}

#[test]
fn points() {
    let seeds = [
        "x,y,z\n1,2,3\n4,5.5,-6\n",
        "id;z;y;x\n7;1;2;3\n8;4;5.5;-6\n",
        "1 2 3\n4 5 6\n",
        "k\tj\ti\n1\t2\t3\n",
        "\u{feff}\"x\",\"y\",\"z\"\r\n1,2,3\r\n",
    ]
    .map(|text| text.as_bytes().to_vec());
    mutate("points", &seeds, 50_000, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        [Axes::World, Axes::Voxels].into_iter().any(|axes| {
            table::read(&text, axes).is_ok_and(|points| {
                assert!(!points.is_empty() && points.iter().all(|p| p.at.iter().all(|v| v.is_finite())));
                true
            })
        })
    });
}

#[test]
fn crops() {
    let seeds = [fs::read(reference("recipes/tcia_cropping.csv")).unwrap()];
    mutate("crops", &seeds, 10_000, |bytes| {
        cropping_list(&String::from_utf8_lossy(bytes)).is_ok()
    });
}
