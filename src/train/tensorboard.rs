//! The scalars of a training for TensorBoard: an event file in the run's folder.
//!
//! A file is records as TFRecord frames them: the length (u64), its checksum, the bytes, their checksum, little-endian; a checksum
//! is the CRC-32C, rotated right by 15 bits, plus a constant. The bytes are an `Event` in protobuf.
//!
//! The same training gives the same bytes, resumed or not. Therefore the file's name has neither time nor host, and every event's
//! wall time is 0: TensorBoard orders by step, and its axes of time have nothing to show.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use prost::{Message, Oneof};

use super::{EpochRecord, Event, TrainError, logged};
use crate::file::append_to;
use crate::metrics::METRICS;

/// The file in a run's folder. TensorBoard reads files that have `tfevents` in their names.
pub const FILE: &str = "events.out.tfevents.0.obelisk";

/// What every event file begins with.
const VERSION: &str = "brain.Event:2";

/// The tag of the steps' losses, by which a step's record is told from an epoch's.
const STEP_LOSS: &str = "step/loss";

/// Steps of a training are written at least this often.
const OFTEN: Duration = Duration::from_secs(2);

/// `tensorflow.Event` (tensorflow/core/util/event.proto), as far as it is written.
#[derive(Clone, PartialEq, Message)]
pub struct Record {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    pub wall_time: f64,
    /// Steps done, or epochs.
    #[prost(int64, tag = "2")]
    pub step: i64,
    /// What happened.
    #[prost(oneof = "What", tags = "3, 5")]
    pub what: Option<What>,
}

/// What an event has.
#[derive(Clone, PartialEq, Oneof)]
pub enum What {
    /// The first record's.
    #[prost(string, tag = "3")]
    FileVersion(String),
    /// Numbers.
    #[prost(message, tag = "5")]
    Summary(Summary),
}

/// `tensorflow.Summary`.
#[derive(Clone, PartialEq, Message)]
pub struct Summary {
    /// The numbers.
    #[prost(message, repeated, tag = "1")]
    pub value: Vec<Scalar>,
}

/// `tensorflow.Summary.Value` with a `simple_value`.
#[derive(Clone, PartialEq, Message)]
pub struct Scalar {
    /// Its name; what stands before the slash groups them.
    #[prost(string, tag = "1")]
    pub tag: String,
    /// The number.
    #[prost(float, optional, tag = "2")]
    pub simple_value: Option<f32>,
}

impl Record {
    fn of(step: usize, scalars: Vec<(String, f64)>) -> Record {
        let scalar = |(tag, value): (String, f64)| Scalar {
            tag,
            simple_value: Some(value as f32),
        };
        Record {
            wall_time: 0.0,
            step: step as i64,
            what: Some(What::Summary(Summary {
                value: scalars.into_iter().map(scalar).collect(),
            })),
        }
    }

    /// Of a step, counted over all epochs from 1.
    fn of_step(step: usize, loss: f32, learning_rate: f32) -> Record {
        let learning_rate = ("step/learning_rate".into(), learning_rate.into());
        Record::of(step, vec![(STEP_LOSS.into(), loss.into()), learning_rate])
    }

    /// Of an epoch: its loss and rate, validation scores by metric and label, spread of the offsets.
    fn of_epoch(line: &EpochRecord, labels: &[String]) -> Record {
        let mut scalars = vec![
            ("epoch/loss".to_owned(), line.loss),
            ("epoch/learning_rate".to_owned(), line.learning_rate.into()),
        ];
        for (i, metric) in METRICS.iter().enumerate() {
            let mean = line.means.get(i).copied().flatten();
            let mean = mean.map(|mean| (format!("validation_{}/mean", metric.name), mean));
            let by_label = line.scores.get(i).map_or(&[][..], Vec::as_slice);
            let of_label = |(label, score): (&String, &Option<f64>)| {
                Some((format!("validation_{}/{label}", metric.name), (*score)?))
            };
            scalars.extend(mean);
            scalars.extend(labels.iter().zip(by_label).filter_map(of_label));
        }
        let sigmas = line.offset_sigma.iter();
        scalars.extend(sigmas.map(|(name, sigma)| (format!("offsets/{name}_sigma"), *sigma)));
        Record::of(line.epoch, scalars)
    }

    /// The step that it is of, unless it is an epoch's.
    fn step_of(&self) -> Option<usize> {
        match &self.what {
            Some(What::Summary(summary)) if summary.value.first()?.tag == STEP_LOSS => {
                usize::try_from(self.step).ok()
            }
            _ => None,
        }
    }
}

/// A training's event file, which its caller tells of the training's events.
#[derive(Debug)]
pub struct TensorBoard {
    run: PathBuf,
    path: PathBuf,
    labels: Vec<String>,
    /// What the file holds.
    written: Vec<u8>,
    /// What it will hold besides.
    pending: Vec<u8>,
    /// Steps done, once one has been heard of.
    done: Option<usize>,
    last: Instant,
    failed: Option<TrainError>,
}

impl TensorBoard {
    /// Of a run whose foreground labels have these names. Nothing is written before the first step is done.
    pub fn new(run: &Path, labels: Vec<String>) -> TensorBoard {
        TensorBoard {
            run: run.into(),
            path: run.join(FILE),
            labels,
            written: Vec::new(),
            pending: Vec::new(),
            done: None,
            last: Instant::now(),
            failed: None,
        }
    }

    /// Notes an event; `Break` where the file can't be written, which [`TensorBoard::finish`] says. A training that begins at
    /// another step than the next, since it is resumed, has what the file says of later ones removed, and what it lacks of
    /// earlier epochs added from the run's checkpoint.
    pub fn hear(&mut self, event: &Event) -> ControlFlow<()> {
        if self.failed.is_none() {
            self.failed = self.note(event).err();
        }
        match self.failed {
            None => ControlFlow::Continue(()),
            Some(_) => ControlFlow::Break(()),
        }
    }

    /// Writes what is not written yet.
    ///
    /// # Errors
    /// The first file that could not be read or written since the training began.
    pub fn finish(mut self) -> Result<(), TrainError> {
        match self.failed.take() {
            Some(error) => Err(error),
            None if self.done.is_some() => self.write(),
            None => Ok(()),
        }
    }

    fn note(&mut self, event: &Event) -> Result<(), TrainError> {
        match *event {
            Event::Step {
                epoch,
                done,
                steps,
                loss,
                learning_rate,
            } => {
                let step = (epoch - 1) * steps + done;
                if self.done != Some(step - 1) {
                    self.begin(epoch, done, steps)?;
                }
                self.done = Some(step);
                append(&mut self.pending, &Record::of_step(step, loss, learning_rate));
                match self.last.elapsed() > OFTEN {
                    true => self.write(),
                    false => Ok(()),
                }
            }
            Event::Epoch(line) => {
                append(&mut self.pending, &Record::of_epoch(line, &self.labels));
                self.write()
            }
            _ => Ok(()),
        }
    }

    /// Makes the file what it is before a step: the steps before it that the file has, and the epochs before it.
    fn begin(&mut self, epoch: usize, done: usize, steps: usize) -> Result<(), TrainError> {
        let found = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(self.error(error)),
        };
        let before = (epoch - 1) * steps + done;
        let records = records(&found).0;
        let by_step = records
            .into_iter()
            .filter_map(|record| Some((record.step_of()?, record)));
        let mut by_step: BTreeMap<usize, Record> = by_step.collect();
        by_step.retain(|step, _| *step < before);
        if before == 1 {
            by_step.clear(); // of another training
        }
        let log = match epoch {
            1 => Vec::new(),
            _ => logged(&self.run)?.unwrap_or_default(),
        };
        let mut bytes = Vec::new();
        append(
            &mut bytes,
            &Record {
                wall_time: 0.0,
                step: 0,
                what: Some(What::FileVersion(VERSION.into())),
            },
        );
        for line in log.iter().filter(|line| line.epoch < epoch) {
            let later = by_step.split_off(&(line.epoch * steps + 1));
            by_step
                .into_values()
                .for_each(|record| append(&mut bytes, &record));
            append(&mut bytes, &Record::of_epoch(line, &self.labels));
            by_step = later;
        }
        by_step
            .into_values()
            .for_each(|record| append(&mut bytes, &record));
        (self.written, self.pending) = (bytes, Vec::new());
        Ok(())
    }

    fn write(&mut self) -> Result<(), TrainError> {
        append_to(&self.path, &self.written, &self.pending).map_err(|error| self.error(error))?;
        self.written.append(&mut self.pending);
        self.last = Instant::now();
        Ok(())
    }

    fn error(&self, cause: std::io::Error) -> TrainError {
        TrainError::Io {
            path: self.path.clone(),
            cause,
        }
    }
}

fn append(bytes: &mut Vec<u8>, record: &Record) {
    let data = record.encode_to_vec();
    let length = (data.len() as u64).to_le_bytes();
    bytes.extend(length);
    bytes.extend(checksum(&length).to_le_bytes());
    bytes.extend(&data);
    bytes.extend(checksum(&data).to_le_bytes());
}

/// The records of an event file, up to the first that is damaged or not whole, and the bytes that they take.
pub fn records(bytes: &[u8]) -> (Vec<Record>, usize) {
    let mut found = Vec::new();
    let mut rest = bytes;
    while let Some((record, after)) = record(rest) {
        found.push(record);
        rest = after;
    }
    (found, bytes.len() - rest.len())
}

/// The first record, and the bytes after it.
fn record(bytes: &[u8]) -> Option<(Record, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    if checksum(length) != u32::from_le_bytes(*sum) {
        return None;
    }
    let (data, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    if checksum(data) != u32::from_le_bytes(*sum) {
        return None;
    }
    Some((Record::decode(data).ok()?, rest))
}

/// TFRecord's masked CRC-32C.
fn checksum(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The CRC of Castagnoli's polynomial, bit by bit: records have some tens of bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    const REVERSED: u32 = 0x82f6_3b78;
    let crc = bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (REVERSED & (crc & 1).wrapping_neg())
        })
    });
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: usize = 3;

    fn line(epoch: usize) -> EpochRecord {
        EpochRecord {
            epoch,
            loss: 1.0 / epoch as f64,
            learning_rate: 0.5,
            scores: vec![vec![Some(0.25), None]],
            means: vec![Some(0.25)],
            offset_sigma: BTreeMap::from([("offset1".into(), 0.05)]),
            ..Default::default()
        }
    }

    fn labels() -> Vec<String> {
        vec!["left".into(), "right".into()]
    }

    /// Tells of steps, counted over epochs from 1, with their epochs.
    fn tell(board: &mut TensorBoard, steps: std::ops::RangeInclusive<usize>) {
        for step in steps {
            let (epoch, done) = ((step - 1) / STEPS + 1, (step - 1) % STEPS + 1);
            let event = Event::Step {
                epoch,
                done,
                steps: STEPS,
                loss: 1.0 / step as f32,
                learning_rate: 0.5,
            };
            assert!(board.hear(&event).is_continue());
            if done == STEPS {
                assert!(board.hear(&Event::Epoch(&line(epoch))).is_continue());
            }
        }
    }

    #[test]
    fn checksums_are_those_of_the_standard() {
        // RFC 3720, B.4, and TensorFlow's crc32c_test.cc
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        let crc = crc32c(b"foo");
        assert_ne!(checksum(b"foo"), crc);
        let unmask = |masked: u32| masked.wrapping_sub(0xa282_ead8).rotate_left(15);
        assert_eq!(unmask(checksum(b"foo")), crc);
    }

    #[test]
    fn a_file_has_steps_and_epochs_and_damage_ends_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut board = TensorBoard::new(folder.path(), labels());
        tell(&mut board, 1..=4);
        board.finish().unwrap();
        let bytes = std::fs::read(folder.path().join(FILE)).unwrap();
        let (found, length) = records(&bytes);
        assert_eq!((found.len(), length), (1 + 4 + 1, bytes.len()));
        assert_eq!(found[0].what, Some(What::FileVersion(VERSION.into())));
        assert!(found.iter().all(|record| record.wall_time == 0.0));
        let Some(What::Summary(epoch)) = &found[4].what else {
            panic!("{:?}", found[4]);
        };
        let scalars: Vec<(&str, f32)> = epoch
            .value
            .iter()
            .map(|v| (v.tag.as_str(), v.simple_value.unwrap()))
            .collect();
        let want = [
            ("epoch/loss", 1.0),
            ("epoch/learning_rate", 0.5),
            ("validation_dice/mean", 0.25),
            ("validation_dice/left", 0.25),
            ("offsets/offset1_sigma", 0.05),
        ];
        assert_eq!((found[4].step, scalars), (1, want.to_vec()));
        assert_eq!(
            (found[5].step, found[5].step_of(), found[4].step_of()),
            (4, Some(4), None)
        );
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(records(&damaged).1 <= at, "{at}");
            assert!(records(&bytes[..at]).1 <= at, "{at}");
        }
    }

    #[test]
    fn a_training_that_is_begun_anew_or_goes_on_within_its_first_epoch_gives_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = || std::fs::read(folder.path().join(FILE)).unwrap();
        let mut board = TensorBoard::new(folder.path(), labels());
        tell(&mut board, 1..=2);
        board.finish().unwrap();
        let two = bytes();
        // repeated from a step within, with what a crash left behind it
        std::fs::write(folder.path().join(FILE), [&two[..], &[7; 20]].concat()).unwrap();
        let mut board = TensorBoard::new(folder.path(), labels());
        tell(&mut board, 2..=2);
        board.finish().unwrap();
        assert_eq!(bytes(), two);
        // a device that is lost is opened anew, and the training goes on from an earlier step
        let mut board = TensorBoard::new(folder.path(), labels());
        tell(&mut board, 1..=2);
        tell(&mut board, 1..=2);
        board.finish().unwrap();
        assert_eq!(bytes(), two);
        // nothing is written of a training without a step
        std::fs::remove_file(folder.path().join(FILE)).unwrap();
        TensorBoard::new(folder.path(), labels()).finish().unwrap();
        assert!(!folder.path().join(FILE).exists());
    }

    #[test]
    fn a_file_that_cannot_be_written_stops_the_training_and_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(FILE)).unwrap();
        let mut board = TensorBoard::new(folder.path(), labels());
        let event = Event::Step {
            epoch: 1,
            done: 1,
            steps: 1,
            loss: 1.0,
            learning_rate: 0.5,
        };
        assert!(board.hear(&event).is_break());
        assert!(board.finish().unwrap_err().to_string().contains(FILE));
    }
}
