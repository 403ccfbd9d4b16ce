//! nnU-Net's models give nnU-Net's labels and probabilities.

use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;

use crate::common::*;
use obelisk::nnunet::{Choice, Model, Segmenter, is_model};
use obelisk::volume;

/// An array of a numpy archive (.npz) as f32: its shape and values.
fn npz(path: &Path, name: &str) -> (Vec<usize>, Vec<f32>) {
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

/// What nnU-Net's sums in half precision leave of a probability.
const TOLERANCE: f32 = 5e-3;
/// In the corners of a scan of many tiles the last bit of such a sum decides: docs/nnunet.md.
const CORNERS: (f32, usize) = (6e-3, 50_000);

/// Labels equal nnU-Net's where its best two probabilities are further apart than that, and probabilities within it: of all voxels,
/// or where the file has only every fourth along each axis, of those.
fn check(name: &str, mirroring: bool, cases: &[&str]) {
    let Some(folder) = shared(&format!("reference/{name}")) else {
        return;
    };
    let Some(device) = devices().get(1) else { return };
    let model = Model::open(&folder.join("model"), &Choice::default()).unwrap();
    let expected = folder.join(match mirroring {
        true => "expected_mirrored",
        false => "expected",
    });
    let mut segmenter = pollster::block_on(Segmenter::new(device, &model, mirroring)).unwrap();
    for case in cases {
        let scan = volume::read(&folder.join(format!("imagesTs/{case}_0000.nii.gz"))).unwrap();
        let scans = std::slice::from_ref(&scan);
        let mut watch = |_: f64| ControlFlow::Continue(());
        let logits = pollster::block_on(segmenter.logits(device, scans, &mut watch)).unwrap();
        let labels = segmenter.labels_of(&logits).unwrap();
        let theirs = volume::read(&expected.join(format!("{case}.nii.gz"))).unwrap();
        let theirs = theirs.labels().unwrap();

        let ties = expected.join("near_tie.nii.gz");
        let (array, step) = match ties.exists() {
            true => ("probabilities_stride4", 4),
            false => ("probabilities", 1),
        };
        let (shape, probabilities) = npz(&expected.join(format!("{case}.npz")), array);
        let [classes, nz, ny, nx] = shape[..] else {
            panic!("{shape:?}")
        };
        let [x, y, z] = scan.geometry.shape;
        // The network's axes are nnU-Net's (z, y, x), transposed.
        let transpose = model.plan.transpose;
        let size = transpose.map(|axis| [z, y, x][axis]);
        let own: Vec<Vec<f32>> = (0..classes)
            .map(|c| segmenter.output(&logits, c).unwrap())
            .collect();
        let mut is_tie = match ties.exists() {
            true => volume::read(&ties)
                .unwrap()
                .data
                .iter()
                .map(|v| *v > 0.0)
                .collect(),
            false => vec![false; labels.len()],
        };
        let mut worst = 0.0f32;
        for at in 0..nz * ny * nx {
            let voxel = [at / (ny * nx) * step, at / nx % ny * step, at % nx * step];
            let placed = transpose.map(|axis| voxel[axis]);
            let i = (placed[0] * size[1] + placed[1]) * size[2] + placed[2];
            let most = own.iter().map(|logits| logits[i]).fold(f32::MIN, f32::max);
            let total: f32 = own.iter().map(|logits| (logits[i] - most).exp()).sum();
            let mut best = [0.0f32; 2];
            for (c, logits) in own.iter().enumerate() {
                let theirs = probabilities[c * nz * ny * nx + at];
                worst = worst.max((theirs - (logits[i] - most).exp() / total).abs());
                best = match theirs > best[0] {
                    true => [theirs, best[0]],
                    false => [best[0], best[1].max(theirs)],
                };
            }
            if step == 1 && best[0] - best[1] < TOLERANCE {
                // Volumes have x first.
                is_tie[(voxel[2] * y + voxel[1]) * z + voxel[0]] = true;
            }
        }
        let differ = (0..labels.len()).filter(|i| labels[*i] != theirs[*i]);
        let [ties, clear] = differ.fold([0, 0], |[ties, clear], i| match is_tie[i] {
            true => [ties + 1, clear],
            false => [ties, clear + 1],
        });
        println!(
            "{name} {case}, mirroring {mirroring}: {clear} of {} labels differ and {ties} near ties; probabilities by {worst:.1e}",
            labels.len()
        );
        let one_tile = size
            .iter()
            .zip(model.plan.patch)
            .all(|(size, patch)| *size <= patch);
        let (most, clear_most) = match one_tile {
            true => (TOLERANCE, 0),
            false => (CORNERS.0, labels.len() / CORNERS.1),
        };
        assert!(clear <= clear_most, "{name} {case}: {clear}");
        assert!(worst <= most, "{name} {case}: {worst}");
    }
}

#[test]
fn hippocampi_of_two_folds_have_nnunets_labels() {
    let cases = ["hippocampus_381", "hippocampus_383", "hippocampus_385"];
    check("nnunet_hippo", false, &cases);
    check("nnunet_hippo", true, &cases[..1]);
}

#[test]
fn a_ct_of_many_tiles_has_nnunets_labels() {
    check("nnunet_ct", false, &["ct"]);
}

#[test]
fn a_model_is_the_same_from_its_folder_its_checkpoints_and_a_file_of_this_program() {
    let Some(folder) = shared("reference/nnunet_hippo/model") else {
        return;
    };
    assert!(is_model(&folder));
    let whole = Model::open(&folder, &Choice::default()).unwrap();
    assert_eq!(whole.names, ["0", "1"]);
    let file = tempfile::tempdir().unwrap();
    let file = file.path().join("model.safetensors");
    whole.save(&file, false).unwrap();
    assert!(is_model(&file));
    let again = Model::open(&file, &Choice::default()).unwrap();
    assert_eq!((&again.plan, &again.names), (&whole.plan, &whole.names));
    assert!(again.folds == whole.folds);

    let checkpoint = |fold: usize| {
        let run = "Dataset001_Hippo/nnUNetTrainer__nnUNetPlans__3d_fullres";
        folder.join(run).join(format!("fold_{fold}/checkpoint_final.pth"))
    };
    for fold in 0..2 {
        assert!(is_model(&checkpoint(fold)));
        let alone = Model::open(&checkpoint(fold), &Choice::default()).unwrap();
        assert_eq!(
            (&alone.plan, &alone.names),
            (&whole.plan, &vec![fold.to_string()])
        );
        assert!(alone.folds[0] == whole.folds[fold]);
    }
    let choice = |configuration: Option<&str>, folds: &[&str]| Choice {
        configuration: configuration.map(String::from),
        folds: folds.iter().map(|fold| fold.to_string()).collect(),
    };
    let one = Model::open(&folder, &choice(Some("3d_fullres"), &["1"])).unwrap();
    assert!(one.folds == whole.folds[1..]);
    for (choice, part) in [
        (choice(Some("2d"), &[]), "there are 3d_fullres"),
        (choice(None, &["7"]), "has no fold `7`; there are 0, 1"),
    ] {
        let error = Model::open(&folder, &choice).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let truncated = std::fs::read(checkpoint(0)).unwrap();
    std::fs::write(&file, &truncated[..truncated.len() / 2]).unwrap();
    assert!(Model::open(&file, &Choice::default()).is_err());
}
