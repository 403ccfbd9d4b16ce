import os
from typing import Optional, Sequence, Union

import numpy
from numpy.typing import NDArray

__version__: str

class Error(Exception): ...
class ScanError(Error): ...
class WeightsError(Error): ...
class DeviceError(Error): ...
class TooLargeError(Error): ...

class Model:
    @property
    def arch(self) -> str: ...
    @property
    def labels(self) -> dict[int, str]: ...
    @property
    def channels(self) -> list[str]: ...
    @property
    def device(self) -> str: ...
    def predict(
        self, scan: NDArray[numpy.float32], affine: NDArray[numpy.float64], *, mirroring: bool = False
    ) -> NDArray[numpy.int32]: ...
    def probabilities(
        self, scan: NDArray[numpy.float32], affine: NDArray[numpy.float64], *, mirroring: bool = False
    ) -> NDArray[numpy.float32]: ...

def load(
    path: Union[str, "os.PathLike[str]"],
    *,
    adapter: Optional[str] = None,
    configuration: Optional[str] = None,
    folds: Sequence[str] = ...,
) -> Model: ...
def adapters() -> list[str]:
    """Names of the adapters of this machine, as `obelisk info` numbers them."""

def read(path: Union[str, "os.PathLike[str]"]) -> tuple[NDArray[numpy.float32], NDArray[numpy.float64]]: ...
def write_labels(
    path: Union[str, "os.PathLike[str]"],
    labels: NDArray[numpy.int32],
    affine: NDArray[numpy.float64],
    *,
    overwrite: bool = False,
) -> None: ...
def evaluate(
    prediction: NDArray[numpy.int32],
    reference: NDArray[numpy.int32],
    spacing: Sequence[float],
    *,
    metrics: str = "all",
    tolerance: float = 1.0,
    ignore: Optional[int] = None,
) -> dict[int, dict[str, Optional[float]]]: ...
