"""Segment 3-D scans on any GPU: networks of obelisk, nnU-Net and brainchop on numpy arrays.

>>> model = obelisk.load("hippocampus.safetensors")
>>> scan, affine = obelisk.read("scan.nii.gz")
>>> labels = model.predict(scan, affine)
"""

import os
from typing import Any, Optional, Sequence, Union

import numpy

from . import _obelisk
from ._obelisk import DeviceError, Error, ScanError, TooLargeError, WeightsError, __version__, adapters

__all__ = [
    "DeviceError",
    "Error",
    "Model",
    "ScanError",
    "TooLargeError",
    "WeightsError",
    "__version__",
    "adapters",
    "evaluate",
    "load",
    "read",
    "write_labels",
]

Path = Union[str, "os.PathLike[str]"]


def _labels(values: Any) -> numpy.ndarray:
    array = numpy.asarray(values)
    if array.dtype == numpy.int32:
        return array
    with numpy.errstate(invalid="ignore"):  # NaN, which is no whole number either
        whole = array.astype(numpy.int32)
    if not numpy.array_equal(whole, array):
        raise ScanError("labels are whole numbers of 32 bits, these are not")
    return whole


def _affine(affine: Any) -> numpy.ndarray:
    return numpy.asarray(affine, dtype=numpy.float64)


class Model:
    """A network on a device, made by :func:`load`."""

    def __init__(self, inner: "_obelisk.Model") -> None:
        self._inner = inner

    @property
    def arch(self) -> str:
        """The network's name."""
        return self._inner.arch

    @property
    def labels(self) -> "dict[int, str]":
        """Names of the labels by their numbers, the background first."""
        return self._inner.labels

    @property
    def channels(self) -> "list[str]":
        """The channels that a scan must have, in order."""
        return self._inner.channels

    @property
    def device(self) -> str:
        """The adapter that it runs on."""
        return self._inner.device

    def predict(self, scan: Any, affine: Any, *, mirroring: bool = False) -> numpy.ndarray:
        """The label of each voxel, an int32 array [X, Y, Z] on the scan's own grid.

        ``scan`` is an array [X, Y, Z], or [C, X, Y, Z] with the network's channels (MONAI's order); ``affine`` takes its indices
        to millimetres, RAS+, as nibabel and MONAI have it. ``mirroring`` also runs the scan mirrored and averages: along all axes,
        or as nnU-Net's model allows.
        """
        return self._inner.predict(numpy.asarray(scan, dtype=numpy.float32), _affine(affine), mirroring=mirroring)

    def probabilities(self, scan: Any, affine: Any, *, mirroring: bool = False) -> numpy.ndarray:
        """The probability of each label, a float32 array [labels, X, Y, Z] in the order of :attr:`labels`."""
        return self._inner.probabilities(
            numpy.asarray(scan, dtype=numpy.float32), _affine(affine), mirroring=mirroring
        )

    def __repr__(self) -> str:
        return repr(self._inner)


def load(
    path: Path,
    *,
    adapter: Optional[str] = None,
    configuration: Optional[str] = None,
    folds: Sequence[Union[str, int]] = (),
) -> Model:
    """Reads a network and opens a device for it. Nothing in the file is executed.

    ``path`` is a weights file of this program, a published checkpoint, nnU-Net's results folder, zip or checkpoint, or a folder of
    brainchop's. ``adapter`` is part of an adapter's name, as :func:`adapters` lists them; without, the fastest kind is taken.
    ``configuration`` and ``folds`` choose among those of nnU-Net's model.
    """
    chosen = [str(fold) for fold in folds]
    return Model(_obelisk.load(path, adapter=adapter, configuration=configuration, folds=chosen))


def read(path: Path) -> "tuple[numpy.ndarray, numpy.ndarray]":
    """A scan (NIfTI, MGZ or NRRD) as a float32 array [X, Y, Z], or [C, X, Y, Z] with channels, and its affine."""
    return _obelisk.read(path)


def write_labels(path: Path, labels: Any, affine: Any, *, overwrite: bool = False) -> None:
    """Writes a label map [X, Y, Z] in the smallest integer type that holds it. A file that is there is kept without ``overwrite``."""
    _obelisk.write_labels(path, _labels(labels), _affine(affine), overwrite=overwrite)


def evaluate(
    prediction: Any,
    reference: Any,
    spacing: Sequence[float],
    *,
    metrics: str = "all",
    tolerance: float = 1.0,
    ignore: Optional[int] = None,
) -> "dict[int, dict[str, Optional[float]]]":
    """Scores of each label that one of two label maps [X, Y, Z] has, by metric; None where one is not defined.

    ``spacing`` is in millimetres along the three axes. ``metrics`` are names with commas between them, such as ``"dice,hd95"``;
    ``tolerance`` is that of the surface Dice in millimetres. Voxels whose reference is ``ignore`` don't count.
    """
    chosen = [float(value) for value in spacing]
    return _obelisk.evaluate(
        _labels(prediction), _labels(reference), chosen, metrics=metrics, tolerance=tolerance, ignore=ignore
    )
