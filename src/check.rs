//! A dataset looked through before a training: every fault at once, what is odd, and what its scans and labels are like.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use serde::Serialize;

use crate::dataset::{self, Case, Dataset, DatasetError};
use crate::preprocess::{moments, undeclared_spacing};
use crate::volume::Volume;

/// Something about a file of a dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The file or folder.
    pub file: PathBuf,
    /// What is wrong or odd.
    pub what: String,
}

/// Of some numbers, one a case: the least, the median and the largest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Range {
    /// The least.
    pub least: f64,
    /// The one in the middle, or the mean of the two.
    pub median: f64,
    /// The largest.
    pub largest: f64,
}

/// A channel's intensities.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Intensities {
    /// The channel.
    pub channel: String,
    /// The scans' means.
    pub means: Range,
    /// Their standard deviations.
    pub deviations: Range,
    /// Quantiles 0.005, 0.5 and 0.995 of the voxels with a label, of all scans together (up to 10,000 of each); `None` where none
    /// has one.
    pub labelled: Option<[f32; 3]>,
}

/// A label's volumes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LabelVolumes {
    /// The value in label files.
    pub value: i32,
    /// What it is called.
    pub name: String,
    /// Cases that have it.
    pub cases: usize,
    /// Millilitres, of the cases that have it; `None` where none has.
    pub millilitres: Option<Range>,
}

/// What a dataset's scans and labels are like.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fingerprint {
    /// Cases without a fault, of which all here is.
    pub cases: usize,
    /// How many scans are stored in each orientation.
    pub orientations: BTreeMap<String, usize>,
    /// Millimetres from voxel to voxel along the stored axes.
    pub spacings: [Range; 3],
    /// Voxels along them.
    pub sizes: [Range; 3],
    /// By channel.
    pub intensities: Vec<Intensities>,
    /// By label, without the background.
    pub labels: Vec<LabelVolumes>,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// What a training would refuse, or learn wrongly from.
    pub faults: Vec<Finding>,
    /// What is odd, and may be right.
    pub remarks: Vec<Finding>,
    /// `None` where no case is without a fault.
    pub fingerprint: Option<Fingerprint>,
}

/// One case, looked through.
struct Seen {
    geometry: crate::volume::Geometry,
    /// By channel: mean and standard deviation.
    moments: Vec<(f64, f64)>,
    /// By channel: intensities of some voxels with a label.
    labelled: Vec<Vec<f32>>,
    /// By label of the dataset: millilitres.
    millilitres: Vec<f64>,
    /// Of all voxels.
    checksum: u32,
}

/// Voxels with a label whose intensities count, of each scan.
const SAMPLES: usize = 10_000;

/// Opens every file of a dataset that [`Dataset::survey`] found with these faults, one case after the other; `progress` hears how
/// many of how many are done. The dataset keeps the cases that have no fault.
pub fn check(
    dataset: &mut Dataset,
    faults: &[DatasetError],
    mut progress: impl FnMut(usize, usize),
) -> Report {
    let mut report = Report {
        faults: faults.iter().map(finding).collect(),
        remarks: Vec::new(),
        fingerprint: None,
    };
    let cases = std::mem::take(&mut dataset.cases);
    let mut seen: Vec<(Case, Seen)> = Vec::new();
    let count = cases.len();
    for (i, case) in cases.into_iter().enumerate() {
        match look(dataset, &case, &mut report.remarks) {
            Ok(found) => seen.push((case, found)),
            Err(errors) => report.faults.extend(errors.iter().map(finding)),
        }
        progress(i + 1, count);
    }
    twins(&seen, &mut report);
    outliers(dataset, &seen, &mut report.remarks);
    report.fingerprint = fingerprint(dataset, &seen);
    for label in report.fingerprint.iter().flat_map(|found| &found.labels) {
        if label.cases == 0 {
            report.remarks.push(Finding {
                file: dataset.folder.join("dataset.json"),
                what: format!("no case has the label {} {}", label.value, label.name),
            });
        }
    }
    dataset.cases = seen.into_iter().map(|(case, _)| case).collect();
    report
}

/// The file of an error and the rest of its words.
fn finding(error: &DatasetError) -> Finding {
    let words = error.to_string();
    let file = match error {
        DatasetError::Invalid { path, .. } | DatasetError::Memory { path, .. } => path,
        DatasetError::Volume(error) => error.path(),
    };
    let start = format!("{}: ", file.display());
    Finding {
        file: file.into(),
        what: words.strip_prefix(&start).unwrap_or(&words).to_owned(),
    }
}

/// Reads a case's files.
fn look(dataset: &Dataset, case: &Case, remarks: &mut Vec<Finding>) -> Result<Seen, Vec<DatasetError>> {
    let scan = dataset.image(case);
    let map = match &scan {
        Ok(scan) => dataset.label(case, &scan.geometry),
        Err(_) => crate::volume::read(&case.label).map_err(DatasetError::from),
    };
    let classes = map.and_then(|map| Ok(dataset::classes(&map, &dataset.labels, dataset.ignore)?));
    let (scan, classes) = match (scan, classes) {
        (Ok(scan), Ok(classes)) => (scan, classes),
        (scan, classes) => return Err([scan.err(), classes.err()].into_iter().flatten().collect()),
    };
    let mut remark = |what: String| {
        remarks.push(Finding {
            file: case.images[0].clone(),
            what,
        })
    };
    if scan.geometry.spacing.contains(&0.0) {
        return Err(vec![undeclared_spacing(&scan.geometry, &case.images[0]).into()]);
    }
    if scan.non_finite > 0 {
        remark(format!(
            "{} of its voxels are not finite numbers",
            scan.non_finite
        ));
    }
    let voxels = scan.geometry.voxels();
    let channels = || scan.data.chunks_exact(voxels.max(1));
    let moments: Vec<(f64, f64)> = channels()
        .map(|values| moments(values.iter().copied()))
        .map(|(mean, variance)| (mean, variance.sqrt()))
        .collect();
    for (channel, (mean, deviation)) in dataset.channels.iter().zip(&moments) {
        if *deviation == 0.0 {
            remark(format!("all its voxels of {channel} are {mean}"));
        }
    }
    // Class 0 is the background, −1 is ignored.
    let labelled: Vec<usize> = (0..classes.len()).filter(|i| classes[*i] > 0.0).collect();
    if labelled.is_empty() {
        remarks.push(Finding {
            file: case.label.clone(),
            what: "nothing in it has a label".into(),
        });
    }
    let step = labelled.len().div_ceil(SAMPLES).max(1);
    let millilitre = scan.geometry.spacing.iter().product::<f64>() / 1000.0;
    let mut counts = vec![0u64; dataset.labels.len()];
    for class in classes.iter().filter(|class| **class >= 0.0) {
        counts[*class as usize] += 1;
    }
    Ok(Seen {
        moments,
        labelled: channels()
            .map(|own| labelled.iter().step_by(step).map(|i| own[*i]).collect())
            .collect(),
        millilitres: counts.iter().map(|count| *count as f64 * millilitre).collect(),
        checksum: checksum(&scan),
        geometry: scan.geometry,
    })
}

fn checksum(scan: &Volume) -> u32 {
    crc32fast::hash(bytemuck::cast_slice(&scan.data))
}

/// Scans of the same voxels under two names: in two folds they make a validation look better than it is.
fn twins(seen: &[(Case, Seen)], report: &mut Report) {
    let mut known: HashMap<(u32, [usize; 3]), &Case> = HashMap::new();
    for (case, found) in seen {
        match known.get(&(found.checksum, found.geometry.shape)) {
            Some(other) => report.remarks.push(Finding {
                file: case.images[0].clone(),
                what: format!("its voxels are those of {}", other.images[0].display()),
            }),
            None => {
                known.insert((found.checksum, found.geometry.shape), case);
            }
        }
    }
}

/// Labels much smaller or larger than the others'.
fn outliers(dataset: &Dataset, seen: &[(Case, Seen)], remarks: &mut Vec<Finding>) {
    for (at, label) in dataset.labels.iter().enumerate().filter(|(_, l)| l.value != 0) {
        let volumes: Vec<f64> = seen.iter().map(|(_, s)| s.millilitres[at]).collect();
        let present: Vec<f64> = volumes.iter().copied().filter(|v| *v > 0.0).collect();
        // Few cases say little of what is usual.
        let Some(Range { median, .. }) = range(present.iter().copied()).filter(|_| present.len() >= 8) else {
            continue;
        };
        let deviations = present.iter().map(|v| (v.ln() - median.ln()).abs());
        let usual = range(deviations).expect("eight at least").median.max(0.05);
        for ((case, _), volume) in seen.iter().zip(&volumes) {
            let (value, name) = (label.value, &label.name);
            let what = if *volume == 0.0 {
                // A label that only some cases have is not odd.
                if present.len() * 10 < seen.len() * 9 {
                    continue;
                }
                format!(
                    "label {value} {name} is not in it, but in {} others",
                    present.len()
                )
            } else if (volume.ln() - median.ln()).abs() > 8.0 * usual {
                format!("label {value} {name} has {volume:.3} ml, where the median is {median:.3} ml")
            } else {
                continue;
            };
            remarks.push(Finding {
                file: case.label.clone(),
                what,
            });
        }
    }
}

/// `None` of nothing.
fn range(numbers: impl Iterator<Item = f64>) -> Option<Range> {
    let mut sorted: Vec<f64> = numbers.collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    Some(Range {
        least: *sorted.first()?,
        median: match sorted.len() % 2 {
            0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
            _ => sorted[middle],
        },
        largest: *sorted.last()?,
    })
}

fn fingerprint(dataset: &Dataset, seen: &[(Case, Seen)]) -> Option<Fingerprint> {
    let all = || seen.iter().map(|(_, found)| found);
    let mut orientations = BTreeMap::new();
    for found in all() {
        *orientations
            .entry(found.geometry.orientation.to_string())
            .or_default() += 1;
    }
    let axis = |number: &dyn Fn(&Seen) -> f64| range(all().map(number));
    let intensities = dataset.channels.iter().enumerate().map(|(c, channel)| {
        let mut labelled: Vec<f32> = all()
            .flat_map(|found| found.labelled[c].iter().copied())
            .collect();
        labelled.sort_by(f32::total_cmp);
        let quantile = |share: f64| labelled[(share * (labelled.len() - 1) as f64).round() as usize];
        Some(Intensities {
            channel: channel.clone(),
            means: axis(&|found| found.moments[c].0)?,
            deviations: axis(&|found| found.moments[c].1)?,
            labelled: (!labelled.is_empty()).then(|| [0.005, 0.5, 0.995].map(quantile)),
        })
    });
    let labels = dataset
        .labels
        .iter()
        .enumerate()
        .filter(|(_, label)| label.value != 0);
    let labels = labels.map(|(at, label)| {
        let present: Vec<f64> = all()
            .map(|found| found.millilitres[at])
            .filter(|v| *v > 0.0)
            .collect();
        LabelVolumes {
            value: label.value,
            name: label.name.clone(),
            cases: present.len(),
            millilitres: range(present.into_iter()),
        }
    });
    let each = |number: &dyn Fn(&Seen, usize) -> f64| -> Option<[Range; 3]> {
        Some([
            axis(&|found| number(found, 0))?,
            axis(&|found| number(found, 1))?,
            axis(&|found| number(found, 2))?,
        ])
    };
    Some(Fingerprint {
        cases: seen.len(),
        orientations,
        spacings: each(&|found, a| found.geometry.spacing[a])?,
        sizes: each(&|found, a| found.geometry.shape[a] as f64)?,
        intensities: intensities.collect::<Option<_>>()?,
        labels: labels.collect(),
    })
}

/// Two digits behind the point, more of a small number, none of a large or whole one.
fn number(value: f64) -> String {
    match value.abs() {
        size if size.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let [least, median, largest] = [self.least, self.median, self.largest].map(number);
        match self.least == self.largest {
            true => f.write_str(&median),
            false => write!(f, "{median} ({least} to {largest})"),
        }
    }
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let axes = |ranges: &[Range; 3]| ranges.map(|range| range.to_string()).join(" × ");
        let orientations = self.orientations.iter();
        let orientations: Vec<String> = orientations
            .map(|(code, count)| format!("{code} {count}"))
            .collect();
        writeln!(f, "cases         {}", self.cases)?;
        writeln!(f, "orientations  {}", orientations.join(", "))?;
        writeln!(f, "size          {} voxels", axes(&self.sizes))?;
        writeln!(f, "spacing       {} mm", axes(&self.spacings))?;
        for channel in &self.intensities {
            write!(
                f,
                "intensities   {}: means {}, deviations {}",
                channel.channel, channel.means, channel.deviations
            )?;
            if let Some([low, middle, high]) = channel.labelled {
                let [low, middle, high] = [low, middle, high].map(|v| number(f64::from(v)));
                write!(f, "; where labelled {middle} (99 % within {low} to {high})")?;
            }
            writeln!(f)?;
        }
        for label in &self.labels {
            let volume = label.millilitres.map_or("-".into(), |v| format!("{v} ml"));
            let (value, name) = (label.value, &label.name);
            writeln!(
                f,
                "label         {value} {name}: {volume}, in {} cases",
                label.cases
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_their_middle() {
        let of = |numbers: &[f64]| range(numbers.iter().copied());
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[3.0, 1.0, 2.0]).unwrap().to_string(), "2 (1 to 3)");
        assert_eq!(of(&[2000.0, 1.0]).unwrap().to_string(), "1000 (1 to 2000)");
        assert_eq!(of(&[0.25]).unwrap().to_string(), "0.2500");
    }
}
