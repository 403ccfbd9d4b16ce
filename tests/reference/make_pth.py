# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.15.0", "numpy==2.4.6", "safetensors==0.8.0"]
# ///
"""PyTorch checkpoints for tests/suite/pth.rs: valid ones of every kind, and hostile ones.

    uv run make_pth.py

Writes pth/:

  types.safetensors    the tensors of types_*.pth as PyTorch reads them, in float32; counts in int64
  types_zip.pth, types_legacy.pth, types_protocol{3,4,5}.pth
                       one state dict of float32, float64, float16, bfloat16; a transposed, a strided and an offset view
                       that share a storage; a scalar, an empty tensor; a Parameter; a num_batches_tracked
  network.safetensors  a convolution with a batch norm
  network_*.pth        the same: as a state dict, in a dict with optimiser and epoch, with DataParallel's `module.`
  memo.pth             two names of one tensor, by an enormous number
  hostile/NAME.pth     see `hostile` below; whoever runs the code in one makes a file `executed` in the current folder,
                       which this script verifies with Python's own unpickler where the code is runnable
"""

import io
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file

out = Path(__file__).resolve().parent / "pth"
(out / "hostile").mkdir(parents=True, exist_ok=True)
generator = torch.Generator().manual_seed(1)


def normal(*shape):
    return torch.randn(shape, generator=generator)


def save_reference(name, tensors):
    """Contiguous copies, floats as float32."""
    plain = {k: v.detach().clone().contiguous() for k, v in tensors.items()}
    save_file({k: v.float() if v.is_floating_point() else v for k, v in plain.items()}, out / name)


def legacy(object, name, **options):
    torch.save(object, out / name, _use_new_zipfile_serialization=False, **options)


# Valid files.

shared = normal(6, 5, 4)
types = OrderedDict(
    float32=normal(3, 2),
    float64=normal(5).double(),
    float16=torch.tensor([1.0, -0.333, 65504, 6e-8, 0, float("inf")]).half(),
    bfloat16=normal(4).bfloat16(),
    whole=shared,
    transposed=shared.permute(2, 0, 1),
    strided=shared[1::2, :, ::3],
    offset=shared[2, 3],
    scalar=torch.tensor(2.5),
    empty=torch.zeros(0, 3),
    parameter=torch.nn.Parameter(normal(2, 2)),
)
types["norm.num_batches_tracked"] = torch.tensor(123456789012)
save_reference("types.safetensors", types)
torch.save(types, out / "types_zip.pth")
legacy(types, "types_legacy.pth")
for protocol in (3, 4, 5):
    torch.save(types, out / f"types_protocol{protocol}.pth", pickle_protocol=protocol)

network = torch.nn.Sequential(OrderedDict(conv=torch.nn.Conv3d(1, 2, 3), norm=torch.nn.BatchNorm3d(2)))
with torch.no_grad():
    for p in network.parameters():
        p.copy_(normal(*p.shape))
optimiser = torch.optim.Adam(network.parameters())
network(normal(2, 1, 4, 4, 4)).square().sum().backward()
optimiser.step()
state = network.state_dict()
save_reference("network.safetensors", state)
torch.save(state, out / "network_zip.pth")
legacy(state, "network_legacy.pth")
more = {"epoch": 3, "loss": 0.25, "optimizer_state_dict": optimiser.state_dict(), "done": True, "note": None}
torch.save({**more, "model_state_dict": state}, out / "network_nested_zip.pth")
legacy({"state_dict": torch.nn.DataParallel(network).state_dict(), **more}, "network_parallel_legacy.pth")
torch.save({"model": dict(network.named_parameters()) | dict(network.named_buffers())}, out / "network_plain_zip.pth")


# Hostile files.

COMMAND = "touch executed"
SYSTEM = b"cposix\nsystem\n"


def text(s):
    return b"X" + struct.pack("<I", len(s)) + s.encode()


def integer(i):
    return b"\x8a" + bytes([(n := len(p := i.to_bytes(9, "little", signed=True)))]) + p


def numbers(values):
    return b"(" + b"".join(integer(v) for v in values) + b"t"


def tensor(shape=(2,), strides=(1,), offset=0, count=2, storage=b"ctorch\nFloatStorage\n", legacy=False):
    """A pickled tensor of storage 0."""
    key = b"(" + text("storage") + storage + text("0") + text("cpu") + integer(count) + (b"N" if legacy else b"") + b"tQ"
    hooks = b"ccollections\nOrderedDict\n)R"
    arguments = b"(" + key + integer(offset) + numbers(shape) + numbers(strides) + b"\x89" + hooks + b"t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def dictionary(value, name="w"):
    return b"\x80\x02}" + text(name) + value + b"s."


def in_zip(name, *arguments, **options):
    zipped(f"hostile/{name}", *arguments, **options)


def zipped(name, data, storages=(b"\0" * 8,), method=zipfile.ZIP_STORED, more=()):
    with zipfile.ZipFile(out / f"{name}.pth", "w", method) as archive:
        entries = [("archive/data.pkl", data), ("archive/version", b"3\n")]
        entries += [(f"archive/data/{i}", s) for i, s in enumerate(storages)]
        for entry, content in [*entries, *more]:
            archive.writestr(zipfile.ZipInfo(entry, (1980, 1, 1, 0, 0, 0)), content, method)


def in_legacy(name, data, count=2, elements=b"\0" * 8, keys=("0",)):
    head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    body = struct.pack("<q", count) + elements
    whole = b"".join([*head, data, pickle.dumps(list(keys), 2), body])
    (out / "hostile" / f"{name}.pth").write_bytes(whole)


arguments = b"(" + text(COMMAND) + b"t"
code = f"__import__('os').system({COMMAND!r})"
runnable = {
    "system_reduce": SYSTEM + arguments + b"R",
    "system_os": b"cos\nsystem\n" + arguments + b"R",
    "system_stack_global": b"\x8c\x05posix\x8c\x06system\x93" + arguments + b"R",
    "system_inst": b"(" + text(COMMAND) + b"iposix\nsystem\n",
    "system_obj": b"(" + SYSTEM + text(COMMAND) + b"o",
    "eval": b"c__builtin__\neval\n(" + text(code) + b"tR",
    "getattr": b"c__builtin__\ngetattr\n(c__builtin__\n__import__\n("
    + text("os")
    + b"tR"
    + text("system")
    + b"tR"
    + arguments
    + b"R",
    "popen": b"csubprocess\nPopen\n((" + text("touch") + text("executed") + b"ltR",
    "build": b"ctypes\nSimpleNamespace\n)\x81}" + text("hook") + SYSTEM + arguments + b"Rsb",
}
for name, value in runnable.items():
    data = dictionary(value)
    with tempfile.TemporaryDirectory() as folder:
        program = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
        subprocess.run([sys.executable, "-c", program], input=data, cwd=folder, stderr=subprocess.DEVNULL, timeout=30)
        if not os.path.exists(os.path.join(folder, "executed")):
            sys.exit(f"{name} executes nothing, so it shows nothing")
    in_zip(name, data)
    in_legacy(name + "_legacy", data)
# As magic number: before anything of the legacy format is known.
(out / "hostile" / "system_first.pth").write_bytes(dictionary(runnable["system_reduce"]))

inert = {
    "newobj_allowed": b"ccollections\nOrderedDict\n)\x81",
    "newobj_ex": b"ccollections\nOrderedDict\n)}\x92",
    "obj_allowed": b"(ccollections\nOrderedDict\no",
    "extension": b"\x82\x01",
    "persistent_text": b"P0\n",
    "build_tensor": tensor() + b"}b",
    "call_storage": b"ctorch\nFloatStorage\n(K\x02tR",
    "call_text": text("a") + b")R",
    "shape_beyond": tensor(shape=(3,)),
    "shape_overflow": tensor(shape=(2**40, 2**40), strides=(0, 0)),
    "shape_negative": tensor(shape=(-2,)),
    "stride_negative": tensor(strides=(-1,), offset=1),
    "stride_beyond": tensor(strides=(2,)),
    "stride_overflow": tensor(shape=(2, 2), strides=(2**62, 2**62)),
    "offset_beyond": tensor(offset=1),
    "offset_negative": tensor(offset=-1),
    "repeats": tensor(shape=(2**30,), strides=(0,)),
    "axes": tensor(shape=(1,) * 9, strides=(1,) * 9),
    "storage_beyond": tensor(shape=(2**20,), count=2**20),
    "storage_huge": tensor(count=2**62),
    "storage_negative": tensor(count=-1),
    "storage_of_other_type": b"(" + tensor() + tensor(storage=b"ctorch\nHalfStorage\n") + b"t",
    "integers": tensor(storage=b"ctorch\nIntStorage\n"),
    "double_beyond_float": tensor((1,), (1,), 0, 1, b"ctorch\nDoubleStorage\n"),
    "not_a_tensor": b"K\x07",
    "recalls_nothing": b"h\x07",
    "stack_empty": b"\x87\x87",
    "mark_missing": b"t",
    "nested_lists": b"]" * 30_000 + b"a" * 29_999,
    "nested_marks": b"(" * 30_000 + b"t" * 30_000,
    "itself": b"]q\x00h\x00a",
    # A list of 1000 pairs, of which 1000 dicts are made.
    "copies": b"]q\1(" + b"".join([b"(", text("w"), b"Ntq\0"] + [b"h\0"] * 1000) + b"e"
    + b"ccollections\nOrderedDict\nq\2(h\1tR" + b"h\2(h\1tR" * 1000,
}
for name, value in inert.items():
    in_zip(name, dictionary(value), [struct.pack("<d", 1e300)] if name == "double_beyond_float" else (b"\0" * 8,))
in_legacy("storage_beyond_legacy", dictionary(tensor(shape=(2**20,), count=2**20, legacy=True)), 2**20)
in_legacy("storage_count", dictionary(tensor(legacy=True)), 3)
in_legacy("storage_twice", dictionary(tensor(legacy=True)), keys=("0", "0"), elements=b"\0" * 8 + struct.pack("<q", 2) + b"\0" * 8)
in_legacy("storage_unlisted", dictionary(tensor(legacy=True)), keys=())
in_legacy("storage_unknown", dictionary(tensor(legacy=True)), keys=("1",))
in_legacy("trailing", dictionary(tensor(legacy=True)), elements=b"\0" * 9)
in_zip("name_twice", b"\x80\x02}" + (text("w") + tensor() + b"s") * 2 + b".")
in_zip("name_of_terminal_codes", dictionary(tensor(), "\x1b[2Jw"))
in_zip("text_protocol", b"(dp0\nS'w'\np1\nI1\ns.")
in_zip("entry_missing", dictionary(tensor()), [])
in_zip("entry_short", dictionary(tensor()), [b"\0" * 7])
in_zip("big_endian", dictionary(tensor()), more=[("archive/byteorder", b"big")])
in_zip("torchscript", dictionary(tensor()), more=[("archive/constants.pkl", b"\x80\x02).")])
in_zip("no_pickle", b"")
in_zip("two_pickles", dictionary(tensor()), more=[("other/data.pkl", b"N.")])
in_zip("bomb", dictionary(tensor(shape=(2**22,), count=2**22)), [b"\0" * 2**24], zipfile.ZIP_DEFLATED)
in_zip("double_entry", dictionary(tensor()), more=[("archive/data/1", b"\1" * 8)])


def edit(name, source, *changes):
    data = (out / "hostile" / f"{source}.pth").read_bytes()
    for old, new in changes:
        assert old in data and len(old) == len(new), name
        data = data.replace(old, new)
    (out / "hostile" / f"{name}.pth").write_bytes(data)


def headers(name, source, entry, sizes):
    """The file with other (compressed, uncompressed) sizes in an entry's central header."""
    data = bytearray((out / "hostile" / f"{source}.pth").read_bytes())
    at = data.rindex(entry.encode()) - 46
    assert data[at : at + 4] == b"PK\1\2"
    data[at + 20 : at + 28] = struct.pack("<II", *sizes)
    (out / "hostile" / f"{name}.pth").write_bytes(data)


edit("double_entry", "double_entry", (b"archive/data/1", b"archive/data/0"))
in_zip("fine", dictionary(tensor()))
headers("lying_size", "fine", "archive/data/0", (2**31, 2**31))
headers("lying_packed_size", "fine", "archive/data/0", (8, 2**31))
headers("overlap", "fine", "archive/version", (60, 60))
(out / "hostile" / "fine.pth").unlink()
# Valid, but what it remembers has the largest number that there is.
zipped("memo", dictionary(tensor() + b"r\xff\xff\xff\xffs" + text("v") + b"j\xff\xff\xff\xff"))
(out / "hostile" / "not_a_checkpoint.pth").write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 64)
(out / "hostile" / "empty.pth").write_bytes(b"")

largest = max((p.stat().st_size, p.name) for p in out.rglob("*.*"))
print(f"{sum(p.stat().st_size for p in out.rglob('*.*'))} bytes, the largest {largest}")
