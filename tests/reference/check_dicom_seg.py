# /// script
# requires-python = ">=3.10"
# dependencies = ["highdicom==0.28.*", "nibabel==5.*", "numpy==2.*", "pydicom==3.*"]
# ///
"""Reads a DICOM segmentation with highdicom and pydicom, and compares it with its series and with the same labels as NIfTI.

    check_dicom_seg.py SERIES SEG.dcm LABELS.nii.gz

Every voxel and its place; each frame's image, position and segment; patient, study and frame of reference. Ends with 1 where
anything differs. LABELS hold the value in a segment's description.
"""

import pathlib
import sys

import highdicom
import nibabel
import numpy as np
import pydicom

series, seg_path, labels_path = sys.argv[1:]
path = pathlib.Path(series)
images = [pydicom.dcmread(p, stop_before_pixels=True) for p in (sorted(path.iterdir()) if path.is_dir() else [path])]
by_uid = {image.SOPInstanceUID: image for image in images}
seg = highdicom.seg.segread(seg_path)
labels = nibabel.load(labels_path)
expected = np.asarray(labels.dataobj).astype(int)

first = images[0]
for name in [
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "FrameOfReferenceUID",
]:
    assert getattr(seg, name) == getattr(first, name), name
assert seg.SeriesInstanceUID != first.SeriesInstanceUID
[referenced] = seg.ReferencedSeriesSequence
assert referenced.SeriesInstanceUID == first.SeriesInstanceUID
assert {i.ReferencedSOPInstanceUID for i in referenced.ReferencedInstanceSequence} == set(by_uid)

# Segments: names, codes and colours.
values = {}
for number in seg.segment_numbers:
    segment = seg.get_segment_description(number)
    values[number] = int(segment.SegmentDescription.split()[-1])
    kind = segment.segmented_property_type
    side = [c.CodeMeaning for c in kind.get("SegmentedPropertyTypeModifierCodeSequence", [])]
    print(number, segment.segment_label, "|", kind.meaning, kind.value, *side, "| Lab", segment.RecommendedDisplayCIELabValue)

# Each frame: its image, and where it lies.
for n, frame in enumerate(seg.PerFrameFunctionalGroupsSequence):
    [derivation] = frame.DerivationImageSequence
    [source] = derivation.SourceImageSequence
    image = by_uid[source.ReferencedSOPInstanceUID]
    assert image.SOPClassUID == source.ReferencedSOPClassUID
    place = image
    if "ReferencedFrameNumber" in source:
        place = image.PerFrameFunctionalGroupsSequence[source.ReferencedFrameNumber - 1].PlanePositionSequence[0]
    own = frame.PlanePositionSequence[0].ImagePositionPatient
    assert np.allclose(own, place.ImagePositionPatient, atol=1e-6), n

# Voxels by highdicom's volume: it places frames by their positions, and fills in those that are left out.
volume = seg.get_volume(combine_segments=False, rescale_fractional=False, allow_missing_positions=True)
lps = np.diag([-1.0, -1, 1, 1])
grid = np.zeros(expected.shape, int)
inverse = np.linalg.inv(labels.affine)
count = 0
for s, number in enumerate(seg.segment_numbers):
    index = np.argwhere(volume.array[..., s] > 0)
    if len(index) == 0:
        continue
    world = np.c_[index, np.ones(len(index))] @ (lps @ volume.affine).T
    at = world @ inverse.T
    voxel = np.round(at[:, :3]).astype(int)
    off = np.abs(at[:, :3] - voxel).max()
    assert off < 0.01, f"segment {number} lies {off} voxels off the grid"
    assert (grid[tuple(voxel.T)] == 0).all()
    grid[tuple(voxel.T)] = values[number]
    count += len(index)
assert np.array_equal(grid, expected), f"{(grid != expected).sum()} voxels differ"

# And frame by frame from the images, as viewers do.
frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
assert frames.sum() == count == (expected != 0).sum()
if "NumberOfFrames" not in first:
    uids = [f.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID for f in seg.PerFrameFunctionalGroupsSequence]
    by_instance = seg.get_pixels_by_source_instance(
        list(dict.fromkeys(uids)), combine_segments=False, assert_missing_frames_are_empty=True
    )
    assert by_instance.sum() == count
print(f"{seg_path}: {len(frames)} frames, {count} voxels of {len(values)} segments, all where the images and {labels_path} have them")
