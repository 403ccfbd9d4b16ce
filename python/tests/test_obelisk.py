"""The Python package on the sample scans, and against nibabel's reading of them."""

import pathlib

import nibabel
import numpy
import pytest

import obelisk

REPOSITORY = pathlib.Path(__file__).parents[2]
WEIGHTS = REPOSITORY / "examples/weights/hippocampus.safetensors"
DATA = REPOSITORY / "examples/data"
SCAN = DATA / "imagesTs/hippocampus_041.nii.gz"
REFERENCE = DATA / "labelsTs/hippocampus_041.nii.gz"


def nifti(path: pathlib.Path) -> nibabel.Nifti1Image:
    image = nibabel.load(path)
    assert isinstance(image, nibabel.Nifti1Image)
    return image


@pytest.fixture(scope="session")
def model() -> obelisk.Model:
    return obelisk.load(WEIGHTS)


def test_a_scan_is_read_as_nibabel_reads_it() -> None:
    scan, affine = obelisk.read(SCAN)
    expected = nifti(SCAN)
    assert scan.dtype == numpy.float32
    numpy.testing.assert_array_equal(scan, expected.get_fdata(dtype=numpy.float32))
    numpy.testing.assert_allclose(affine, expected.affine, atol=1e-6)


def test_a_scan_is_segmented_as_its_reference_has_it(model: obelisk.Model) -> None:
    assert model.labels == {0: "background", 1: "Anterior", 2: "Posterior"}
    assert len(model.channels) == 1
    assert model.device in obelisk.adapters()
    scan, affine = obelisk.read(SCAN)
    labels = model.predict(scan, affine)
    assert labels.shape == scan.shape and labels.dtype == numpy.int32
    reference, _ = obelisk.read(REFERENCE)
    scores = obelisk.evaluate(labels, reference, [1, 1, 1], metrics="dice,hd95")
    for label in (1, 2):
        ours, theirs = labels == label, reference == label
        dice = 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())
        found = scores[label]["dice"]
        assert found is not None and abs(found - dice) < 1e-12 and dice > 0.8
        assert set(scores[label]) == {"dice", "hd95"}


def test_an_array_stored_another_way_gets_the_same_labels(model: obelisk.Model) -> None:
    scan, affine = obelisk.read(SCAN)
    labels = model.predict(scan, affine)
    # Axes in another order, the first one backwards, as a file may have them; not contiguous in memory.
    turned = scan.transpose(2, 0, 1)[::-1]
    there = affine[:, [2, 0, 1, 3]]
    there[:3, 3] += (scan.shape[2] - 1) * there[:3, 0]
    there[:3, 0] *= -1
    numpy.testing.assert_array_equal(model.predict(turned, there), labels.transpose(2, 0, 1)[::-1])
    numpy.testing.assert_array_equal(model.predict(scan[None], affine), labels)


def test_probabilities_sum_to_one_and_have_the_labels_where_they_are_highest(model: obelisk.Model) -> None:
    scan, affine = obelisk.read(SCAN)
    probabilities = model.probabilities(scan, affine)
    assert probabilities.shape == (3, *scan.shape)
    numpy.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-5)
    highest = probabilities.argmax(axis=0)
    assert (highest == model.predict(scan, affine)).mean() > 0.999
    assert not numpy.array_equal(model.probabilities(scan, affine, mirroring=True), probabilities)


def test_a_model_of_nnunet_gives_nnunets_labels() -> None:
    folder = REPOSITORY / "tests/reference/nnunet/resenc"
    model = obelisk.load(folder / "model")
    (scan_file,) = sorted((folder / "imagesTs").glob("*_0000.nii.gz"))[:1]
    (label_file,) = sorted((folder / "expected").glob("*.nii.gz"))[:1]
    scan, affine = obelisk.read(scan_file)
    expected, _ = obelisk.read(label_file)
    assert (model.predict(scan, affine) == expected).mean() > 0.999
    with pytest.raises(obelisk.WeightsError, match="labels only"):
        model.probabilities(scan, affine)


def test_labels_are_written_once(tmp_path: pathlib.Path) -> None:
    affine = numpy.diag([2.0, 1.0, 1.5, 1.0])
    labels = numpy.zeros((4, 5, 6), dtype=numpy.uint8)
    labels[1, 2, 3] = 2
    path = tmp_path / "labels.nii.gz"
    obelisk.write_labels(path, labels, affine)
    written = nifti(path)
    numpy.testing.assert_array_equal(numpy.asarray(written.dataobj), labels)
    numpy.testing.assert_allclose(written.affine, affine)
    with pytest.raises(obelisk.ScanError, match="exists"):
        obelisk.write_labels(path, labels, affine)
    obelisk.write_labels(path, labels * 2, affine, overwrite=True)
    assert numpy.asarray(nifti(path).dataobj).max() == 4


def test_what_is_wrong_is_said(model: obelisk.Model, tmp_path: pathlib.Path) -> None:
    scan, affine = obelisk.read(SCAN)
    with pytest.raises(obelisk.WeightsError, match="nowhere"):
        obelisk.load(tmp_path / "nowhere.safetensors")
    with pytest.raises(obelisk.DeviceError, match="no such adapter"):
        obelisk.load(WEIGHTS, adapter="no such adapter")
    with pytest.raises(ValueError, match="configurations"):
        obelisk.load(WEIGHTS, configuration="3d_fullres")
    with pytest.raises(obelisk.ScanError, match="nowhere"):
        obelisk.read(tmp_path / "nowhere.nii.gz")
    with pytest.raises(ValueError, match="shape"):
        model.predict(scan[0], affine)
    with pytest.raises(ValueError, match="no voxels"):
        model.predict(scan[:0], affine)
    with pytest.raises(ValueError, match="4 × 4"):
        model.predict(scan, affine[:3])
    with pytest.raises(obelisk.ScanError, match="singular"):
        model.predict(scan, numpy.zeros((4, 4)))
    with pytest.raises(obelisk.ScanError, match="channel"):
        model.predict(numpy.stack([scan, scan]), affine)
    holed = scan.copy()
    holed[0, 0, 0] = numpy.nan
    with pytest.raises(obelisk.ScanError, match="1 voxels of the scan are not finite"):
        model.predict(holed, affine)
    labels = numpy.zeros((2, 2, 2))
    with pytest.raises(obelisk.ScanError, match="whole numbers"):
        obelisk.evaluate(labels + 0.5, labels, [1, 1, 1])
    with pytest.raises(obelisk.ScanError, match="whole numbers"):
        obelisk.evaluate(numpy.full((2, 2, 2), 1 << 32), labels, [1, 1, 1])
    with pytest.raises(obelisk.ScanError, match="whole numbers"):
        obelisk.evaluate(labels + numpy.nan, labels, [1, 1, 1])
    with pytest.raises(ValueError, match="shape"):
        obelisk.evaluate(labels, labels[0], [1, 1, 1])
    with pytest.raises(ValueError, match="no metric"):
        obelisk.evaluate(labels, labels, [1, 1, 1], metrics="likeness")
    with pytest.raises(ValueError, match="above 0"):
        obelisk.evaluate(labels, labels, [1, 0, 1])
    for error in (obelisk.ScanError, obelisk.WeightsError, obelisk.DeviceError, obelisk.TooLargeError):
        assert issubclass(error, obelisk.Error)
