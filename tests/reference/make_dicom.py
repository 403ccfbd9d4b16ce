# /// script
# requires-python = ">=3.10"
# dependencies = ["nibabel==5.*", "numpy==2.*", "pydicom==3.*", "python-gdcm==3.*", "safetensors==0.*", "simpleitk==2.*"]
# ///
"""DICOM series of small scans, and what SimpleITK reads from them.

    make_dicom.py CT.nii.gz                    writes dicom/: series, and what is in them
    make_dicom.py SCAN.nii.gz FOLDER [tilted]  writes a scan as a series of CT images, as it lies or on a tilted grid

dicom/NAME/ is a series, dicom/enhanced.dcm one in a file. dicom/expected.json has for each the affine (voxel to RAS millimetres) and
the UIDs of the images by slice; dicom/expected.safetensors its voxels [1, X, Y, Z]. Everything is compared with what SimpleITK (GDCM)
reads, but for 32 bits and many frames, which it reads otherwise. The voxels are a piece of TotalSegmentator's test CT, Apache-2.0.
"""

import json
import pathlib
import subprocess
import sys

import nibabel
import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
)
from safetensors.numpy import save_file

here = pathlib.Path(__file__).parent
ROOT = "1.2.826.0.1.3680043.10.1337"
lps = np.diag([-1.0, -1, 1, 1])


def rotation(axis, degrees):
    angle = np.radians(degrees)
    turn = np.eye(3)
    a, b = [i for i in range(3) if i != axis]
    turn[a, a] = turn[b, b] = np.cos(angle)
    turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
    return turn


def right_handed(voxels, affine):
    """The same scan with slices in the order of their normal."""
    if np.linalg.det(affine[:3, :3]) < 0:
        flip = np.eye(4)
        flip[2, 2], flip[2, 3] = -1, voxels.shape[2] - 1
        return voxels[:, :, ::-1], affine @ flip
    return voxels, affine


def number(value):
    """A decimal string of 16 characters."""
    return pydicom.valuerep.DSfloat(float(value), auto_format=True)


def patient(data, number_of_series, description, modality):
    data.SpecificCharacterSet = "ISO_IR 100"
    data.PatientName, data.PatientID = "Müller^Test", "T-1"
    data.PatientBirthDate, data.PatientSex = "19500101", "O"
    data.StudyInstanceUID, data.StudyID, data.StudyDescription = f"{ROOT}.1", "S1", "Phantoms"
    data.StudyDate, data.StudyTime, data.AccessionNumber, data.ReferringPhysicianName = "20200102", "030405", "A7", ""
    data.SeriesInstanceUID, data.SeriesNumber = f"{ROOT}.1.{number_of_series}", number_of_series
    data.SeriesDescription, data.Modality = description, modality
    data.FrameOfReferenceUID, data.PositionReferenceIndicator = f"{ROOT}.1.{number_of_series}.0", ""
    data.Manufacturer = "none"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"


def place(data, measures, orientation, position, affine, k):
    grid = lps @ affine
    sizes = np.linalg.norm(grid[:3, :3], axis=0)
    cosines = (grid[:3, :2] / sizes[:2]).T.ravel()
    orientation.ImageOrientationPatient = [number(c) for c in cosines]
    measures.PixelSpacing = [number(sizes[1]), number(sizes[0])]
    measures.SliceThickness = number(sizes[2])
    position.ImagePositionPatient = [number(p) for p in (grid @ [0, 0, k, 1])[:3]]
    return [position.ImagePositionPatient, orientation.ImageOrientationPatient, measures.PixelSpacing]


def pixels(data, stored, kind, bits):
    data.Rows, data.Columns = stored.shape[-2:]
    data.BitsAllocated, data.BitsStored, data.HighBit = 8 * kind.itemsize, bits, bits - 1
    data.PixelRepresentation = int(kind.kind == "i")
    data.PixelData = stored.astype(kind).tobytes()
    data["PixelData"].VR = "OB" if kind.itemsize == 1 else "OW"


def meta(data, syntax):
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
    data.file_meta.TransferSyntaxUID = syntax


# GDCM in a process of its own: SimpleITK has another one of the same names.
JPEG = """
import gdcm, sys
reader = gdcm.ImageReader()
reader.SetFileName(sys.argv[1])
assert reader.Read()
change = gdcm.ImageChangeTransferSyntax()
change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
change.SetInput(reader.GetImage())
assert change.Change()
writer = gdcm.ImageWriter()
writer.SetFileName(sys.argv[1])
writer.SetFile(reader.GetFile())
writer.SetImage(change.GetOutput())
assert writer.Write()
"""


def jpeg(path):
    """Compresses a file as JPEG lossless."""
    subprocess.run([sys.executable, "-c", JPEG, str(path)], check=True)


def series(folder, number_of_series, stored, affine, kind="<i2", bits=16, scaling=None, modality="CT", syntax=None, names=None):
    """Writes stored values [X, Y, Z]: the values that they mean, the affine as the files have it, and the images' UIDs."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = np.dtype(kind)
    uids, values = [], np.zeros(stored.shape, np.float32)
    for k in range(stored.shape[2]):
        data = Dataset()
        patient(data, number_of_series, folder.name, modality)
        data.SOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
        data.SOPInstanceUID = f"{ROOT}.1.{number_of_series}.{k + 1}"
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        # Images are numbered from above.
        data.InstanceNumber = stored.shape[2] - k
        place(data, data, data, data, affine, k)
        slope, intercept = scaling(k) if scaling else (1, 0)
        if scaling:
            data.RescaleSlope, data.RescaleIntercept = number(slope), number(intercept)
            slope, intercept = float(data.RescaleSlope), float(data.RescaleIntercept)
        pixels(data, stored[:, :, k].T, kind, bits)
        # Bits above those that are stored mean nothing.
        meant = stored[:, :, k].astype(np.int64) & ((1 << bits) - 1)
        if kind.kind == "i":
            meant = (meant ^ (1 << (bits - 1))) - (1 << (bits - 1))
        values[:, :, k] = meant.astype(np.float64) * slope + intercept
        written = syntax(k) if syntax else ExplicitVRLittleEndian
        meta(data, ExplicitVRLittleEndian if written in ("jpeg", RLELossless) else written)
        if written == ExplicitVRBigEndian:
            data.PixelData = stored[:, :, k].T.astype(kind.newbyteorder(">")).tobytes()
        if written == RLELossless:
            data.compress(RLELossless, generate_instance_uid=False)
        path = folder / (names(k) if names else f"{(k * 7) % stored.shape[2]:03}.dcm")
        data.save_as(path, enforce_file_format=True)
        if written == "jpeg":
            jpeg(path)
            assert pydicom.dcmread(path).SOPInstanceUID == data.SOPInstanceUID
        uids.append(str(data.SOPInstanceUID))
    return values, uids


def by_sitk(folder, values, affine):
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    image = sitk.ReadImage(list(files), sitk.sitkFloat64)
    grid = np.eye(4)
    grid[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) @ np.diag(image.GetSpacing())
    grid[:3, 3] = image.GetOrigin()
    assert np.allclose(lps @ grid, affine, atol=1e-4), (lps @ grid, affine)
    # It scales all slices as the first.
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0)


def enhanced(path, number_of_series, stored, affine, order):
    """One file; its frames are the slices in some order, each with a slope of its own."""
    data = Dataset()
    patient(data, number_of_series, "enhanced", "MR")
    data.SOPClassUID, data.SOPInstanceUID = EnhancedMRImageStorage, f"{ROOT}.1.{number_of_series}.1"
    data.ImageType, data.InstanceNumber = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], 1
    data.NumberOfFrames = len(order)
    shared, frames = Dataset(), []
    orientation, measures = Dataset(), Dataset()
    values = np.zeros(stored.shape, np.float32)
    for k in order:
        frame, position, transform = Dataset(), Dataset(), Dataset()
        place(data, measures, orientation, position, affine, k)
        slope, intercept = number(0.5 + k / 16), number(-3.25 * k)
        transform.RescaleSlope, transform.RescaleIntercept, transform.RescaleType = slope, intercept, "US"
        values[:, :, k] = stored[:, :, k].astype(np.float64) * float(slope) + float(intercept)
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [position], [transform]
        frames.append(frame)
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = [shared], frames
    pixels(data, np.stack([stored[:, :, k].T for k in order]), np.dtype("<i2"), 16)
    meta(data, ExplicitVRLittleEndian)
    data.save_as(path, enforce_file_format=True)
    return values, [str(data.SOPInstanceUID)] * len(order)


def report(path):
    """A report without pixels."""
    data = Dataset()
    patient(data, 99, "report", "SR")
    del data.SamplesPerPixel, data.PhotometricInterpretation
    data.SOPClassUID, data.SOPInstanceUID = pydicom.uid.BasicTextSRStorage, f"{ROOT}.1.99.1"
    data.ValueType, data.ContinuityOfContent = "CONTAINER", "SEPARATE"
    text = Dataset()
    text.RelationshipType, text.ValueType, text.TextValue = "CONTAINS", "TEXT", "Nothing to see."
    data.ContentSequence = [text]
    meta(data, ExplicitVRLittleEndian)
    data.save_as(path, enforce_file_format=True)


def whole(scan, folder, tilted):
    image = nibabel.load(scan)
    voxels, affine = right_handed(np.asarray(image.dataobj), image.affine)
    voxels = np.round(voxels).astype(np.int16)
    if tilted:
        turn = np.eye(4)
        turn[:3, :3] = rotation(0, 14) @ rotation(1, -23) @ rotation(2, 31)
        affine = turn @ affine
    values, _ = series(folder, 5, voxels, affine, scaling=lambda k: (1, 0))
    nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), affine), str(folder) + ".nii.gz")
    print(f"{folder}: {voxels.shape[2]} images; the same scan as {folder}.nii.gz")


def small(scan):
    folder = here / "dicom"
    image = nibabel.load(scan)
    voxels, affine = right_handed(np.asarray(image.dataobj), image.affine)
    i, j, k = [n // 3 for n in voxels.shape]
    voxels = np.clip(np.round(voxels[i : i + 40, j : j + 34, k : k + 12]), -1024, 3000).astype(np.int16)
    affine = affine.copy()
    affine[:3, 3] = np.round((affine @ [i, j, k, 1])[:3], 2)
    expected, arrays = {}, {}

    def note(name, values, grid, uids, read=None):
        if read is not None:
            assert np.array_equal(values, read.astype(np.float32)), name
        arrays[name] = np.ascontiguousarray(values[None])
        expected[name] = {"affine": grid.tolist(), "instances": uids}

    # As a scanner writes it; some names have no ending.
    values, uids = series(
        folder / "ct", 2, voxels.astype(np.int64) + 1024, affine, "<u2", 12, lambda k: (1, -1024),
        names=lambda k: f"IM{(k * 5) % 12:04}" + (".dcm" if k % 3 else ""),
    )
    assert np.array_equal(values, voxels)
    note("ct", values, affine, uids, by_sitk(folder / "ct", values, affine))

    oblique = np.eye(4)
    oblique[:3, :3] = rotation(0, 17) @ rotation(1, -31) @ rotation(2, 8) @ np.diag([-0.8, -1.1, 2.5])
    oblique[:3, 3] = [31.5, -40.25, 12.125]
    piece = voxels[5:27, 4:21, :10]
    syntaxes = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless, "jpeg", DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian]
    signed = [piece.astype(np.int64), (piece.astype(np.int64) & 0x1FFF) | 0x6000]
    # Where pixels are not compressed, the bits above the 13 that count are set.
    stored = np.stack([signed[k % 6 < 2][:, :, k] for k in range(10)], -1)
    values, uids = series(
        folder / "oblique", 3, stored, oblique, "<i2", 13, lambda k: (1 + k / 8, -7.5 * k), "MR", lambda k: syntaxes[k % 6],
    )
    scaled = np.stack([piece[:, :, k] * (1 + k / 8) - 7.5 * k for k in range(10)], -1).astype(np.float32)
    assert np.array_equal(values, scaled)
    note("oblique", values, oblique, uids)

    order = [3, 0, 6, 1, 7, 5, 2, 4]
    values, uids = enhanced(folder / "enhanced.dcm", 4, piece[:, :, :8].astype(np.int16), oblique, order)
    note("enhanced.dcm", values, oblique, uids)
    expected["enhanced.dcm"]["frames"] = [order.index(k) + 1 for k in range(8)]

    cube = piece[:7, :5, :3].astype(np.int64)
    for n, (kind, bits, stored) in enumerate([
        ("|u1", 8, cube // 8 & 0xFF), ("|i1", 8, cube // 16), ("<u4", 32, cube + 2**31), ("<i4", 32, cube * 65537),
        ("<u2", 16, cube + 0x8000),
    ]):
        name = f"{'signed' if 'i' in kind else 'unsigned'}{8 * np.dtype(kind).itemsize}"
        values, uids = series(folder / name, 10 + n, stored, affine, kind, bits)
        read = by_sitk(folder / name, values, affine) if bits < 32 else None
        note(name, values, affine, uids, read)
    report(folder / "report.dcm")
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    save_file(arrays, folder / "expected.safetensors")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        small(sys.argv[1])
    else:
        whole(sys.argv[1], pathlib.Path(sys.argv[2]), len(sys.argv) > 3)
