//! A file's elements, by dicom-rs's parser, of which only those are kept that something here asks for.
//!
//! The parser allocates what an element promises, so each promise is checked against what is left of the file first.

use std::cell::Cell;
use std::io::{self, BufReader, Read};
use std::rc::Rc;

use dicom_core::{Length, PrimitiveValue, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_encoding::{Codec, TransferSyntax, TransferSyntaxIndex};
use dicom_parser::dataset::{DataSetReader, DataToken};
use dicom_parser::stateful::decode::DynStatefulDecoder;
use dicom_transfer_syntax_registry::TransferSyntaxRegistry;

use crate::host_memory;
use crate::volume::file::{Problem, wrong};

/// Bytes before the four of [`MAGIC`].
const PREAMBLE: usize = 128;
const MAGIC: [u8; 4] = *b"DICM";
/// Bytes of the group that says how the rest is written.
const MOST_META: u32 = 64 << 10;
/// Bytes of an element other than pixels.
const MOST_VALUE: u32 = 64 << 20;
/// Bytes of an element that is split at backslashes: each piece takes many times its bytes.
const MOST_TEXT: u32 = 1 << 20;
/// Items that are kept of a file.
const MOST_ITEMS: usize = 300_000;
/// Sequences within sequences.
const MOST_DEPTH: usize = 16;
/// Deflate makes no more bytes of one.
const MOST_INFLATION: u64 = 1032;

/// Elements of a series that its segmentation has as well, or from which it follows.
pub(super) const COPIED: &[Tag] = &[
    tags::PATIENT_NAME,
    tags::PATIENT_ID,
    tags::ISSUER_OF_PATIENT_ID,
    tags::PATIENT_BIRTH_DATE,
    tags::PATIENT_SEX,
    tags::PATIENT_AGE,
    tags::PATIENT_SIZE,
    tags::PATIENT_WEIGHT,
    tags::PATIENT_COMMENTS,
    tags::PATIENT_IDENTITY_REMOVED,
    tags::DEIDENTIFICATION_METHOD,
    tags::STUDY_INSTANCE_UID,
    tags::STUDY_DATE,
    tags::STUDY_TIME,
    tags::STUDY_ID,
    tags::STUDY_DESCRIPTION,
    tags::ACCESSION_NUMBER,
    tags::REFERRING_PHYSICIAN_NAME,
    tags::TIMEZONE_OFFSET_FROM_UTC,
    tags::FRAME_OF_REFERENCE_UID,
    tags::POSITION_REFERENCE_INDICATOR,
];

/// Other elements that are read, in any sequence.
const READ: &[Tag] = &[
    tags::SOP_CLASS_UID,
    tags::SOP_INSTANCE_UID,
    tags::SERIES_INSTANCE_UID,
    tags::SERIES_NUMBER,
    tags::SERIES_DESCRIPTION,
    tags::MODALITY,
    tags::IMAGE_TYPE,
    tags::BODY_PART_EXAMINED,
    tags::LATERALITY,
    tags::LOSSY_IMAGE_COMPRESSION,
    tags::LOSSY_IMAGE_COMPRESSION_RATIO,
    tags::LOSSY_IMAGE_COMPRESSION_METHOD,
    // How the pixels are written.
    tags::ROWS,
    tags::COLUMNS,
    tags::NUMBER_OF_FRAMES,
    tags::SAMPLES_PER_PIXEL,
    tags::PHOTOMETRIC_INTERPRETATION,
    tags::BITS_ALLOCATED,
    tags::BITS_STORED,
    tags::HIGH_BIT,
    tags::PIXEL_REPRESENTATION,
    tags::RESCALE_SLOPE,
    tags::RESCALE_INTERCEPT,
    tags::MODALITY_LUT_SEQUENCE,
    // Where they lie.
    tags::IMAGE_POSITION_PATIENT,
    tags::IMAGE_ORIENTATION_PATIENT,
    tags::PIXEL_SPACING,
    tags::SLICE_THICKNESS,
    tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE,
    tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE,
    tags::PLANE_POSITION_SEQUENCE,
    tags::PLANE_ORIENTATION_SEQUENCE,
    tags::PIXEL_MEASURES_SEQUENCE,
    tags::PIXEL_VALUE_TRANSFORMATION_SEQUENCE,
    // By what images of one place may differ.
    tags::INSTANCE_NUMBER,
    tags::ACQUISITION_NUMBER,
    tags::ACQUISITION_TIME,
    tags::CONTENT_DATE,
    tags::CONTENT_TIME,
    tags::ACQUISITION_DATE,
    tags::ECHO_TIME,
    tags::ECHO_NUMBERS,
    tags::TEMPORAL_POSITION_IDENTIFIER,
    tags::TRIGGER_TIME,
    tags::DIFFUSION_B_VALUE,
    tags::CONVOLUTION_KERNEL,
];

/// The elements that are kept, of a file or of an item.
#[derive(Debug, Clone, Default)]
pub(super) struct Elements(Vec<(Tag, Content)>);

#[derive(Debug, Clone)]
enum Content {
    Value(VR, PrimitiveValue),
    Items(Vec<Elements>),
}

impl Elements {
    fn find(&self, tag: Tag) -> Option<&Content> {
        self.0.iter().find(|(own, _)| *own == tag).map(|(_, c)| c)
    }

    pub fn value(&self, tag: Tag) -> Option<(VR, &PrimitiveValue)> {
        match self.find(tag)? {
            Content::Value(vr, value) => Some((*vr, value)),
            Content::Items(_) => None,
        }
    }

    pub fn items(&self, tag: Tag) -> &[Elements] {
        match self.find(tag) {
            Some(Content::Items(items)) => items,
            _ => &[],
        }
    }

    /// An element's text without the padding; `None` where there is none.
    pub fn text(&self, tag: Tag) -> Option<String> {
        let (_, value) = self.value(tag)?;
        let text = value.to_str();
        let text = text.trim_matches([' ', '\0']);
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// All numbers of an element; `None` where there are none or other things.
    pub fn numbers(&self, tag: Tag) -> Option<Vec<f64>> {
        let (_, value) = self.value(tag)?;
        let numbers = value.to_multi_float64().ok()?;
        (!numbers.is_empty()).then_some(numbers)
    }

    /// The only number of an element.
    pub fn number(&self, tag: Tag) -> Option<f64> {
        match self.numbers(tag)?[..] {
            [number] => Some(number),
            _ => None,
        }
    }

    /// The only number of an element, where it is whole and fits.
    pub fn count(&self, tag: Tag) -> Option<usize> {
        let number = self.number(tag)?;
        (number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number)).then_some(number as usize)
    }
}

/// The pixels of a file as they are stored.
pub(super) enum Pixels {
    /// Bytes of all frames, little endian.
    Native(Vec<u8>),
    /// Compressed pieces, and where each frame's begin, counted from the first piece's header, if the file says.
    Pieces { offsets: Vec<u32>, pieces: Vec<Vec<u8>> },
}

/// What was read of a file.
pub(super) struct Contents {
    pub elements: Elements,
    /// The UID of the transfer syntax: how elements and pixels are written.
    pub syntax: String,
    pub has_pixels: bool,
    /// Where they were asked for.
    pub pixels: Option<Pixels>,
}

/// Whether these first bytes are those of a DICOM file.
pub(super) fn is_dicom(start: &[u8]) -> bool {
    start.get(PREAMBLE..PREAMBLE + 4) == Some(&MAGIC)
}

/// The name of a transfer syntax.
pub(super) fn syntax_name(uid: &str) -> String {
    match TransferSyntaxRegistry.get(uid) {
        Some(syntax) => format!("{} ({})", syntax.name(), syntax.uid()),
        None => format!("`{}`", uid.escape_debug()),
    }
}

/// Reads a file of `length` bytes; its pixels only where it is asked for.
pub(super) fn read<'r, R: Read + 'r>(mut reader: R, length: u64, pixels: bool) -> Result<Contents, Problem> {
    let mut start = [0; PREAMBLE + 4];
    reader.read_exact(&mut start)?;
    if !is_dicom(&start) {
        return wrong("it is no DICOM file");
    }
    let (syntax, before) = transfer_syntax(&mut reader, length)?;
    let Some(known) = TransferSyntaxRegistry.get(&syntax) else {
        return wrong(format!(
            "its transfer syntax {} is not known",
            syntax_name(&syntax)
        ));
    };
    let most = length.saturating_sub(before);
    let (source, most): (Box<dyn Read + 'r>, _) = match known.codec() {
        Codec::Dataset(Some(adapter)) => {
            let inflated = adapter.adapt_reader(Box::new(reader));
            (
                Box::new(BufReader::new(inflated)),
                most.saturating_mul(MOST_INFLATION),
            )
        }
        Codec::Dataset(None) => {
            let name = syntax_name(&syntax);
            return wrong(format!("its transfer syntax {name} is not read; decompress it"));
        }
        _ => (Box::new(reader), most),
    };
    let mut parser = Parser::new(source, most, known)?;
    let mut contents = Contents {
        elements: Elements::default(),
        syntax,
        has_pixels: false,
        pixels: None,
    };
    parser.file(&mut contents, pixels)?;
    Ok(contents)
}

/// Reads the group in front of the elements: the transfer syntax, and the bytes up to the group's end.
fn transfer_syntax<R: Read>(reader: &mut R, length: u64) -> Result<(String, u64), Problem> {
    // (0002,0000), UL, 4 bytes: how long the group is.
    let mut first = [0; 12];
    reader.read_exact(&mut first)?;
    if first[..8] != [2, 0, 0, 0, b'U', b'L', 4, 0] {
        return wrong("it has no group of file meta elements, as DICOM files have");
    }
    let bytes = u32::from_le_bytes(first[8..].try_into().expect("4 bytes"));
    if bytes > MOST_META || u64::from(bytes) > length {
        return wrong(format!("its file meta elements have {bytes} bytes"));
    }
    let mut group = vec![0; bytes as usize];
    reader.read_exact(&mut group)?;
    let explicit = TransferSyntaxRegistry
        .get(uids::EXPLICIT_VR_LITTLE_ENDIAN)
        .expect("the registry has it");
    let mut parser = Parser::new(Box::new(&group[..]), u64::from(bytes), explicit)?;
    let elements = parser.elements(0, &[tags::TRANSFER_SYNTAX_UID])?;
    match elements.text(tags::TRANSFER_SYNTAX_UID) {
        Some(uid) => Ok((
            uid,
            (PREAMBLE + MAGIC.len() + first.len()) as u64 + u64::from(bytes),
        )),
        None => wrong("it does not say its transfer syntax"),
    }
}

/// Counts what is left of a stream.
struct Counted<'a> {
    reader: Box<dyn Read + 'a>,
    left: Rc<Cell<u64>>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.left.set(self.left.get().saturating_sub(count as u64));
        Ok(count)
    }
}

struct Parser<'a> {
    tokens: DataSetReader<DynStatefulDecoder<Counted<'a>>>,
    left: Rc<Cell<u64>>,
    items: usize,
}

fn cut_off() -> Problem {
    io::Error::from(io::ErrorKind::UnexpectedEof).into()
}

impl<'a> Parser<'a> {
    fn new(reader: Box<dyn Read + 'a>, most: u64, syntax: &TransferSyntax) -> Result<Self, Problem> {
        let left = Rc::new(Cell::new(most));
        let counted = Counted {
            reader,
            left: left.clone(),
        };
        let tokens = DataSetReader::new_with_ts(counted, syntax);
        Ok(Parser {
            tokens: tokens.map_err(|e| Problem::Format(e.to_string()))?,
            left,
            items: 0,
        })
    }

    fn next(&mut self) -> Result<Option<DataToken>, Problem> {
        let damaged = |error: dicom_parser::dataset::read::Error| match is_cut_off(&error) {
            true => cut_off(),
            false => Problem::Format(format!("its elements are damaged ({})", causes(&error))),
        };
        self.tokens.next().transpose().map_err(damaged)
    }

    /// A file's elements up to its pixels, and those.
    fn file(&mut self, contents: &mut Contents, pixels: bool) -> Result<(), Problem> {
        let mut kept = Elements::default();
        while let Some(token) = self.next()? {
            match token {
                DataToken::ElementHeader(header) if header.tag == tags::PIXEL_DATA => {
                    contents.has_pixels = true;
                    if pixels {
                        self.holds(header.len)?;
                        let bytes = host_memory::bytes(&[header.len.0 as usize], 2);
                        let too_large = |e| Problem::Memory("its pixels".into(), e);
                        host_memory::require(bytes).map_err(too_large)?;
                        if let Some(DataToken::PrimitiveValue(value)) = self.next()? {
                            contents.pixels = Some(Pixels::Native(little_endian(value)?));
                        }
                    }
                    break;
                }
                DataToken::PixelSequenceStart => {
                    contents.has_pixels = true;
                    if pixels {
                        contents.pixels = Some(self.pieces()?);
                    }
                    break;
                }
                token => self.keep(token, 0, &mut kept, &[COPIED, READ])?,
            }
        }
        contents.elements = kept;
        Ok(())
    }

    /// Elements up to the end of an item or of the stream.
    fn elements(&mut self, depth: usize, wanted: &[Tag]) -> Result<Elements, Problem> {
        let mut kept = Elements::default();
        loop {
            match self.next()? {
                None if depth == 0 => return Ok(kept),
                None => return Err(cut_off()),
                Some(DataToken::ItemEnd) if depth > 0 => return Ok(kept),
                Some(token) => self.keep(token, depth, &mut kept, &[wanted])?,
            }
        }
    }

    /// Reads an element, and keeps it where it is wanted.
    fn keep(
        &mut self,
        token: DataToken,
        depth: usize,
        kept: &mut Elements,
        wanted: &[&[Tag]],
    ) -> Result<(), Problem> {
        let is_wanted = |tag: Tag| wanted.iter().any(|tags| tags.contains(&tag));
        match token {
            DataToken::ElementHeader(header) => {
                self.holds(header.len)?;
                let split = !matches!(
                    header.vr,
                    VR::OB
                        | VR::OD
                        | VR::OF
                        | VR::OL
                        | VR::OV
                        | VR::OW
                        | VR::UN
                        | VR::UT
                        | VR::ST
                        | VR::LT
                        | VR::UR
                );
                let most = if split { MOST_TEXT } else { MOST_VALUE };
                if header.len.0 > most {
                    return wrong(format!("its element {} has {} bytes", header.tag, header.len.0));
                }
                match self.next()? {
                    Some(DataToken::PrimitiveValue(value)) => {
                        if is_wanted(header.tag) {
                            kept.0.push((header.tag, Content::Value(header.vr, value)));
                        }
                        Ok(())
                    }
                    _ => Err(cut_off()),
                }
            }
            DataToken::SequenceStart { tag, .. } => {
                let items = self.sequence(depth + 1, is_wanted(tag))?;
                if is_wanted(tag) {
                    kept.0.push((tag, Content::Items(items)));
                }
                Ok(())
            }
            // Pixels of an icon within a sequence.
            DataToken::PixelSequenceStart => self.pieces().map(drop),
            _ => wrong("its elements are damaged: an item stands outside of a sequence"),
        }
    }

    fn sequence(&mut self, depth: usize, is_wanted: bool) -> Result<Vec<Elements>, Problem> {
        if depth > MOST_DEPTH {
            return wrong(format!(
                "its sequences lie within each other more than {MOST_DEPTH} deep"
            ));
        }
        let mut items = Vec::new();
        loop {
            match self.next()? {
                Some(DataToken::ItemStart { .. }) => {
                    let wanted = if is_wanted { READ } else { &[] };
                    let item = self.elements(depth, wanted)?;
                    if is_wanted {
                        self.items += 1;
                        if self.items > MOST_ITEMS {
                            return wrong(format!("its sequences have more than {MOST_ITEMS} items"));
                        }
                        items.push(item);
                    }
                }
                Some(DataToken::SequenceEnd) => return Ok(items),
                None => return Err(cut_off()),
                Some(_) => return wrong("its elements are damaged: a sequence holds no items"),
            }
        }
    }

    /// The pieces of compressed pixels, behind their start.
    fn pieces(&mut self) -> Result<Pixels, Problem> {
        let (mut offsets, mut pieces) = (Vec::new(), Vec::new());
        let mut is_table = true;
        let mut held = 0_u64;
        loop {
            match self.next()? {
                Some(DataToken::ItemStart { len }) => {
                    self.holds(len)?;
                    held += u64::from(len.0);
                    let too_large = |e| Problem::Memory("its compressed pixels".into(), e);
                    host_memory::require(held).map_err(too_large)?;
                }
                Some(DataToken::OffsetTable(table)) => offsets = table,
                Some(DataToken::ItemValue(piece)) => pieces.push(piece),
                Some(DataToken::ItemEnd) => is_table = false,
                Some(DataToken::SequenceEnd) => break,
                None if is_table => return Err(cut_off()),
                // Some writers leave out the end.
                None => break,
                Some(_) => return wrong("its compressed pixels are damaged"),
            }
        }
        Ok(Pixels::Pieces { offsets, pieces })
    }

    /// Whether there are as many bytes as an element promises.
    fn holds(&self, length: Length) -> Result<(), Problem> {
        match length.get() {
            Some(bytes) if u64::from(bytes) <= self.left.get() => Ok(()),
            Some(_) => Err(cut_off()),
            None => wrong("its elements are damaged: a value has no length"),
        }
    }
}

/// Whether an error comes of a file that ends too early.
fn is_cut_off(error: &(dyn std::error::Error + 'static)) -> bool {
    let own = error.downcast_ref::<io::Error>();
    own.is_some_and(|e| e.kind() == io::ErrorKind::UnexpectedEof) || error.source().is_some_and(is_cut_off)
}

/// An error with what caused it, in a line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}

/// The bytes of pixels that are not compressed, little endian.
fn little_endian(value: PrimitiveValue) -> Result<Vec<u8>, Problem> {
    Ok(match value {
        PrimitiveValue::U8(bytes) => bytes.into_vec(),
        PrimitiveValue::U16(words) => words.iter().flat_map(|word| word.to_le_bytes()).collect(),
        PrimitiveValue::U32(words) => words.iter().flat_map(|word| word.to_le_bytes()).collect(),
        PrimitiveValue::Empty => Vec::new(),
        _ => return wrong("its pixels are not numbers"),
    })
}
