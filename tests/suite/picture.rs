//! Pictures: their sizes, sides and colours. `OBELISK_PICTURES=FOLDER` keeps them to be looked at.

use std::path::{Path, PathBuf};

use obelisk::dataset::Label;
use obelisk::offsets;
use obelisk::picture::{CurvePoint, offset_density, overlay, training_curve};
use obelisk::tensor::Tensor;
use obelisk::volume::{self, Volume};

use crate::common::shared;

fn sample(kind: &str) -> Volume {
    let file = format!("examples/data/{kind}/hippocampus_041.nii.gz");
    volume::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

fn names() -> Vec<Label> {
    [(0, "background"), (1, "Anterior"), (2, "Posterior")]
        .map(|(value, name)| Label {
            value,
            name: name.into(),
        })
        .to_vec()
}

/// A folder for a test's pictures, and what removes it.
fn folder() -> (PathBuf, Option<tempfile::TempDir>) {
    match std::env::var_os("OBELISK_PICTURES") {
        Some(folder) => (folder.into(), None),
        None => {
            let folder = tempfile::tempdir().unwrap();
            (folder.path().into(), Some(folder))
        }
    }
}

struct Picture {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Picture {
    fn read(path: &Path) -> Picture {
        let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut rgb).unwrap();
        assert_eq!(info.color_type, png::ColorType::Rgb);
        Picture {
            width: info.width as usize,
            height: info.height as usize,
            rgb,
        }
    }

    /// Pixels whose colour is within 12 of `colour`, with their mean column and row.
    fn count(&self, colour: [i32; 3]) -> (usize, f64, f64) {
        let mut found = (0, 0.0, 0.0);
        for (index, pixel) in self.rgb.chunks_exact(3).enumerate() {
            if pixel
                .iter()
                .zip(colour)
                .all(|(p, c)| (i32::from(*p) - c).abs() <= 12)
            {
                found.0 += 1;
                found.1 += (index % self.width) as f64;
                found.2 += (index / self.width) as f64;
            }
        }
        (found.0, found.1 / found.0 as f64, found.2 / found.0 as f64)
    }
}

#[test]
fn an_overlay_shows_three_planes_with_fill_and_outline() {
    let (folder, _keep) = folder();
    let (scan, reference) = (sample("imagesTs"), sample("labelsTs").labels().unwrap());
    let mut labels = reference.clone();
    labels.rotate_left(2);
    let path = folder.join("overlay.png");
    let _ = std::fs::remove_file(&path);
    overlay(&path, &scan, &labels, Some(&reference), &names(), false).unwrap();
    let picture = Picture::read(&path);
    assert!(
        picture.width > 960 && picture.height > 360,
        "{} × {}",
        picture.width,
        picture.height
    );
    assert!(picture.count([230, 159, 0]).0 > 500, "the anterior outline");
    assert!(picture.count([86, 180, 233]).0 > 500, "the posterior outline");
    let message = overlay(&path, &scan, &labels, None, &names(), false)
        .unwrap_err()
        .to_string();
    assert!(message.contains("exists"), "{message}");
    let message = overlay(&path, &scan, &labels[1..], None, &names(), true)
        .unwrap_err()
        .to_string();
    assert!(message.contains("grid"), "{message}");

    overlay(
        &folder.join("overlay_empty.png"),
        &scan,
        &vec![0; labels.len()],
        None,
        &names(),
        true,
    )
    .unwrap();
}

#[test]
fn the_patients_right_is_at_the_pictures_left_and_up_is_up() {
    let (folder, _keep) = folder();
    let mut scan = sample("imagesTs");
    scan.data.fill(0.0);
    let [x, y, z] = scan.geometry.shape;
    assert_eq!(scan.geometry.orientation.to_string(), "RAS");
    // right anterior superior octant, outlined by itself
    let labels: Vec<i32> = (0..x * y * z)
        .map(|i| i32::from(i / (y * z) >= x / 2 && i / z % y >= y / 2 && i % z >= z / 2))
        .collect();
    let path = folder.join("octant.png");
    overlay(&path, &scan, &labels, Some(&labels), &names(), true).unwrap();
    let picture = Picture::read(&path);
    // of every plane's third, the label takes the upper left quarter
    for third in 0..3 {
        let columns = third * picture.width / 3..(third + 1) * picture.width / 3;
        let mut part = Picture {
            width: columns.len(),
            height: picture.height,
            rgb: Vec::new(),
        };
        for row in 0..picture.height {
            let start = 3 * (row * picture.width + columns.start);
            part.rgb.extend(&picture.rgb[start..start + 3 * columns.len()]);
        }
        part.rgb.truncate(3 * part.width * (picture.height - 60));
        let (count, column, row) = part.count([230, 159, 0]);
        assert!(count > 200, "{third}: {count}");
        assert!(
            column < 0.5 * part.width as f64,
            "{third}: column {column} of {}",
            part.width
        );
        assert!(
            row < 0.5 * (picture.height - 60) as f64,
            "{third}: row {row} of {}",
            picture.height
        );
    }
    // a twin stored in another orientation gives the same picture
    let turn = scan.geometry.orientation.to("PSL".parse().unwrap());
    let shape = turn.permute(scan.geometry.shape);
    let mut twin = scan.clone();
    twin.data = turn.apply(&scan.data, 1, scan.geometry.shape);
    twin.geometry.shape = shape;
    twin.geometry.spacing = turn.permute(scan.geometry.spacing);
    twin.geometry.orientation = "PSL".parse().unwrap();
    let turned = turn.apply(&labels, 1, scan.geometry.shape);
    let other = folder.join("octant_twin.png");
    overlay(&other, &twin, &turned, Some(&turned), &names(), true).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&other).unwrap());
}

#[test]
fn a_curve_is_drawn_from_the_first_epoch_on() {
    let (folder, _keep) = folder();
    let point = |epoch: usize| {
        let progress = 1.0 - (-(epoch as f64) / 8.0).exp();
        let dice = |offset: f64| Some((progress * 0.9 - offset).max(0.0));
        let dice = if epoch.is_multiple_of(2) {
            vec![dice(0.0), dice(0.03)]
        } else {
            Vec::new()
        };
        CurvePoint {
            epoch,
            loss: 1.6 * (1.0 - 0.85 * progress),
            scores: dice,
            offset_sigma: [("offset1", 0.4), ("offset2", 0.7)]
                .map(|(name, most)| (name.to_owned(), 0.05 + most * progress))
                .into(),
        }
    };
    let labels = ["Anterior".to_string(), "Posterior".to_string()];
    let points: Vec<CurvePoint> = (1..=40).map(point).collect();
    for (name, count) in [("curve_1.png", 1), ("curve_2.png", 2), ("curve_40.png", 40)] {
        let path = folder.join(name);
        training_curve(&path, "obelisk-hybrid", &points[..count], &labels, true).unwrap();
        let picture = Picture::read(&path);
        assert_eq!(picture.width, if count > 1 { 1120 } else { 600 });
        assert!(picture.count([0, 90, 160]).0 > 5, "the loss in {name}");
        assert!(picture.count([170, 60, 0]).0 > 5, "the first offsets in {name}");
        assert!(picture.count([0, 130, 95]).0 > 5, "the second offsets in {name}");
        assert_eq!(picture.count([230, 159, 0]).0 > 5, count > 1, "Dice in {name}");
    }
    let broken = CurvePoint {
        epoch: 3,
        loss: f64::NAN,
        scores: vec![None, Some(0.5)],
        offset_sigma: Default::default(),
    };
    training_curve(
        &folder.join("curve_nan.png"),
        "NaN",
        &[point(1), point(2), broken],
        &labels,
        true,
    )
    .unwrap();
    let none = training_curve(&folder.join("curve_none.png"), "", &[], &labels, true).unwrap_err();
    assert!(none.to_string().contains("no epoch"));
}

#[test]
fn eight_organs_of_a_ct_get_their_colours() {
    let (Some(scan), Some(labels)) = (
        shared("data/ct/ct_144.nii.gz"),
        shared("reference/obeliskhybrid_tcia_fold1/labels.nii.gz"),
    ) else {
        return;
    };
    let (folder, _keep) = folder();
    let labels = volume::read(&labels).unwrap();
    let organs = "spleen,pancreas,left kidney,gallbladder,oesophagus,liver,stomach,duodenum";
    let mut names = vec![Label {
        value: 0,
        name: "background".into(),
    }];
    names.extend(organs.split(',').zip(1..).map(|(name, value)| Label {
        value,
        name: name.into(),
    }));
    let path = folder.join("ct.png");
    overlay(
        &path,
        &volume::read(&scan).unwrap(),
        &labels.labels().unwrap(),
        None,
        &names,
        true,
    )
    .unwrap();
    let picture = Picture::read(&path);
    assert!(picture.width > 960 && picture.width < 2200, "{}", picture.width);
}

#[test]
fn offsets_lie_where_they_point() {
    let (folder, _keep) = folder();
    // before: all in the middle; after: one layer's to the upper right, the other's pairs apart along x
    let layer = |data: &[[f32; 3]], samples: usize| {
        let shape = [1, data.len() / samples, 1, samples, 3];
        Tensor::new(&shape, data.concat())
    };
    let map = |one: Tensor, two: Tensor| [("offset1".to_owned(), one), ("offset2".to_owned(), two)].into();
    let before = map(layer(&[[0.0; 3]; 8], 1), layer(&[[0.0; 3]; 8], 2));
    let after = map(
        layer(&[[0.5, 0.75, -0.9]; 8], 1),
        layer(&[[-0.5, 0.0, 0.0], [0.5, 0.0, 0.0]].repeat(4), 2),
    );
    let layers = offsets::layers(&before, &after, [8, 8, 8], None);
    let path = folder.join("offsets.png");
    let _ = std::fs::remove_file(&path);
    offset_density(&path, "Offsets", &layers, false).unwrap();
    let picture = Picture::read(&path);
    let highest = [254, 232, 37];
    let lowest = [68, 1, 84];
    assert!(picture.count(lowest).0 > picture.rgb.len() / 3 / 2, "the ground");
    // the upper end of the colour bar has that colour too, so each panel is looked at alone
    let panel = |column: usize, row: usize| {
        let (left, top) = (76 + 410 * column, 70 + 398 * row);
        let mut rgb = Vec::new();
        for y in top..top + 320 {
            rgb.extend(&picture.rgb[3 * (y * picture.width + left)..][..3 * 320]);
        }
        let (count, x, y) = Picture {
            width: 320,
            height: 320,
            rgb,
        }
        .count(highest);
        assert!(count > 0, "the density's top in panel {column}, {row}");
        (x / 160.0 - 1.0, 1.0 - y / 160.0)
    };
    let near = |found: (f64, f64), expected: (f64, f64)| {
        let distance = (found.0 - expected.0).abs().max((found.1 - expected.1).abs());
        assert!(distance < 0.02, "{found:?} is not {expected:?}");
    };
    // axes end at 0.8: 0.75 with its margin, at a tenth
    near(panel(0, 0), (0.0, 0.0));
    near(panel(1, 0), (0.5 / 0.8, 0.75 / 0.8));
    near(panel(0, 1), (0.0, 0.0));

    let refusal = offset_density(&path, "Offsets", &layers, false).unwrap_err();
    assert!(refusal.to_string().contains("exists"), "{refusal}");
    let none = offset_density(&path, "Offsets", &[], true).unwrap_err();
    assert!(none.to_string().contains("no offsets"), "{none}");
    let mut broken = layers.clone();
    broken[0].learned[3][1] = f64::NAN;
    let refusal = offset_density(&path, "Offsets", &broken, true).unwrap_err();
    assert!(refusal.to_string().contains("not numbers"), "{refusal}");
}

#[test]
fn numbers_of_any_size_make_pictures_of_one_size() {
    let (folder, _keep) = folder();
    let path = folder.join("any.png");
    let offsets = |far: f32| {
        let mut data = vec![0.1; 3 * 8];
        data[4] = far;
        [("offset1".to_owned(), Tensor::new(&[1, 8, 1, 1, 3], data))].into()
    };
    let mut sizes = std::collections::BTreeSet::new();
    for far in [0.0, 2.0, 2.3, -7.0, 1e3, 1e6, -1e30, f32::MAX] {
        let layers = offsets::layers(&offsets(0.0), &offsets(far), [8, 8, 8], None);
        offset_density(&path, "Offsets", &layers, true).unwrap();
        let picture = Picture::read(&path);
        sizes.insert((picture.width, picture.rgb.len()));
        // those that are near are drawn, however far another one lies
        assert!(picture.count([254, 232, 37]).0 > 0, "{far}");
    }
    assert_eq!(sizes.len(), 1, "{sizes:?}");
    let all = [("offset1".to_owned(), Tensor::full(&[1, 8, 1, 1, 3], 1e6))].into();
    offset_density(
        &path,
        "Offsets",
        &offsets::layers(&all, &all, [8, 8, 8], None),
        true,
    )
    .unwrap();

    for scale in [0.0, 1e-300, 1e-12, 1e12, 1e38] {
        let points: Vec<CurvePoint> = (1..4)
            .map(|epoch| CurvePoint {
                epoch,
                loss: scale,
                scores: Vec::new(),
                offset_sigma: [("offset1".to_owned(), scale)].into(),
            })
            .collect();
        training_curve(&path, "Any", &points, &[], true).unwrap();
    }
}
