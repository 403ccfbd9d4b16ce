//! Files with damaged bytes, of every kind that is read: each is read or refused, without a panic, within a minute, and with
//! less than a gigabyte of memory. A program of its own, because its allocator counts.
//!
//! `OBELISK_TEST_ROUNDS` times as many inputs, and others with `OBELISK_TEST_SEED`:
//! `OBELISK_TEST_ROUNDS=100 OBELISK_TEST_SEED=7 cargo test --release --test hostile`.

mod targets;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use targets::TARGETS;

/// The system's allocator, which counts each thread's bytes.
struct Watched;

thread_local! {
    /// Bytes in use, and the most since [`peak_of`] began.
    static BYTES: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

#[allow(unsafe_code)]
// SAFETY: every call goes on to the system's allocator as it came; a cell without a destructor needs no allocation.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize); // both are there while it is copied
        count(-(layout.size() as isize));
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

fn count(bytes: isize) {
    BYTES.with(|counted| {
        let (used, most) = counted.get();
        let used = used + bytes;
        counted.set((used, most.max(used)));
    });
}

/// What a function returns, and the most bytes that it had in use at once.
fn peak_of<T>(run: impl FnOnce() -> T) -> (T, usize) {
    BYTES.with(|counted| counted.set((0, 0)));
    let result = run();
    (result, BYTES.with(Cell::get).1 as usize)
}

const GIGABYTE: usize = 1 << 30;
/// An input that takes longer hangs: the slowest take milliseconds.
const A_MINUTE: Duration = Duration::from_secs(60);
/// `OBELISK_TEST_SEED` replaces it.
const SEED: u64 = 20_190_701;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect(name))
}

/// A line that is shown also where the test passes.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The inputs at hand, with what they are and when they began.
static RUNNING: Mutex<Vec<(String, Instant, Vec<u8>)>> = Mutex::new(Vec::new());

/// Ends the program, and keeps the input, where one takes a minute.
fn watch_for_hangs() {
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(Duration::from_secs(1));
                for (what, start, bytes) in RUNNING.lock().unwrap().iter() {
                    if start.elapsed() > A_MINUTE {
                        say(&format!(
                            "{what} takes more than a minute; kept as {}",
                            keep(bytes).display()
                        ));
                        std::process::exit(101);
                    }
                }
            }
        });
    });
}

/// Writes an input where it can be found.
fn keep(bytes: &[u8]) -> PathBuf {
    let checksum = crc32fast::hash(bytes);
    let path = std::env::temp_dir().join(format!("obelisk_hostile_{checksum:08x}"));
    fs::write(&path, bytes).unwrap();
    path
}

/// Gives one input to a target: whether it was read, and the most bytes in use.
fn give(what: &str, bytes: &[u8], read: fn(&[u8]) -> bool) -> (bool, usize) {
    let own = std::thread::current().id();
    let what = format!("{what}, {own:?}");
    RUNNING
        .lock()
        .unwrap()
        .push((what.clone(), Instant::now(), bytes.to_vec()));
    let (result, peak) = peak_of(|| std::panic::catch_unwind(|| read(bytes)));
    RUNNING.lock().unwrap().retain(|(running, ..)| *running != what);
    let Ok(result) = result else {
        panic!("{what} panicked; kept as {}", keep(bytes).display());
    };
    assert!(
        peak < GIGABYTE,
        "{what} took {peak} bytes; kept as {}",
        keep(bytes).display()
    );
    (result, peak)
}

/// Gives a target damaged copies of its seeds, after the seeds themselves. Counts are printed.
fn mutate(name: &str, count: usize) {
    let target = targets::find(name);
    let seeds = (target.seeds)();
    let seed = variable("OBELISK_TEST_SEED").unwrap_or(SEED);
    let count = count * variable("OBELISK_TEST_ROUNDS").unwrap_or(1) as usize;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    watch_for_hangs();
    let (mut taken, mut largest) = (0, 0);
    let start = Instant::now();
    for bytes in &seeds {
        give(&format!("{name}, a seed"), bytes, target.read);
    }
    for round in 0..count {
        let mut bytes = seeds[round % seeds.len()].clone();
        damage(&mut bytes, &mut random);
        let (read, peak) = give(
            &format!("{name}, round {round} of seed {seed}"),
            &bytes,
            target.read,
        );
        taken += usize::from(read);
        largest = largest.max(peak);
    }
    say(&format!(
        "{name}: {count} damaged copies of {} inputs (seed {seed}), {taken} read, {} refused, at most {:.1} MB, {:.1} s",
        seeds.len(),
        count - taken,
        largest as f64 / 1e6,
        start.elapsed().as_secs_f64()
    ));
    assert!(taken > 0 && taken < count, "{name}: {taken} of {count} were read");
}

/// One to eight changes: bits, bytes, extreme numbers, and pieces that are cut out, doubled or inserted.
fn damage(bytes: &mut Vec<u8>, random: &mut ChaCha8Rng) {
    let mut below = |n: usize| (random.next_u64() % n.max(1) as u64) as usize;
    for _ in 0..=below(8).min(below(8)) {
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

#[test]
fn nifti() {
    mutate("nifti", 20_000);
}

#[test]
fn gzip() {
    mutate("gzip", 10_000);
}

#[test]
fn nifti_in_gzip() {
    mutate("nifti_in_gzip", 5_000);
}

#[test]
fn mgh() {
    mutate("mgh", 10_000);
}

#[test]
fn nrrd() {
    mutate("nrrd", 20_000);
}

#[test]
fn dicom() {
    mutate("dicom", 5_000);
}

#[test]
fn dataset_json() {
    mutate("dataset", 10_000);
}

#[test]
fn splits() {
    mutate("splits", 10_000);
}

#[test]
fn plans() {
    mutate("plans", 20_000);
}

#[test]
fn brainchop() {
    mutate("brainchop", 50_000);
}

#[test]
fn config() {
    mutate("config", 20_000);
}

#[test]
fn recipe() {
    mutate("recipe", 2_000);
}

#[test]
fn weights() {
    mutate("weights", 3_000);
}

#[test]
fn checkpoint() {
    mutate("checkpoint", 10_000);
}

#[test]
fn zip() {
    mutate("zip", 20_000);
}

#[test]
fn pickle() {
    mutate("pickle", 50_000);
}

#[test]
fn points() {
    mutate("points", 20_000);
}

#[test]
fn crops() {
    mutate("crops", 10_000);
}

/// What fuzzers found, in `found/TARGET-…`.
#[test]
fn what_was_found_once_is_not_found_again() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile/found");
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let target = targets::find(name.split_once('-').expect("TARGET-…").0);
        give(&name, &fs::read(&path).unwrap(), target.read);
    }
}

/// Inputs that are small for what they describe, as large as they are read. A checkpoint, which comes from its own training, may
/// have a longer record than weights, and take half as much again.
#[test]
fn what_grows_when_it_is_read_stays_below_a_gigabyte() {
    let mut largest = 0;
    let mut refused = |name: &str, bytes: Vec<u8>| {
        let (read, peak) = give(name, &bytes, targets::find(name).read);
        assert!(!read);
        largest = largest.max(peak);
    };
    // Of the instructions of a pickle and the values of JSON, those that grow most.
    for piece in [&b")"[..], b"N\x94", b")\x94"] {
        refused("pickle", piece.repeat((4 << 20) / piece.len()));
    }
    for piece in ["1,", "[1],"] {
        let list = |start: &str, bytes: usize, end: &str| {
            let items = piece.repeat(bytes / piece.len());
            [start, &items, "1", end].concat().into_bytes()
        };
        refused("dataset", list(r#"{"labels":{},"training":["#, 15 << 20, "]}"));
        refused("splits", list(r#"[{"train":["#, 15 << 20, "]}]"));
        refused("weights", list(r#"{"training":{"a":["#, 7 << 20, "]}}"));
        refused("checkpoint", list(r#"{"log":[{"a":["#, 9 << 20, "]}]}"));
        let header = list(r#"{"a":["#, 15 << 20, "]}");
        refused(
            "weights",
            [&(header.len() as u64).to_le_bytes()[..], &header].concat(),
        );
    }
    say(&format!("inputs that grow: at most {} MB", largest / 1_000_000));
}

/// Writes the seeds for the fuzzers: `cargo test --release --test hostile -- --ignored`.
#[test]
#[ignore = "writes fuzz/corpus"]
fn write_seeds() {
    for target in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/corpus")
            .join(target.name);
        fs::create_dir_all(&folder).unwrap();
        for (number, bytes) in (target.seeds)().iter().enumerate() {
            fs::write(folder.join(format!("seed-{number:03}")), bytes).unwrap();
        }
    }
}
