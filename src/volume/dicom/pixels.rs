//! From stored pixels to a frame's values.
//!
//! Runs of bytes (RLE) are decoded here: dicom-rs's decoder trusts the numbers of a piece's header. JPEG is left to a crate, once the
//! picture's header says that it is lossless and of the size that the file promises.

use std::borrow::Cow;

use dicom_dictionary_std::{tags, uids};
use jpeg_decoder::{CodingProcess, Decoder, PixelFormat};

use super::elements::{Elements, Pixels, syntax_name};
use crate::volume::file::{Problem, wrong};

/// How a file's pixels are written.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Format {
    pub rows: usize,
    pub columns: usize,
    pub frames: usize,
    /// Bytes of a pixel: 1, 2 or 4.
    bytes: usize,
    /// Bits that count, and the place of the lowest.
    bits: (u32, u32),
    signed: bool,
}

impl Format {
    /// Of a file's elements.
    ///
    /// # Errors
    /// Colours, inverted greys, and numbers that can't be.
    pub fn of(elements: &Elements) -> Result<Format, String> {
        let count = |tag, name: &str| {
            let value = elements.count(tag);
            value.ok_or_else(|| format!("it does not say its {name}"))
        };
        let (rows, columns) = (count(tags::ROWS, "rows")?, count(tags::COLUMNS, "columns")?);
        let allocated = count(tags::BITS_ALLOCATED, "bits allocated")?;
        let stored = elements.count(tags::BITS_STORED).unwrap_or(allocated);
        let high = elements.count(tags::HIGH_BIT).unwrap_or(stored.saturating_sub(1));
        let signed = elements.count(tags::PIXEL_REPRESENTATION).unwrap_or(0);
        let frames = elements.count(tags::NUMBER_OF_FRAMES).unwrap_or(1);
        let samples = elements.count(tags::SAMPLES_PER_PIXEL).unwrap_or(1);
        let photometric = elements.text(tags::PHOTOMETRIC_INTERPRETATION);
        match photometric.as_deref() {
            Some("MONOCHROME2") | None if samples == 1 => {}
            Some("MONOCHROME1") => {
                return Err(
                    "its greys are inverted (MONOCHROME1), and whether its values are is not said; convert it to \
                     MONOCHROME2"
                        .into(),
                );
            }
            other => {
                let name = other.unwrap_or("colours").escape_debug();
                return Err(format!(
                    "it holds {samples} numbers a pixel ({name}), and a scan one"
                ));
            }
        }
        if rows == 0 || columns == 0 || rows > 0xffff || columns > 0xffff {
            return Err(format!("it has {rows} rows and {columns} columns"));
        }
        if !matches!(allocated, 8 | 16 | 32) {
            return Err(format!("its pixels have {allocated} bits; 8, 16 and 32 are read"));
        }
        if stored == 0 || stored > allocated || high + 1 < stored || high >= allocated || signed > 1 {
            return Err(format!(
                "its pixels have {stored} bits up to bit {high} of {allocated}, which can't be"
            ));
        }
        if frames == 0 {
            return Err("it has no frames".into());
        }
        Ok(Format {
            rows,
            columns,
            frames,
            bytes: allocated / 8,
            bits: (stored as u32, (high + 1 - stored) as u32),
            signed: signed == 1,
        })
    }

    /// Bytes of a frame.
    pub fn frame(&self) -> u64 {
        (self.rows * self.columns * self.bytes) as u64
    }

    /// Decodes a frame to the values `slope` · stored + `intercept`.
    pub fn decode(
        &self,
        pixels: &Pixels,
        syntax: &str,
        frame: usize,
        (slope, intercept): (f64, f64),
        out: &mut [f32],
    ) -> Result<(), Problem> {
        let raw = self.raw(pixels, syntax, frame)?;
        let (stored, low) = self.bits;
        let above = 64 - stored;
        // Bits beside those that count may be anything.
        let value = |bits: u64| {
            let bits = (bits >> low) << above;
            match self.signed {
                true => (bits as i64 >> above) as f64,
                false => (bits >> above) as f64,
            }
        };
        let scaled = |bits: u64| (value(bits) * slope + intercept) as f32;
        match self.bytes {
            1 => each(&raw, out, |b: [u8; 1]| scaled(u64::from(b[0]))),
            2 => each(&raw, out, |b| scaled(u64::from(u16::from_le_bytes(b)))),
            _ => each(&raw, out, |b| scaled(u64::from(u32::from_le_bytes(b)))),
        }
        Ok(())
    }

    /// A frame's bytes, little endian.
    fn raw<'p>(&self, pixels: &'p Pixels, syntax: &str, frame: usize) -> Result<Cow<'p, [u8]>, Problem> {
        let size = self.frame() as usize;
        match pixels {
            Pixels::Native(bytes) => match bytes.get(frame * size..(frame + 1) * size) {
                Some(bytes) => Ok(Cow::Borrowed(bytes)),
                None => wrong(format!(
                    "it has {} bytes of pixels, and {} frames of {}×{} have {}",
                    bytes.len(),
                    self.frames,
                    self.columns,
                    self.rows,
                    self.frame().saturating_mul(self.frames as u64)
                )),
            },
            Pixels::Pieces { offsets, pieces } => {
                let data = self.compressed(offsets, pieces, frame)?;
                let decoded = match syntax {
                    uids::RLE_LOSSLESS => self.runs(&data),
                    uids::JPEG_LOSSLESS | uids::JPEG_LOSSLESS_SV1 => self.jpeg(&data),
                    other => Err(format!(
                        "its transfer syntax {} is not read; decompress it, for example with dcmdjpeg or gdcmconv --raw",
                        syntax_name(other)
                    )),
                };
                decoded.map(Cow::Owned).map_err(Problem::Format)
            }
        }
    }

    /// A frame's compressed bytes.
    fn compressed<'p>(
        &self,
        offsets: &[u32],
        pieces: &'p [Vec<u8>],
        frame: usize,
    ) -> Result<Cow<'p, [u8]>, Problem> {
        if pieces.len() == self.frames {
            return Ok(Cow::Borrowed(&pieces[frame]));
        }
        if self.frames == 1 {
            return Ok(Cow::Owned(pieces.concat()));
        }
        if offsets.len() != self.frames {
            return wrong(format!(
                "it has {} frames and {} pieces of compressed pixels, and does not say which is whose",
                self.frames,
                pieces.len()
            ));
        }
        let from = u64::from(offsets[frame]);
        let to = offsets.get(frame + 1).map_or(u64::MAX, |end| u64::from(*end));
        let mut at = 0;
        let mut data = Vec::new();
        for piece in pieces {
            if (from..to).contains(&at) {
                data.extend_from_slice(piece);
            }
            at += piece.len() as u64 + 8;
        }
        Ok(Cow::Owned(data))
    }

    /// PS3.5, annex G: a segment a byte of the pixels, the highest first, each of runs (PackBits).
    fn runs(&self, data: &[u8]) -> Result<Vec<u8>, String> {
        let pixels = self.rows * self.columns;
        let word = |at: usize| {
            let bytes = data.get(4 * at..4 * at + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().expect("4 bytes")) as usize)
        };
        let damaged = || "its compressed pixels are damaged".to_owned();
        if word(0) != Some(self.bytes) {
            return Err(damaged());
        }
        // A run of two bytes makes 128 at most.
        if data.len().saturating_mul(64) < pixels {
            return Err(damaged());
        }
        let mut out = vec![0; pixels * self.bytes];
        for segment in 0..self.bytes {
            let mut rest = word(1 + segment)
                .and_then(|at| data.get(at..))
                .ok_or_else(damaged)?;
            let mut places = (self.bytes - 1 - segment..out.len()).step_by(self.bytes);
            let mut missing = pixels;
            while missing > 0 {
                let (&code, after) = rest.split_first().ok_or_else(damaged)?;
                let code = code as i8;
                // So many bytes as they stand, or one so many times.
                let (count, used) = match code {
                    0.. => (code as usize + 1, code as usize + 1),
                    -128 => (0, 0),
                    _ => (1 + usize::from(code.unsigned_abs()), 1),
                };
                let bytes = after.get(..used).ok_or_else(damaged)?;
                let count = count.min(missing);
                for (i, place) in places.by_ref().take(count).enumerate() {
                    out[place] = bytes[i.min(used - 1)];
                }
                missing -= count;
                rest = &after[used..];
            }
        }
        Ok(out)
    }

    fn jpeg(&self, data: &[u8]) -> Result<Vec<u8>, String> {
        let damaged =
            |e: jpeg_decoder::Error| format!("its compressed pixels are damaged or of another kind ({e})");
        let mut decoder = Decoder::new(data);
        decoder.set_max_decoding_buffer_size(self.frame() as usize);
        decoder.read_info().map_err(damaged)?;
        let info = decoder.info().expect("just read");
        let format = match self.bytes {
            1 => PixelFormat::L8,
            _ => PixelFormat::L16,
        };
        let (width, height) = (usize::from(info.width), usize::from(info.height));
        if (width, height, info.pixel_format) != (self.columns, self.rows, format) || self.bytes > 2 {
            return Err(format!(
                "its compressed picture has {width}×{height} pixels of {} bytes, and its elements say {}×{} of {}",
                info.pixel_format.pixel_bytes(),
                self.columns,
                self.rows,
                self.bytes
            ));
        }
        // Other pictures would go through the crate's unsafe code.
        if info.coding_process != CodingProcess::Lossless {
            return Err("its compressed picture is not lossless, as its transfer syntax says".into());
        }
        let bytes = decoder.decode().map_err(damaged)?;
        if bytes.len() as u64 != self.frame() {
            return Err("its compressed pixels are damaged".into());
        }
        // The crate's numbers are in the machine's order.
        Ok(match self.bytes {
            1 => bytes,
            _ => {
                let words = bytes.chunks_exact(2).map(|b| u16::from_ne_bytes([b[0], b[1]]));
                words.flat_map(u16::to_le_bytes).collect()
            }
        })
    }
}

fn each<const N: usize>(raw: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    for (out, bytes) in out.iter_mut().zip(raw.chunks_exact(N)) {
        *out = value(bytes.try_into().expect("chunks of N bytes"));
    }
}
