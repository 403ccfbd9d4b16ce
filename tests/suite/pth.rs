//! PyTorch checkpoints: the authors' and ours, of every kind, give the tensors that PyTorch reads; hostile and damaged
//! ones are refused, and nothing in them is executed. `reference/make_pth.py` makes the files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::common::{random_cases, shared};
use obelisk::weights::pth::Checkpoint;
use obelisk::weights::{Model, WeightsError};
use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/pth")
}

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Type, shape and bytes of every tensor by name.
type Contents = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn stored(path: &Path) -> Contents {
    let bytes = bytes(path);
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter()
        .map(|(name, t)| {
            (
                name.to_owned(),
                (t.dtype(), t.shape().to_vec(), t.data().to_vec()),
            )
        })
        .collect()
}

fn contents(checkpoint: &Checkpoint) -> Contents {
    let tensors = checkpoint.tensors.iter().map(|(name, t)| {
        let data: Vec<u8> = t.data.iter().flat_map(|v| v.to_le_bytes()).collect();
        (name.clone(), (Dtype::F32, t.shape.clone(), data))
    });
    let batches = checkpoint
        .batches
        .iter()
        .map(|(name, count)| (name.clone(), (Dtype::I64, vec![], count.to_le_bytes().to_vec())));
    tensors.chain(batches).collect()
}

fn read(name: &str) -> Checkpoint {
    let path = folder().join(name);
    Checkpoint::read(&bytes(&path)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn checkpoints_of_every_kind_give_the_tensors_that_pytorch_reads() {
    for name in [
        "types_zip.pth",
        "types_legacy.pth",
        "types_protocol3.pth",
        "types_protocol4.pth",
        "types_protocol5.pth",
    ] {
        let checkpoint = read(name);
        assert_eq!(
            contents(&checkpoint),
            stored(&folder().join("types.safetensors")),
            "{name}"
        );
        let converted = BTreeMap::from([("bfloat16", 1), ("float16", 1), ("float64", 1)]);
        assert_eq!(checkpoint.converted, converted, "{name}");
    }
    for name in [
        "network_zip.pth",
        "network_legacy.pth",
        "network_nested_zip.pth",
        "network_parallel_legacy.pth",
        "network_plain_zip.pth",
    ] {
        assert_eq!(
            contents(&read(name)),
            stored(&folder().join("network.safetensors")),
            "{name}"
        );
    }
    let memo = read("memo.pth");
    assert_eq!(memo.tensors["v"], memo.tensors["w"]);
}

#[test]
fn the_authors_checkpoints_give_the_authors_tensors() {
    let mut published =
        vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/obeliskhybrid_tcia_fold1")];
    if let Some(reference) = shared("reference") {
        let folders = std::fs::read_dir(reference)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        published.extend(folders.filter(|f| f.join("weights.pth").exists()));
    }
    for folder in published {
        let checkpoint = Checkpoint::read(&bytes(&folder.join("weights.pth"))).unwrap();
        let expected = stored(&folder.join("weights.safetensors"));
        assert_eq!(contents(&checkpoint), expected, "{}", folder.display());
    }
}

/// What is wrong with each hostile file, in words of its error.
const HOSTILE: &[(&str, &str)] = &[
    (
        "system_reduce",
        "would call posix.system; refused, nothing was executed",
    ),
    ("system_os", "would call os.system; refused, nothing was executed"),
    ("system_stack_global", "would call posix.system; refused"),
    ("system_inst", "would call posix.system; refused"),
    ("system_obj", "would call posix.system; refused"),
    ("system_first", "would call posix.system; refused"),
    ("eval", "would call __builtin__.eval; refused"),
    ("getattr", "would call __builtin__.getattr; refused"),
    ("popen", "would call subprocess.Popen; refused"),
    ("build", "would call types.SimpleNamespace; refused"),
    ("system_reduce_legacy", "would call posix.system; refused"),
    ("system_os_legacy", "would call os.system; refused"),
    ("system_stack_global_legacy", "would call posix.system; refused"),
    ("system_inst_legacy", "would call posix.system; refused"),
    ("system_obj_legacy", "would call posix.system; refused"),
    ("eval_legacy", "would call __builtin__.eval; refused"),
    ("getattr_legacy", "would call __builtin__.getattr; refused"),
    ("popen_legacy", "would call subprocess.Popen; refused"),
    ("build_legacy", "would call types.SimpleNamespace; refused"),
    ("newobj_allowed", "would construct an object (NEWOBJ); refused"),
    ("newobj_ex", "would construct an object (NEWOBJ_EX); refused"),
    ("obj_allowed", "would construct an object (OBJ); refused"),
    ("extension", "would construct an object (EXT); refused"),
    ("persistent_text", "would construct an object (PERSID); refused"),
    ("build_tensor", "would set the state of a tensor; refused"),
    ("call_storage", "it calls StorageType"),
    ("call_text", "it calls a string with a tuple"),
    ("shape_beyond", "reaches beyond its storage of 2 elements"),
    ("shape_overflow", "reaches beyond its storage"),
    ("shape_negative", "a shape of -2"),
    ("stride_negative", "strides of -1"),
    ("stride_beyond", "reaches beyond its storage"),
    ("stride_overflow", "reaches beyond its storage"),
    ("offset_beyond", "reaches beyond its storage"),
    ("offset_negative", "an offset of -1"),
    ("repeats", "repeats the 2 elements of its storage"),
    ("axes", "a tensor has 9 axes"),
    (
        "storage_beyond",
        "has 8 bytes, 1048576 float32 elements need 4194304",
    ),
    ("storage_huge", "a storage of 4611686018427387904 elements"),
    ("storage_negative", "a storage of -1 elements"),
    (
        "storage_of_other_type",
        "storage 0 is described twice, differently",
    ),
    ("integers", "tensor `w` is int32"),
    ("double_beyond_float", "1e300, which is beyond float32"),
    ("not_a_tensor", "`w` is an int, not a tensor"),
    ("recalls_nothing", "recalls a value that it never remembered"),
    ("stack_empty", "takes a value from an empty stack"),
    ("mark_missing", "closes a group that it never opened"),
    ("nested_lists", "`w` is a list, not a tensor"),
    ("nested_marks", "`w` is a tuple, not a tensor"),
    ("itself", "`w` is a list, not a tensor"),
    ("copies", "values are left over"),
    ("storage_beyond_legacy", "storage 0 is cut off"),
    ("storage_count", "storage 0 has 3 elements where 2 are described"),
    ("storage_twice", "storage 0 is stored twice"),
    ("storage_unlisted", "followed by 16 other bytes"),
    ("storage_unknown", "names one that no tensor uses"),
    ("trailing", "followed by 1 other bytes"),
    ("name_twice", "has `w` twice"),
    ("name_of_terminal_codes", "unusable name `\\u{1b}[2Jw`"),
    (
        "text_protocol",
        "instruction 0x64 is none of those that `torch.save` writes",
    ),
    ("entry_missing", "entry `data/0` is missing"),
    ("entry_short", "has 7 bytes, 2 float32 elements need 8"),
    ("big_endian", "not little-endian"),
    ("torchscript", "TorchScript"),
    ("no_pickle", "ends too early"),
    ("two_pickles", "2 times data.pkl"),
    ("bomb", "compressed"),
    ("double_entry", "`archive/data/0` twice"),
    ("lying_size", "truncated or damaged (entry `archive/data/0`: "),
    ("lying_packed_size", "compressed"),
    ("overlap", "overlap"),
    ("not_a_checkpoint", "no safetensors file"),
    ("empty", "no safetensors file"),
];

#[test]
fn hostile_files_are_refused_and_nothing_is_executed() {
    let hostile = folder().join("hostile");
    let mut names: Vec<String> = std::fs::read_dir(&hostile)
        .unwrap()
        .map(|entry| {
            entry
                .unwrap()
                .path()
                .file_stem()
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    names.sort();
    let mut listed: Vec<&str> = HOSTILE.iter().map(|(name, _)| *name).collect();
    listed.sort();
    assert_eq!(names, listed);

    for (name, reason) in HOSTILE {
        let path = hostile.join(format!("{name}.pth"));
        let error = Model::open(&path, None).expect_err(name);
        assert!(matches!(error, WeightsError::Format { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(reason), "{name}: `{reason}` is not in: {text}");
        assert!(text.contains(path.to_str().unwrap()), "{text}");
        assert!(text.len() < 600 && !text.contains('\x1b'), "{name}: {text}");
    }
    // The files' code makes this one in the current folder; make_pth.py has seen it do so.
    assert!(
        !Path::new("executed").exists(),
        "a checkpoint's code was executed"
    );
}

#[test]
fn files_truncated_anywhere_are_refused() {
    for name in ["types_zip.pth", "types_legacy.pth", "network_nested_zip.pth"] {
        let whole = bytes(&folder().join(name));
        for length in 0..whole.len() {
            let error = Checkpoint::read(&whole[..length]).expect_err(name);
            assert!(!error.is_empty(), "{name} cut to {length} bytes");
        }
    }
}

/// Bytes to put where a number is: small ones, the largest of each width, or any.
fn changed_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        any::<u8>().prop_map(|byte| vec![byte]),
        prop::sample::select(vec![0u32, 1, 0x7fff_ffff, 0xffff_fffe, 0xffff_ffff])
            .prop_map(|number| number.to_le_bytes().to_vec()),
        prop::sample::select(vec![0u64, 1, 1 << 63, u64::MAX - 46, u64::MAX])
            .prop_map(|number| number.to_le_bytes().to_vec()),
    ]
}

proptest! {
    #![proptest_config(random_cases(4000))]

    #[test]
    fn changed_files_never_panic(
        file in prop::sample::select(vec!["types_legacy.pth", "network_parallel_legacy.pth", "types_zip.pth"]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        tail in prop::collection::vec(any::<u8>(), 0..4),
    ) {
        let mut changed = bytes(&folder().join(file));
        for (index, value) in changes {
            let at = index.index(changed.len());
            changed[at] = value;
        }
        changed.extend(tail);
        let _ = Checkpoint::read(&changed);
    }

    /// Only what describes a zip archive is changed, since a changed entry fails its checksum.
    #[test]
    fn changed_zip_directories_never_panic(
        file in prop::sample::select(vec!["types_zip.pth", "network_nested_zip.pth"]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), changed_bytes()), 1..5),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
        tail in prop::collection::vec(any::<u8>(), 0..4),
    ) {
        let mut changed = bytes(&folder().join(file));
        let headers: Vec<usize> = (0..changed.len() - 30)
            .filter(|at| changed[*at..].starts_with(b"PK"))
            .flat_map(|at| at..at + 30)
            .collect();
        for (index, value) in changes {
            let at = headers[index.index(headers.len())];
            let end = changed.len().min(at + value.len());
            changed[at..end].copy_from_slice(&value[..end - at]);
        }
        if let Some(cut) = cut {
            changed.truncate(cut.index(changed.len()));
        }
        changed.extend(tail);
        let _ = Checkpoint::read(&changed);
    }

    #[test]
    fn pickles_of_random_instructions_never_panic(
        instructions in prop::collection::vec(
            prop_oneof![
                prop::sample::select(b"()}]NtasuebQR.qhrjKJMXUcGio\x80\x81\x85\x86\x87\x88\x8a\x8c\x93\x94\x95".to_vec())
                    .prop_map(|instruction| vec![instruction]),
                prop::sample::select(vec![
                    b"ccollections\nOrderedDict\n".to_vec(),
                    b"ctorch\nFloatStorage\n".to_vec(),
                    b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec(),
                    b"U\x07storage".to_vec(),
                    b"K\x02".to_vec(),
                ]),
                any::<u8>().prop_map(|byte| vec![byte]),
            ],
            0..60,
        ),
    ) {
        let mut file = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02N.".to_vec();
        file.extend(instructions.concat());
        let _ = Checkpoint::read(&file);
    }
}
