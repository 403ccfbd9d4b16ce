# /// script
# requires-python = ">=3.10"
# dependencies = ["nibabel==5.*", "numpy==2.*", "safetensors==0.*", "simpleitk==2.*"]
# ///
"""MGH, NRRD and pairs of NIfTI files of one small scan on an oblique grid, and what nibabel and SimpleITK read from them.

Writes volumes/NAME.ENDING, volumes/expected.json ({file: {"affine": voxel to RAS millimetres, "spacing": mm}}) and
volumes/expected.safetensors ({file: voxels [C, X, Y, Z]}). The voxels are a piece of a hippocampus scan of the Medical Segmentation
Decathlon, CC-BY-SA 4.0.
"""

import gzip
import json
import pathlib

import nibabel
import numpy as np
import SimpleITK as sitk
from safetensors.numpy import save_file

here = pathlib.Path(__file__).parent
folder = here / "volumes"
folder.mkdir(exist_ok=True)
for old in folder.iterdir():
    old.unlink()

scan = nibabel.load(here / "../../examples/data/imagesTr/hippocampus_026.nii.gz")
voxels = np.asarray(scan.dataobj)[10:19, 12:23, 9:16].astype(np.float32)
voxels = np.round(voxels / voxels.max() * 200)


def rotation(axis, degrees):
    angle = np.radians(degrees)
    turn = np.eye(3)
    a, b = [i for i in range(3) if i != axis]
    turn[a, a] = turn[b, b] = np.cos(angle)
    turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
    return turn


affine = np.eye(4)
affine[:3, :3] = rotation(0, 17) @ rotation(1, -31) @ rotation(2, 8) @ np.diag([-0.8, 1.1, 2.5])
affine[:3, 3] = [31.5, -40.25, 12.125]
expected = {}
arrays = {}
# NIfTI's world is right, anterior, superior; ITK's left, posterior, superior.
lps = np.diag([-1.0, -1, 1, 1])


def note(name, data, grid):
    data = np.asarray(data, np.float32)
    arrays[name] = np.ascontiguousarray(data[None] if data.ndim == 3 else np.moveaxis(data, -1, 0))
    spacing = np.linalg.norm(grid[:3, :3], axis=0)
    expected[name] = {"affine": grid.tolist(), "spacing": spacing.tolist()}


def by_nibabel(name):
    image = nibabel.load(folder / name)
    note(name, image.get_fdata(dtype=np.float32), image.affine)


def by_sitk(name):
    image = sitk.ReadImage(str(folder / name))
    grid = np.eye(4)
    grid[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) @ np.diag(image.GetSpacing())
    grid[:3, 3] = image.GetOrigin()
    note(name, sitk.GetArrayFromImage(image).transpose(2, 1, 0), lps @ grid)


for kind, ending in [("uint8", "mgz"), ("int16", "mgh"), ("int32", "mgz"), ("float32", "mgz"), ("uint16", "mgh")]:
    name = f"{kind}.{ending}"
    nibabel.save(nibabel.MGHImage(voxels.astype(kind), affine), folder / name)
    by_nibabel(name)
nibabel.save(nibabel.MGHImage(np.stack([voxels, voxels[::-1]], -1).astype(np.int16), affine), folder / "frames.mgz")
by_nibabel("frames.mgz")
plain = bytearray((folder / "int16.mgh").read_bytes())
plain[28:30] = bytes(2)
(folder / "no_place.mgh").write_bytes(plain)
# FreeSurfer's default, as of its conformed volumes: x to the left, y to inferior, z to anterior. nibabel has its transpose.
coronal = np.array([[-1.0, 0, 0, 4.5], [0, 0, 1, -3.5], [0, -1, 0, 5.5], [0, 0, 0, 1]])
note("no_place.mgh", voxels, coronal)
nibabel.save(nibabel.Nifti1Pair(voxels.astype(np.int16), affine), folder / "pair.hdr")
by_nibabel("pair.hdr")
pair = nibabel.Nifti2Pair(voxels.astype(np.float32), affine)
pair.header.set_data_dtype(">f4")
nibabel.save(pair, folder / "second.hdr")
by_nibabel("second.hdr")
(folder / "second.img.gz").write_bytes(gzip.compress((folder / "second.img").read_bytes(), mtime=0))
(folder / "second.img").unlink()

grid = lps @ affine
spacing = np.linalg.norm(grid[:3, :3], axis=0)


def itk(data):
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose(2, 1, 0)))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(grid[:3, 3].tolist())
    image.SetDirection((grid[:3, :3] / spacing).ravel().tolist())
    return image


for name, kind, compress in [
    ("int16.nrrd", np.int16, True),
    ("uint8_raw.nrrd", np.uint8, False),
    ("double.nrrd", np.float64, True),
    ("uint32.nrrd", np.uint32, False),
    ("beside.nhdr", np.float32, False),
    ("beside_gzip.nhdr", np.int16, True),
]:
    sitk.WriteImage(itk(voxels.astype(kind)), str(folder / name), compress)
    by_sitk(name)


def by_hand(name, lines, data, read=True):
    header = "\n".join(["NRRD0005", "# by hand", *lines, "", ""])
    (folder / name).write_bytes(header.encode() + data)
    if read:
        by_sitk(name)


def vectors(matrix):
    return " ".join("(%s)" % ",".join(map(repr, map(float, column))) for column in matrix.T)


sizes = "sizes: 9 11 7"
big = voxels.astype(">i2").tobytes(order="F")
by_hand("ras_big.nrrd", ["Type: signed short int", "dimension: 3", "space: RAS", sizes,
        "space directions: " + vectors(affine[:3, :3]), "space units: \"mm\" \"mm\" \"mm\"", "key:=value: of a program",
        "endian: big", "encoding: gz", "space origin: " + vectors(affine[:3, 3:])], gzip.compress(big, mtime=0))
by_hand("las_skip.nrrd", ["type: short", "dimension: 3", "space: left-anterior-superior", sizes,
        "space directions: " + vectors(np.diag([-1, 1, 1]) @ affine[:3, :3]), "byte skip: 5", "endian: big", "encoding: raw",
        "space origin: " + vectors(np.diag([-1, 1, 1]) @ affine[:3, 3:])], b"extra" + big)
by_hand("spacings.nrrd", ["type: uchar", "dimension: 3", sizes, "spacings: 0.8 1.1 2.5", "encoding: raw"],
        voxels.astype(np.uint8).tobytes(order="F"))
# SimpleITK reads these as four axes; channels behind the space are those of the array.
two = np.stack([voxels, voxels[::-1]], -1)
by_hand("channels.nrrd", ["type: uint8", "dimension: 4", "space: RAS", "sizes: 9 11 7 2",
        "space directions: " + vectors(affine[:3, :3]) + " none", "encoding: raw", "space origin: " + vectors(affine[:3, 3:])],
        two.astype(np.uint8).tobytes(order="F"), read=False)
note("channels.nrrd", two, affine)

(folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
save_file(arrays, folder / "expected.safetensors")
for name in sorted(expected):
    print(name, arrays[name].shape, expected[name]["spacing"])
