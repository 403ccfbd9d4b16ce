//! Label maps as DICOM segmentations (PS3.3, A.51): a binary segment a label, a frame a slice that it has voxels in, each with the
//! image that it was found in.
//!
//! The same series and labels give the same bytes: UIDs are hashes of both, and dates are those of the study, since a clock would
//! make two files of one result differ.

use std::path::Path;

use dicom_core::value::DataSetSequence;
use dicom_core::{DataElement, PrimitiveValue, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};
use sha2::{Digest, Sha256};

use super::elements::COPIED;
use super::{Series, VolumeError};
use crate::dataset::Label;
use crate::file::write_beside;

/// Characters of a long string and of a short one.
const LONG: usize = 64;
const SHORT: usize = 16;
/// What stands for a date that the study does not have.
const NO_DATE: &str = "19000101";
/// Segments are numbered in 16 bits.
const MOST_SEGMENTS: usize = u16::MAX as usize;

/// A code of a scheme, with its meaning.
type Code = (&'static str, &'static str, &'static str);

const ANATOMY: Code = ("SCT", "123037004", "Anatomical Structure");
const LEFT: Code = ("SCT", "7771000", "Left");
const RIGHT: Code = ("SCT", "24028007", "Right");
const SEGMENTATION: Code = ("DCM", "113076", "Segmentation");
const SOURCE: Code = ("DCM", "121322", "Source image for image processing operation");

/// Organs by their names, with SNOMED CT's codes and meanings as PS3.16 has them.
const ORGANS: &[(&str, &str, &str)] = &[
    ("adrenal gland", "23451007", "Adrenal gland"),
    ("amygdala", "4958002", "Amygdala"),
    ("aorta", "15825003", "Aorta"),
    ("bladder", "89837001", "Bladder"),
    ("brain", "12738006", "Brain"),
    ("caudate nucleus", "11000004", "Caudate Nucleus"),
    ("cerebellum", "113305005", "Cerebellum"),
    ("colon", "71854001", "Colon"),
    ("duodenum", "38848004", "Duodenum"),
    ("esophagus", "32849002", "Esophagus"),
    ("femur", "71341001", "Femur"),
    ("gallbladder", "28231008", "Gallbladder"),
    ("globus pallidus", "14738005", "Globus Pallidus"),
    ("heart", "80891009", "Heart"),
    ("hippocampus", "5366008", "Hippocampus"),
    ("inferior vena cava", "64131007", "Inferior vena cava"),
    ("kidney", "64033007", "Kidney"),
    ("liver", "10200004", "Liver"),
    ("lung", "39607008", "Lung"),
    ("nucleus accumbens", "427667007", "Nucleus Accumbens"),
    ("pancreas", "15776009", "Pancreas"),
    ("portal vein", "32764006", "Portal vein"),
    ("prostate", "41216001", "Prostate"),
    ("putamen", "89278009", "Putamen"),
    ("small intestine", "30315005", "Small intestine"),
    ("spinal cord", "2748008", "Spinal cord"),
    ("spleen", "78961009", "Spleen"),
    ("stomach", "69695003", "Stomach"),
    ("thalamus", "42695009", "Thalamus"),
    ("trachea", "44567001", "Trachea"),
    ("uterus", "35039007", "Uterus"),
];

impl Series {
    /// Writes a label map `[X, Y, Z]` (z fastest) on this series' grid as a DICOM segmentation. Each of `names` but the background
    /// becomes a segment, in their order, whether it has voxels or not; frames without voxels are left out.
    ///
    /// # Errors
    /// Those of [`Series::encode_segmentation`], an existing file without `force`, or the operating system's refusal.
    pub fn write_segmentation(
        &self,
        path: &Path,
        labels: &[i32],
        names: &[Label],
        force: bool,
    ) -> Result<(), VolumeError> {
        let bytes = self.encode_segmentation(labels, names);
        let bytes = bytes.map_err(|problem| Series::wrong(&self.path, problem))?;
        write_beside(path, &bytes, force).map_err(|reason| VolumeError::Io {
            path: path.into(),
            reason,
        })
    }

    /// The bytes of the file that [`Series::write_segmentation`] writes.
    ///
    /// # Errors
    /// Labels that are not those of the grid or have no name; a series that lacks what a segmentation refers to.
    pub fn encode_segmentation(&self, labels: &[i32], names: &[Label]) -> Result<Vec<u8>, String> {
        let names: Vec<&Label> = names.iter().filter(|label| label.value != 0).collect();
        if names.is_empty() || names.len() > MOST_SEGMENTS {
            return Err(format!(
                "a segmentation of {} labels can't be written",
                names.len()
            ));
        }
        if labels.len() != self.geometry.voxels() {
            return Err(format!("{} labels for {}", labels.len(), self.geometry));
        }
        self.check_references()?;
        let frames = self.frames(labels, &names)?;
        let hash = self.hash(&frames, &names);
        let uid = |role: &str| uid(hash.clone().with(role.as_bytes()));
        let mut file = InMemDicomObject::new_empty();
        self.common(&mut file);
        let first = &self.sources[self.slices[0].source];
        let series = first.elements.count(tags::SERIES_NUMBER).unwrap_or(0);
        let series = series.saturating_add(1000).min(i32::MAX as usize).to_string();
        let described = match &*first.text(tags::SERIES_DESCRIPTION) {
            "" => "Segmentation".to_owned(),
            text => format!("Segmentation of {text}"),
        };
        let named: Vec<&str> = names.iter().map(|label| &*label.name).collect();
        let lossy = self
            .sources
            .iter()
            .any(|source| source.text(tags::LOSSY_IMAGE_COMPRESSION) == "01");
        let instance = uid("instance");
        for (tag, vr, value) in [
            (tags::SPECIFIC_CHARACTER_SET, VR::CS, "ISO_IR 192"),
            (tags::IMAGE_TYPE, VR::CS, "DERIVED\\PRIMARY"),
            (tags::SOP_CLASS_UID, VR::UI, uids::SEGMENTATION_STORAGE),
            (tags::SOP_INSTANCE_UID, VR::UI, &instance),
            (tags::MODALITY, VR::CS, "SEG"),
            (tags::MANUFACTURER, VR::LO, "obelisk"),
            (tags::MANUFACTURER_MODEL_NAME, VR::LO, "obelisk"),
            (tags::DEVICE_SERIAL_NUMBER, VR::LO, "1"),
            (tags::SOFTWARE_VERSIONS, VR::LO, env!("CARGO_PKG_VERSION")),
            (tags::SERIES_DESCRIPTION, VR::LO, &*short(&described, LONG)),
            (tags::SERIES_INSTANCE_UID, VR::UI, &*uid("series")),
            (tags::SERIES_NUMBER, VR::IS, &series),
            (tags::INSTANCE_NUMBER, VR::IS, "1"),
            (tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2"),
            (
                tags::LOSSY_IMAGE_COMPRESSION,
                VR::CS,
                if lossy { "01" } else { "00" },
            ),
            (tags::SEGMENTATION_TYPE, VR::CS, "BINARY"),
            (tags::SEGMENTS_OVERLAP, VR::CS, "NO"),
            (tags::CONTENT_LABEL, VR::CS, "SEGMENTATION"),
            (
                tags::CONTENT_DESCRIPTION,
                VR::LO,
                &*short(&named.join(", "), LONG),
            ),
            (tags::CONTENT_CREATOR_NAME, VR::PN, "obelisk"),
        ] {
            file.put(DataElement::new(tag, vr, multiple(value)));
        }
        if lossy {
            for tag in [
                tags::LOSSY_IMAGE_COMPRESSION_RATIO,
                tags::LOSSY_IMAGE_COMPRESSION_METHOD,
            ] {
                let found = self.sources.iter().find_map(|source| source.elements.value(tag));
                if let Some((vr, value)) = found {
                    file.put(DataElement::new(tag, vr, value.clone()));
                }
            }
        }
        for (tag, value) in [
            (tags::SAMPLES_PER_PIXEL, 1),
            (tags::ROWS, self.format.rows as u16),
            (tags::COLUMNS, self.format.columns as u16),
            (tags::BITS_ALLOCATED, 1),
            (tags::BITS_STORED, 1),
            (tags::HIGH_BIT, 0),
            (tags::PIXEL_REPRESENTATION, 0),
        ] {
            file.put(DataElement::new(tag, VR::US, PrimitiveValue::from(value)));
        }
        let count = frames.places.len().to_string();
        file.put(DataElement::new(tags::NUMBER_OF_FRAMES, VR::IS, count));
        self.references(&mut file);
        segments(&mut file, &names);
        self.dimensions(&mut file, &uid("dimensions"));
        let per_frame = frames.places.iter().map(|place| self.frame(*place));
        put_items(
            &mut file,
            tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE,
            per_frame.collect(),
        );
        file.put(DataElement::new(
            tags::PIXEL_DATA,
            VR::OB,
            PrimitiveValue::U8(frames.bits.into()),
        ));
        let meta = FileMetaTableBuilder::new()
            .media_storage_sop_class_uid(uids::SEGMENTATION_STORAGE)
            .media_storage_sop_instance_uid(&*instance)
            .transfer_syntax(uids::EXPLICIT_VR_LITTLE_ENDIAN)
            .implementation_version_name(short(&format!("OBELISK {}", env!("CARGO_PKG_VERSION")), SHORT));
        let mut bytes = Vec::new();
        let file = file.with_meta(meta).map_err(|e| e.to_string())?;
        file.write_all(&mut bytes).map_err(|e| e.to_string())?;
        Ok(bytes)
    }

    /// Whether the series has all that a segmentation refers to.
    fn check_references(&self) -> Result<(), String> {
        let first = &self.sources[self.slices[0].source];
        for (tag, what) in [
            (tags::FRAME_OF_REFERENCE_UID, "frame of reference"),
            (tags::STUDY_INSTANCE_UID, "study's UID"),
            (tags::SERIES_INSTANCE_UID, "series' UID"),
        ] {
            if !is_uid(&first.text(tag)) {
                return Err(format!(
                    "its images have no {what}, which a segmentation needs; write the labels in another format"
                ));
            }
        }
        let known = |source: &super::Source| {
            is_uid(&source.text(tags::SOP_INSTANCE_UID)) && is_uid(&source.text(tags::SOP_CLASS_UID))
        };
        match self.sources.iter().find(|source| !known(source)) {
            Some(source) => Err(format!(
                "{} has no UID of its own, to which a segmentation could refer; write the labels in another format",
                source.path.display()
            )),
            None => Ok(()),
        }
    }

    /// Where each label has voxels, and which.
    fn frames(&self, labels: &[i32], names: &[&Label]) -> Result<Frames, String> {
        let [x, y, z] = self.geometry.shape;
        let mut has = vec![false; names.len() * z];
        let mut last = (0, None);
        let mut segments = vec![0_u16; labels.len()];
        for (at, label) in labels.iter().enumerate() {
            if *label == 0 {
                continue;
            }
            if last.0 != *label {
                last = (*label, names.iter().position(|name| name.value == *label));
            }
            let Some(segment) = last.1 else {
                return Err(format!("the label {label} has no name"));
            };
            segments[at] = segment as u16 + 1;
            has[segment * z + at % z] = true;
        }
        let mut places: Vec<Place> = (0..has.len())
            .filter(|i| has[*i])
            .map(|i| Place {
                segment: i / z,
                slice: i % z,
            })
            .collect();
        if places.is_empty() {
            // A file of no frames can't be.
            places.push(Place { segment: 0, slice: 0 });
        }
        let pixels = x * y;
        let mut bits = vec![0_u8; (places.len() * pixels).div_ceil(8).next_multiple_of(2)];
        for (frame, place) in places.iter().enumerate() {
            let own = place.segment as u16 + 1;
            for j in 0..y {
                for i in 0..x {
                    if segments[(i * y + j) * z + place.slice] == own {
                        let bit = frame * pixels + j * x + i;
                        bits[bit / 8] |= 1 << (bit % 8);
                    }
                }
            }
        }
        Ok(Frames { places, bits })
    }

    fn hash(&self, frames: &Frames, names: &[&Label]) -> Hash {
        let mut hash = Hash::new().with(b"obelisk segmentation 1");
        for source in &self.sources {
            hash = hash.with(source.text(tags::SOP_INSTANCE_UID).as_bytes());
        }
        for label in names {
            hash = hash.with(&label.value.to_le_bytes()).with(label.name.as_bytes());
        }
        for place in &frames.places {
            hash = hash
                .with(&(place.segment as u64).to_le_bytes())
                .with(&(place.slice as u64).to_le_bytes());
        }
        hash.with(&frames.bits)
    }

    /// Patient, study, and the series' place in the patient.
    fn common(&self, file: &mut InMemDicomObject) {
        // Those that have to be there, even empty.
        for (tag, vr) in [
            (tags::PATIENT_NAME, VR::PN),
            (tags::PATIENT_ID, VR::LO),
            (tags::PATIENT_BIRTH_DATE, VR::DA),
            (tags::PATIENT_SEX, VR::CS),
            (tags::STUDY_DATE, VR::DA),
            (tags::STUDY_TIME, VR::TM),
            (tags::STUDY_ID, VR::SH),
            (tags::ACCESSION_NUMBER, VR::SH),
            (tags::REFERRING_PHYSICIAN_NAME, VR::PN),
            (tags::POSITION_REFERENCE_INDICATOR, VR::LO),
        ] {
            file.put(DataElement::new(tag, vr, PrimitiveValue::Empty));
        }
        let first = &self.sources[self.slices[0].source].elements;
        let also = [tags::BODY_PART_EXAMINED, tags::LATERALITY];
        for tag in COPIED.iter().chain(&also) {
            if let Some((vr, value)) = first.value(*tag) {
                file.put(DataElement::new(*tag, vr, value.clone()));
            }
        }
        let date = |dates: &[Tag]| dates.iter().find_map(|tag| first.text(*tag));
        let day = date(&[tags::STUDY_DATE, tags::ACQUISITION_DATE, tags::CONTENT_DATE]);
        let time = date(&[tags::STUDY_TIME, tags::ACQUISITION_TIME, tags::CONTENT_TIME]);
        let day = day.unwrap_or(NO_DATE.into());
        let time = time.unwrap_or("000000".into());
        for (tag, vr, value) in [
            (tags::CONTENT_DATE, VR::DA, &day),
            (tags::SERIES_DATE, VR::DA, &day),
            (tags::CONTENT_TIME, VR::TM, &time),
            (tags::SERIES_TIME, VR::TM, &time),
        ] {
            file.put(DataElement::new(tag, vr, value.as_str()));
        }
    }

    /// The images of the series.
    fn references(&self, file: &mut InMemDicomObject) {
        let instances = self.sources.iter().map(|source| {
            let mut item = InMemDicomObject::new_empty();
            referenced(&mut item, source);
            item
        });
        let mut series = InMemDicomObject::new_empty();
        put_items(
            &mut series,
            tags::REFERENCED_INSTANCE_SEQUENCE,
            instances.collect(),
        );
        let uid = self.sources[0].text(tags::SERIES_INSTANCE_UID);
        series.put(DataElement::new(tags::SERIES_INSTANCE_UID, VR::UI, uid));
        put_items(file, tags::REFERENCED_SERIES_SEQUENCE, vec![series]);
    }

    /// By what frames are ordered, and what all of them have.
    fn dimensions(&self, file: &mut InMemDicomObject, uid: &str) {
        let mut organisation = InMemDicomObject::new_empty();
        organisation.put(DataElement::new(tags::DIMENSION_ORGANIZATION_UID, VR::UI, uid));
        put_items(file, tags::DIMENSION_ORGANIZATION_SEQUENCE, vec![organisation]);
        let index = |pointer: Tag, group: Tag, name: &str| {
            let mut item = InMemDicomObject::new_empty();
            item.put(DataElement::new(tags::DIMENSION_ORGANIZATION_UID, VR::UI, uid));
            for (tag, value) in [
                (tags::DIMENSION_INDEX_POINTER, pointer),
                (tags::FUNCTIONAL_GROUP_POINTER, group),
            ] {
                item.put(DataElement::new(tag, VR::AT, PrimitiveValue::from(value)));
            }
            item.put(DataElement::new(tags::DIMENSION_DESCRIPTION_LABEL, VR::LO, name));
            item
        };
        let indices = vec![
            index(
                tags::REFERENCED_SEGMENT_NUMBER,
                tags::SEGMENT_IDENTIFICATION_SEQUENCE,
                "Segment",
            ),
            index(
                tags::IMAGE_POSITION_PATIENT,
                tags::PLANE_POSITION_SEQUENCE,
                "Slice",
            ),
        ];
        put_items(file, tags::DIMENSION_INDEX_SEQUENCE, indices);

        let first = &self.slices[0];
        let last = &self.slices[self.slices.len() - 1];
        let apart = first.position.distance(last.position) / (self.slices.len() - 1) as f64;
        let mut orientation = InMemDicomObject::new_empty();
        let directions = first.directions.map(|direction| direction.to_array());
        orientation.put(DataElement::new(
            tags::IMAGE_ORIENTATION_PATIENT,
            VR::DS,
            decimals(directions.as_flattened()),
        ));
        let mut measures = InMemDicomObject::new_empty();
        let [across, down] = first.spacing;
        for (tag, numbers) in [
            (tags::PIXEL_SPACING, &[down, across][..]),
            (tags::SLICE_THICKNESS, &[apart]),
            (tags::SPACING_BETWEEN_SLICES, &[apart]),
        ] {
            measures.put(DataElement::new(tag, VR::DS, decimals(numbers)));
        }
        let mut shared = InMemDicomObject::new_empty();
        put_items(&mut shared, tags::PLANE_ORIENTATION_SEQUENCE, vec![orientation]);
        put_items(&mut shared, tags::PIXEL_MEASURES_SEQUENCE, vec![measures]);
        put_items(file, tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE, vec![shared]);
    }

    /// The functional groups of a frame.
    fn frame(&self, place: Place) -> InMemDicomObject {
        let slice = &self.slices[place.slice];
        let source = &self.sources[slice.source];
        let mut content = InMemDicomObject::new_empty();
        let index = [place.segment as u32 + 1, place.slice as u32 + 1];
        content.put(DataElement::new(
            tags::DIMENSION_INDEX_VALUES,
            VR::UL,
            PrimitiveValue::U32(index.into()),
        ));
        let mut position = InMemDicomObject::new_empty();
        position.put(DataElement::new(
            tags::IMAGE_POSITION_PATIENT,
            VR::DS,
            decimals(&slice.position.to_array()),
        ));
        let mut segment = InMemDicomObject::new_empty();
        let number = place.segment as u16 + 1;
        segment.put(DataElement::new(
            tags::REFERENCED_SEGMENT_NUMBER,
            VR::US,
            PrimitiveValue::from(number),
        ));
        let mut image = InMemDicomObject::new_empty();
        referenced(&mut image, source);
        if source.frames() > 1 {
            let frame = (slice.frame + 1).to_string();
            image.put(DataElement::new(tags::REFERENCED_FRAME_NUMBER, VR::IS, frame));
        }
        image.put(DataElement::new(tags::SPATIAL_LOCATIONS_PRESERVED, VR::CS, "YES"));
        put_items(
            &mut image,
            tags::PURPOSE_OF_REFERENCE_CODE_SEQUENCE,
            vec![coded(SOURCE)],
        );
        let mut derivation = InMemDicomObject::new_empty();
        put_items(&mut derivation, tags::SOURCE_IMAGE_SEQUENCE, vec![image]);
        put_items(
            &mut derivation,
            tags::DERIVATION_CODE_SEQUENCE,
            vec![coded(SEGMENTATION)],
        );
        let mut frame = InMemDicomObject::new_empty();
        for (tag, item) in [
            (tags::FRAME_CONTENT_SEQUENCE, content),
            (tags::PLANE_POSITION_SEQUENCE, position),
            (tags::SEGMENT_IDENTIFICATION_SEQUENCE, segment),
            (tags::DERIVATION_IMAGE_SEQUENCE, derivation),
        ] {
            put_items(&mut frame, tag, vec![item]);
        }
        frame
    }
}

/// A frame's segment and slice, from 0.
#[derive(Debug, Clone, Copy)]
struct Place {
    segment: usize,
    slice: usize,
}

struct Frames {
    places: Vec<Place>,
    /// A bit a pixel, the lowest first, frame behind frame.
    bits: Vec<u8>,
}

fn segments(file: &mut InMemDicomObject, names: &[&Label]) {
    let items = names.iter().enumerate().map(|(index, label)| {
        let mut item = InMemDicomObject::new_empty();
        let number = PrimitiveValue::from(index as u16 + 1);
        item.put(DataElement::new(tags::SEGMENT_NUMBER, VR::US, number));
        let name = match short(&label.name, LONG) {
            name if name.is_empty() => format!("label {}", label.value),
            name => name,
        };
        for (tag, vr, value) in [
            (tags::SEGMENT_LABEL, VR::LO, &*name),
            (
                tags::SEGMENT_DESCRIPTION,
                VR::ST,
                &*format!("label {}", label.value),
            ),
            (tags::SEGMENT_ALGORITHM_TYPE, VR::CS, "AUTOMATIC"),
            (tags::SEGMENT_ALGORITHM_NAME, VR::LO, "obelisk"),
        ] {
            item.put(DataElement::new(tag, vr, value));
        }
        let (kind, side) = codes(&label.name);
        put_items(
            &mut item,
            tags::SEGMENTED_PROPERTY_CATEGORY_CODE_SEQUENCE,
            vec![coded(ANATOMY)],
        );
        let mut kind = coded(kind);
        if let Some(side) = side {
            put_items(
                &mut kind,
                tags::SEGMENTED_PROPERTY_TYPE_MODIFIER_CODE_SEQUENCE,
                vec![coded(side)],
            );
        }
        put_items(&mut item, tags::SEGMENTED_PROPERTY_TYPE_CODE_SEQUENCE, vec![kind]);
        // That of pictures, which only the program has.
        #[cfg(feature = "cli")]
        item.put(DataElement::new(
            tags::RECOMMENDED_DISPLAY_CIE_LAB_VALUE,
            VR::US,
            PrimitiveValue::U16(lab(crate::picture::label_colour(index + 1)).into_iter().collect()),
        ));
        item
    });
    put_items(file, tags::SEGMENT_SEQUENCE, items.collect());
}

/// What a label is, and on which side, where its name says so.
fn codes(name: &str) -> (Code, Option<Code>) {
    let name = name.to_lowercase().replace(['_', '-', '.'], " ");
    let words: Vec<&str> = name.split_whitespace().collect();
    let sides: Vec<Code> = words
        .iter()
        .filter_map(|word| match *word {
            "left" | "l" => Some(LEFT),
            "right" | "r" => Some(RIGHT),
            _ => None,
        })
        .collect();
    let is_side = |word: &&str| matches!(*word, "left" | "right" | "l" | "r");
    let rest: Vec<&str> = words.into_iter().filter(|word| !is_side(word)).collect();
    let rest = rest.join(" ");
    let found = ORGANS.iter().find(|(organ, ..)| *organ == rest);
    match (found, &sides[..]) {
        (Some((_, code, meaning)), []) => (("SCT", code, meaning), None),
        (Some((_, code, meaning)), [side]) => (("SCT", code, meaning), Some(*side)),
        _ => (ANATOMY, None),
    }
}

fn coded((scheme, value, meaning): Code) -> InMemDicomObject {
    let mut item = InMemDicomObject::new_empty();
    item.put(DataElement::new(tags::CODE_VALUE, VR::SH, value));
    item.put(DataElement::new(tags::CODING_SCHEME_DESIGNATOR, VR::SH, scheme));
    item.put(DataElement::new(tags::CODE_MEANING, VR::LO, meaning));
    item
}

/// Refers to an image.
fn referenced(item: &mut InMemDicomObject, source: &super::Source) {
    for (tag, of) in [
        (tags::REFERENCED_SOP_CLASS_UID, tags::SOP_CLASS_UID),
        (tags::REFERENCED_SOP_INSTANCE_UID, tags::SOP_INSTANCE_UID),
    ] {
        item.put(DataElement::new(tag, VR::UI, source.text(of)));
    }
}

fn put_items(object: &mut InMemDicomObject, tag: Tag, items: Vec<InMemDicomObject>) {
    object.put(DataElement::new(tag, VR::SQ, DataSetSequence::from(items)));
}

/// The values of text that has several, with `\` between them.
fn multiple(text: &str) -> PrimitiveValue {
    PrimitiveValue::Strs(text.split('\\').map(str::to_owned).collect())
}

/// Numbers in 16 characters each (PS3.5, DS), as exactly as these allow.
fn decimals(numbers: &[f64]) -> PrimitiveValue {
    PrimitiveValue::Strs(numbers.iter().map(|number| decimal(*number)).collect())
}

fn decimal(number: f64) -> String {
    let plain = format!("{}", number + 0.0);
    if plain.len() <= SHORT {
        return plain;
    }
    // Rounded up, the largest numbers are infinite.
    let is_number = |text: &String| text.parse().is_ok_and(f64::is_finite);
    let fitting = |text: &String| text.len() <= SHORT && is_number(text);
    let fixed = (0..SHORT).rev().map(|digits| format!("{number:.digits$}"));
    let scientific = (0..SHORT).rev().map(|digits| format!("{number:.digits$e}"));
    let off = |text: &String| (text.parse::<f64>().unwrap_or(f64::INFINITY) - number).abs();
    let candidates = [fixed.clone().find(fitting), scientific.clone().find(fitting)];
    let best = candidates
        .into_iter()
        .flatten()
        .min_by(|a, b| off(a).total_cmp(&off(b)));
    best.expect("a number of one digit and an exponent fits")
}

/// The start of a text, without what no line may have.
fn short(text: &str, most: usize) -> String {
    let fine = |c: &char| !c.is_control() && *c != '\\';
    let start: String = text.chars().filter(fine).take(most).collect();
    start.trim().to_owned()
}

/// Whether text is a UID: digits and points.
fn is_uid(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

/// sRGB as PCS values: CIE L*a*b* for the white D50, L* of 100 and a*, b* of 255 as 65535 (PS3.3, C.10.7.1.1).
#[cfg(feature = "cli")]
fn lab(colour: [u8; 3]) -> [u16; 3] {
    let linear = colour.map(|value| {
        let value = f64::from(value) / 255.0;
        match value <= 0.04045 {
            true => value / 12.92,
            false => ((value + 0.055) / 1.055).powf(2.4),
        }
    });
    // sRGB's primaries, adapted from D65 to D50 by Bradford's transform, over the white.
    let rows = [
        [0.4360747, 0.3850649, 0.1430804],
        [0.2225045, 0.7168786, 0.0606169],
        [0.0139322, 0.0971045, 0.7141733],
    ];
    let xyz = rows.map(|row: [f64; 3]| {
        let value: f64 = row.iter().zip(linear).map(|(w, v)| w * v).sum();
        value / row.iter().sum::<f64>()
    });
    let [x, y, z] = xyz.map(|t| match t > 216.0 / 24389.0 {
        true => t.cbrt(),
        false => (24389.0 / 27.0 * t + 16.0) / 116.0,
    });
    let scaled = |value: f64, low: f64, width: f64| ((value - low) / width * 65535.0).round() as u16;
    [
        scaled(116.0 * y - 16.0, 0.0, 100.0),
        scaled(500.0 * (x - y), -128.0, 255.0),
        scaled(200.0 * (y - z), -128.0, 255.0),
    ]
}

/// SHA-256 of pieces with their lengths.
#[derive(Clone)]
struct Hash(Sha256);

impl Hash {
    fn new() -> Hash {
        Hash(Sha256::new())
    }

    fn with(mut self, bytes: &[u8]) -> Hash {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }
}

/// A UUID of one's own making (RFC 9562, version 8), as a UID (PS3.5, B.2).
fn uid(hash: Hash) -> String {
    let first = hash.0.finalize()[..16].try_into().expect("it has 32 bytes");
    let versioned = u128::from_be_bytes(first) & !(0xf << 76) | 0x8 << 76;
    let uuid = versioned & !(0b11 << 62) | 0b10 << 62;
    format!("2.25.{uuid}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fit_into_16_characters() {
        for (number, text) in [
            (0.0, "0"),
            (-0.0, "0"),
            (-123.456, "-123.456"),
            (0.5, "0.5"),
            (1.0 / 3.0, "0.33333333333333"),
            (-1.0 / 3.0, "-0.3333333333333"),
            (-1234.567890123456, "-1234.5678901235"),
            (1.23456789012345e-7, "1.23456789012e-7"),
        ] {
            assert_eq!(decimal(number), text);
        }
        for number in [f64::MIN_POSITIVE, -f64::MAX, 1e300 / 7.0, -2.0 / 3e7] {
            let text = decimal(number);
            assert!(text.len() <= SHORT, "{text}");
            assert!(
                (text.parse::<f64>().unwrap() / number - 1.0).abs() < 1e-7,
                "{text}"
            );
        }
    }

    #[test]
    fn names_have_codes() {
        let kidney = ("SCT", "64033007", "Kidney");
        assert_eq!(codes("kidney"), (kidney, None));
        assert_eq!(codes("Left_Kidney"), (kidney, Some(LEFT)));
        assert_eq!(codes("kidney right"), (kidney, Some(RIGHT)));
        assert_eq!(codes("left right kidney"), (ANATOMY, None));
        assert_eq!(codes("anterior"), (ANATOMY, None));
    }

    /// Against colour-science's `RGB_to_XYZ` and `XYZ_to_Lab` for D50.
    #[cfg(feature = "cli")]
    #[test]
    fn colours_are_of_d50() {
        assert_eq!(lab([255; 3]), [65535, 32896, 32896]);
        assert_eq!(lab([0; 3]), [0, 32896, 32896]);
        let [l, a, b] = lab([255, 0, 0]).map(f64::from);
        assert!((l / 655.35 - 54.29).abs() < 0.02);
        assert!((a / 257.0 - 128.0 - 80.81).abs() < 0.02 && (b / 257.0 - 128.0 - 69.89).abs() < 0.02);
    }

    /// The published SHA-256 of nothing, with a version in it.
    #[test]
    fn uids_are_of_hashes() {
        let uid = uid(Hash::new());
        assert_eq!(
            uid,
            format!("2.25.{}", 0xe3b0_c442_98fc_8c14_9afb_f4c8_996f_b924_u128)
        );
        assert!(is_uid(&uid), "{uid}");
        let one = super::uid(Hash::new().with(b"ab"));
        assert_ne!(one, super::uid(Hash::new().with(b"a").with(b"b")));
    }
}
