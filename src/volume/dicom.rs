//! DICOM series as scans (feature `dicom`): the images of a folder, or one file of many frames, sorted along their normal into a
//! volume with its place in the patient. Segmentations of such a series are written by [`Series::write_segmentation`].
//!
//! Files are read with dicom-rs. What is no regular grid is refused with what is wrong with it: missing slices, tilted gantries,
//! several images at one place, several series. PS3.3, C.7.6.2 says where an image lies, C.7.6.16 where a frame does.

mod elements;
mod pixels;
mod segmentation;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use dicom_core::Tag;
use dicom_dictionary_std::{tags, uids};
use glam::{DMat4, DVec3};

use self::elements::{Contents, Elements};
use self::pixels::Format;
use super::file::Problem;
use super::{Geometry, SAME_PLACE, SpatialHeader, Volume, VolumeError};
use crate::host_memory;

/// Slices that are decoded at once: their voxels fill the cache lines that a column in x touches.
const PLANES: usize = 16;
/// By how much two images' direction cosines may differ.
const SAME_DIRECTION: f64 = 1e-4;
/// How far from a line along the normal slices may lie, in pixels.
const MOST_SHEAR: f64 = 0.5;
/// The largest number that a slope or an intercept can be.
const MOST_SCALING: f64 = 1e25;

/// Images that are no scans, although they have pixels.
const NO_SCANS: &[&str] = &[
    uids::SEGMENTATION_STORAGE,
    uids::LABEL_MAP_SEGMENTATION_STORAGE,
    uids::HEIGHT_MAP_SEGMENTATION_STORAGE,
    uids::PARAMETRIC_MAP_STORAGE,
    uids::RT_DOSE_STORAGE,
];

/// What images of one place may differ by.
const DISTINCTIONS: &[(Tag, &str)] = &[
    (tags::TEMPORAL_POSITION_IDENTIFIER, "temporal position"),
    (tags::ECHO_NUMBERS, "echo"),
    (tags::ECHO_TIME, "echo time"),
    (tags::DIFFUSION_B_VALUE, "b-value"),
    (tags::TRIGGER_TIME, "trigger time"),
    (tags::IMAGE_TYPE, "image type"),
    (tags::CONVOLUTION_KERNEL, "convolution kernel"),
    (tags::ACQUISITION_NUMBER, "acquisition"),
    (tags::ACQUISITION_TIME, "acquisition time"),
    (tags::INSTANCE_NUMBER, "instance number"),
];

/// Why a series can't be read, or its segmentation not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DicomError {
    /// A file, a folder or its images are not what they must be.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// There are several series, or none of those that were asked for.
    #[error("{}: {}", path.display(), choices(wanted.as_deref(), series))]
    Choice {
        /// The folder.
        path: PathBuf,
        /// What was asked for.
        wanted: Option<String>,
        /// What there is.
        series: Vec<Found>,
    },
}

/// A series in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its SeriesInstanceUID.
    pub uid: String,
    /// Its number, where it has one.
    pub number: Option<String>,
    /// Its description; may be empty.
    pub description: String,
    /// CT, MR …
    pub modality: String,
    /// Files, or frames where a file has several.
    pub images: usize,
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match &self.number {
            Some(number) => write!(f, "number {}", shown(number))?,
            None => write!(f, "no number")?,
        }
        let (what, kind) = (shown(&self.description), shown(&self.modality));
        let images = if self.images == 1 { "image" } else { "images" };
        let uid = shown(&self.uid);
        write!(f, " (`{what}`, {kind}, {} {images}, UID {uid})", self.images)
    }
}

fn choices(wanted: Option<&str>, series: &[Found]) -> String {
    let all: Vec<String> = series.iter().map(Found::to_string).collect();
    let there = match series.len() {
        1 => "it holds one series:".to_owned(),
        count => format!("it holds {count} series, and a scan is one:"),
    };
    let asked = match wanted {
        Some(wanted) => {
            let fitting = series.iter().filter(|found| found.is(wanted)).count();
            let how_many = if fitting == 0 { "none" } else { "more than one" };
            format!("{how_many} is `{}`; ", wanted.escape_debug())
        }
        None => String::new(),
    };
    format!("{asked}{there} {}", all.join(", "))
}

impl Found {
    fn is(&self, wanted: &str) -> bool {
        self.uid == wanted || self.number.as_deref() == Some(wanted)
    }
}

/// Text of a file in a message.
fn shown(text: &str) -> String {
    let short: String = text.chars().take(64).collect();
    short.escape_debug().to_string()
}

/// What a folder holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holds {
    /// DICOM files.
    Series,
    /// Folders of DICOM files, by name.
    Folders(BTreeMap<String, PathBuf>),
    /// Files of other scans, or neither.
    Others,
}

/// A folder that may be a series, a folder of series or one of other scans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// What is read.
    pub holds: Holds,
    /// DICOM files beside other scans, folders beside DICOM files, and what else is beside folders of them.
    pub ignored: Vec<PathBuf>,
}

/// Whether a file begins as DICOM files do.
pub fn is_dicom(path: &Path) -> bool {
    // Of a pipe nothing can be read twice.
    let is_file = path.metadata().is_ok_and(|metadata| metadata.is_file());
    let mut start = Vec::new();
    let mut begins = || File::open(path).and_then(|file| file.take(132).read_to_end(&mut start));
    is_file && begins().is_ok() && elements::is_dicom(&start)
}

impl Folder {
    /// Looks at a folder, and at those in it if it holds no scans itself: by the endings of names, and by the first bytes of other
    /// files. Hidden files are left out.
    ///
    /// # Errors
    /// A folder that can't be listed.
    pub fn open(path: &Path) -> Result<Folder, VolumeError> {
        let (files, folders) = listed(path)?;
        let is_image = |path: &PathBuf| !is_directory(path) && is_dicom(path);
        if files.iter().any(|path| super::ending(path).is_some()) {
            let is_other = |path: &PathBuf| super::ending(path).is_none() && is_image(path);
            return Ok(Folder {
                holds: Holds::Others,
                ignored: files.into_iter().filter(is_other).collect(),
            });
        }
        if files.iter().any(is_image) {
            return Ok(Folder {
                holds: Holds::Series,
                ignored: folders,
            });
        }
        let (mut series, mut ignored) = (BTreeMap::new(), Vec::new());
        for folder in folders {
            let (files, _) = listed(&folder)?;
            let name = folder.file_name().unwrap_or_default().to_string_lossy();
            match files.iter().any(is_image) {
                true => drop(series.insert(name.into_owned(), folder)),
                false => ignored.push(folder),
            }
        }
        if series.is_empty() {
            return Ok(Folder {
                holds: Holds::Others,
                ignored: Vec::new(),
            });
        }
        ignored.extend(files);
        Ok(Folder {
            holds: Holds::Folders(series),
            ignored,
        })
    }
}

/// Reads the only series of a folder, or that of a file.
///
/// # Errors
/// Those of [`Series::open`] and [`Series::volume`].
pub(super) fn read(path: &Path) -> Result<Volume, VolumeError> {
    only(path)?.volume()
}

/// The only series of a folder, or that of a file.
pub(super) fn only(path: &Path) -> Result<Series, VolumeError> {
    Series::open(path, None).map_err(|error| match error {
        DicomError::Volume(error) => error,
        other => {
            let problem = other.to_string();
            let path_itself = format!("{}: ", path.display());
            Series::wrong(path, problem.replacen(&path_itself, "", 1))
        }
    })
}

/// Whether a path is read here: a folder, or a file that begins so.
pub(super) fn is_here(path: &Path) -> bool {
    path.is_dir() || is_dicom(path)
}

/// A medium's table of contents.
fn is_directory(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.eq_ignore_ascii_case("DICOMDIR")
}

/// Files and folders in a folder, sorted, without hidden ones.
fn listed(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), VolumeError> {
    let failed = |reason| VolumeError::Io {
        path: folder.into(),
        reason,
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default();
        if !name.as_encoded_bytes().starts_with(b".") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths.into_iter().partition(|path| !path.is_dir()))
}

/// The first of some names, for a message.
pub fn names(paths: &[PathBuf]) -> String {
    let name = |path: &PathBuf| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let first: Vec<String> = paths.iter().take(3).map(name).collect();
    match paths.len().saturating_sub(3) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

/// A file of a series, without its pixels.
#[derive(Debug)]
struct Source {
    path: PathBuf,
    elements: Elements,
}

impl Source {
    fn text(&self, tag: Tag) -> String {
        self.elements.text(tag).unwrap_or_default()
    }

    fn frames(&self) -> usize {
        let groups = self
            .elements
            .items(tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE)
            .len();
        groups.max(1)
    }

    fn error(&self, problem: String) -> VolumeError {
        VolumeError::Format {
            path: self.path.clone(),
            problem,
        }
    }
}

/// An image of a series, or a frame of one.
#[derive(Debug)]
struct Slice {
    /// Which of the sources.
    source: usize,
    /// From 0.
    frame: usize,
    /// Of the first pixel's centre: millimetres to the left, to posterior and to superior.
    position: DVec3,
    /// Along a row, and along a column.
    directions: [DVec3; 2],
    /// Millimetres from column to column, and from row to row.
    spacing: [f64; 2],
    /// Slope and intercept.
    scaling: (f64, f64),
}

/// A series of images that are a scan: its headers, checked and sorted. The voxels are read by [`Series::volume`].
#[derive(Debug)]
pub struct Series {
    path: PathBuf,
    sources: Vec<Source>,
    /// By ascending place along the normal.
    slices: Vec<Slice>,
    format: Format,
    geometry: Geometry,
}

fn open(path: &Path) -> Result<(BufReader<File>, u64), Problem> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let length = if metadata.is_file() {
        metadata.len()
    } else {
        u64::MAX
    };
    Ok((BufReader::new(file), length))
}

fn contents(path: &Path, pixels: bool) -> Result<Contents, VolumeError> {
    let (reader, length) = open(path).map_err(|problem| problem.at(path))?;
    elements::read(reader, length, pixels).map_err(|problem| problem.at(path))
}

impl Series {
    /// Opens the series in a folder, or that of a file. Of several series `choice` names one, by its number or UID. What is no image
    /// is ignored, with a warning.
    ///
    /// # Errors
    /// Several series without a choice, or a choice of none or of more than one. Files that can't be read. Images without a place,
    /// of several sizes, directions or spacings, that are no regular stack along their normal, or of which several lie at one place;
    /// colours and inverted greys.
    pub fn open(path: &Path, choice: Option<&str>) -> Result<Series, DicomError> {
        let mut all: BTreeMap<String, Vec<Source>> = BTreeMap::new();
        let (mut others, mut no_images) = (Vec::new(), Vec::new());
        let files = match path.is_dir() {
            true => listed(path)?.0,
            false => vec![path.into()],
        };
        for file in files {
            if path.is_dir() && !is_dicom(&file) {
                others.push(file);
                continue;
            }
            if is_directory(&file) {
                no_images.push(file);
                continue;
            }
            let contents = contents(&file, false)?;
            let source = Source {
                path: file,
                elements: contents.elements,
            };
            let class = source.text(tags::SOP_CLASS_UID);
            if !contents.has_pixels || NO_SCANS.contains(&&*class) {
                no_images.push(source.path);
                continue;
            }
            let uid = source.text(tags::SERIES_INSTANCE_UID);
            all.entry(uid).or_default().push(source);
        }
        for (ignored, what) in [
            (&others, "are no DICOM files"),
            (&no_images, "hold no image of a scan"),
        ] {
            if !ignored.is_empty() && !all.is_empty() {
                let (count, names) = (ignored.len(), names(ignored));
                tracing::warn!(
                    "{}: {count} files {what}, and are ignored: {names}",
                    path.display()
                );
            }
        }
        if all.is_empty() {
            let problem = match no_images.is_empty() {
                true => "it holds no DICOM file".into(),
                false => format!(
                    "its DICOM files hold no image of a scan ({}); name the folder of the images",
                    names(&no_images)
                ),
            };
            return Err(Series::wrong(path, problem).into());
        }
        let found: Vec<Found> = all
            .iter()
            .map(|(uid, sources)| Found {
                uid: uid.clone(),
                number: sources[0].elements.text(tags::SERIES_NUMBER),
                description: sources[0].text(tags::SERIES_DESCRIPTION),
                modality: sources[0].text(tags::MODALITY),
                images: sources.iter().map(Source::frames).sum(),
            })
            .collect();
        let fitting = |found: &&Found| choice.is_none_or(|wanted| found.is(wanted));
        let chosen: Vec<&Found> = found.iter().filter(fitting).collect();
        let [chosen] = chosen[..] else {
            return Err(DicomError::Choice {
                path: path.into(),
                wanted: choice.map(str::to_owned),
                series: found,
            });
        };
        let sources = all.remove(&chosen.uid).expect("found in it");
        Ok(Series::arrange(path, sources)?)
    }

    fn wrong(path: &Path, problem: String) -> VolumeError {
        VolumeError::Format {
            path: path.into(),
            problem,
        }
    }

    /// Sorts the images of a series and checks that they are a scan.
    fn arrange(path: &Path, sources: Vec<Source>) -> Result<Series, VolumeError> {
        let sources = without_scouts(path, without_copies(path, sources));
        let first = &sources[0];
        let format = Format::of(&first.elements).map_err(|problem| first.error(problem))?;
        let mut slices = Vec::new();
        for (index, source) in sources.iter().enumerate() {
            let own = Format::of(&source.elements).map_err(|problem| source.error(problem))?;
            if (own.rows, own.columns) != (format.rows, format.columns) {
                return Err(source.error(format!(
                    "it has {}×{} pixels, and {} of the same series {}×{}",
                    own.columns,
                    own.rows,
                    first.path.display(),
                    format.columns,
                    format.rows
                )));
            }
            if !source.elements.items(tags::MODALITY_LUT_SEQUENCE).is_empty() {
                return Err(source.error(
                    "its values follow from a table (Modality LUT), which is not read; convert it to NIfTI"
                        .into(),
                ));
            }
            let of_source = slices_of(index, source, &own);
            slices.extend(of_source.map_err(|problem| source.error(problem))?);
        }
        let one = &slices[0];
        for other in &slices[1..] {
            let apart = |i: usize| (one.directions[i] - other.directions[i]).abs().max_element();
            let wider = |i: usize| (one.spacing[i] / other.spacing[i] - 1.0).abs();
            if (0..2).any(|i| apart(i) > SAME_DIRECTION || wider(i) > SAME_DIRECTION) {
                let (one, two) = (&sources[one.source], &sources[other.source]);
                return Err(two.error(format!(
                    "its image lies in another direction, or has pixels of another size, than that of {}, which is of the same \
                     series; put them into a folder each",
                    one.path.display()
                )));
            }
        }
        let normal = one.directions[0].cross(one.directions[1]).normalize();
        let along = |slice: &Slice| slice.position.dot(normal);
        slices.sort_by(|a, b| along(a).total_cmp(&along(b)));
        let affine = regular(&slices, &sources, normal).map_err(|problem| Series::wrong(path, problem))?;
        let shape = [format.columns, format.rows, slices.len()];
        // As a NIfTI file of this series would have it, so that both give the same labels.
        let mut header = SpatialHeader::from_affine(affine.as_mat4().as_dmat4());
        header.pixdim = header.pixdim.map(|size| f64::from(size as f32));
        let geometry = header.geometry(shape);
        let geometry = geometry.map_err(|problem| Series::wrong(path, problem))?;
        Ok(Series {
            path: path.into(),
            sources,
            slices,
            format,
            geometry,
        })
    }

    /// Where the scan lies.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The files of its images.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.sources.iter().map(|source| source.path.as_path())
    }

    /// Reads the voxels. Stored values are scaled as their image says (rescale slope and intercept).
    ///
    /// # Errors
    /// Files that have changed, are cut off or damaged, or whose transfer syntax is not read; more voxels than there is memory for.
    pub fn volume(&self) -> Result<Volume, VolumeError> {
        let [x, y, z] = self.geometry.shape;
        let too_large = |cause| VolumeError::Memory {
            path: self.path.clone(),
            what: format!("{:?} voxels", self.geometry.shape),
            cause,
        };
        let values = host_memory::bytes(&[x, y, z + PLANES.min(z)], size_of::<f32>());
        host_memory::require(values).map_err(too_large)?;
        let mut data = host_memory::zeros(x * y * z).map_err(too_large)?;
        let mut planes = vec![0.0; x * y * PLANES.min(z)];
        let mut read: Option<(usize, Contents, Format)> = None;
        for (block, slices) in self.slices.chunks(PLANES).enumerate() {
            for (slice, plane) in slices.iter().zip(planes.chunks_exact_mut(x * y)) {
                let source = &self.sources[slice.source];
                if read.as_ref().is_none_or(|(index, ..)| *index != slice.source) {
                    // One file's pixels at a time.
                    drop(read.take());
                    let contents = contents(&source.path, true)?;
                    let same = contents.elements.text(tags::SOP_INSTANCE_UID)
                        == source.elements.text(tags::SOP_INSTANCE_UID);
                    let format = Format::of(&contents.elements);
                    let format = format.map_err(|problem| source.error(problem))?;
                    let has = (format.rows, format.columns, format.frames > slice.frame);
                    if !same || has != (self.format.rows, self.format.columns, true) {
                        return Err(source.error("it has changed while it was read".into()));
                    }
                    read = Some((slice.source, contents, format));
                }
                let (_, contents, format) = read.as_ref().expect("just read");
                let pixels = contents.pixels.as_ref();
                let pixels = pixels.ok_or_else(|| source.error("its pixels are missing".into()))?;
                format
                    .decode(pixels, &contents.syntax, slice.frame, slice.scaling, plane)
                    .map_err(|problem| problem.at(&source.path))?;
            }
            for j in 0..y {
                for i in 0..x {
                    let at = (i * y + j) * z + block * PLANES;
                    for k in 0..slices.len() {
                        data[at + k] = planes[(k * y + j) * x + i];
                    }
                }
            }
        }
        Ok(Volume {
            data,
            channels: 1,
            geometry: self.geometry.clone(),
            non_finite: 0,
            source: self.path.clone(),
        })
    }
}

/// Leaves out files of an image that another file has.
fn without_copies(path: &Path, sources: Vec<Source>) -> Vec<Source> {
    let mut known = std::collections::HashSet::new();
    let (kept, copies): (Vec<Source>, Vec<Source>) = sources.into_iter().partition(|source| {
        let uid = source.elements.text(tags::SOP_INSTANCE_UID);
        uid.is_none_or(|uid| known.insert(uid))
    });
    warn_without(path, &copies, "are copies of other images of the series");
    kept
}

/// Leaves out the pictures by which a scan was planned, where there are others.
fn without_scouts(path: &Path, sources: Vec<Source>) -> Vec<Source> {
    let is_scout = |source: &Source| {
        let kind = source.elements.value(tags::IMAGE_TYPE);
        kind.is_some_and(|(_, value)| value.to_multi_str().iter().any(|part| part.trim() == "LOCALIZER"))
    };
    if sources.iter().all(is_scout) {
        return sources;
    }
    let (scouts, kept): (Vec<Source>, Vec<Source>) = sources.into_iter().partition(is_scout);
    warn_without(path, &scouts, "are localizers");
    kept
}

fn warn_without(path: &Path, sources: &[Source], what: &str) {
    if !sources.is_empty() {
        let paths: Vec<PathBuf> = sources.iter().map(|source| source.path.clone()).collect();
        let (count, names) = (paths.len(), names(&paths));
        tracing::warn!(
            "{}: {count} files {what}, and are ignored: {names}",
            path.display()
        );
    }
}

/// The images of a file.
fn slices_of(index: usize, source: &Source, format: &Format) -> Result<Vec<Slice>, String> {
    let elements = &source.elements;
    let frames = elements.items(tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE);
    if frames.is_empty() && format.frames == 1 {
        return Ok(vec![slice(index, 0, |_| Some(elements))?]);
    }
    if frames.len() != format.frames {
        return Err(format!(
            "it has {} frames, and says of {} where they lie",
            format.frames,
            frames.len()
        ));
    }
    let shared = elements.items(tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE).first();
    let of_frame = |(frame, own): (usize, &Elements)| {
        let group = |tag: Tag| own.items(tag).first().or(shared?.items(tag).first());
        slice(index, frame, |tag| group_of(tag).and_then(group))
            .map_err(|problem| format!("frame {}: {problem}", frame + 1))
    };
    frames.iter().enumerate().map(of_frame).collect()
}

/// The functional group that an element is in.
fn group_of(tag: Tag) -> Option<Tag> {
    Some(match tag {
        tags::IMAGE_POSITION_PATIENT => tags::PLANE_POSITION_SEQUENCE,
        tags::IMAGE_ORIENTATION_PATIENT => tags::PLANE_ORIENTATION_SEQUENCE,
        tags::PIXEL_SPACING => tags::PIXEL_MEASURES_SEQUENCE,
        tags::RESCALE_SLOPE | tags::RESCALE_INTERCEPT => tags::PIXEL_VALUE_TRANSFORMATION_SEQUENCE,
        _ => return None,
    })
}

/// An image, from the elements that `of` has each of its own in.
fn slice<'e>(source: usize, frame: usize, of: impl Fn(Tag) -> Option<&'e Elements>) -> Result<Slice, String> {
    let numbers = |tag: Tag, count: usize, name: &str| {
        let numbers = of(tag).and_then(|elements| elements.numbers(tag));
        let numbers = numbers.filter(|n| n.len() == count && n.iter().all(|n| n.is_finite()));
        numbers.ok_or_else(|| format!("it does not say where it lies ({name} is missing or wrong)"))
    };
    let position = numbers(tags::IMAGE_POSITION_PATIENT, 3, "ImagePositionPatient")?;
    let directions = numbers(tags::IMAGE_ORIENTATION_PATIENT, 6, "ImageOrientationPatient")?;
    let spacing = numbers(tags::PIXEL_SPACING, 2, "PixelSpacing")?;
    let directions = [
        DVec3::from_slice(&directions[..3]),
        DVec3::from_slice(&directions[3..]),
    ];
    let [row, column] = directions;
    let off = [row.length() - 1.0, column.length() - 1.0, row.dot(column)];
    if off.iter().any(|off| off.abs() > 1e-2) {
        return Err(format!(
            "its ImageOrientationPatient {:?} and {:?} are no two directions at right angles",
            row.to_array(),
            column.to_array()
        ));
    }
    if spacing.iter().any(|spacing| *spacing <= 0.0) {
        return Err(format!("its PixelSpacing is {spacing:?}"));
    }
    let scaling = |tag: Tag, usual: f64| match of(tag).map(|elements| elements.value(tag).is_some()) {
        Some(true) => of(tag).and_then(|elements| elements.number(tag)),
        _ => Some(usual),
    };
    let scaling = (
        scaling(tags::RESCALE_SLOPE, 1.0),
        scaling(tags::RESCALE_INTERCEPT, 0.0),
    );
    let (Some(slope), Some(intercept)) = scaling else {
        return Err("its rescale slope or intercept is no number".into());
    };
    let largest = slope.abs().max(intercept.abs());
    if slope == 0.0 || largest.is_nan() || largest > MOST_SCALING {
        return Err(format!(
            "its rescale slope is {slope} and its intercept {intercept}, which can't be"
        ));
    }
    Ok(Slice {
        source,
        frame,
        position: DVec3::from_slice(&position),
        directions,
        spacing: [spacing[1], spacing[0]],
        scaling: (slope, intercept),
    })
}

/// The affine of sorted slices, voxels to RAS+, where they are a regular stack.
fn regular(slices: &[Slice], sources: &[Source], normal: DVec3) -> Result<DMat4, String> {
    let name = |slice: &Slice| {
        let path = &sources[slice.source].path;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        match sources[slice.source].frames() {
            1 => name.into_owned(),
            _ => format!("frame {} of {name}", slice.frame + 1),
        }
    };
    let [first, .., last] = slices else {
        return Err("it has one image; a scan has two or more".into());
    };
    let count = slices.len();
    let along: Vec<f64> = slices.iter().map(|slice| slice.position.dot(normal)).collect();
    let mut gaps: Vec<f64> = along.windows(2).map(|pair| pair[1] - pair[0]).collect();
    // Where half of the images or more share a place, the median is nothing.
    let widest = gaps.iter().copied().fold(0.0, f64::max);
    let at_one_place = |gap: f64| gap <= SAME_PLACE * SAME_PLACE * widest;
    if let Some(i) = gaps.iter().position(|gap| at_one_place(*gap)) {
        let places = 1 + gaps.iter().filter(|gap| !at_one_place(**gap)).count();
        let (one, two) = (&slices[i], &slices[i + 1]);
        let [a, b] = [one, two].map(|slice| &sources[slice.source].elements);
        let differ = |(tag, _): &&(Tag, &str)| a.text(*tag) != b.text(*tag);
        let by = match DISTINCTIONS.iter().find(differ) {
            Some((tag, what)) => {
                let [a, b] = [a, b].map(|elements| shown(&elements.text(*tag).unwrap_or_default()));
                format!("they differ in {what}: {a} and {b}")
            }
            None => "nothing tells them apart".into(),
        };
        return Err(format!(
            "its {count} images lie at {places} places: {} and {} at the same one ({by}); put the images of each into a folder of \
             their own",
            name(one),
            name(two)
        ));
    }
    let mut sorted = gaps.clone();
    sorted.sort_by(f64::total_cmp);
    let usual = sorted[(sorted.len() - 1) / 2];
    gaps.iter_mut().for_each(|gap| *gap /= usual);
    if let Some(i) = gaps.iter().position(|gap| (gap - 1.0).abs() > SAME_PLACE) {
        let whole = gaps[i].round();
        let missing = match (gaps[i] - whole).abs() <= SAME_PLACE && whole > 1.0 {
            true => format!("{} are missing there", whole - 1.0),
            false => "they are not evenly spaced".into(),
        };
        return Err(format!(
            "its slices lie {:.3} mm apart, but {} and {} {:.3} mm: {missing}",
            usual,
            name(&slices[i]),
            name(&slices[i + 1]),
            gaps[i] * usual
        ));
    }
    let step = (last.position - first.position) / (count - 1) as f64;
    for (k, slice) in slices.iter().enumerate() {
        let off = slice.position - (first.position + step * k as f64);
        let aside = off - normal * off.dot(normal);
        if off.dot(normal).abs() > SAME_PLACE * usual || aside.length() > MOST_SHEAR * first.spacing[0] {
            return Err(format!(
                "its slices do not lie on a line: {} is {:.3} mm off it",
                name(slice),
                off.length()
            ));
        }
    }
    let whole = last.position - first.position;
    let aside = (whole - normal * whole.dot(normal)).length();
    if aside > MOST_SHEAR * first.spacing[0].min(first.spacing[1]) {
        return Err(format!(
            "its slices are shifted against each other, by {:.1}° from their normal: the scanner's gantry was tilted; resample it to a \
             grid with right angles, for example with dcm2niix",
            aside.atan2(whole.dot(normal)).to_degrees()
        ));
    }
    let [row, column] = first.directions;
    let axis = |vector: DVec3| (vector * DVec3::new(-1.0, -1.0, 1.0)).extend(0.0);
    Ok(DMat4::from_cols(
        axis(row * first.spacing[0]),
        axis(column * first.spacing[1]),
        axis(step),
        (first.position * DVec3::new(-1.0, -1.0, 1.0)).extend(1.0),
    ))
}
