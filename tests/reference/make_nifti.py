# /// script
# requires-python = ">=3.11"
# dependencies = ["nibabel==5.4.2", "numpy==2.4.6", "safetensors==0.8.0"]
# ///
"""Writes small NIfTI files of every kind that the reader must understand, or refuse, with nibabel's answers.

    python make_nifti.py        (or: uv run make_nifti.py)

nifti/NAME.nii[.gz]   the files
nifti/expected.json   per readable file nibabel's affine, shape, zooms and axis codes; per broken file a part of the
                      message that the reader must give
nifti/expected.safetensors   the voxels as f32 [C, X, Y, Z] of nibabel's float64 array
"""

import gzip
import json
import pathlib

import nibabel as nib
import numpy as np
from safetensors.numpy import save_file

out = pathlib.Path(__file__).parent / "nifti"
out.mkdir(exist_ok=True)
for old in out.iterdir():
    old.unlink()
random = np.random.default_rng(7)
SHAPE = (5, 4, 3)
expected, voxels = {}, {}


def rotation(a, b, c):
    ca, sa, cb, sb, cc, sc = np.cos(a), np.sin(a), np.cos(b), np.sin(b), np.cos(c), np.sin(c)
    return (
        np.array([[1, 0, 0], [0, ca, -sa], [0, sa, ca]])
        @ np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
        @ np.array([[cc, -sc, 0], [sc, cc, 0], [0, 0, 1]])
    )


def affine(matrix, origin=(-12.5, 30.25, 7.0)):
    full = np.eye(4)
    full[:3, :3] = matrix
    full[:3, 3] = origin
    return full


OBLIQUE = affine(rotation(0.2, -0.3, 0.4) @ np.diag([0.7, 1.25, 3.0]))


def data(dtype=np.int16, shape=SHAPE, low=-100, high=100):
    if np.dtype(dtype).kind == "u":
        low = 0
    values = random.integers(low, high, shape)
    if np.dtype(dtype).kind == "f":
        values = values + random.random(shape)
    return values.astype(dtype)


def image(array, sform=OBLIQUE, sform_code=1, qform=None, qform_code=0, version=1, big=False, slope=None, units="mm"):
    kind, header = {1: (nib.Nifti1Image, nib.Nifti1Header), 2: (nib.Nifti2Image, nib.Nifti2Header)}[version]
    h = header(endianness=">" if big else "<")
    h.set_data_dtype(array.dtype)
    img = kind(array, None, h)
    img.header.set_data_dtype(array.dtype)
    if sform is not None:
        img.header.set_zooms(tuple(nib.affines.voxel_sizes(sform)) + (1,) * (array.ndim - 3))
        img.header.set_sform(sform, sform_code)
    if qform is not None:
        img.header.set_qform(qform, qform_code)
    img.header.set_xyzt_units(units, "sec" if array.ndim > 3 else None)
    if slope is not None:
        img.header["scl_slope"], img.header["scl_inter"] = slope
    return img


def raw(img, slope=None):
    """The file's bytes, with scaling fields forced (nibabel chooses its own when it writes)."""
    content = bytearray(img.to_bytes())
    if slope is not None:
        big = ">" if img.header.endianness == ">" else "<"
        if isinstance(img, nib.Nifti2Image):
            content[176:192] = np.array(slope, big + "f8").tobytes()
        else:
            content[112:120] = np.array(slope, big + "f4").tobytes()
    return content


def patch(content, at, value, dtype):
    field = np.array(value, dtype).tobytes()
    content[at : at + len(field)] = field
    return content


def keep(name, content, **notes):
    path = out / name
    path.write_bytes(bytes(content))
    img = nib.load(path) if "read_as" not in notes else notes.pop("read_as")
    array = img.get_fdata()
    squeezed = array.reshape(array.shape[:3] + tuple(n for n in array.shape[3:] if n > 1))
    squeezed = squeezed.reshape(squeezed.shape + (1,) * (3 - squeezed.ndim))
    channels = squeezed[None] if squeezed.ndim == 3 else np.moveaxis(squeezed, -1, 0)
    voxels[name] = np.ascontiguousarray(channels.astype(np.float32))
    expected[name] = {
        "affine": img.affine.tolist(),
        "shape": list(channels.shape),
        "zooms": [float(z) for z in img.header.get_zooms()[:3]],
        "axcodes": "".join(nib.aff2axcodes(img.affine)),
        "qform_code": int(img.header["qform_code"]),
        "sform_code": int(img.header["sform_code"]),
        "version": 2 if isinstance(img, nib.Nifti2Image) else 1,
        **notes,
    }


def refuse(name, content, message):
    (out / name).write_bytes(bytes(content))
    expected[name] = {"error": message}


TYPES = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64, np.float32, np.float64]
for dtype in TYPES:
    name = np.dtype(dtype).name
    array = data(dtype)
    if np.dtype(dtype).kind in "iu":
        limits = np.iinfo(dtype)
        array[0, 0, 0] = max(limits.min, -(2**40))
        array[-1, -1, -1] = min(limits.max, 2**40)
    keep(f"{name}.nii", raw(image(array)))
    keep(f"{name}_big.nii", raw(image(array, big=True)))
    keep(f"{name}_v2.nii.gz", gzip.compress(raw(image(array, version=2)), mtime=0))
    keep(f"{name}_v2_big.nii.gz", gzip.compress(raw(image(array, version=2, big=True)), mtime=0))

# intensity scaling
for name, slope in {
    "slope_2": (2.5, -3),
    "slope_nan": (np.nan, np.nan),
    "slope_zero": (0, 7),
    "slope_inf": (np.inf, 0),
    "slope_one_inter": (1, -1024),
    "slope_negative": (-0.1, 0.3),
}.items():
    keep(f"{name}.nii", raw(image(data()), slope))
    keep(f"{name}_v2.nii", raw(image(data(), version=2), slope))
keep("slope_float.nii", raw(image(data(np.float32)), (0.1, 5)))
refuse("slope_with_nan_inter.nii", raw(image(data()), (2, np.nan)), "intercept")

# containers
plain = raw(image(data()))
keep("gz.nii.gz", gzip.compress(plain, mtime=0))
keep("members.nii.gz", gzip.compress(plain[:100], mtime=0) + gzip.compress(plain[100:400], mtime=0)
     + gzip.compress(b"", mtime=0) + gzip.compress(plain[400:], mtime=0))
keep("padded.nii.gz", gzip.compress(plain, mtime=0) + bytes(64))
keep("gzip_inside.nii", gzip.compress(plain, mtime=0), read_as=nib.Nifti1Image.from_bytes(bytes(plain)))
keep("plain_inside.nii.gz", plain, read_as=nib.Nifti1Image.from_bytes(bytes(plain)))
img = image(data())
img.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a remark" * 9))
keep("extension.nii", raw(img))
keep("extension_v2.nii.gz", gzip.compress(nib.Nifti2Image(data(), OBLIQUE, img.header).to_bytes(), mtime=0))
content = raw(image(data()))
keep("offset_past_empty_extension.nii", patch(content[:352] + bytes(32) + content[352:], 108, 384, "<f4"))
content = raw(image(data()))
# nibabel itself takes the header for voxels here
keep("offset_zero.nii", patch(content[:], 108, 0, "<f4"), read_as=nib.Nifti1Image.from_bytes(bytes(content)))

# where it lies
keep("oblique.nii", raw(image(data())))
keep("neither.nii", raw(image(data(), sform_code=0)))
content = raw(image(data(), sform_code=0))
keep("neither_no_size.nii", patch(content, 80, [0, 0, 0], "<f4"), undeclared=True)
keep("qform.nii", raw(image(data(), sform=None, qform=OBLIQUE, qform_code=1)))
left_handed = affine(rotation(-0.5, 0.1, 2.0) @ np.diag([0.9, 0.9, -2.2]))
keep("qform_qfac.nii", raw(image(data(), sform=None, qform=left_handed, qform_code=2)))
keep("qform_half_turn.nii", raw(image(data(), sform=None, qform=affine(np.diag([-1.0, -1.0, 2.0])), qform_code=1)))
keep("qform_v2.nii", raw(image(data(), sform=None, qform=OBLIQUE, qform_code=1, version=2)))
content = raw(image(data(), sform=None, qform=OBLIQUE, qform_code=1))
keep("qform_qfac_zero.nii", patch(content, 76, 0, "<f4"))
keep("both.nii", raw(image(data(), qform=left_handed, qform_code=1)), zooms_of_affine=True)
keep("both_sform_zero.nii", raw(image(data(), sform_code=0, qform=left_handed, qform_code=3)))
shear = affine(np.array([[1, 0.6, 0], [0, 1, -0.7], [0.3, 0, 2.0]]))
keep("shear.nii", raw(image(data(), sform=shear)))
tie = affine(np.array([[1, 1, 0], [1, -1, 0], [0, 0, 1]]) / np.sqrt(2))
keep("diagonal_tie.nii", raw(image(data(), sform=tie)))
for index, code in enumerate(["LPI", "ASR", "SPL", "RSA", "IRP"]):
    target = nib.orientations.axcodes2ornt(code)
    matrix = np.zeros((3, 3))
    for axis, (world, sign) in enumerate(target):
        matrix[int(world), axis] = sign * (0.8, 1.1, 2.5)[axis]
    keep(f"{code}.nii", raw(image(data(), sform=affine(rotation(0.1, 0.05 * index, -0.1) @ matrix))))

# axes
keep("channels.nii.gz", gzip.compress(raw(image(data(shape=SHAPE + (2,)))), mtime=0))
keep("channels_5d.nii", raw(image(data(shape=SHAPE + (1, 3)))))
keep("time_of_one.nii", raw(image(data(shape=SHAPE + (1,)))))
keep("slice.nii", raw(image(data(shape=(6, 5)), sform=None)))
keep("slice_of_volume.nii", raw(image(data(shape=(6, 1, 5)))))
refuse("two_more_axes.nii", raw(image(data(shape=SHAPE + (2, 2)))), "more than one axis beyond space")

# non-finite voxels
array = data(np.float32)
array[1, 2, 0] = np.nan
array[0, 0, 1] = np.inf
array[3, 3, 2] = -np.inf
keep("non_finite.nii", raw(image(array)), non_finite=3)
finite = array[np.isfinite(array)]
voxels["non_finite.nii"] = np.nan_to_num(array, nan=finite.min(), neginf=finite.min(), posinf=finite.max())[None]
refuse("all_nan.nii", raw(image(np.full(SHAPE, np.nan, np.float32))), "none of its voxels")

# what must be refused
def broken(name, at, value, dtype, message):
    refuse(name, patch(raw(image(data())), at, value, dtype), message)

broken("bitpix.nii", 72, 8, "<i2", "bitpix")
broken("dim_zero.nii", 42, 0, "<i2", "not all positive")
broken("dim_negative.nii", 44, -4, "<i2", "not all positive")
broken("dims_9.nii", 40, 9, "<i2", "9 dimensions")
broken("dims_huge.nii", 40, [4, 32767, 32767, 32767, 32767], "<i2", "is no scan's")
broken("type_unknown.nii", 70, 77, "<i2", "datatype code 77")
broken("offset_inside.nii", 108, 100, "<f4", "inside the header")
broken("offset_nan.nii", 108, np.nan, "<f4", "inside the header")
broken("offset_beyond.nii", 108, 1e6, "<f4", "cut off")
broken("sform_zero.nii", 280, np.zeros(12), "<f4", "singular")
broken("sform_nan.nii", 280, np.full(12, np.nan), "<f4", "singular or not finite")
broken("no_magic.nii", 344, 0, "<i4", "magic")
broken("pair.nii", 344, list(b"ni1\0"), "u1", "pair")
refuse("truncated.nii", plain[:-1], "cut off")
refuse("truncated_header.nii", plain[:200], "cut off")
refuse("truncated.nii.gz", gzip.compress(plain, mtime=0)[:-30], "cut off")
damaged = bytearray(gzip.compress(plain, mtime=0))
damaged[-8] ^= 1
refuse("checksum.nii.gz", damaged, "damaged")
refuse("empty.nii", b"", "empty")
refuse("text.nii", b"patient,age\n1,50\n" * 30, "not a NIfTI file")
rgb = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
refuse("rgb.nii", nib.Nifti1Image(rgb, OBLIQUE).to_bytes(), "RGB")
refuse("complex.nii", nib.Nifti1Image(np.zeros(SHAPE, np.complex64), OBLIQUE).to_bytes(), "complex")

(out / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")
save_file(voxels, out / "expected.safetensors")
print(len(expected), "files,", sum(p.stat().st_size for p in out.iterdir()), "bytes")
